"""Signals that end the program: SIGTERM, SIGHUP and SIGUSR1, as schedulers send them, and Ctrl-C.

From the first line of the program on they end it within `GRACE` seconds: in order where that is possible. Python calls
a handler only between two steps of its own, and an exception that a handler raises can get lost. So a thread ends the
process where it is still there after that time, for example in a compilation. Training, which must save first, has
handlers of its own (training/preemption.py).
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from gpt1_jax import progress
from gpt1_jax.errors import STOPPED_EXIT_STATUS

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
GRACE = 5.0  # seconds
LINGER = 60.0  # seconds

last_words: list[Callable[[int, str], None]] = []  # called with the status and the message before the process ends
dispensable: list[threading.Thread] = []  # what they do is of no use once the program ends
taken: list[int] = []  # the signals that handlers elsewhere have received
_asked: list[int] = []  # the signals that came
_watching = threading.Event()
_in_order = threading.Event()
_ending = threading.Lock()


def watch() -> None:
    """Handles the signals from now on, except those that are ignored (nohup). Call it in the main thread, first."""
    _watching.set()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    replace_handlers(_receive)
    atexit.register(replace_handlers, signal.SIG_IGN)  # the last: then all is done, and Python would have none
    sys.unraisablehook = unraisablehook
    threading.Thread(target=_enforce, args=(reader,), daemon=True).start()


def is_for_caller() -> bool:
    """Whether Ctrl-C has stopped a call in a Python session, which goes on, and not a program, which ends."""
    return not _watching.is_set() and taken[-1:] == [signal.SIGINT]


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Postpones Ctrl-C in a Python session to the end of the block, for imports: packages whose import is cut off are
    left in halves, and cannot be imported again in that session. A program ends at once."""
    former = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if _watching.is_set() or not is_main or not callable(former):
        yield
        return
    came = []
    signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
        if came:
            signal.raise_signal(signal.SIGINT)


def replace_handlers(handler: Callable) -> dict[int, Callable]:
    """Sets the handler of all signals that are not ignored; returns the former ones."""
    numbers = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


def unwind() -> None:
    """From now on a signal first raises SystemExit or KeyboardInterrupt, so that what is open gets closed."""
    _in_order.set()


def end_if_asked() -> None:
    """Ends the process if a signal has asked for it, whatever has become of the exception that the handler raised."""
    if _asked:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        _end_as_asked()


def end(status: int, message: str) -> None:
    """Prints the message and ends the process at once, from any thread."""
    if _ending.acquire(blocking=False):
        if not progress.quiet:
            with contextlib.suppress(OSError):
                os.write(2, f'{message}\n'.encode())
        for tell in last_words:
            tell(status, message)
    else:
        time.sleep(1)  # for the thread that is faster
    os._exit(status)


def end_soon(status: int) -> None:
    """Ends the process in `LINGER` seconds, if it is still there: libraries' threads, such as one that writes to a disk
    that hangs, and what they do at the exit would keep it for ever. Where a dispensable thread is at work, at once:
    Python would wait for it, because it cannot end one inside XLA."""
    if any(thread.is_alive() for thread in dispensable):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    timer = threading.Timer(LINGER, os._exit, [status])
    timer.daemon = True
    timer.start()


def _receive(signum, frame):
    del frame
    _asked.append(signum)
    if not _in_order.is_set() or len(_asked) > 1:
        _end_as_asked()
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(STOPPED_EXIT_STATUS)


def _enforce(reader):
    """A thread: what the handler cannot do in time."""
    left = []  # to other handlers, one of which may have set this one again by now
    while True:
        (signum,) = os.read(reader, 1)
        if signal.getsignal(signum) == _receive and left.count(signum) >= taken.count(signum):
            break
        left.append(signum)
    if _in_order.is_set():
        time.sleep(GRACE)
    _asked.append(signum)
    _end_as_asked()


def _end_as_asked():
    if _asked[0] == signal.SIGINT:
        end(130, 'Interrupted. Run the same command again to resume.')
    end(STOPPED_EXIT_STATUS, 'Stopped. Run the same command again to resume.')


def unraisablehook(unraisable: 'sys.UnraisableHookArgs', *, former: Callable = sys.unraisablehook) -> None:
    """Hides the traceback of what the handler has raised where Python discards it."""
    if not (_asked and issubclass(unraisable.exc_type, SystemExit | KeyboardInterrupt)):
        former(unraisable)
