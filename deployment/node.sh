#!/usr/bin/env bash
# A node, until Ctrl-C:
#     deployment/node.sh FOLDER SERVER:PORT NUMBER [SETTINGS]
# FOLDER has ca.crt and node-NUMBER. NUMBER is the partition that it holds, from 0. SETTINGS are
# what is its own business, as 'data-dir="/data" device="cuda"'. It is started again when it ends:
# for a minute after a crash the server takes a node for one that is still there, and refuses it.
set -uo pipefail
folder=$1 server=$2 number=$3 settings=${4:-}
port=$((9500 + number)) # of its own processes; several nodes on one machine need several
node=
trap '[[ $node ]] && kill "$node" 2>/dev/null; wait; exit' INT TERM
while true; do
  flower-supernode --superlink "$server" --root-certificates "$folder/ca.crt" \
    --auth-supernode-private-key "$folder/node-$number" --port "$port" \
    --node-config "partition-id=$number $settings" &
  node=$!
  wait "$node"
  status=$? node=
  echo "the node ended with status $status; it starts again in 10 seconds"
  sleep 10 &
  wait $!
done
