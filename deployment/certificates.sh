#!/usr/bin/env bash
# Certificates of the server, and a key for each node. On the machine that shall be the server:
#     deployment/certificates.sh FOLDER SERVER NODES
# SERVER is its name or address as the nodes know it, NODES how many there will be. A node gets
# ca.crt and its own node-N; everything else stays here.
set -euo pipefail
folder=$1 server=$2 nodes=$3
umask 077
mkdir -p "$folder"
cd "$folder"
if [[ -e ca.key ]]; then # new certificates would lock out every node that has these
  echo "$folder has certificates already: choose another folder, or remove this one" >&2
  exit 1
fi
case $server in
*[!0-9.]*) also="DNS:$server" ;;
*) also="IP:$server" ;;
esac
new_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }
new_key ca.key
openssl req -x509 -new -key ca.key -days 3650 -subj "/CN=fedta" -out ca.crt \
  -addext "basicConstraints=critical,CA:TRUE"
new_key server.key
openssl req -new -key server.key -subj "/CN=$server" -out server.csr
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 \
  -out server.crt -extfile <(echo "subjectAltName=$also,DNS:localhost,IP:127.0.0.1")
rm server.csr
for ((node = 0; node < nodes; node++)); do
  ssh-keygen -q -t ecdsa -b 384 -N "" -C "node-$node" -f "node-$node"
done
