"""Processes that end together: real sockets, several processes as threads (test_two_processes.py has real ones)."""

import concurrent.futures
import contextlib
import json
import re
import socket
import threading
import time
import types

import pytest
from etils import epath
from jax.errors import JaxRuntimeError

from gpt1_jax import peers, stopping
from gpt1_jax.errors import UserError
from gpt1_jax.peers import Peers

NAMES = [f'process {number} (host-{number})' for number in range(4)]


@pytest.fixture
def ended(monkeypatch):
    """(status, message) of each process that would have ended."""
    ended, before = [], set(threading.enumerate())
    monkeypatch.setattr(stopping, 'end', lambda *words: ended.append(words))
    monkeypatch.setattr(stopping, 'last_words', [])
    monkeypatch.setattr(peers, '_PULSE', 0.02)
    monkeypatch.setattr(peers, 'SILENCE', 0.5)
    monkeypatch.setattr(peers, 'checkpoints', None)
    yield ended
    for thread in set(threading.enumerate()) - before:  # else one could tell of an end in the next test
        thread.join(2)


@pytest.fixture
def sockets():
    """Of process 0 and of the others, to each other."""
    pairs = {process: socket.socketpair() for process in range(1, 4)}
    yield {process: pair[0] for process, pair in pairs.items()}, {process: pair[1] for process, pair in pairs.items()}
    for pair in pairs.values():
        for one in pair:
            one.close()


@pytest.fixture
def processes(ended, sockets):
    first, others = sockets
    processes = [Peers(NAMES, 0, first), *(Peers(NAMES, process, {0: others[process]}) for process in others)]
    yield processes
    for process in processes:
        process._ended = True


def at_once(function, processes):
    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(function, processes))


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_they_tell_each_other_values(processes, ended):
    for turn in ('a', None, [1.5]):
        expected = [[turn, number] for number in range(4)]
        assert at_once(lambda one: one.agree([turn, one.process]), processes) == [expected] * 4
    assert not ended


def test_who_reads_other_data_than_process_0_says_so(monkeypatch):
    peers.check_same('one', '/data')  # alone
    for contents, expected in (
        (['one', 'two'], contextlib.nullcontext()),
        (['two', 'one'], pytest.raises(UserError, match='^/data: What is here is not what process 0 reads')),
    ):
        monkeypatch.setattr(peers, 'current', types.SimpleNamespace(agree=lambda value: [*contents, value]))
        with expected:
            peers.check_same('one', '/data')


@pytest.mark.parametrize('asks', [0, 2])
def test_they_stop_at_the_same_point_however_far_apart(processes, asks, monkeypatch):
    """As in training: a step needs that of all others, and each process begins one more before it reads the last."""
    begun = [threading.Semaphore(0) for _ in range(1000)]
    stop_at = Peers._stop_at
    monkeypatch.setattr(Peers, '_stop_at', lambda self, last: time.sleep(0.1) or stop_at(self, last))  # a slow network

    def work(one):
        for step in range(1, 1000):
            if step == 10 and one.process == asks:
                one.ask_to_stop()
            for _ in processes:
                begun[step].release()
            time.sleep(0.001 * one.process)
            for _ in processes:
                assert begun[step - 1].acquire(timeout=20)
            if one.should_stop():
                return step

    for _ in range(16):
        begun[0].release()
    stopped = at_once(work, processes)
    assert stopped == stopped[:1] * 4 and stopped[0] > 10
    assert all(one.is_asked_to_stop() for one in processes)


@pytest.mark.parametrize('killed', [0, 2])
def test_one_that_is_killed_is_named_by_all(processes, sockets, ended, killed, monkeypatch, tmp_path):
    for name in ('20', '100', '300.orbax-checkpoint-tmp-1', 'x'):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(peers, 'checkpoints', epath.Path(tmp_path))
    processes[killed]._ended = True
    of_killed = sockets[0].values() if killed == 0 else [sockets[1][killed]]
    for one in of_killed:
        one.shutdown(socket.SHUT_RDWR)
    wait_for(lambda: len(ended) >= 3)
    assert set(ended) == {
        (
            75,
            f'process {killed} (host-{killed}): It was killed, or its host is gone. The last checkpoint is '
            f'{tmp_path}/100. Run the same command again on all hosts to resume.',
        )
    }


def test_one_that_is_silent_is_named_by_all(ended, sockets):
    first, others = sockets
    there = [Peers(NAMES, process, first if process == 0 else {0: others[process]}) for process in (0, 1, 2)]
    wait_for(lambda: there[2]._others_silent > 5 * peers._PULSE)  # 0 tells 2 that 3 is silent
    there[2].wait_until_all_are_heard()
    assert there[2]._ended
    wait_for(lambda: len(ended) >= 3)
    words = 'process 3 (host-3): It has not answered for 0 s. Run the same command again on all hosts to resume.'
    assert set(ended) == {(75, words)}


def test_that_all_live_is_certain_after_three_pulses(processes, ended):
    began = time.monotonic()
    processes[1].wait_until_all_are_heard()
    assert time.monotonic() - began >= 3 * peers._PULSE and not ended


def test_what_ends_one_ends_all_with_its_status_and_words(processes, ended):
    processes[3]._say_end(2, 'error: data.source: There is none. Name one.')
    wait_for(lambda: len(ended) >= 3)
    assert set(ended) == {(2, 'process 3 (host-3): error: data.source: There is none. Name one.')}


def test_one_whose_connection_is_reset_is_lost(ended, sockets):
    """As by a host that is gone, before it has read all."""
    process = Peers(NAMES[:2], 0, {1: sockets[0][1]})
    sockets[1][1].recv(1)
    sockets[1][1].close()
    wait_for(lambda: ended)
    assert [message for _, message in ended] == [
        'process 1 (host-1): It was killed, or its host is gone. Run the same command again on all hosts to resume.'
    ]
    assert process._ended


def test_those_that_have_taken_leave_are_not_missed(processes, sockets, ended):
    for number in (1, 0):
        processes[number].leave()
    for one in (*sockets[0].values(), sockets[1][1]):
        one.shutdown(socket.SHUT_RDWR)
    time.sleep(0.7)  # longer than SILENCE
    assert not ended


def test_a_stop_of_this_process_is_no_silence_of_the_others(ended, sockets, monkeypatch):
    """As after SIGSTOP and SIGCONT, or a machine that was suspended: the clock has moved on, the pulses are there."""
    shift, clock = [0.0], time.monotonic
    monkeypatch.setattr(peers.time, 'monotonic', lambda: clock() + shift[0])
    first, others = sockets
    processes = [Peers(NAMES[:2], 0, {1: first[1]}), Peers(NAMES[:2], 1, {0: others[1]})]
    for _ in range(5):
        shift[0] += 100.0
        time.sleep(0.1)
    assert not ended
    for process in processes:
        process._ended = True


@pytest.mark.parametrize(
    ('error', 'apart'),
    [
        (JaxRuntimeError('UNKNOWN: Gloo all-reduce failed: Connection closed by peer [10.0.0.1]:1'), True),
        (JaxRuntimeError('DEADLINE_EXCEEDED: Barrier timed out.\nid: 1'), True),
        (JaxRuntimeError('INTERNAL: Failed to allocate'), False),
        (ValueError('Gloo'), False),
    ],
)
def test_errors_of_processes_that_do_not_reach_each_other(ended, monkeypatch, error, apart):
    assert not peers.explain(error)  # of one process
    monkeypatch.setattr(peers, 'current', 'some')
    words = r'processes: They have lost touch with each other \(.*[^.]\)\. Run the same command again on all hosts .*\.'
    assert bool(re.fullmatch(words, peers.explain(error))) == apart


def test_messages_may_come_in_pieces(ended, sockets):
    first, others = sockets
    process = Peers(NAMES[:2], 0, {1: first[1]})
    line = json.dumps({'round': 1, 'value': 'x'}).encode() + b'\n'
    with concurrent.futures.ThreadPoolExecutor() as pool:
        values = pool.submit(process.agree, 'y')
        for byte in line:
            others[1].sendall(bytes([byte]))
            time.sleep(0.002)
        assert values.result(20) == ['y', 'x']
    process._ended = True
