"""The trials of tests/soak.py: one fault each, and whether the run survives it.

A run survives if it ends in bounded time with the right status and one sentence, and the same command then ends with
status 0 and leaves what an uninterrupted run leaves, to the bit.
"""

import contextlib
import dataclasses
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import threading
import time

from fork_server import Server, Started, fill_disk, start_alone
from gpt1_jax import peers
from gpt1_jax.errors import STOPPED_EXIT_STATUS
from gpt1_jax.training.checkpoint import Checkpointer
from helpers import free_port
from soak_cases import Case, differences, parameters

LIMIT = 120  # seconds for a whole run
_STACK = re.compile(
    'Traceback|Fatal Python error|Check failure|terminate called|Stack trace|Thread 0x|Segmentation fault|^    @|'
    'Exception ignored',
    re.MULTILINE,
)
_STOPPED = re.compile('to resume[.]$|^error:', re.MULTILINE)
_LOGGED = re.compile(r'[0-9:]{8} |  |[a-z][\w -]*: ')  # a line of the log, its continuation, progress
_SAVED = re.compile('checkpoints/[0-9]+ is (missing|left over)')
READING = threading.Lock()  # of JAX and the log of this process


class Problem(Exception):
    """A run that did not survive, and why."""


@dataclasses.dataclass
class Lane:
    """What a trial needs; one for each thread.

    Attributes:
      folder: of this trial, empty.
      cases, expected: the runs, and what each leaves, by name.
      seconds, operations: of an uninterrupted run, by name: how long it takes, and how many file operations it makes.
      bound: seconds in which a run must end when it is told to.
      reference: FOLDER/NAME/run are the uninterrupted runs.
      longest: seconds between a fault and the end of its run, the longest so far.
    """

    server: Server
    environment: dict[str, str]
    reference: pathlib.Path
    cases: dict[str, Case]
    expected: dict[str, dict]
    seconds: dict[str, float]
    operations: dict[str, int]
    bound: float
    folder: pathlib.Path = pathlib.Path()
    longest: float = 0.0

    def start(self, case: Case, *changes: str, name: str = 'run', log: str = 'log', **moment) -> Started:
        return self.server.start(case.arguments(self.folder / name, *changes), self.folder / log, **moment)


# ----------------------------------------------------------------- what is required of every run


def require(condition: object, words: str) -> None:
    if not condition:
        raise Problem(words)


def ended(started: Started, seconds: float, words: str) -> int:
    """The exit status. Raises Problem if there is none in time; the program is then killed."""
    status = started.wait(seconds)
    if status is None:
        started.send(signal.SIGCONT)
        started.send(signal.SIGKILL, group=True)
        started.wait(10)
        raise Problem(f'{words}: it still runs after {seconds:.0f} s')
    return status


def require_whole(started: Started, words: str) -> None:
    """No stack of any language, whatever it said."""
    for text in started.printed():
        if found := _STACK.search(text):
            raise Problem(f'{words}: it printed {text[found.start() : found.start() + 40]!r} and more')


def require_sentence(started: Started, words: str) -> str:
    """One sentence that says why it ended, beside the log; returns it."""
    require_whole(started, words)
    lines = [line for line in started.printed()[1].splitlines() if line]
    said = [line for line in lines if _STOPPED.search(line)]
    other = [line for line in lines if not _LOGGED.match(line) and line not in said]
    require(len(said) == 1, f'{words}: it said {len(said)} sentences: {said}')
    require(not other, f'{words}: it printed {other[:3]}')
    return said[0]


def require_done(
    lane: Lane, case: Case, started: Started, words: str, expected: dict | None = None, stopped: bool = False
) -> None:
    """Status 0, and what an uninterrupted run leaves. stopped: by a signal, after which it has saved."""
    status = ended(started, LIMIT, words)
    require_whole(started, words)
    require(status == 0, f'{words}: status {status}: {started.printed()[1][-300:]!r}')
    require_same(lane, case, words, expected, stopped)


def require_same(lane: Lane, case: Case, words: str, expected: dict | None = None, stopped: bool = False) -> None:
    found = differences(lane.folder / 'run', lane.expected[case.name] if expected is None else expected)
    found = [word for word in found if case.exact or ' differs: ' not in word]
    if stopped:  # what was saved then may still be one of the latest
        found = [word for word in found if not _SAVED.fullmatch(word)]
    require(not found, f'{words}: {"; ".join(found[:4])}')
    if case.task in ('pretrain', 'finetune'):
        steps = sorted(int(path.name) for path in (lane.folder / 'run' / 'checkpoints').iterdir())
        with READING:  # the bytes, which must have the checksums that are compared
            tree = parameters(lane.folder / 'run', steps[-1])
            Checkpointer(lane.folder / 'run' / 'checkpoints').restore(steps[-1], {'params': tree})


# ----------------------------------------------------------------- moments


def moment(lane: Lane, case: Case, rng: random.Random) -> tuple[dict, float, str]:
    """A random moment of a run: arguments of `Server.start`, seconds to wait, and words."""
    if rng.random() < 0.5:
        number = rng.randint(1, lane.operations[case.name])
        return {'folder': str(lane.folder / 'run'), 'number': number}, LIMIT, f'before file operation {number}'
    seconds = 1.2 * rng.random() * lane.seconds[case.name]  # others run beside it now
    return {}, seconds, f'after {seconds:.2f} s'


def interrupt(lane: Lane, case: Case, rng: random.Random, number: int, group: bool) -> tuple[Started, int, str]:
    """Sends a signal to a run at a random moment; (it, its status, when)."""
    at, seconds, when = moment(lane, case, rng)
    words = f'{signal.Signals(number).name} {when}'
    started = lane.start(case, **at, **({'signal': number, 'group': group} if at else {}))
    if at:
        status, fired = ended(started, seconds, words), started.log.with_suffix('.at')
        sent = float(fired.read_text()) if fired.exists() else time.time()
    else:
        status, sent = started.wait(seconds), time.time()
        if status is None:
            started.send(number, group=group)
            status = ended(started, lane.bound, words)
    require(time.time() - sent <= lane.bound, f'{words}: it ended after {time.time() - sent:.0f} s')
    lane.longest = max(lane.longest, time.time() - sent)
    return started, status, when


# ----------------------------------------------------------------- trials


def kill(lane: Lane, rng: random.Random, case: Case) -> str:
    """kill -9 at a random moment, then the same command."""
    while True:
        started, status, when = interrupt(lane, case, rng, signal.SIGKILL, False)
        if status == -signal.SIGKILL:
            break
        require(status == 0, f'before the kill {when}: status {status}: {started.printed()[1][-300:]!r}')
        shutil.rmtree(lane.folder / 'run')  # too late: it had ended
    require_done(lane, case, lane.start(case), f'kill {when}, then the same command')
    return when


def stop(lane: Lane, rng: random.Random, case: Case, number: int, phase: str) -> str:
    """A signal at a random moment, to the process or, as a terminal does, to its workers too; then the same command.

    phase: 'as it works', or 'as it starts': as a user starts it, and the moment is in its imports.
    """
    group = rng.random() < 0.5
    name = f'{signal.Signals(number).name}{" to all" if group else ""}'
    if phase == 'as it starts':
        started = start_alone(case.arguments(lane.folder / 'run'), lane.folder / 'log', lane.environment)
        seconds = rng.uniform(0.1, 6)
        when, status = f'{seconds:.2f} s after its start', started.wait(seconds)
        if status is None:
            sent = time.time()
            started.send(number, group=group)
            status = ended(started, lane.bound, f'{name} {when}')
            lane.longest = max(lane.longest, time.time() - sent)
    else:
        started, status, when = interrupt(lane, case, rng, number, group)
    words = f'{name} {when}'
    if status == 0:  # it was as good as done
        require_whole(started, words)
        require_same(lane, case, words)
        return f'{words}: done already'
    allowed = {STOPPED_EXIT_STATUS}
    if number == signal.SIGINT:
        allowed = {130} if case.task == 'prepare' else {130, STOPPED_EXIT_STATUS}
    require(status in allowed, f'{words}: status {status}: {started.printed()[1][-300:]!r}')
    require_sentence(started, words)
    require_done(lane, case, lane.start(case), f'{words}, then the same command', stopped=True)
    return words


def remove(lane: Lane, rng: random.Random, case: Case) -> str:
    """The workdir is deleted, or renamed, at a random moment: noticed, with status 2; then the same command."""
    renamed = rng.random() < 0.5
    seconds = rng.uniform(0.3, 0.9) * lane.seconds[case.name]
    words = f'workdir {"renamed" if renamed else "deleted"} after {seconds:.2f} s'
    started, away, whole = lane.start(case), lane.folder / 'away', False
    status = started.wait(seconds)
    with contextlib.suppress(FileNotFoundError):
        (lane.folder / 'run').rename(away)
        whole = not differences(away, lane.expected[case.name])  # it had nothing more to write
        if not renamed:
            shutil.rmtree(away)
    if status is None:
        status = ended(started, LIMIT, words)
    if status == 0 and (lane.folder / 'run').exists():  # it was not there yet
        require_same(lane, case, words)
        return f'{words}: before it was there'
    if status == 0:
        whole = whole or (renamed and not differences(away, lane.expected[case.name]))
        require(whole, f'{words}: status 0')
        return f'{words}: done already'
    require(status == 2, f'{words}: status {status}: {started.printed()[1][-300:]!r}')
    require_sentence(started, words)
    if (lane.folder / 'run').exists():  # what was written after that
        shutil.rmtree(lane.folder / 'run')
    require_done(lane, case, lane.start(case), f'{words}, then the same command')
    return words


# ----------------------------------------------------------------- a full disk


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, kilobytes: int):
    folder.mkdir()
    subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={kilobytes}k', 'tmpfs', folder], check=True)
    try:
        yield
    finally:
        subprocess.run(['umount', '-l', folder], check=True)


def fill(lane: Lane, rng: random.Random, case: Case) -> str:
    """The disk is full at a random moment, or too small from the start; with room, the same command ends well."""
    disk = lane.folder = lane.folder / 'disk'
    logs = disk.parent / 'logs'
    logs.mkdir()
    needed = sum(path.stat().st_size for path in (lane.reference / case.name / 'run').rglob('*') if path.is_file())
    too_small = rng.random() < 0.5
    size = int(rng.uniform(0.02, 1.0) * needed / 1024) if too_small else 2**15
    start = lambda **at: lane.start(case, log='../logs/log', **at)
    with small_disk(disk, max(8, size)):
        if too_small:
            words, started = f'a disk of {size} of {needed // 1024} KB', start()
        else:
            at, seconds, when = moment(lane, case, rng)
            words = f'disk full {when}'
            started = start(**at, **({'fill': str(disk / 'filler')} if at else {}))
            if not at and started.wait(seconds) is None:
                fill_disk(str(disk / 'filler'))
        status = ended(started, LIMIT, words)
        if status:
            require(status == 2, f'{words}: status {status}: {started.printed()[1][-300:]!r}')
            require_sentence(started, words)
        else:
            require_whole(started, words)
        (disk / 'filler').unlink(missing_ok=True)
        subprocess.run(['mount', '-o', f'remount,size={2**15}k', disk], check=True)
        if status:
            require_done(lane, case, start(), f'{words}, then with room')
        else:
            require_same(lane, case, f'{words}: status 0')
    return words


# ----------------------------------------------------------------- two at once


def pair(lane: Lane, rng: random.Random, case: Case, what: str) -> str:
    """The same command twice at once: one does its work, the other names it and ends.

    what: ends with 'in one workdir', or 'for one data.output': of two `prepare` with two workdirs.
    """
    one_output = what.endswith('output')
    seconds = rng.choice([0.0, rng.random() * lane.seconds[case.name]])
    changes = [f'--config.data.output={lane.folder}/run/shards'] if one_output else []
    started = [lane.start(case, *changes, log='log0')]
    started[0].wait(seconds)
    started.append(lane.start(case, *changes, log='log1', name='run2' if one_output else 'run'))
    words = f'the second after {seconds:.2f} s'
    statuses = [ended(one, LIMIT, words) for one in started]
    if statuses == [0, 0]:  # one after the other, or the second took what the first had just made
        words = f'{words}: the first was done'
        overlapped = any('damaged' in one.printed()[1] or 'resuming' in one.printed()[1] for one in started)
        require(not overlapped, f'{words}, and yet the second went on with its work')
    else:
        require(sorted(statuses) == [0, 2], f'{words}: statuses {statuses}: {started[1].printed()[1][-300:]!r}')
        winner, loser = sorted(started, key=lambda one: statuses[started.index(one)])
        said = require_sentence(loser, words)
        require(str(winner.pid) in said, f'{words}: it does not name the process {winner.pid}: {said}')
        require_whole(winner, words)
    if one_output:
        found = [word for word in differences(lane.folder / 'run', lane.expected[case.name]) if 'shards/' in word]
        require(not found, f'{words}: {"; ".join(found[:4])}')
    else:
        require_same(lane, case, words)
    return words


# ----------------------------------------------------------------- several processes


class Network:
    """Hosts of their own, joined by a bridge, on this machine: namespaces of Linux. Needs root.

    host i has the address 10.77.0.(i + 1); `cut(i)` pulls its cable.
    """

    def __init__(self, hosts: int):
        self._hub, *self._hosts = (
            subprocess.Popen(['unshare', '--net', '--uts', 'cat'], stdin=subprocess.PIPE)  # until this process ends
            for _ in range(hosts + 1)
        )
        own = os.readlink('/proc/self/ns/net')
        for one in (self._hub, *self._hosts):
            while os.readlink(f'/proc/{one.pid}/ns/net') == own:
                time.sleep(0.01)
        self._in(self._hub, 'ip link add br0 type bridge && ip link set br0 up')
        for i, host in enumerate(self._hosts):
            self._in(
                self._hub,
                f'ip link add cable{i} type veth peer name wire{i} && ip link set wire{i} netns {host.pid} && '
                f'ip link set cable{i} master br0 up',
            )
            self._in(
                host,
                f'ip addr add 10.77.0.{i + 1}/24 dev wire{i} && ip link set wire{i} up && ip link set lo up && '
                f'hostname 10.77.0.{i + 1}',  # by which gloo finds its own address
            )

    def _in(self, host, command):
        subprocess.run(['nsenter', '-t', str(host.pid), '--net', '--uts', 'sh', '-c', command], check=True)

    def namespaces(self, host: int) -> list[str]:
        return [f'/proc/{self._hosts[host].pid}/ns/{kind}' for kind in ('net', 'uts')]

    def cut(self, host: int) -> None:
        self._in(self._hub, f'ip link set cable{host} down')

    def close(self) -> None:
        for one in (self._hub, *self._hosts):
            one.kill()
            one.communicate()


def start_all(lane: Lane, case: Case, processes: int, network: Network | None, log: str = 'log') -> list[Started]:
    host = '10.77.0.1' if network else '127.0.0.1'
    flags = f'--coordinator={host}:{free_port()}', f'--processes={processes}'
    return [
        lane.start(
            case,
            *flags,
            f'--process_id={i}',
            log=f'{log}{i}',
            **({'namespaces': network.namespaces(i)} if network else {}),
        )
        for i in range(processes)
    ]


def lose(lane: Lane, rng: random.Random, case: Case, processes: int, fault: str, victim: int) -> str:
    """One of several processes is killed, stopped (SIGSTOP) or cut off from the network: the others end with one
    sentence, and all of them together go on where they were."""
    network, started = Network(processes) if fault == 'cut off' else None, []
    try:
        started = start_all(lane, case, processes, network)
        name = f'{case.name} with {processes} processes'
        seconds = rng.uniform(0.3, 0.8) * lane.seconds[name]
        words = f'process {victim} of {processes} {fault} after {seconds:.2f} s'
        started[victim].wait(seconds)
        {
            'killed': lambda: started[victim].send(signal.SIGKILL),
            'stopped': lambda: started[victim].send(signal.SIGSTOP),
            'cut off': lambda: network.cut(victim),
            'SIGTERM': lambda: started[victim].send(signal.SIGTERM),
            'SIGINT': lambda: started[victim].send(signal.SIGINT),
        }[fault]()
        at = time.time()
        others = [one for i, one in enumerate(started) if i != victim or fault not in ('killed', 'stopped')]
        silence = peers.SILENCE if fault in ('stopped', 'cut off') else 0  # which no connection tells
        statuses = [ended(one, lane.bound + silence, words) for one in others]
        lane.longest = max(lane.longest, time.time() - at)
        if fault == 'stopped':
            started[victim].send(signal.SIGCONT)
            statuses.append(ended(started[victim], lane.bound, f'{words}, after SIGCONT'))
        if set(statuses) == {0}:
            require_same(lane, case, words, lane.expected[name])
            return f'{words}: done already'
        allowed = [{STOPPED_EXIT_STATUS}] + [{130}] * (fault == 'SIGINT')
        require(set(statuses) in allowed, f'{words}: statuses {statuses}')
        for one in others:
            require_sentence(one, words)
    finally:
        for one in started:
            one.send(signal.SIGKILL, group=True)
            one.wait(10)
        if network:
            network.close()
    again = start_all(lane, case, processes, None, 'again')
    for one in again[1:]:
        require(ended(one, LIMIT, words) == 0, f'{words}, then again: {one.printed()[1][-300:]!r}')
    require_done(lane, case, again[0], f'{words}, then again', lane.expected[name])
    return words
