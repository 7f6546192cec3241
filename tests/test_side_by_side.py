"""Calls in processes of their own: what they return and raise, and that a request to stop reaches them all."""

import os
import pathlib
import signal
import sys
import threading
import time

import jax
import pytest
from absl import logging

from gpt1_jax import peers, progress
from gpt1_jax.errors import STOPPED_EXIT_STATUS, DivergedError, UserError
from gpt1_jax.training import side_by_side
from gpt1_jax.training.preemption import PreemptionGuard


@pytest.mark.parametrize(
    ('workers', 'runs', 'width', 'devices', 'there', 'expected'),
    [
        (0, 8, 256, 1, 6, 6),
        (0, 3, 128, 1, 6, 3),
        (0, 99, 128, 1, 64, 8),
        (0, 0, 128, 1, 6, 1),
        (0, 8, 257, 1, 6, 1),
        (0, 8, 128, 2, 6, 1),
        (1, 8, 128, 1, 6, 1),
        (4, 8, 768, 2, 2, 4),
        (4, 2, 768, 1, 6, 2),
    ],
)
def test_number(monkeypatch, workers, runs, width, devices, there, expected):
    monkeypatch.setattr(side_by_side, 'cores', lambda: there)
    monkeypatch.setattr(jax, 'device_count', lambda: devices)
    assert side_by_side.number(workers, runs, lambda: width) == expected


def test_an_accelerator_is_not_shared(monkeypatch):
    monkeypatch.setattr(jax, 'device_count', lambda: 1)
    for owner, name, value in ((jax, 'default_backend', lambda: 'gpu'), (peers, 'current', object())):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert side_by_side.number(0, 8, lambda: pytest.fail('not needed')) == 1
            with pytest.raises(
                UserError, match='workers: It is 2, but runs go side by side only on a CPU.*Set it to 1'
            ):
                side_by_side.number(2, 8, lambda: 1)


def where_and(value):
    logging.info('log line of %d', value)
    return (
        os.getpid(),
        os.environ['NPROC'],
        progress.quiet,
        threading.current_thread() is threading.main_thread(),
        value,
    )


@pytest.fixture
def one_core_each(monkeypatch):
    monkeypatch.delenv('NPROC', raising=False)
    monkeypatch.setattr(side_by_side, 'cores', lambda: 2)


def test_calls_are_shared_out(one_core_each, capfd):
    found = dict(side_by_side.each(where_and, {f'run {i}': (i,) for i in range(5)}, 2))
    assert sorted(found) == [f'run {i}' for i in range(5)]
    assert [found[f'run {i}'][1:] for i in range(5)] == [('1', True, True, i) for i in range(5)]
    pids = {pid for pid, *_ in found.values()}
    assert len(pids) == 2 and os.getpid() not in pids
    lines = capfd.readouterr().err.splitlines()
    assert sorted(line.partition(' ')[2] for line in lines if 'log line' in line) == [
        f'run {i}: log line of {i}' for i in range(5)
    ]
    assert 'WARNING' not in ' '.join(lines)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_names_with_a_first_part_in_common_come_apart():
    paths = ['a/x/seed0', 'a/x/seed1', 'a/y/seed0', 'b/x/seed0', 'b/y/seed0', 'c']
    in_turn = ['a/x/seed0', 'b/x/seed0', 'c', 'a/x/seed1', 'b/y/seed0', 'a/y/seed0']
    assert side_by_side._in_turn(dict.fromkeys(paths)) == in_turn


def test_one_at_a_time_needs_no_process(monkeypatch):
    monkeypatch.setenv('NPROC', '9')
    ((name, (pid, *_)),) = side_by_side.each(where_and, {'a': (1,)}, 1)
    assert name == 'a' and pid == os.getpid()


def train(folder, name, error=None):
    """Takes steps until it is told to stop, and says in a file how it has ended; or raises the error when all run."""
    guard = PreemptionGuard()
    folder = pathlib.Path(folder)
    (folder / f'{name} runs').touch()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if error and len([*folder.glob('* runs')]) == 2:
            raise error
        if guard.should_stop(0):
            time.sleep(0.3)  # it saves
            (folder / f'{name} saved').touch()
            sys.exit(STOPPED_EXIT_STATUS)
        time.sleep(0.01)
    (folder / f'{name} forgotten').touch()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_reaches_all(one_core_each, tmp_path, number, caplog):
    def ask():
        while len([*tmp_path.glob('* runs')]) < 2:
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), number)

    caplog.set_level('INFO', 'absl')
    threading.Thread(target=ask).start()
    with pytest.raises(SystemExit) as stopped:
        list(side_by_side.each(train, {name: (str(tmp_path), name) for name in 'abc'}, 2))
    assert caplog.messages[1:] == ['Stopped. Run the same command again to resume.']
    assert stopped.value.code == STOPPED_EXIT_STATUS
    assert {path.name for path in tmp_path.iterdir()} == {'a runs', 'a saved', 'b runs', 'b saved'}


@pytest.mark.parametrize('error', [UserError('data.source: It is empty.'), DivergedError('Lost.'), ValueError('a bug')])
def test_a_failure_stops_the_others(one_core_each, tmp_path, error):
    calls = {'a': (str(tmp_path), 'a'), 'b': (str(tmp_path), 'b', error)}
    with pytest.raises(type(error), match=str(error)):
        list(side_by_side.each(train, calls, 2))
    assert {path.name for path in tmp_path.iterdir()} == {'a runs', 'a saved', 'b runs'}


def vanish():
    os.kill(os.getpid(), signal.SIGKILL)


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError('cannot pickle it')


class Unreadable(Exception):
    def __init__(self, one, other):
        super().__init__(one)


def fail_oddly(kind, *values):
    raise kind(*values)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (vanish, 'workers: The process of [ab] was killed, probably for lack of memory. Use fewer with'),
        (
            os.abort,
            'workers: The process of [ab] ended with status -6. Its last lines say why; with --config.workers=1 ',
        ),
    ],
)
def test_a_process_that_ends_is_named(one_core_each, call, message):
    with pytest.raises(UserError, match=message):
        list(side_by_side.each(call, {'a': (), 'b': ()}, 2))


def test_a_process_that_was_killed_before_its_call_is_named():
    process = side_by_side._Process(1)
    process._process.kill()
    process._process.join()
    with pytest.raises(UserError, match='workers: The process of a was killed'):
        process.begin('a', vanish, ())
    process.close()


@pytest.mark.parametrize(('kind', 'values'), [(Unpicklable, ('odd',)), (Unreadable, ('odd', 'even'))])
def test_an_error_that_cannot_be_sent_is_told(one_core_each, capfd, kind, values):
    with pytest.raises(RuntimeError, match=f'{kind.__name__}: odd'):
        list(side_by_side.each(fail_oddly, {name: (kind, *values) for name in 'ab'}, 2))
    assert 'in fail_oddly' in capfd.readouterr().err
