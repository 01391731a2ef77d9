#!/usr/bin/env bash
# The server, until Ctrl-C. It takes those nodes only whose keys were registered with it:
#     deployment/server.sh FOLDER [PORT]
# FOLDER is that of certificates.sh. Then, in another terminal: deployment/register.sh FOLDER.
set -euo pipefail
folder=$1 port=${2:-9443}
exec flower-superlink --host 0.0.0.0 --port "$port" --enable-supernode-auth \
  --ssl-certfile "$folder/server.crt" --ssl-keyfile "$folder/server.key" \
  --ssl-ca-certfile "$folder/ca.crt" --database "$folder/superlink.db" \
  --disable-runtime-dependency-installation
