"""Starts the program in a moment: a process that has imported all, and no more, forks for each start.

What follows in the fork is what `python -m gpt1_jax.main` does after its imports, to the end of the interpreter. JAX's
devices do not survive a fork, so the server never touches them.
"""

import atexit
import contextlib
import ctypes
import importlib.util
import json
import os
import pathlib
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
ENVIRONMENT = {
    'OPENBLAS_NUM_THREADS': '1',  # its threads would not survive a fork
    'TF_CPP_MIN_LOG_LEVEL': '3',
    'TF_ENABLE_ONEDNN_OPTS': '0',
    'TF_USE_LEGACY_KERAS': '1',
}
_CHANGES = ('os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'os.truncate', 'os.link', 'os.symlink')  # audit events
_POLL = 0.005  # seconds


class Server:
    """A server, for one thread. environment: of the server and of what it starts."""

    def __init__(self, environment: dict[str, str]):
        self._socket, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            cwd=ROOT,
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self._answers = self._socket.makefile()
        self._ask({})  # until it has imported all

    def start(self, arguments: list[str], log: pathlib.Path, **moment) -> 'Started':
        """Starts the program with these flags. LOG.out and LOG.err get what it prints.

        moment: see `_watch`; and `namespaces`, paths of those of Linux that it enters first; `cache`, the folder of
        compiled steps, if not the environment's.
        """
        return Started(self, self._ask({'arguments': arguments, 'log': str(log), **moment}), log)

    def _ask(self, request):
        self._socket.sendall(f'{json.dumps(request)}\n'.encode())
        return json.loads(self._answers.readline())

    def close(self):
        self._socket.close()
        self._answers.close()
        self._process.wait()


class Started:
    """A program that a server has started, or, with `server` None, `process`."""

    def __init__(self, server: Server | None, pid: int, log: pathlib.Path, process: subprocess.Popen | None = None):
        self.pid, self.log, self._server, self._process, self._status = pid, log, server, process, None

    def wait(self, seconds: float) -> int | None:
        """The exit status, negative for a signal; None if it still runs after so many seconds."""
        if self._status is None and self._server:
            self._status = self._server._ask({'wait': self.pid, 'seconds': seconds})
        elif self._status is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._status = self._process.wait(seconds)
        return self._status

    def send(self, number: int, *, group: bool = False) -> None:
        """Sends a signal to the process, or to it and its workers, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def printed(self) -> tuple[str, str]:
        """What it wrote to stdout and to stderr."""
        return tuple(self.log.with_suffix(ending).read_text(errors='replace') for ending in ('.out', '.err'))


def start_alone(arguments: list[str], log: pathlib.Path, environment: dict[str, str]) -> Started:
    """Starts the program as a user does, imports included."""
    with log.with_suffix('.out').open('wb') as out, log.with_suffix('.err').open('wb') as err:
        process = subprocess.Popen(
            [sys.executable, '-m', 'gpt1_jax.main', *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    return Started(None, process.pid, log, process)


# ----------------------------------------------------------------- in the server


def _import_all():
    for package in ('tensorboardX', 'tensorflow'):  # which the tasks import when they need them
        if importlib.util.find_spec(package):
            importlib.import_module(package)
    for room in ('configs', 'gpt1_jax.tasks'):
        for module in pkgutil.iter_modules(importlib.import_module(room).__path__):
            importlib.import_module(f'{room}.{module.name}')
    tasks = os.listdir('/proc/self/task')
    assert len(tasks) == 1, f'{len(tasks)} threads do not survive a fork'


def _serve(client):
    """Answers requests; returns one in each process that is to do it. The server itself ends with its client."""
    lines = client.makefile('rb')
    running = set()
    while line := lines.readline():
        request, answer = json.loads(line), None
        if 'arguments' in request:
            answer = os.fork()
            if not answer:
                return request
            running.add(answer)
        elif 'wait' in request:
            end = time.monotonic() + request['seconds']
            while answer is None and time.monotonic() < end:
                pid, status = os.waitpid(request['wait'], os.WNOHANG)
                if pid:
                    running.remove(pid)
                    answer = os.waitstatus_to_exitcode(status)
                else:
                    time.sleep(_POLL)
        try:
            client.sendall(f'{json.dumps(answer)}\n'.encode())
        except BrokenPipeError:
            break
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _become(request):
    """Makes the fork what a shell would have started."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it does not outlive the server
    for path in request.get('namespaces', ()):
        with open(path) as namespace:
            if libc.setns(namespace.fileno(), 0):
                raise OSError(ctypes.get_errno(), f'setns {path}')
    for number, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request['log'] + '.out', os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, request['log'] + '.err', os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        file = os.open(name, flags, 0o644)
        os.dup2(file, number)
        os.close(file)
    sys.argv = ['gpt1_jax/main.py', *request['arguments']]
    if 'cache' in request:
        sys.modules['jax'].config.update('jax_compilation_cache_dir', request['cache'])
    if 'folder' in request:
        moment = {name: request.get(name) for name in ('folder', 'number', 'signal', 'group', 'fill')}
        _watch(**moment, at=request['log'] + '.at', count=request['log'] + '.count')


def _watch(folder, number, signal, group, fill, at, count):
    """Counts the file operations of Python in a folder, and writes their number into the file `count` at the end.

    Before the one with the number `number` this process writes the time into the file `at`, and sends itself (or its
    group) `signal`, or writes the file `fill` until its disk is full.
    """
    operations = 0

    def look(event, arguments):
        nonlocal operations
        if event == 'open':
            path, mode, flags = arguments
            changes = set(mode or '') & set('wax+') or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            path, changes = arguments[0] if arguments else None, event in _CHANGES
        if not changes or not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(folder):
            return
        operations += 1
        if operations == number:
            pathlib.Path(at).write_text(str(time.time()))
            if fill:
                fill_disk(fill)
            else:
                (os.killpg if group else os.kill)(os.getpid(), signal)

    sys.addaudithook(look)
    atexit.register(lambda: pathlib.Path(count).write_text(str(operations)))


def fill_disk(path: str) -> None:
    """Writes a file until nothing more fits on its disk."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    size = 2**20
    while size:
        try:
            os.write(file, bytes(size))
        except OSError:
            size //= 2
    os.close(file)


if __name__ == '__main__':
    sys.path[0] = str(ROOT)
    _import_all()
    with socket.socket(fileno=int(sys.argv[1])) as _client:
        _request = _serve(_client)
    _become(_request)
    runpy.run_module('gpt1_jax.main', run_name='__main__', alter_sys=True)
