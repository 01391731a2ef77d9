#!/usr/bin/env bash
# The server, until Ctrl-C. It takes those nodes only whose keys were registered with it:
#     deployment/server.sh FOLDER [PORT [HOST]]
# FOLDER is that of certificates.sh. Then, in another terminal: deployment/register.sh FOLDER.
# Only nodes have to show a key. Whoever else reaches the port can start runs, on the server and on
# every node: let nobody but the nodes reach it. HOST is the address of this machine to listen on,
# that of a private network for example; without it, on all.
set -euo pipefail
umask 077 # the database holds clients' updates
folder=$1 port=${2:-9443} host=${3:-0.0.0.0}
exec flower-superlink --host "$host" --port "$port" --enable-supernode-auth \
  --ssl-certfile "$folder/server.crt" --ssl-keyfile "$folder/server.key" \
  --ssl-ca-certfile "$folder/ca.crt" --database "$folder/superlink.db" \
  --disable-runtime-dependency-installation
