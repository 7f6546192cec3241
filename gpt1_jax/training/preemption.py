"""Requests to stop a run."""

import signal

from etils import epath

from gpt1_jax import peers, stopping


class PreemptionGuard:
    """Tells when the run should save and exit with STOPPED_EXIT_STATUS.

    It begins with the first step. Before it there is nothing to save, and a signal ends the program at once, even while
    it compiles (gpt1_jax/stopping.py). From then on the first signal is a request; a second Ctrl-C ends the program.
    Many processes: once any of them got a signal, all stop after the same step. Use the guard in the main thread.

    Args:
      checkpoints: the folder of the run's checkpoints, to be named if another process is lost.
    """

    def __init__(self, checkpoints: epath.Path | None = None):
        self._received, self._answered, self._former = None, False, {}
        peers.checkpoints = checkpoints

    def should_stop(self, step: int) -> bool:
        """Whether to save and exit after `step`, or before the next batch of the evaluation after it. Every process
        must ask at every step, and at the same batches."""
        del step  # `peers` counts the calls: steps begin again in the next run, and where a run goes back
        self._former = self._former or stopping.replace_handlers(self._receive)
        stop = peers.current.should_stop() if peers.current else self._received is not None
        self._answered = self._answered or stop
        return stop

    def close(self) -> None:
        """Restores the former signal handlers, and leaves to them what came too late for `should_stop`."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        late = self._received or (peers.current and peers.current.is_asked_to_stop() and signal.SIGTERM)
        if late and not self._answered:
            signal.raise_signal(late)

    def _receive(self, signum, frame):
        del frame
        self._received = signum
        stopping.taken.append(signum)
        if peers.current:
            peers.current.ask_to_stop()
        if signum == signal.SIGINT:
            signal.signal(signum, self._former.get(signum, signal.default_int_handler))
