"""Signals are requests to stop, until the guard is closed."""

import os
import signal

import pytest

from gpt1_jax.training.preemption import PreemptionGuard


def test_sigterm_is_a_request_and_the_handler_comes_back():
    former = signal.getsignal(signal.SIGTERM)
    guard = PreemptionGuard()
    assert not guard.should_stop(1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert guard.should_stop(2) and guard.should_stop(3)
    guard.close()
    assert signal.getsignal(signal.SIGTERM) == former


def test_ctrl_c_is_a_request_the_first_time():
    guard = PreemptionGuard()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        assert guard.should_stop(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        guard.close()
