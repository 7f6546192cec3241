"""Small programs in place of gcloud, docker, kubectl and Slurm's commands, which write down how they were called."""

import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
PYTHON = sys.executable
RECORD = r"""#!/usr/bin/env bash
printf -v record '%s\037' "${0##*/}" "$@"
printf '%s\036' "$record" >>"$CALLS"
"""
# The queued resource of the tests.
SET = dict(NAME='books', ZONE='us-west4-a', PROJECT='mine', TYPE='v5e-16', WORKDIR='gs://bucket/runs/books')
# $CLOUD: a folder with `state` (of the queued resource), `plan` (states of the next looks, one a line), a folder for
# each worker, `hosts` of a slice, `finish`, `preflight` (its status, in place of it), and `hook`, which a test may have
# run before every call. The hook can set `unreached`, a pattern: scp and ssh leave out such workers, as gcloud does.
GCLOUD = r"""
shift 2 # compute tpus
what=$1-$2 name=$3 command='' nodes=$SLICES unreached=''
for word in "$@"; do
  case "$word" in
    --command=*) command=${word#*=} ;;
    --node-count=*) nodes=${word#*=} ;;
  esac
done
if [ -e "$CLOUD/hook" ]; then source "$CLOUD/hook"; fi
missing() { echo "ERROR: (gcloud.$what) NOT_FOUND: There is no $name" >&2; exit 1; }
state() { [ ! -s "$CLOUD/state" ] || cat "$CLOUD/state"; }
reached() {
  [[ ${1##*/} != $unreached ]] || { echo "WARNING: Could not prepare ${1##*/}" >&2; return 1; }
}
case "$what" in
  queued-resources-create)
    echo WAITING_FOR_RESOURCES >"$CLOUD/state"
    printf 'WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n' >"$CLOUD/plan"
    for ((node = 0; node < nodes; node++)); do
      for ((i = 0; i < $(<"$CLOUD/hosts"); i++)); do mkdir -p "$CLOUD/vm-$node-w-$i"; done
    done
    ;;
  queued-resources-delete)
    rm -rf "$CLOUD"/vm-*
    echo DELETING >"$CLOUD/state"
    echo ABSENT >"$CLOUD/plan"
    ;;
  queued-resources-describe)
    if [ -s "$CLOUD/plan" ]; then head -n 1 "$CLOUD/plan" >"$CLOUD/state"; sed -i 1d "$CLOUD/plan"; fi
    [ "$(state)" != ABSENT ] && [ -n "$(state)" ] || missing
    echo 'WARNING: one that gcloud likes to print' >&2
    state
    ;;
  tpu-vm-describe)
    case "$*" in *"(networkEndpoints.len())") cat "$CLOUD/hosts" ;; *) echo "$name READY" ;; esac ;;
  queued-resources-scp) for vm in "$CLOUD"/vm-*; do ! reached "$vm" || cp "$3" "$vm/${4#*:}"; done ;;
  queued-resources-ssh)
    [ "$(state)" = ACTIVE ] || { echo "$name is $(state)" >&2; exit 1; }
    pids=() worst=0
    for vm in "$CLOUD"/vm-*; do
      reached "$vm" || continue
      (
        export HOME=$vm WORKER=${vm##*/}
        cd "$vm"
        # A session that hangs up when the command is done, as sshd does.
        setsid --wait bash -c 'echo $$ >"$HOME/session"; eval "$0"' "$command" && status=0 || status=$?
        kill -HUP -- -"$(<session)" 2>/dev/null
        exit "$status"
      ) &
      pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || worst=$?; done
    exit "$worst"
    ;;
  *) echo "what is $what?" >&2; exit 2 ;;
esac
"""
# Python on a worker: makes environments that hold itself, runs preflight.py with the worker's name, and the program.
WORKERS_PYTHON = r"""
case "$*" in
  '-m venv --clear .venv') mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  'launch/preflight.py '*)
    [ ! -e "$CLOUD/preflight" ] || exit "$(<"$CLOUD/preflight")"
    shift
    exec "@PYTHON@" -c '
import runpy, socket, sys
name, cloud, *words = sys.argv[1:]
socket.gethostname = lambda: name
sys.argv[:] = ["preflight.py"] + [word.replace("gs://", cloud + "/gs/") for word in words]
runpy.run_path("launch/preflight.py", run_name="__main__")' "$WORKER" "$CLOUD" "$@"
    ;;
  '-m gpt1_jax.main '*)
    trap 'echo saved; exit 75' TERM
    echo "step 1 on $WORKER"
    while [ ! -e "$CLOUD/finish" ] && [ -d "$HOME" ]; do /bin/sleep 0.05; done
    exit "$(cat "$CLOUD/finish" 2>/dev/null || echo 1)"
    ;;
esac
"""


class StandIns:
    """A folder of programs that stands first in PATH.

    Attributes:
      tree: a copy of what the scripts need of the repository, to run them in.
      env: of the scripts; PATH has the stand-ins, and of this machine only what every one has.
    """

    def __init__(self, folder):
        self._bin, self._calls, self.tree = folder / 'bin', folder / 'calls', folder / 'tree'
        self._bin.mkdir()
        for name in ('launch', 'configs', 'gpt1_jax'):
            shutil.copytree(ROOT / name, self.tree / name, ignore=shutil.ignore_patterns('__pycache__'))
        for name in ('requirements.txt', 'pyproject.toml'):
            shutil.copy(ROOT / name, self.tree / name)
        self.env = {'PATH': f'{self._bin}:/usr/bin:/bin', 'HOME': str(folder), 'CALLS': str(self._calls)}
        self.env |= {name: os.environ[name] for name in ('LANG', 'LC_ALL') if name in os.environ}

    def put(self, name, body='', **values):
        """Adds a program; in `body`, a shell script, @NAME@ is one of `values`."""
        for key, value in values.items():
            body = body.replace(f'@{key}@', str(value))
        (self._bin / name).write_text(RECORD + body)
        (self._bin / name).chmod(0o755)

    def calls(self, *beginning):
        """The arguments, after `beginning`, of the calls that begin so: the program's name, then arguments."""
        text = self._calls.read_text() if self._calls.exists() else ''
        all_calls = [record.split('\037')[:-1] for record in text.split('\036')[:-1]]
        return [call[len(beginning) :] for call in all_calls if tuple(call[: len(beginning)]) == beginning]

    def run(self, *command, status=0, **env):
        """Output and errors together; the exit status must be `status`."""
        done = subprocess.run(
            command,
            cwd=self.tree,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=60,
        )
        assert done.returncode == status, done.stdout
        return done.stdout


class Cloud(StandIns):
    """gcloud and workers, as `GCLOUD` and `WORKERS_PYTHON` say."""

    def __init__(self, folder, hosts=2, slices=1):
        super().__init__(folder)
        self.folder = folder / 'cloud'
        self.folder.mkdir()
        self.env |= SET | {'CLOUD': str(self.folder), 'SLICES': str(slices)}
        self.put('gcloud', GCLOUD)
        self.put('python3.12', WORKERS_PYTHON, PYTHON=PYTHON)
        self.put('hostname', 'echo "${WORKER:-here}"')
        self.put('sleep', 'exec /bin/sleep 0.02')
        self.write('hosts', hosts)

    def write(self, name, text):
        (self.folder / name).write_text(f'{text}\n')

    def script(self, action, *words, **kwargs):
        return self.run('bash', 'launch/tpu_vm.sh', action, *words, **kwargs)

    def tpus(self, verb):
        """The flags of all calls of `queued-resources VERB`."""
        return self.calls('gcloud', 'compute', 'tpus', 'queued-resources', verb)

    def workers(self):
        return sorted(self.folder.glob('vm-*'))

    def programs(self):
        """Process of the program on each worker."""
        return [int((worker / 'gpt1_jax_run' / 'pid').read_text()) for worker in self.workers()]
