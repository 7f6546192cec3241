"""Checks a host before a run and, if several hosts run together, that all are there and alike.

    python launch/preflight.py --workdir=DIR [--hosts=N --run=NAME] -- FLAGS

FLAGS are those that gpt1_jax.main will get. Checks the clock, the free disk, that files in DIR can be written and
deleted, and that nothing holds the TPU. With several hosts, each writes what it found to DIR/preflight/NAME/HOST.json
and waits for the others; NAME is the same on all of them and new at every start.

Exit status: 0 ready; 2 something is wrong, and the messages say how to fix it; 75 not all hosts came in time.
"""

import argparse
import fcntl
import glob
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable

from etils import epath

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from gpt1_jax import remote  # noqa: E402  gs:// paths that behave like local ones

READY, WRONG, LATE = 0, 2, 75  # exit status; 75 means, as for gpt1_jax.main: start again
DISK_GB = 5  # for logs, compiled steps and encoded data sets; a checkpoint of 117M parameters is 1.4 GB
CLOCK_SECONDS = 60  # how far off a clock may be; buckets refuse requests of hosts that are minutes off
POLL_SECONDS = 1.0

# What must be the same on all hosts, and how it is made the same.
_SAME = {
    'commit': 'Copy the same tree to all of them.',
    'code': 'Copy the same tree to all of them.',
    'config': 'Start all of them with the same flags.',
    'packages': 'Install the same versions on all of them.',
}


def disk_problems(folders: Iterable[str | os.PathLike]) -> list[str]:
    """Messages about folders with less than DISK_GB of free disk. In place of a missing one, its parent is checked."""
    problems = {}
    for folder in map(pathlib.Path, folders):
        folder = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(folder).free / 1e9
        if free < DISK_GB:
            problems[os.stat(folder).st_dev] = (  # one message for each disk
                f'{folder}: Only {free:.1f} GB of disk are free. Make room, {DISK_GB} GB at least.'
            )
    return list(problems.values())


def tpu_problems(lock: str = '/tmp/libtpu_lockfile', devices: str = r'/dev/(accel\d+|vfio/\d+)') -> list[str]:
    """Messages about what keeps a new process from taking the TPU.

    Args:
      lock: file that libtpu locks while a process uses the TPU. It stays when the process ends, which is harmless
        unless another user made it: libtpu must be able to write to it.
      devices: regular expression of the TPU's devices.
    """
    problems = []
    for link in glob.iglob('/proc/[0-9]*/fd/*'):  # of other users only with the permission to look
        try:
            device = os.readlink(link)
        except OSError:  # closed meanwhile
            continue
        pid = int(link.split('/')[-3])
        if re.fullmatch(devices, device) and pid != os.getpid():
            problems.append(f'{device}: Process {pid} holds the TPU. Stop it (kill {pid}).')
    try:
        with open(lock, 'r+') as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except PermissionError:
        problems.append(f'{lock}: Another user left it, and libtpu cannot lock it. Remove it (sudo rm {lock}).')
    except OSError:
        if not problems:
            problems.append(
                f'{lock}: Another process has locked it and so holds the TPU. Find the process (sudo lsof {lock}) '
                'and stop it.'
            )
    return sorted(set(problems))


def workdir_problems(workdir: epath.Path) -> list[str]:
    """Messages about a workdir where files cannot be written or deleted, and about a clock that differs from that of
    its file system."""
    probe = workdir / 'preflight' / f'probe-{socket.gethostname()}-{os.getpid()}'
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        before = time.time()
        probe.write_text('written by launch/preflight.py, which deletes it')
        after = time.time()
        # By the clock of the file system or bucket. Not `probe.stat()`: it fails if the owner has no name.
        modified = os.stat(probe).st_mtime if remote.is_local(probe) else probe.stat().mtime
    except Exception as error:  # of gs://: TensorFlow's own errors, not OSError
        return [
            f'{workdir}: It cannot be written to ({_reason(error)}). Check the path, and what the account of this host '
            'may do (in a bucket: roles/storage.objectUser).'
        ]
    problems = []
    try:
        probe.unlink()
    except Exception as error:
        problems.append(
            f'{workdir}: Files there can be written but not deleted ({_reason(error)}), and old checkpoints must be. '
            'Give the account of this host roles/storage.objectUser.'
        )
    wrong = max(before - modified - 1, modified - after)
    if modified and wrong > CLOCK_SECONDS:
        problems.append(
            f'clock: It is {wrong:.0f} s off that of {workdir}. Set it (sudo timedatectl set-ntp true), and wait.'
        )
    return problems


def facts(flags: list[str]) -> dict[str, str]:
    """The host's name, and what must be the same on all hosts: fingerprints of code and config, versions."""
    sources = sorted(path for folder in ('gpt1_jax', 'configs') for path in (ROOT / folder).rglob('*.py'))
    configs = [flag.partition('=')[2].partition(':')[0] for flag in flags if re.match('--?config=', flag)]
    config_files = [ROOT / path for path in configs if (ROOT / path).is_file()]
    return {
        'host': socket.gethostname(),
        'commit': _commit(),
        'code': _fingerprint(
            part for path in sources for part in (str(path.relative_to(ROOT)).encode(), path.read_bytes())
        ),
        'config': _fingerprint([*map(str.encode, flags), *(path.read_bytes() for path in config_files)]),
        'packages': ', '.join(
            [f'python {platform.python_version()}']
            + [f'{name} {version}' for name in ('jax', 'jaxlib', 'libtpu') if (version := _version(name))]
        ),
    }


def meet(folder: epath.Path, mine: dict, hosts: int, seconds: float) -> list[dict]:
    """Writes the facts of this host to `folder`; returns those of all hosts that came in time, this one included."""
    file = folder / f'{mine["host"]}.json'
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + '.tmp')
    unfinished.write_text(json.dumps(mine))
    unfinished.replace(file)
    deadline = time.monotonic() + seconds
    while True:
        found = [json.loads(path.read_text()) for path in sorted(folder.glob('*.json'))]
        if len(found) >= hosts or time.monotonic() > deadline:
            return found
        time.sleep(POLL_SECONDS)


def differences(found: list[dict]) -> list[str]:
    """Messages about what is not the same on all hosts."""
    problems = []
    for key, fix in _SAME.items():
        hosts = defaultdict(list)
        for one in found:
            hosts[one[key]].append(one['host'])
        if len(hosts) > 1:
            groups = '; '.join(f'{value}: {", ".join(names)}' for value, names in sorted(hosts.items()))
            problems.append(f'{key}: The hosts differ ({groups}). {fix}')
    return problems


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog='preflight.py', description=__doc__.splitlines()[0])
    parser.add_argument('--workdir', required=True)
    parser.add_argument('--hosts', type=int, default=1, help='number of hosts that run together')
    parser.add_argument('--run', default='', help='name of this start, for several hosts')
    parser.add_argument('--wait', type=float, default=300, help='seconds to wait for the other hosts')
    parser.add_argument('flags', nargs='*', help='after --: the flags of gpt1_jax.main')
    args = parser.parse_args(argv)
    if args.hosts > 1 and not args.run:
        parser.error('--run: It is needed with several hosts. Give all of them the same name, new at every start.')
    workdir = epath.Path(args.workdir).expanduser()
    local = [workdir] if '://' not in args.workdir else []
    of_workdir = workdir_problems(workdir)
    problems = [*disk_problems([pathlib.Path.home(), tempfile.gettempdir(), *local]), *tpu_problems(), *of_workdir]
    mine = facts(args.flags) | {'problems': problems}
    print(': '.join([mine['host'], ', '.join(f'{key} {mine[key]}' for key in _SAME)]), flush=True)
    late = False
    if args.hosts > 1 and not of_workdir:
        try:
            found = meet(workdir / 'preflight' / args.run, mine, args.hosts, args.wait)
        except Exception as error:  # as in workdir_problems: written to a moment ago, so this passes
            print(f'{mine["host"]}: {workdir}: The other hosts cannot be met there ({_reason(error)}). Start again.')
            return LATE
        names = ', '.join(one['host'] for one in found)
        problems = problems + differences(found)
        if others := [one['host'] for one in found if one['problems'] and one['host'] != mine['host']]:
            problems.append(f'{", ".join(others)}: Something is wrong there. See the messages of that host.')
        if len(found) > args.hosts:
            problems.append(f'hosts: {len(found)} answered ({names}), not {args.hosts}. Start again, with a new --run.')
        if late := len(found) < args.hosts:
            print(
                f'{mine["host"]}: hosts: Only {len(found)} of {args.hosts} answered in {args.wait:g} s ({names}). '
                'See that the others are up, and start again.'
            )
    for problem in problems:
        print(f'{mine["host"]}: {problem}')
    return WRONG if problems else LATE if late else READY


def _commit():
    """The commit of this tree: from the file that its copying left, or from git; else 'unknown'."""
    if (ROOT / '.commit').is_file():
        return (ROOT / '.commit').read_text().strip()
    asked = ['git', '-C', str(ROOT), 'describe', '--always', '--dirty', '--abbrev=12']
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def _fingerprint(parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, 'little') + part)
    return digest.hexdigest()[:12]


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ''


def _reason(error):
    return ' '.join(str(getattr(error, 'strerror', None) or error).split()) or type(error).__name__


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
