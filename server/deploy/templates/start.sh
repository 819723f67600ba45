#!/usr/bin/env bash
# Starts SuperLink, SuperExec and the proxy; starts again what ends, after 1, 2, 4 … 30 s; SIGTERM or SIGINT ends all.
# ZO_ASR_PROXY=0 leaves the proxy out, where nginx takes its place. Logs are in log/.
set -u
root={{root}}
export PATH={{bin}}:$PATH
export FLWR_HOME=$root/flwr-home
export HF_HOME=${HF_HOME:-$root/state/huggingface}
export PYTHONUNBUFFERED=1
{{exports}}
cd "$root" || exit 1
mkdir -p log state
umask 077

stopping=0
child=
supervisors=()

end_child() { # ends what keep() runs, with everything it started, within 15 s
  stopping=1
  [ -n "$child" ] || return
  kill -TERM -- "-$child" 2>/dev/null
  for _ in $(seq 150); do
    kill -0 -- "-$child" 2>/dev/null || return
    sleep 0.1
  done
  kill -KILL -- "-$child" 2>/dev/null
}

keep() { # NAME COMMAND…: runs a command for ever, in a process group of its own
  local name=$1 pause=1 began lived
  shift
  trap end_child TERM INT HUP
  set -m
  while [ "$stopping" = 0 ]; do
    began=$SECONDS
    "$@" >>"log/$name.log" 2>&1 </dev/null &
    child=$!
    wait "$child"
    lived=$((SECONDS - began))
    [ "$stopping" = 0 ] || break
    if [ "$lived" -gt 60 ]; then pause=1; fi
    echo "$(date -u +%FT%TZ) $name ended after $lived s (see log/$name.log); again in $pause s" >&2
    # what it left behind would hold its port
    kill -TERM -- "-$child" 2>/dev/null
    child=
    sleep "$pause" &
    wait $!
    pause=$((pause * 2 > 30 ? 30 : pause * 2))
  done
}

end_all() {
  local each
  stopping=1
  for each in "${supervisors[@]}"; do kill -TERM "$each" 2>/dev/null; done
}

trap end_all TERM INT HUP
keep superlink {{superlink}} &
supervisors+=($!)
keep superexec {{superexec}} &
supervisors+=($!)
if [ "${ZO_ASR_PROXY:-1}" != 0 ]; then
  keep proxy {{proxy}} &
  supervisors+=($!)
fi
echo "started; devices reach port {{port}}; stop with SIGTERM or Ctrl-C" >&2
for each in "${supervisors[@]}"; do
  # a signal interrupts wait: go on until the supervisor has really ended
  while kill -0 "$each" 2>/dev/null; do wait "$each"; done
done
echo "stopped" >&2
