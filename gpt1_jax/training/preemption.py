"""Requests to stop a run."""

import signal

import jax
from jax.experimental import multihost_utils


class PreemptionGuard:
    """Tells when the run should save and exit with STOPPED_EXIT_STATUS.

    One process: after the first SIGTERM or Ctrl-C; a second Ctrl-C ends it at once. Make the guard in the main thread.
    Many processes: once any of them got SIGTERM, at the step that JAX's preemption service chooses, the same in all.
    """

    def __init__(self):
        self._received = False
        self._alone = jax.process_count() == 1
        if self._alone:
            self._former = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}

    def should_stop(self, step: int) -> bool:
        """Whether to stop after `step`. Every process must ask at every step."""
        return self._received if self._alone else multihost_utils.reached_preemption_sync_point(step)

    def close(self) -> None:
        """Restores the former signal handlers."""
        if self._alone:
            for number, handler in self._former.items():
                signal.signal(number, handler)

    def _receive(self, signum, frame):
        del frame
        self._received = True
        if signum == signal.SIGINT:
            signal.signal(signum, signal.default_int_handler)
