"""One writer for a folder: a second run in it is told of the first, and one that crashed does not stand in the way.

On a disk of this machine the kernel keeps the lock, and frees it when the process ends, in whatever way. Network file
systems and gs:// cannot be relied on for that: there the holder writes a sign of life to the file every BEAT_SECONDS,
and another run takes over a file that does not change for STALE_SECONDS. No clocks are compared.
"""

import contextlib
import fcntl
import json
import os
import platform
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from absl import logging
from etils import epath

from gpt1_jax import peers
from gpt1_jax.errors import UserError
from gpt1_jax.files import exists, is_local, make_directory, write_atomically

NAME = 'lock.json'
BEAT_SECONDS = 20.0
STALE_SECONDS = 120.0
_SEEN_SECONDS = 60.0  # after which a network file system shows a new file to other machines
_SETTLE_SECONDS = 2.0  # after which one of two that came at the same time sees the other
_OF_THIS_MACHINE = set('apfs bcachefs btrfs ext2 ext3 ext4 f2fs hfs jfs overlay ramfs reiserfs tmpfs xfs zfs'.split())
_held: dict[str, '_KernelLock | _HeartbeatLock'] = {}  # by this process


@contextlib.contextmanager
def hold(folder: epath.PathLike, *, write: bool = True) -> Iterator[None]:
    """Holds a folder, which is made if it is not there, for the length of the block. Blocks may be nested.

    Args:
      write: whether this process writes there; only one of a run of many does. If not, nothing is held.
    Raises:
      UserError: another process holds the folder, or it cannot be written to.
    """
    folder = epath.Path(folder)
    key = _key(folder)
    if key in _held or not write:
        yield
        return
    made = _missing(folder)
    make_directory(folder)
    try:
        lock = _held[key] = _acquire(folder / NAME)
        try:
            yield
        finally:
            del _held[key]
            lock.release()
    finally:
        with contextlib.suppress(OSError):  # what the block has filled stays
            for empty in made:
                os.rmdir(empty)


def check(folder: epath.PathLike) -> None:
    """Raises UserError if this process holds a folder that has been removed since, or that another has taken over."""
    lock = _held.get(_key(folder))
    if lock and not lock.is_held():
        raise UserError(
            f'{folder}: The folder was removed, replaced or taken over while this run wrote to it. Put it back, or '
            'start again in a new one.'
        )


def check_shared(folder: epath.PathLike) -> None:
    """Raises UserError if this process of a run does not see the folder that process 0 holds. All must call it."""
    path = epath.Path(folder) / NAME
    token = lambda: (_read(path) or {}).get('token')
    if not peers.current:
        return
    held, machine = peers.agree([token(), _machine()])[0]
    end = time.monotonic() + (0 if machine and machine == _machine() else _SEEN_SECONDS)
    while token() != held:
        if time.monotonic() >= end:
            raise UserError(
                f'{folder}: What process 0 writes there is not seen here. Name a folder that all processes share.'
            )
        time.sleep(1)


class _NoLocks(Exception):
    """The file system has none."""


class _KernelLock:
    def __init__(self, path):
        self._path = path
        for _ in range(100):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                other = _parsed(os.pread(self._file, 10_000, 0))
                os.close(self._file)
                raise _refusal(path.parent, other) from None
            except OSError as error:  # a file system without locks
                if not os.fstat(self._file).st_size:
                    os.unlink(path)
                os.close(self._file)
                raise _NoLocks from error
            if self.is_held():
                break
            os.close(self._file)  # its holder has removed it since it was opened
        else:
            raise _refusal(path.parent, {})
        with contextlib.suppress(OSError):  # no space left: it is a lock even so
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(_holder()).encode(), 0)

    def is_held(self):
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self._path))
        except FileNotFoundError:
            return False
        except OSError:  # it may pass
            return True

    def release(self):
        with contextlib.suppress(OSError):
            if self.is_held():
                os.unlink(self._path)
        os.close(self._file)


class _HeartbeatLock:
    def __init__(self, path):
        self._path, self._mine, self._beats, self._lost = path, _holder(), 0, False
        if (other := _read(path)) is not None and not _is_dead(other):
            _watch(path, other)
        self._beat()
        time.sleep(_SETTLE_SECONDS)
        if not self._is_mine():
            raise _refusal(path.parent, _read(path))
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def is_held(self):
        return not self._lost

    def release(self):
        self._end.set()
        self._thread.join(20)  # seconds, for a beat that is under way
        with contextlib.suppress(Exception):  # at worst it is taken over when it is stale
            if self._is_mine():
                self._path.unlink()

    def _live(self):
        while not self._end.wait(BEAT_SECONDS):
            with contextlib.suppress(Exception):  # of many types for gs://; the next beat may succeed
                if not self._is_mine():
                    self._lost = True
                    return
                self._beat()

    def _beat(self):
        self._beats += 1
        content = json.dumps(self._mine | {'beats': self._beats}).encode()
        write_atomically(self._path, [content], suffix=f'.{self._mine["token"]}')

    def _is_mine(self):
        return (_read(self._path) or {}).get('token') == self._mine['token']


def _acquire(path):
    try:
        if _is_of_this_machine(path):
            with contextlib.suppress(_NoLocks):
                return _KernelLock(path)
        return _HeartbeatLock(path)
    except OSError as error:
        raise UserError(
            f'{path.parent}: The folder cannot be written to ({error.strerror or error}). Make room, give write '
            'permission, or name another folder.'
        ) from error


def _watch(path, other):
    """Returns once the holder of a file has been silent for STALE_SECONDS; raises UserError if it is alive."""
    logging.info(
        '%s: This lock is there already. In %.0f s it will be clear whether its run is still alive.',
        path,
        STALE_SECONDS,
    )
    end = time.monotonic() + STALE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, STALE_SECONDS / 10))
        now = _read(path)
        if now is None:
            return
        if now != other:
            raise _refusal(path.parent, now)


def _refusal(folder, other):
    who = f'process {other["pid"]} on {other["host"]}, since {other["since"]}' if other else 'another process'
    return UserError(f'{folder}: Another run writes to it ({who}). Wait for its end, or name another folder.')


def _holder():
    """What the file says about this process, as JSON types."""
    return {
        'host': socket.gethostname(),
        'pid': os.getpid(),
        'since': time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime()),
        'machine': _machine(),
        'token': uuid.uuid4().hex,
    }


def _machine():
    """Identifies where a process id means one process: the boot of a machine, and the container. '' if unknown."""
    try:
        with open('/proc/sys/kernel/random/boot_id') as file:
            return f'{file.read().strip()} {os.stat("/proc/self/ns/pid").st_ino}'
    except OSError:
        return ''


def _is_dead(other):
    """Whether the process that wrote a file is known to have ended."""
    if not other or not other['machine'] or other['machine'] != _machine():
        return False
    if other['pid'] == os.getpid():  # this process has got the id of one that ended
        return True
    try:
        os.kill(other['pid'], 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # a process of another user; a number that is not an id
        pass
    return False


def _read(path):
    """What a file says, {} if it is damaged, None if it is not there."""
    try:
        return _parsed(path.read_bytes()) if exists(path) else None
    except FileNotFoundError:
        return None


def _parsed(text):
    try:
        found = json.loads(text)
        typed = {'host': str, 'pid': int, 'since': str, 'machine': str, 'token': str}
        return found if all(isinstance(found[name], kind) for name, kind in typed.items()) else {}
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}


def _key(folder):
    return os.path.realpath(folder) if is_local(folder) else os.fspath(folder)


def _missing(folder):
    """The folders that do not exist among a local folder and its parents, the innermost first."""
    if not is_local(folder):
        return []
    return [path for path in (folder, *folder.parents) if not os.path.lexists(path)]


def _is_of_this_machine(path):
    """Whether a path is on a disk whose locks the kernel keeps: by the type of its file system, if Linux tells it."""
    if not is_local(path) or platform.system() != 'Linux':
        return is_local(path)
    try:
        with open('/proc/self/mounts', errors='surrogateescape') as file:
            mounts = [line.split()[1:3] for line in file]
    except OSError:
        return False
    real, best = os.path.realpath(path.parent), ('', '')
    for point, kind in mounts:
        point = re.sub(r'\\(\d{3})', lambda digits: chr(int(digits[1], 8)), point)  # spaces are written as \040
        if len(point) >= len(best[0]) and (real == point or real.startswith(point.rstrip('/') + '/')):
            best = point, kind
    return best[1] in _OF_THIS_MACHINE
