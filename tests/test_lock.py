"""One holder of a folder: on a local disk by the kernel, elsewhere by a heartbeat; what a crash leaves behind."""

import errno
import json
import os
import shutil
import subprocess
import sys
import types

import pytest
from etils import epath

from gpt1_jax import lock, peers
from gpt1_jax.errors import UserError

HOLDER = """
import sys, time
from gpt1_jax import lock
lock.BEAT_SECONDS, lock._SETTLE_SECONDS = 0.05, 0.0
if sys.argv[2] == 'elsewhere':
    lock._is_of_this_machine = lambda path: False
with lock.hold(sys.argv[1]):
    print('held', flush=True)
    time.sleep(60)
"""


@pytest.fixture
def start():
    """Starts a process that holds a folder, and waits until it does."""
    started = []

    def start(folder, where):
        process = subprocess.Popen([sys.executable, '-c', HOLDER, folder, where], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == 'held\n'
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(params=['here', 'elsewhere'])
def where(request, monkeypatch):
    """A local disk, or one whose locks cannot be relied on."""
    monkeypatch.setattr(lock, 'BEAT_SECONDS', 0.05)
    monkeypatch.setattr(lock, 'STALE_SECONDS', 1.0)
    monkeypatch.setattr(lock, '_SETTLE_SECONDS', 0.0)
    if request.param == 'elsewhere':
        monkeypatch.setattr(lock, '_is_of_this_machine', lambda path: False)
    return request.param


def refused(folder, *words):
    with pytest.raises(UserError) as caught, lock.hold(folder):
        pass
    assert str(caught.value).startswith(f'{folder}: Another run writes to it ('), caught.value
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_second_process_is_told_of_the_first_until_that_is_killed(tmp_path, where, start):
    folder = str(tmp_path / 'run')
    first = start(folder, where)
    refused(folder, f'process {first.pid} on {os.uname().nodename}, since 20')
    first.kill()
    first.wait()
    assert (tmp_path / 'run' / lock.NAME).exists()
    with lock.hold(folder):  # at once: nobody has to delete anything
        lock.check(folder)
        assert json.loads((tmp_path / 'run' / lock.NAME).read_text())['pid'] == os.getpid()
    left = os.listdir(tmp_path / 'run') if (tmp_path / 'run').exists() else []
    assert all(name.startswith(f'{lock.NAME}.') for name in left)  # of a beat in which the first was killed


def test_what_is_held_is_held_once_and_left_as_it_was(tmp_path, where):
    folder = tmp_path / 'a' / 'b'
    with lock.hold(folder):
        with lock.hold(f'{tmp_path}/a/../a/b'), lock.hold(folder / 'c'):  # by this process, in any words
            assert (folder / lock.NAME).exists() and (folder / 'c' / lock.NAME).exists()
        assert os.listdir(folder) == [lock.NAME]
        (tmp_path / 'a' / 'kept').write_text('')
        with lock.hold(tmp_path / 'not' / 'made', write=False):
            assert os.listdir(tmp_path) == ['a']
    assert os.listdir(tmp_path / 'a') == ['kept']  # empty folders that it made go again
    with lock.hold(tmp_path / 'c' / 'd'):
        pass
    assert os.listdir(tmp_path) == ['a']
    with pytest.raises(ZeroDivisionError), lock.hold(folder):
        raise ZeroDivisionError
    assert os.listdir(tmp_path / 'a') == ['kept']


def test_a_folder_that_is_removed_or_taken_over_is_noticed(tmp_path, where):
    for change in (shutil.rmtree, lambda folder: (shutil.move(folder, f'{folder}2'), folder.mkdir())):
        folder = tmp_path / 'run'
        folder.mkdir()
        with lock.hold(folder):
            (folder / 'file').write_text('')
            lock.check(folder)
            change(folder)
            with pytest.raises(UserError, match='run: The folder was removed, replaced or taken over'):
                for _ in range(100):
                    lock.check(folder)
                    lock.time.sleep(0.02)
        assert not (folder / lock.NAME).exists()
        shutil.rmtree(folder, ignore_errors=True)
    lock.check(tmp_path)  # nobody holds it


def test_a_lock_that_another_has_taken_is_left_to_it(tmp_path, where, monkeypatch):
    monkeypatch.setattr(lock, 'BEAT_SECONDS', 60.0)
    path = tmp_path / lock.NAME
    path.write_text('longer than what comes in its place' * 100)
    with lock.hold(tmp_path):
        assert json.loads(path.read_text())['pid'] == os.getpid()
        path.unlink()
        path.write_text(json.dumps(other()))
    assert json.loads(path.read_text()) == other()


def test_a_folder_that_cannot_be_seen_for_a_moment_is_not_gone(tmp_path, monkeypatch):
    def stat(path, **options):
        raise OSError(errno.EIO, 'Input/output error')

    with lock.hold(tmp_path), monkeypatch.context() as patch:
        patch.setattr(lock.os, 'stat', stat)
        lock.check(tmp_path)


def test_processes_that_do_not_see_the_folder_of_the_first_say_so(tmp_path, monkeypatch):
    lock.check_shared(tmp_path / 'nowhere')  # alone
    monkeypatch.setattr(lock.time, 'sleep', pytest.fail)  # on one machine a file that is not seen never will be
    said = []
    with lock.hold(tmp_path / 'a'), lock.hold(tmp_path / 'b'):
        monkeypatch.setattr(peers, 'current', types.SimpleNamespace(agree=lambda value: said.append(value) or said))
        for folder in ('a', 'a/../a'):
            lock.check_shared(tmp_path / folder)
        for folder in ('b', 'c'):
            with pytest.raises(UserError, match=f'/{folder}: What process 0 writes there is not seen here'):
                lock.check_shared(tmp_path / folder)
        machines = iter(('first', 'second'))
        monkeypatch.setattr(lock, '_machine', lambda: next(machines))
        monkeypatch.setattr(lock.time, 'sleep', lambda seconds: shutil.copytree(tmp_path / 'a', tmp_path / 'd'))
        lock.check_shared(tmp_path / 'd')  # soon, as on a network file system
        shutil.rmtree(tmp_path / 'd')
        monkeypatch.setattr(lock, '_machine', lambda: '')  # unknown: it need not be the same one
        said[0] = [said[0][0], '']
        lock.check_shared(tmp_path / 'd')


NOBODY = 2**22 + 1  # beyond the ids of processes


def other(**changes):
    return {'host': 'far', 'pid': 7, 'since': 'then', 'machine': 'another', 'token': 'x'} | changes


def test_a_heartbeat_that_stops_is_stale_and_one_that_goes_on_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, '_is_of_this_machine', lambda path: False)
    monkeypatch.setattr(lock, '_SETTLE_SECONDS', 0.0)
    monkeypatch.setattr(lock, 'STALE_SECONDS', 0.2)
    path, beats = tmp_path / lock.NAME, []

    def sleep(seconds):
        beats.append(seconds)
        if seconds and then is None:
            path.unlink(missing_ok=True)
        elif seconds and then:
            path.write_text(then)

    of_no_process = json.dumps(other(machine=lock._machine(), pid=2**70))
    # Of another machine, where they may live; and damaged ones.
    elsewhere = json.dumps(other()), json.dumps(other(pid=NOBODY))
    for written in (*elsewhere, of_no_process, '{"host": 7}', '[' * 100_000, '', '\xff'):
        for then, lives in (('', False), (None, False), (json.dumps(other(beats=2, pid=8)), True)):  # noqa: B007
            path.write_text(written, 'latin-1')
            beats.clear()
            with monkeypatch.context() as patch:
                patch.setattr(lock.time, 'sleep', sleep)
                if lives:
                    refused(tmp_path, 'process 8 on far, since then')
                else:
                    with lock.hold(tmp_path):
                        assert len(beats) > 1
            path.unlink(missing_ok=True)
    for dead in (other(machine=lock._machine(), pid=os.getpid()), other(machine=lock._machine(), pid=NOBODY)):
        path.write_text(json.dumps(dead))
        beats.clear()
        monkeypatch.setattr(lock.time, 'sleep', beats.append)
        with lock.hold(tmp_path):  # no wait for what cannot live
            assert beats == [0.0]
    foreign = lambda pid, signal: (_ for _ in ()).throw(PermissionError(errno.EPERM, 'Operation not permitted'))
    monkeypatch.setattr(lock.os, 'kill', foreign)  # a process of another user
    assert not lock._is_dead(dead)
    monkeypatch.undo()
    monkeypatch.setattr(lock, '_machine', lambda: '')
    assert not lock._is_dead(other(machine='', pid=NOBODY))


def test_of_two_that_come_at_once_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, '_is_of_this_machine', lambda path: False)
    late = lambda seconds: (tmp_path / lock.NAME).write_text(json.dumps(other()))
    monkeypatch.setattr(lock.time, 'sleep', late)
    (tmp_path / f'{lock.NAME}.tmp').mkdir()  # neither writes the other's file
    refused(tmp_path, 'process 7 on far')
    assert json.loads((tmp_path / lock.NAME).read_text()) == other()  # it is not ours to remove


def test_where_the_kernel_keeps_locks(tmp_path, monkeypatch):
    assert not lock._is_of_this_machine(epath.Path('gs://bucket/run/lock.json'))
    mounts = tmp_path / 'mounts'
    mounts.write_text(
        '/dev/sda / ext4 rw 0 0\n/dev/sdc /home ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\n'  # the later one is seen
        '/dev/sdb /home/me/with\\040space xfs rw 0 0\nbooks /bucket fuse.gcsfuse rw 0 0\n'
        'server:/b /b\udcff\xfc nfs4 rw 0 0\n',  # bytes that are no UTF-8 too
        errors='surrogateescape',
    )
    monkeypatch.setattr(lock, 'open', lambda path, **options: mounts.open(**options), raising=False)
    found = {
        folder: lock._is_of_this_machine(epath.Path(folder) / lock.NAME)
        for folder in ('/', '/homely', '/home', '/home/me', '/home/me/with space/run', '/bucket/a', '/b\udcff\xfc/a')
    }
    assert list(found.values()) == [True, True, False, False, True, False, False]
    (tmp_path / 'link').symlink_to('/home')
    assert not lock._is_of_this_machine(epath.Path(tmp_path / 'link') / lock.NAME)


def test_a_file_system_without_locks_has_heartbeats(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(lock.fcntl.LOCK_EX, 'No locks available')

    waits = []
    monkeypatch.setattr(lock.fcntl, 'flock', flock)
    monkeypatch.setattr(lock.time, 'sleep', waits.append)
    with lock.hold(tmp_path):
        assert isinstance(lock._held[str(tmp_path)], lock._HeartbeatLock)
        assert waits == [lock._SETTLE_SECONDS]  # not for a file of its own


def test_a_lock_whose_file_has_gone_is_none(tmp_path, monkeypatch):
    """The holder before removes it after this process has opened it; a third could then make another."""
    flock, files = lock.fcntl.flock, []

    def late(file, operation):
        files.append(file)
        if len(files) == 1:
            (tmp_path / lock.NAME).unlink()
        flock(file, operation)

    monkeypatch.setattr(lock.fcntl, 'flock', late)
    with lock.hold(tmp_path):
        lock.check(tmp_path)
        assert len(files) == 2 and (tmp_path / lock.NAME).exists()


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / 'file').write_text('')
    (tmp_path / lock.NAME).mkdir()
    for folder in (tmp_path / 'file' / 'run', tmp_path):
        with pytest.raises(UserError, match=f'^{folder}: The folder cannot be .*another'), lock.hold(folder):
            pass
