"""When a checkpoint is due by the clock."""

import time

import jax
import numpy as np
from jax.experimental import multihost_utils

_MOST_STEPS = 10_000  # between two questions
_RECENT = 10.0  # seconds


class Clock:
    """Tells when this many minutes have passed since the last save: by the clock of process 0, in all at the same step.

    The other processes ask process 0 again after half of the steps that are left at the present pace, so that few steps
    have to wait for an answer.

    Args:
      minutes: after which a save is due; 0: never.
      step: after which the run begins.
    """

    def __init__(self, minutes: float, step: int):
        self._seconds = 60 * minutes
        self.restart(step)

    def is_due(self, step: int) -> bool:
        """Whether to save after `step`. Every process must ask at every step."""
        if not self._seconds or step < self._next:
            return False
        passed = time.monotonic() - self._since
        due = passed >= self._seconds
        if jax.process_count() == 1:
            return due
        steps = (step - self._step) * (self._seconds / max(passed, 1e-3) - 1) / 2
        answer = np.array([due, np.clip(steps, 1, _MOST_STEPS)], np.int32)
        due, steps = map(int, multihost_utils.broadcast_one_to_all(answer))
        self._next = step + steps
        return bool(due)

    def is_recent(self) -> bool:
        """Whether the last save was so short a time ago that little would be lost without another. Never in a run of
        many processes, whose clocks differ."""
        return jax.process_count() == 1 and time.monotonic() - self._since < _RECENT

    def restart(self, step: int) -> None:
        """Counts from now on; the run has just saved after `step`."""
        self._since, self._step, self._next = time.monotonic(), step, step + 1
