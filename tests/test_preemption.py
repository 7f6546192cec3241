"""Signals are requests to stop, from the first step until the guard is closed."""

import os
import signal

import pytest

from gpt1_jax import peers, stopping
from gpt1_jax.training.preemption import PreemptionGuard


@pytest.fixture
def former(monkeypatch):
    """The signals that came to the handlers of before."""
    came = []
    handlers = {number: signal.signal(number, lambda *_: came.append(_[0])) for number in SIGNALS}
    monkeypatch.setattr(peers, 'current', None)
    yield came
    for number, handler in handlers.items():
        signal.signal(number, handler)


SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_is_a_request_from_the_first_step_until_the_end(former, number):
    guard = PreemptionGuard()
    os.kill(os.getpid(), number)
    assert former == [number]  # there is nothing to save
    assert not guard.should_stop(1)
    os.kill(os.getpid(), number)
    assert guard.should_stop(2) and guard.should_stop(3) and former == [number]
    if number != signal.SIGINT:  # schedulers say it several times
        os.kill(os.getpid(), number)
    guard.close()
    assert former == [number]
    os.kill(os.getpid(), number)
    assert former == [number, number]


def test_a_second_ctrl_c_is_none(former):
    guard = PreemptionGuard()
    guard.should_stop(1)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
    assert guard.should_stop(2) and former == [signal.SIGINT]
    guard.close()


def test_ctrl_c_while_the_handlers_are_set(former, monkeypatch):
    replace = stopping.replace_handlers
    interrupted = lambda handler: (replace(handler), signal.raise_signal(signal.SIGINT))[0]
    monkeypatch.setattr(stopping, 'replace_handlers', interrupted)
    guard = PreemptionGuard()
    assert guard.should_stop(1)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    guard.close()
    assert former == []


def test_a_request_that_came_after_the_last_step_is_not_lost(former):
    guard = PreemptionGuard()
    assert not guard.should_stop(1)
    os.kill(os.getpid(), signal.SIGHUP)
    guard.close()
    assert former == [signal.SIGHUP]


def test_what_is_ignored_stays_ignored(former):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    guard = PreemptionGuard()
    guard.should_stop(1)
    os.kill(os.getpid(), signal.SIGHUP)
    assert not guard.should_stop(2)
    guard.close()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


class Others:
    """Stands in for peers.Peers: they agree on the third call after the request."""

    def __init__(self):
        self.asked, self.calls = 0, 0

    def ask_to_stop(self):
        self.asked += 1

    def is_asked_to_stop(self):
        return self.asked > 0

    def should_stop(self):
        self.calls += self.asked > 0
        return self.calls >= 3


@pytest.mark.parametrize('steps', [4, 2])
def test_many_processes_stop_where_all_can(former, monkeypatch, steps):
    others = Others()
    monkeypatch.setattr(peers, 'current', others)
    guard = PreemptionGuard()
    assert not guard.should_stop(1)
    os.kill(os.getpid(), signal.SIGINT)
    assert [guard.should_stop(step) for step in range(2, 2 + steps)] == [False, False, True, True][:steps]
    assert others.asked == 1
    guard.close()
    assert former == ([] if steps == 4 else [signal.SIGINT])


def test_a_request_of_another_process_that_came_after_the_last_step_is_not_lost(former, monkeypatch):
    others = Others()
    monkeypatch.setattr(peers, 'current', others)
    guard = PreemptionGuard()
    assert not guard.should_stop(1)
    others.ask_to_stop()
    guard.close()
    assert former == [signal.SIGTERM]
