#!/usr/bin/env bash
# The part of tpu_vm.sh that runs on a worker: worker.sh install | idle | start FLAGS | same FLAGS | status | stop [SECONDS] | logs
#
# `start` leaves the run behind in the background, so that it outlives the SSH session. What it leaves is in
# ~/gpt1_jax_run: log, flags, pid (of the program), status (with which it ended), stopped (empty: by `stop`).

set -euo pipefail
CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.."
left=$HOME/gpt1_jax_run

fail() {
  echo "$(hostname): $1" >&2
  exit 2
}

running() { [ -s "$left/pid" ] && grep -qs gpt1_jax.main "/proc/$(<"$left/pid")/cmdline"; }

status() {
  local word=ended
  if running; then
    echo "running, process $(<"$left/pid")"
  elif [ -s "$left/status" ]; then
    [ ! -e "$left/stopped" ] || word=stopped
    echo "$word $(<"$left/status")"
  elif [ -e "$left/pid" ]; then
    echo 'lost' # killed, or the machine was restarted
  else
    echo 'none'
  fi
}

case "${1:-}" in
  install)
    # The Python of the usual TPU image is 3.10.
    command -v python3.12 python3.11 python3.13 >/dev/null || {
      # A VM that has just booted upgrades itself. `update` does not wait for its lock; `install` does, if told to.
      for ((i = 0; i < 30; i++)); do
        sudo apt-get update -qq && break
        sleep 10
      done
      sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq python3.11 python3.11-venv
    }
    EXTRA=tpu
    source launch/venv.sh
    echo "$(hostname): set up"
    ;;
  idle)
    ! running || fail "run: Process $(<"$left/pid") is running. Stop it first (launch/tpu_vm.sh stop)."
    ;;
  start)
    shift
    bash launch/worker.sh idle
    mkdir -p "$left"
    rm -f "$left"/{pid,status,stopped}
    printf '\n%s: %s\n' "$(date -u +%FT%TZ)" "$*" >>"$left/log"
    printf '%q ' "$@" >"$left/flags"
    # shellcheck disable=SC2016 # its variables are for the inner shell
    nohup setsid bash -c '"$@" & echo $! >"$0/pid"; wait $!; echo $? >"$0/status"' \
      "$left" .venv/bin/python -m gpt1_jax.main "$@" >>"$left/log" 2>&1 </dev/null &
    until [ -s "$left/pid" ]; do sleep 0.1; done
    echo "$(hostname): started, process $(<"$left/pid")"
    ;;
  same) # whether what runs, if anything does, was started with these flags
    shift
    if running && [ -e "$left/flags" ] && [ "$(<"$left/flags")" != "$(printf '%q ' "$@")" ]; then
      fail "run: Another one is running ($(<"$left/flags")). Stop it first (launch/tpu_vm.sh stop), or give its flags."
    fi
    ;;
  status)
    echo "$(hostname): run: $(status)"
    [ ! -s "$left/log" ] || echo "  $(tail -n 1 "$left/log")"
    ;;
  stop)
    if running; then
      touch "$left/stopped"
      kill -TERM "$(<"$left/pid")"
      for ((i = 0; i < 5 * ${2:-600}; i++)); do
        running || break
        sleep 0.2
      done
      if running; then
        echo "$(hostname): It has not ended in ${2:-600} s. Killing it; the last checkpoint remains."
        kill -KILL "$(<"$left/pid")"
      fi
    fi
    echo "$(hostname): run: $(status)"
    ;;
  logs)
    if running; then
      exec tail -n 100 --pid="$(<"$left/pid")" -F "$left/log"
    fi
    [ -s "$left/log" ] || fail 'run: There is no log. Start a run first (launch/tpu_vm.sh run).'
    tail -n 100 "$left/log"
    ;;
  *)
    fail "${1:-worker.sh}: There is no such action. tpu_vm.sh calls this script; use that one."
    ;;
esac
