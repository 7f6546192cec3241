"""A save by the clock: alone, and where process 0's clock counts for all."""

import types

import numpy as np
import pytest

from gpt1_jax.training import clock


@pytest.fixture
def now(monkeypatch):
    """A clock that is set by hand, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(clock, 'time', types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_save_is_due_after_so_many_minutes_and_then_again(now):
    due, mine = [], clock.Clock(2, 10)
    for step in range(11, 31):
        now[0] += 45
        if mine.is_due(step):
            due.append(step)
            mine.restart(step)
    assert due == [13, 16, 19, 22, 25, 28]
    never = clock.Clock(0, 0)
    now[0] += 1e9
    assert not never.is_due(1)


def test_all_processes_agree_by_few_questions(now, monkeypatch):
    """Whatever their own clocks say: here that of process 1 runs three times as fast."""
    monkeypatch.setattr(clock.jax, 'process_count', lambda: 2)
    asked = []

    def broadcast(answer):
        """What process 0 says; process 1 asks at the same steps."""
        if process == 0:
            asked.append((step, answer))
            return answer
        assert answer.dtype == np.int32
        return dict(asked)[step]

    monkeypatch.setattr(clock.multihost_utils, 'broadcast_one_to_all', broadcast)
    due = {0: [], 1: []}
    for process, seconds in ((0, 1.0), (1, 3.0)):
        mine = clock.Clock(10, 0)
        for step in range(1, 2001):
            now[0] += seconds * (20 if step == 1 else 1)  # the first step compiles
            if mine.is_due(step):
                due[process].append(step)
                mine.restart(step)
    assert due[0] == due[1] == [581, 1181, 1781] and len(asked) < 60


def test_little_is_lost_within_ten_seconds_of_a_save_by_one_process(now, monkeypatch):
    mine = clock.Clock(10, 0)
    recent = []
    for seconds in (0.0, 9.5, 1.0):
        now[0] += seconds
        recent.append(mine.is_recent())
    assert recent == [True, True, False]
    mine.restart(5)
    assert mine.is_recent()
    monkeypatch.setattr(clock.jax, 'process_count', lambda: 2)  # whose clocks differ
    assert not mine.is_recent()
