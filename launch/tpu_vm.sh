#!/usr/bin/env bash
# Creates a TPU slice, or several, as a queued resource, and runs one config on all of its workers:
#
#   export NAME=books ZONE=us-west4-a PROJECT=my-project TYPE=v5e-16 WORKDIR=gs://bucket/runs/books
#   bash launch/tpu_vm.sh create --spot     # asks for it and waits; Ctrl-C leaves the request in the queue
#   bash launch/tpu_vm.sh setup             # copies this tree, without what git ignores, to all workers; installs it
#   bash launch/tpu_vm.sh run configs/pretrain.py --config.data.source=shards:gs://bucket/books
#   bash launch/tpu_vm.sh status            # of the queued resource, the VMs and the run
#   bash launch/tpu_vm.sh logs              # follows the log of the first worker; --node=N --worker=N|all: of others
#   bash launch/tpu_vm.sh stop              # saves and ends the run; the same `run` resumes it
#   bash launch/tpu_vm.sh delete
#
# `run` checks every host (preflight.py), starts the program in the background of each worker and returns. Flags, which
# stand before the config:
#
#   --name= --zone= --project= --type= --version= --workdir= --node-count=   instead of NAME, ZONE, ... NODE_COUNT
#   --node-count=N   slices (1); libtpu and JAX learn from the VMs' metadata that they belong together
#   --version=V      runtime version of the VMs; without it, the usual one of the type
#   --spot           with `create` and `run --restart`: cheaper, and may be taken away at any time
#   --restart        with `run`: stays, and after a preemption or crash deletes the slice, creates it, sets it up and
#                    runs again; gives up after --failures=N (5) in a row. A run of ten polls or more resets the count.
#   --poll=SECONDS   time between two looks at the state (60)
#   --dry-run        prints the commands and runs none
#
# Exit status: 0 done; 2 an error that you can fix, and the message says how; 75 a run with --restart was stopped; 1
# otherwise. Not yet tried on hardware.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
usage='See the first lines of launch/tpu_vm.sh.'

say() { echo "$(date +%T) $*" >&2; }

# The command line.

action=${1:-}
case "$action" in
  create | setup | run | status | logs | stop | delete) shift ;;
  '') fail "tpu_vm.sh: No action is given. Use create, setup, run, status, logs, stop or delete. $usage" ;;
  *) fail "$action: There is no such action. Use create, setup, run, status, logs, stop or delete. $usage" ;;
esac
spot='' restart='' dry_run='' node=0 worker=0 failures=5 poll=60
while [ $# -gt 0 ]; do
  case "$1" in
    --name=* | --zone=* | --project=* | --type=* | --version=* | --workdir=* | --node-count=*)
      key=${1%%=*}
      declare "$(tr a-z- A-Z_ <<<"${key#--}")=${1#*=}"
      ;;
    --node=* | --worker=* | --failures=* | --poll=*) key=${1%%=*} && declare "${key#--}=${1#*=}" ;;
    --spot) spot=--spot ;;
    --restart) restart=1 ;;
    --dry-run) dry_run=1 ;;
    -*) fail "$1: There is no such flag before the config. Flags of the program follow the config. $usage" ;;
    *) break ;;
  esac
  shift
done

need() {
  local variable flag
  for variable in "$@"; do
    flag=--$(tr A-Z_ a-z- <<<"$variable")
    [ -n "${!variable:-}" ] || fail "$variable: It is not set. Export it, or give $flag=VALUE. $usage"
  done
}

whole_number() { [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1: It is ${2:-empty}. Give a whole number, 1 or more."; }

need NAME ZONE PROJECT
[[ $NAME =~ ^[a-z]([-a-z0-9]{0,60}[a-z0-9])?$ ]] ||
  fail "NAME: It is $NAME. Use small letters, digits and hyphens, a letter first, 62 characters at most."
whole_number NODE_COUNT "${NODE_COUNT:=1}"
whole_number --failures "$failures"
whole_number --poll "$poll"
if [ "$action" = create ] || [ -n "$restart" ]; then
  need TYPE
  case "$TYPE" in # cloud.google.com/tpu/docs/runtimes
    v[234]-[1-9]*) usual=tpu-ubuntu2204-base ;;
    v5e-[1-9]* | v5litepod-[1-9]*) usual=v2-alpha-tpuv5-lite TYPE=v5litepod-${TYPE#*-} ;;
    v5p-[1-9]*) usual=v2-alpha-tpuv5 ;;
    v6e-[1-9]*) usual=v2-alpha-tpuv6e ;;
    *) fail "TYPE: $TYPE is not a type of TPU. Use one such as v4-8, v5e-16, v5p-8 or v6e-8." ;;
  esac
  : "${VERSION:=$usual}"
fi
if [ "$action" = run ]; then
  need WORKDIR
  [[ $WORKDIR == gs://?* ]] || fail "WORKDIR: It is $WORKDIR, but the workers share no disk. Give a gs:// path."
  [ $# -gt 0 ] || fail "run: No config is given. Name one, such as configs/pretrain.py, and then the program's flags."
  [[ $1 != -* ]] || fail "$1: A config must come first. Name one, such as configs/pretrain.py."
  [[ " $* " != *' --dry-run '* ]] || fail '--dry-run: It follows the config, but is no flag of the program. Put it before.'
  config=$1 && shift
  program=$(printf '%q ' --distributed --config="$config" --workdir="$WORKDIR" "$@")
elif [ $# -gt 0 ]; then
  fail "$1: The action $action takes no such word. $usage"
fi
[ -n "$dry_run" ] || command -v gcloud >/dev/null ||
  fail 'gcloud: It is not installed. Install the Google Cloud CLI (cloud.google.com/sdk), or use --dry-run.'

cd "$(dirname "${BASH_SOURCE[0]}")/.."
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
where=(--zone="$ZONE" --project="$PROJECT")
everywhere=(--node=all --worker=all --batch-size=all) # at once: hosts wait for one another
describe=(gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format='value(state.state)')

queued() { # VERB [FLAG ...]: a command on the queued resource
  execute gcloud compute tpus queued-resources "$1" "$NAME" "${where[@]}" "${@:2}"
}

ask_workers() { queued ssh "${everywhere[@]}" --command="$1"; }

# COMMAND ANSWER: fails unless every worker prints `HOST: ANSWER`. Those that gcloud cannot reach it leaves out, with no
# more than a warning.
on_all_workers() {
  local hosts answers
  ask_workers "$1" | tee "$scratch/said" || return
  [ -z "$dry_run" ] || return 0
  hosts=$(count_hosts) || return 1
  answers=$(grep -c "^[^ ]*: $2" "$scratch/said") || true
  [ "$answers" = 0 ] || [ "$answers" != "$hosts" ] || return 0
  say "$NAME: $answers of $hosts workers have answered ('$2'). See above why, and run this again."
  return 1
}

# The queued resource.

gone='FAILED|SUSPENDING|SUSPENDED|DELETING|ABSENT' # states that do not become ACTIVE

state() { # its state; ABSENT if there is none, UNKNOWN if that cannot be found out
  local said
  if said=$("${describe[@]}" 2>&1); then
    echo "${said##*$'\n'}" # warnings stand above it
  elif [[ $said == *NOT_FOUND* ]]; then
    echo ABSENT
  else
    say "$said"
    echo UNKNOWN
  fi
}

# wait_for STATE [STATE|STATE]: 1 if it comes into one of the second instead, or ten looks in a row fail.
wait_for() {
  local now before='' unknown=0
  show "${describe[@]}"
  [ -z "$dry_run" ] || return 0
  while true; do
    now=$(state)
    [ "$now" = "$before" ] || say "$NAME: $now${before:+, was $before}. Looking every $poll s."
    before=$now
    [ "$now" != "$1" ] || return 0
    [[ ! $now =~ ^(${2:-})$ ]] || return 1
    if [ "$now" = UNKNOWN ]; then unknown=$((unknown + 1)); else unknown=0; fi
    [ "$unknown" -lt 10 ] || return 1
    sleep "$poll"
  done
}

create() {
  local nodes=(--node-id="$NAME")
  [ "$NODE_COUNT" = 1 ] || nodes=(--node-count="$NODE_COUNT") # NAME-0, NAME-1, ...
  queued create --accelerator-type="$TYPE" --runtime-version="$VERSION" "${nodes[@]}" ${spot:+"$spot"} &&
    wait_for ACTIVE "$gone"
}

delete() { queued delete --force --quiet; } # --force: the VMs too

node_names() {
  local i
  [ "$NODE_COUNT" != 1 ] || echo "$NAME"
  [ "$NODE_COUNT" = 1 ] || for ((i = 0; i < NODE_COUNT; i++)); do echo "$NAME-$i"; done
}

count_hosts() { # of all slices, as the service knows them
  local vm hosts total=0
  for vm in $(node_names); do
    hosts=$(execute gcloud compute tpus tpu-vm describe "$vm" "${where[@]}" \
      --format='value(networkEndpoints.len())') || return 1
    total=$((total + ${hosts:-0}))
  done
  [ -z "$dry_run" ] || total=HOSTS
  echo "$total"
}

# The run.

setup() {
  local archive=$scratch/gpt1_jax.tar.gz commit checksum=CHECKSUM file
  local files=(--exclude=./.git --exclude=./.venv --exclude=./runs --exclude=./shards --exclude=./beam
    --exclude="*_cache" --exclude=__pycache__ .)
  commit=$(git describe --always --dirty --abbrev=12 2>/dev/null) || commit=unknown
  # What git has or would add, so no data and no environments. A file that git has may be deleted here.
  if [ -e .git ] && git ls-files -z --cached --others --exclude-standard >"$scratch/listed"; then
    while IFS= read -r -d '' file; do
      if [ -e "$file" ]; then printf '%s\0' "$file"; fi
    done <"$scratch/listed" >"$scratch/files"
    files=(--null --files-from="$scratch/files")
  fi
  execute tar -czf "$archive" "${files[@]}" || return
  execute gcloud compute tpus queued-resources scp "$archive" "$NAME":gpt1_jax.tar.gz "${where[@]}" \
    "${everywhere[@]}" || return
  [ -n "$dry_run" ] || checksum=$(cksum <"$archive") # not sha256sum, which macOS lacks
  # A worker that gcloud did not reach has no archive, or an older one. Files of an earlier tree go, .venv stays.
  on_all_workers "set -e
[ \"\$(cksum <gpt1_jax.tar.gz)\" = '$checksum' ] || {
  echo \"\$(hostname): gpt1_jax.tar.gz: It is not the archive that was copied. Run setup again.\" >&2
  exit 1
}
mkdir -p gpt1_jax && cd gpt1_jax
[ ! -f launch/worker.sh ] || bash launch/worker.sh idle
find . -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
tar -xzf ../gpt1_jax.tar.gz
echo $(printf %q "$commit") >.commit
bash launch/worker.sh install" 'set up'
}

start() {
  local hosts
  hosts=$(count_hosts) || return 1
  ask_workers "cd gpt1_jax && .venv/bin/python launch/preflight.py --workdir=$(printf %q "$WORKDIR") \
--hosts=$hosts --run=$(date +%s) -- $program" &&
    on_all_workers "bash gpt1_jax/launch/worker.sh start $program" 'started, process'
}

look() { show_runs=$(ask_workers 'bash gpt1_jax/launch/worker.sh status') && has ''; } # no answer tells nothing

has() { grep -qE "^[^ ]*: run: ($1)" <<<"$show_runs"; }

tell() { grep '^[^ ]*: run: ' <<<"$show_runs" | sort -u | while read -r line; do say "$line"; done; }

# Looks until the run has ended: 0 well; 75 by `stop`; 2 by an error of the user; 1 otherwise, or the slice is gone.
watch_run() {
  local looks=0 blind=0 torn=0
  calm=''
  say "$NAME: Looking at the run every $poll s (bash gpt1_jax/launch/worker.sh status, on all workers)."
  while true; do
    if look 2>"$scratch/errors"; then
      blind=0
      if has running; then
        [ $((looks % 10)) -ne 0 ] || tell
        looks=$((looks + 1))
        [ "$looks" -lt 10 ] || calm=1
        # One that crashes leaves the others waiting; one that is a little slower to end does not.
        if has 'ended [^0]|lost' && torn=$((torn + 1)) && [ "$torn" -ge 3 ]; then
          tell
          say 'The run has ended on some workers. Stopping the others.'
          ask_workers 'bash gpt1_jax/launch/worker.sh stop 60' || true
          return 1
        fi
      else
        tell
        if has 'stopped'; then return 75; fi
        if has 'ended 2$'; then return 2; fi
        if has 'ended [^0]|lost|none' || ! has 'ended 0$'; then return 1; fi
        return 0
      fi
    else
      blind=$((blind + 1))
      case "$(state)" in
        ACTIVE | UNKNOWN) [ "$blind" -lt 10 ] || { cat "$scratch/errors" >&2 && return 1; } ;;
        *)
          say "$NAME: It was taken away."
          return 1
          ;;
      esac
    fi
    sleep "$poll"
  done
}

# Does what is needed until the program runs.
bring_up() {
  local now status
  now=$(state)
  say "$NAME: $now"
  case "$now" in
    ACTIVE)
      if look 2>/dev/null && has running; then # started earlier: only watch
        ask_workers "bash gpt1_jax/launch/worker.sh same $program"
        return
      fi
      ;;
    SUSPENDING | SUSPENDED | FAILED)
      [ "$now" != SUSPENDING ] || wait_for SUSPENDED ABSENT || true # while it is, it cannot be deleted
      delete && wait_for ABSENT && create || return 1
      ;;
    DELETING | ABSENT) wait_for ABSENT && create || return 1 ;;
    *) wait_for ACTIVE "$gone" || return 1 ;;
  esac
  setup && start && return
  status=$?
  [ "$status" = 2 ] || status=1 # 75 of preflight.py means that not all hosts came, not that the run was stopped
  return "$status"
}

run_again_and_again() {
  local failed=0 status
  until bring_up && watch_run; do
    status=$?
    case "$status" in
      2) fail "$NAME: The run cannot go on (see above, and bash launch/tpu_vm.sh logs). Fix that and run this again." ;;
      75) say "$NAME: The run was stopped. The same command resumes it." && return 75 ;;
    esac
    [ -z "${calm:-}" ] || failed=0
    calm=''
    failed=$((failed + 1))
    if [ "$failed" -ge "$failures" ]; then
      say "$NAME: $failed failures in a row. Giving up. See the messages above, and delete $NAME if it still exists."
      return 1
    fi
    say "$NAME: Failure $failed of $failures in a row. Trying again in $poll s."
    sleep "$poll"
  done
  say "$NAME: The run is complete. $NAME still exists and costs money: bash launch/tpu_vm.sh delete"
}

case "$action" in
  create)
    create || fail "$NAME: It is not active (see above). Delete the request if there is one, then try another zone, type, or time."
    ;;
  run)
    if [ -z "$restart" ]; then
      start
    elif [ -n "$dry_run" ]; then
      setup && start && ask_workers 'bash gpt1_jax/launch/worker.sh status'
      say "... every $poll s. After a preemption or a crash:"
      delete && wait_for ABSENT && create && setup && start
    else
      run_again_and_again
    fi
    ;;
  status)
    execute "${describe[@]}"
    for vm in $(node_names); do
      execute gcloud compute tpus tpu-vm describe "$vm" "${where[@]}" --format='value(name.basename(),state,health)'
    done
    on_all_workers 'bash gpt1_jax/launch/worker.sh status' 'run: '
    ;;
  logs) queued ssh --node="$node" --worker="$worker" --command='bash gpt1_jax/launch/worker.sh logs' ;;
  stop) on_all_workers 'bash gpt1_jax/launch/worker.sh stop' 'run: ' ;;
  setup | delete) "$action" ;;
esac
