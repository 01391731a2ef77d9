#!/usr/bin/env bash
# Tell the server which nodes it may take, and Flower's command where the server is:
#     deployment/register.sh FOLDER [PORT]
# It writes the connection "fedta" into $FLWR_HOME/config.toml (~/.flwr unless that is set).
set -euo pipefail
folder=$(realpath "$1") port=${2:-9443}
home=${FLWR_HOME:-$HOME/.flwr}
mkdir -p "$home"
if ! grep -qs '^\[superlink.fedta\]' "$home/config.toml"; then
  printf '\n[superlink.fedta]\naddress = "127.0.0.1:%s"\nroot-certificates = "%s"\n' \
    "$port" "$folder/ca.crt" >>"$home/config.toml"
fi
for key in "$folder"/node-*.pub; do
  flwr supernode register "$key" fedta
done
