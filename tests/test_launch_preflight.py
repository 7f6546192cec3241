"""launch/preflight.py: each check with what it must find, and several hosts as processes with names of their own."""

import fcntl
import importlib.util
import json
import os
import pwd
import subprocess
import sys
import time

import pytest
from etils import epath

from stand_ins import PYTHON, ROOT, StandIns

_spec = importlib.util.spec_from_file_location('preflight', ROOT / 'launch' / 'preflight.py')
preflight = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(preflight)

FLAGS = ['--distributed', '--config=configs/pretrain.py:tiny', '--config.seed=1']
# A process that is host sys.argv[1]. sys.argv[2]: Python to run first.
HOST = """
import runpy, socket, sys
name = sys.argv[1]
socket.gethostname = lambda: name
exec(sys.argv[2])
sys.argv[:] = ['preflight.py', *sys.argv[3:]]
runpy.run_path('launch/preflight.py', run_name='__main__')
"""


@pytest.fixture
def quiet(monkeypatch):
    """Without what this machine may have: little disk, a TPU in use."""
    monkeypatch.setattr(preflight, 'disk_problems', lambda folders: [])
    monkeypatch.setattr(preflight, 'tpu_problems', lambda: [])


def start(tree, name, *words, first=''):
    quiet = 'import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(0, 0, 10**12)'
    return subprocess.Popen(
        [PYTHON, '-c', HOST, name, f'{quiet}\n{first}', *words],
        cwd=tree,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ends(*started):
    """(exit status, output) of each."""
    outputs = [process.communicate(timeout=60)[0] for process in started]
    return [(process.returncode, output) for process, output in zip(started, outputs)]


def together(workdir, hosts, *flags, wait=30):
    return f'--workdir={workdir}', f'--hosts={hosts}', '--run=first', f'--wait={wait}', '--', *(flags or FLAGS)


def test_one_host(tmp_path, quiet, capsys):
    assert preflight.main([f'--workdir={tmp_path / "run"}', '--', *FLAGS]) == 0
    host, said = capsys.readouterr().out.strip().split(': ', 1)
    assert host and [part.split()[0] for part in said.split(', ')[:4]] == ['commit', 'code', 'config', 'packages']
    assert 'jax 0.' in said and 'python 3.' in said
    assert not list((tmp_path / 'run' / 'preflight').iterdir())  # the probe is gone


def test_the_config_is_its_flags_and_its_file(tmp_path):
    config = lambda *flags: preflight.facts([*flags])['config']
    assert config('--config=a.py', '--config.seed=1') == config('--config=a.py', '--config.seed=1')
    assert config('--config.seed=1') != config('--config.seed=2')
    assert config('--a=1', '--b=2') != config('--a=1--b=2')
    own = tmp_path / 'own.py'
    prints = []
    for text in ('seed = 1', 'seed = 2'):
        own.write_text(text)
        prints.append(config(f'--config={own}:small'))
    assert prints[0] != prints[1]


def test_the_commit(tmp_path):
    tree = StandIns(tmp_path).tree
    (process,) = ends(start(tree, 'a', f'--workdir={tmp_path}/run'))
    assert 'a: commit unknown, ' in process[1]
    (tree / '.commit').write_text('1234567-dirty\n')
    (process,) = ends(start(tree, 'a', f'--workdir={tmp_path}/run'))
    assert 'a: commit 1234567-dirty, ' in process[1]
    if (ROOT / '.git').exists():
        assert preflight.facts([])['commit'] not in ('', 'unknown')  # the repository's own


def test_hosts_that_have_the_same(tmp_path):
    tree = StandIns(tmp_path).tree
    found = ends(*(start(tree, name, *together(tmp_path / 'run', 3)) for name in 'abc'))
    assert [status for status, _ in found] == [0, 0, 0]
    files = sorted((tmp_path / 'run' / 'preflight' / 'first').iterdir())
    assert [json.loads(file.read_text())['host'] for file in files] == ['a', 'b', 'c']


@pytest.mark.parametrize(
    'key, fix', [('code', 'Copy the same tree'), ('config', 'Start all of them'), ('packages', 'Install the same')]
)
def test_hosts_that_differ(tmp_path, key, fix):
    first, second = (tmp_path / name for name in 'ab')
    trees = []
    for folder in (first, second):
        folder.mkdir()
        trees.append(StandIns(folder).tree)
    flags, patch = FLAGS, ''
    if key == 'code':
        (trees[1] / 'gpt1_jax' / 'more.py').touch()
    elif key == 'config':
        flags = [*FLAGS, '--config.seed=2']
    else:
        patch = "import platform; platform.python_version = lambda: '3.99'"
    found = ends(
        start(trees[0], 'a', *together(tmp_path / 'run', 2)),
        start(trees[1], 'b', *together(tmp_path / 'run', 2, *flags), first=patch),
    )
    for status, said in found:
        assert status == 2
        assert [line.split(':')[1].strip() for line in said.splitlines() if 'The hosts differ' in line] == [key]
        assert fix in said and 'a' in said and 'b' in said


def test_a_host_that_does_not_come(tmp_path):
    tree = StandIns(tmp_path).tree
    found = ends(*(start(tree, name, *together(tmp_path / 'run', 3, wait=0.5)) for name in 'ab'))
    for status, said in found:
        assert status == 75
        assert 'hosts: Only 2 of 3 answered in 0.5 s (a, b). See that the others are up' in said


def test_an_old_name_of_the_start_is_noticed(tmp_path):
    tree = StandIns(tmp_path).tree
    ends(*(start(tree, name, *together(tmp_path / 'run', 2)) for name in 'ab'))
    ((status, said),) = ends(start(tree, 'c', *together(tmp_path / 'run', 2)))
    assert status == 2 and 'hosts: 3 answered (a, b, c), not 2. Start again, with a new --run.' in said


def test_trouble_of_one_host_stops_all(tmp_path):
    tree = StandIns(tmp_path).tree
    full = 'shutil.disk_usage = lambda path: shutil._ntuple_diskusage(0, 0, 10**9)'
    found = ends(
        start(tree, 'a', *together(tmp_path / 'run', 2)), start(tree, 'b', *together(tmp_path / 'run', 2), first=full)
    )
    assert [status for status, _ in found] == [2, 2]
    assert 'b: Something is wrong there. See the messages of that host.' in found[0][1]
    assert 'Only 1.0 GB of disk are free. Make room, 5 GB at least.' in found[1][1]


def test_several_hosts_need_a_name(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        preflight.main([f'--workdir={tmp_path}', '--hosts=2'])
    assert ended.value.code == 2 and '--run: It is needed with several hosts.' in capsys.readouterr().err


def test_disk(tmp_path, monkeypatch):
    free = {}
    monkeypatch.setattr(
        preflight.shutil, 'disk_usage', lambda path: type('Usage', (), {'free': free.get(str(path), 10**12)})
    )
    missing = tmp_path / 'a' / 'b'
    assert preflight.disk_problems([missing, tmp_path]) == []
    free[str(tmp_path)] = 4.9e9
    assert preflight.disk_problems([missing, tmp_path]) == [
        f'{tmp_path}: Only 4.9 GB of disk are free. Make room, 5 GB at least.'
    ]


def test_a_workdir_that_cannot_be_written_to(tmp_path):
    file = tmp_path / 'file'
    file.touch()
    (problem,) = preflight.workdir_problems(epath.Path(file))
    assert problem.startswith(f'{file}: It cannot be written to (Not a directory). Check the path')


def test_a_workdir_that_keeps_its_files(tmp_path, monkeypatch):
    def refuse(self, missing_ok=False):
        raise PermissionError(13, 'Permission denied', str(self))

    monkeypatch.setattr(type(epath.Path(tmp_path)), 'unlink', refuse)
    (problem,) = preflight.workdir_problems(epath.Path(tmp_path))
    assert 'Files there can be written but not deleted (Permission denied)' in problem


@pytest.mark.parametrize('off', [-300, 300])
def test_a_clock_that_is_off(tmp_path, monkeypatch, off):
    now = time.time
    monkeypatch.setattr(preflight.time, 'time', lambda: now() + off)
    (problem,) = preflight.workdir_problems(epath.Path(tmp_path))
    assert problem.startswith('clock: It is ') and 295 < float(problem.split()[3]) < 305


def test_a_clock_that_is_right(tmp_path, monkeypatch):
    monkeypatch.setattr(pwd, 'getpwuid', {}.__getitem__)  # the user of a container need not have a name
    assert preflight.workdir_problems(epath.Path(tmp_path)) == []


HOLD = """
import fcntl, sys
device, lock = (open(path, 'r+') for path in sys.argv[1:])
fcntl.lockf(lock, fcntl.LOCK_EX)
print('held', flush=True)
sys.stdin.read()
"""


def test_what_holds_the_tpu(tmp_path):
    device, lock = tmp_path / 'accel0', tmp_path / 'libtpu_lockfile'
    look = lambda devices: preflight.tpu_problems(str(lock), devices=devices)
    devices = f'{tmp_path}/accel[0-9]'
    assert look(devices) == []
    device.touch()
    lock.touch()
    assert look(devices) == []  # a lock file that stayed behind is harmless
    holder = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(device), str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == 'held\n'
        assert look(devices) == [
            f'{device}: Process {holder.pid} holds the TPU. Stop it (kill {holder.pid}).'
        ]  # which says more than the lock
        (problem,) = look('nothing')  # as where the holder belongs to another user
        assert problem.startswith(f'{lock}: Another process has locked it and so holds the TPU. Find the process')
    finally:
        holder.communicate()
    assert look(devices) == []


def test_a_lock_file_of_another_user(tmp_path, monkeypatch):
    lock = tmp_path / 'libtpu_lockfile'
    lock.touch()

    def refuse(path, mode):
        assert mode == 'r+'
        raise PermissionError(13, 'Permission denied', path)

    monkeypatch.setattr(preflight, 'open', refuse, raising=False)
    (problem,) = preflight.tpu_problems(str(lock), devices='nothing')
    assert problem == f'{lock}: Another user left it, and libtpu cannot lock it. Remove it (sudo rm {lock}).'


def test_it_lets_the_lock_go(tmp_path):
    lock = tmp_path / 'libtpu_lockfile'
    lock.touch()
    preflight.tpu_problems(str(lock), devices='nothing')
    pid = os.fork()  # locks are of processes: only another one sees this one's
    if pid == 0:
        with open(lock, 'r+') as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_store_that_fails_meanwhile(tmp_path, quiet, monkeypatch, capsys):
    def fail(*args):
        raise OSError(5, 'Input/output error')

    monkeypatch.setattr(preflight, 'meet', fail)
    assert preflight.main([*together(tmp_path, 2)]) == 75
    assert 'The other hosts cannot be met there (Input/output error). Start again.' in capsys.readouterr().out
