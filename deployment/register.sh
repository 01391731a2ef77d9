#!/usr/bin/env bash
# Tell the server which nodes it may take, and Flower's command where the server is:
#     deployment/register.sh FOLDER [PORT [HOST]]
# with those of server.sh, whose HOST its certificate has to name.
# It writes the connection "fedta" into $FLWR_HOME/config.toml (~/.flwr unless that is set), and
# FOLDER/nodes.toml, which says which partition each node may stand for: the key nodes-file.
# Keys that are in nodes.toml already are left alone.
set -euo pipefail
folder=$(realpath "$1") port=${2:-9443}
home=${FLWR_HOME:-$HOME/.flwr}
mkdir -p "$home"
connection=$(printf '[superlink.fedta]\naddress = "%s:%s"\nroot-certificates = "%s"' \
  "${3:-127.0.0.1}" "$port" "$folder/ca.crt")
if ! grep -qs '^\[superlink.fedta\]' "$home/config.toml"; then
  printf '\n%s\n' "$connection" >>"$home/config.toml"
elif [[ $(<"$home/config.toml") != *"$connection"* ]]; then # keys would go to another server
  echo "$home/config.toml has another [superlink.fedta]: remove it there" >&2
  exit 1
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
