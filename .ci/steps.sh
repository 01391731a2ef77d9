# For the scripts beside it. `step NAME COMMAND...` runs a command and says how long it took; $uv
# is the uv that fedta's environment has, for environments of their own; $folder goes at the end.
python=${PYTHON:-.venv/bin/python}

step() {
  local name=$1 start=$SECONDS
  shift
  echo "== $name"
  "$@"
  echo "== $name took $((SECONDS - start)) s"
}

own_folder() {
  uv=$("$python" -c "import uv; print(uv.find_uv_bin())")
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
}
