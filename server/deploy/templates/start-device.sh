#!/usr/bin/env bash
# Starts the worker and the SuperNode of device {{name}}; starts again what ends; SIGTERM or SIGINT ends both.
# ZO_ASR_BIN: the folder of flower-supernode and zo-asr, where they are not on PATH.
# ZO_ASR_SOCKET: where the two meet. ZO_ASR_SUPERLINK: another address of the server. Further arguments go to the worker.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || exit 1
cd "$here" || exit 1
umask 077
export PATH=${ZO_ASR_BIN:+$ZO_ASR_BIN:}$PATH
export FLWR_HOME=$here/flwr-home
export PYTHONUNBUFFERED=1
{{exports}}
# shellcheck source=/dev/null
. ./device.env || exit 1
socket=${ZO_ASR_SOCKET:-$here/worker.sock}
superlink=${ZO_ASR_SUPERLINK:-{{superlink}}}
if [ ! -r node.key ]; then
  echo "error: $here/node.key is missing: make it here with: zo-asr worker key $here" >&2
  exit 1
fi
if [ "${#socket}" -gt 100 ]; then
  echo "error: the socket's path $socket is longer than 100 characters: name a shorter one in ZO_ASR_SOCKET" >&2
  exit 1
fi
mkdir -p log state

stopping=0
child=
supervisors=()

end_child() { # ends what keep() runs, with everything it started; the worker first finishes its step
  stopping=1
  [ -n "$child" ] || return
  kill -TERM -- "-$child" 2>/dev/null
  for _ in $(seq 600); do
    kill -0 -- "-$child" 2>/dev/null || return
    sleep 0.1
  done
  kill -KILL -- "-$child" 2>/dev/null
}

keep() { # NAME PAUSE COMMAND…: runs a command for ever, in a process group of its own
  local name=$1 pause=$2 began lived
  shift 2
  trap end_child TERM INT HUP
  set -m
  while [ "$stopping" = 0 ]; do
    began=$SECONDS
    "$@" >>"log/$name.log" 2>&1 </dev/null &
    child=$!
    wait "$child"
    lived=$((SECONDS - began))
    [ "$stopping" = 0 ] || break
    echo "$(date -u +%FT%TZ) $name ended after $lived s (see log/$name.log); again in $pause s" >&2
    if [ "$name" = supernode ] && tail -n 20 log/supernode.log | grep -q "Exit Code: 305"; then
      echo "the server refused this device: its key is not enrolled yet, its clock is wrong, or it was cut off within" \
        "the last 60 s" >&2
    fi
    kill -TERM -- "-$child" 2>/dev/null
    child=
    sleep "$pause" &
    wait $!
  done
}

end_all() {
  local each
  stopping=1
  for each in "${supervisors[@]}"; do kill -TERM "$each" 2>/dev/null; done
}

trap end_all TERM INT HUP
keep worker 2 zo-asr worker --model "$ZO_ASR_MODEL" --data "$ZO_ASR_DATA" --listen "unix:$socket" --state "$here/state" \
  --node-key "$here/node.key" "$@" &
supervisors+=($!)
# the server refuses a device that was cut off until it has seen it offline, up to 60 s: the pause bounds the tries
keep supernode 10 flower-supernode --root-certificates ca.crt --superlink "$superlink" \
  --auth-supernode-private-key node.key --port {{runtime_port}} \
  --node-config "client-id={{client_id}} device-name=\"{{name}}\" worker-address=\"unix:$socket\"" &
supervisors+=($!)
echo "started device {{name}}; stop with SIGTERM or Ctrl-C; logs are in $here/log" >&2
for each in "${supervisors[@]}"; do
  while kill -0 "$each" 2>/dev/null; do wait "$each"; done
done
echo "stopped" >&2
