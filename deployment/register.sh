#!/usr/bin/env bash
# Tell the server which nodes it may take, and Flower's command where the server is:
#     deployment/register.sh FOLDER [PORT]
# It writes the connection "fedta" into $FLWR_HOME/config.toml (~/.flwr unless that is set), and
# FOLDER/nodes.toml, which says which partition each node may stand for: the key nodes-file.
# Keys that are in nodes.toml already are left alone.
set -euo pipefail
folder=$(realpath "$1") port=${2:-9443}
home=${FLWR_HOME:-$HOME/.flwr}
mkdir -p "$home"
if ! grep -qs '^\[superlink.fedta\]' "$home/config.toml"; then
  printf '\n[superlink.fedta]\naddress = "127.0.0.1:%s"\nroot-certificates = "%s"\n' \
    "$port" "$folder/ca.crt" >>"$home/config.toml"
fi
touch "$folder/nodes.toml"
for key in "$folder"/node-*.pub; do
  number=${key##*-}
  number=${number%.pub}
  grep -q " = $number\$" "$folder/nodes.toml" && continue
  answer=$(flwr supernode register "$key" fedta --format json) || true
  id=$(grep -oE '"node-id": *"?[0-9]+' <<<"$answer" | grep -oE '[0-9]+$') ||
    { echo "$answer" && exit 1; }
  echo "$id = $number" >>"$folder/nodes.toml"
  echo "node $number is registered, as $id"
done
