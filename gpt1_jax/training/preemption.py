"""When a run is told to stop."""

import signal

import jax
from jax.experimental import multihost_utils


class PreemptionGuard:
    """Says when the run should save and exit with STOPPED_EXIT_STATUS.

    One process: from its first SIGTERM or Ctrl-C on (make the guard in the main thread); a second Ctrl-C ends it at
    once. Many processes: at the step that JAX's preemption service chooses once any of them got SIGTERM, the same in
    every process.
    """

    def __init__(self):
        self._received = False
        self._alone = jax.process_count() == 1
        if self._alone:
            self._former = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}

    def should_stop(self, step):
        """Returns whether to stop after `step`. Every process must ask at every step."""
        return self._received if self._alone else multihost_utils.reached_preemption_sync_point(step)

    def close(self):
        """Puts back the former signal handlers."""
        if self._alone:
            for number, handler in self._former.items():
                signal.signal(number, handler)

    def _receive(self, signum, frame):
        del frame
        self._received = True
        if signum == signal.SIGINT:
            signal.signal(signum, signal.default_int_handler)
