"""Training runs at the same time, each in a process with its share of the cores.

The steps of a narrow model are small computations one after the other, which a second core makes little faster.
"""

import collections
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from absl import flags, logging

from gpt1_jax import logs, peers, progress, stopping
from gpt1_jax.errors import STOPPED_EXIT_STATUS, UserError
from gpt1_jax.processes import compute_in_this_thread, cores, keep_freed_memory, start_process
from gpt1_jax.training.preemption import PreemptionGuard

_NARROW = 256  # width of a model up to which one process per core is faster
_MOST = 8  # processes, unless more are asked for: each has memory for a run, JAX and its compiler
_ASK_SECONDS = 0.2  # between two looks at whether to stop
_END_SECONDS = 5.0  # in which a process ends whose pipe has ended


def number(workers: int, runs: int, width: Callable[[], int]) -> int:
    """How many processes share some runs; 1 means this process alone.

    Args:
      workers: of the config; 0: as many as the cores, at most 8, if the only device is a CPU and the model is narrow,
        else 1.
      runs: how many there are to do.
      width: of the widest model; called only if it counts.
    Raises:
      UserError: several processes are asked for, and cannot be.
    """
    alone = not peers.current and jax.default_backend() == 'cpu'
    if workers > 1 and not alone:
        raise UserError(
            f'workers: It is {workers}, but runs go side by side only on a CPU, and in a command of one process. '
            'Set it to 1.'
        )
    most = max(1, min(workers or min(cores(), _MOST), runs))
    if most > 1 and not workers and (not alone or jax.device_count() > 1 or width() > _NARROW):
        return 1
    return most


def each(function: Callable, calls: Mapping[str, tuple], workers: int) -> Iterator[tuple[str, Any]]:
    """(name, function(*calls[name])) as they end, in `workers` processes; raises what a call raises.

    A request to stop is passed on to the processes. When they have saved, this exits with STOPPED_EXIT_STATUS. They are
    also told to stop if a call fails or the caller wants no more.

    Args:
      function: of a module. It, its arguments and its result are pickled.
      calls: name -> arguments; log lines of the processes have the names. Two names with the same first part, as
        SET/VARIANT/SEED, start together only if need be: they often share what they compile.
    """
    if workers == 1:
        yield from ((name, function(*arguments)) for name, arguments in calls.items())
        return
    logging.info('%d runs at a time, each in a process of its own', workers)
    guard, left, stopped = PreemptionGuard(), [(name, calls[name]) for name in _in_turn(calls)], False
    guard.should_stop(0)  # from here on it has the signals
    processes = [_Process(max(1, cores() // workers)) for _ in range(workers)]
    idle, busy = [*processes], {}
    try:
        while left or busy:
            while left and idle:
                name, arguments = left.pop(0)
                process = idle.pop()
                process.begin(name, function, arguments)
                busy[process.pipe] = process, name
            if guard.should_stop(0):
                sys.exit(STOPPED_EXIT_STATUS)
            for pipe in multiprocessing.connection.wait(list(busy), _ASK_SECONDS):
                process, name = busy.pop(pipe)
                yield name, process.result()
                idle.append(process)
    except SystemExit:  # of this process, or of one that was told too
        stopped = True
        raise
    finally:
        for process, _ in busy.values():
            process.ask_to_stop()
        for process, _ in busy.values():
            process.wait()
        for process in processes:
            process.close()
        if stopped:
            guard.should_stop(0)  # marks the request as answered
            logging.info('Stopped. Run the same command again to resume.')
        guard.close()


def _in_turn(names):
    """The first name of each first part, then the second of each, and so on."""
    turns, count = {}, collections.Counter()
    for name in names:
        first = name.split('/')[0]
        turns[name] = count[first]
        count[first] += 1
    return sorted(names, key=turns.get)


class _Process:
    """Does one call at a time."""

    def __init__(self, threads: int):
        self.pipe, theirs = multiprocessing.Pipe()
        self._process = start_process(_serve, theirs, threads)
        theirs.close()  # so that the pipe ends with the process

    def begin(self, name: str, *call: Any) -> None:
        self._name = name
        with self._alive():
            self.pipe.send((name, *call))

    def result(self) -> Any:
        """What the call has returned; raises what it has raised."""
        with self._alive():
            value, error = self.pipe.recv()
        if error is not None:
            raise error
        return value

    def ask_to_stop(self) -> None:
        self._process.terminate()

    def wait(self) -> None:
        """Until the call has ended, or the process."""
        self.pipe.poll(None)

    def close(self) -> None:
        self.pipe.close()
        self._process.kill()
        self._process.join()

    @contextlib.contextmanager
    def _alive(self):
        try:
            yield
        except (EOFError, ConnectionError):
            self._process.join(_END_SECONDS)
            if self._process.exitcode == -signal.SIGKILL:
                what, fix = 'was killed, probably for lack of memory', 'Use fewer with --config.workers.'
            else:
                what = f'ended with status {self._process.exitcode}'
                fix = 'Its last lines say why; with --config.workers=1 there is one process.'
            raise UserError(f'workers: The process of {self._name} {what}. {fix}') from None


def _serve(pipe, threads):
    """What a process does: the calls that come, until the pipe ends."""
    stopping.watch()
    stopping.unwind()
    keep_freed_memory()
    os.environ.setdefault('NPROC', str(threads))  # of XLA
    progress.quiet = True
    flags.FLAGS.mark_as_parsed()  # else absl would log that they are not
    while True:
        try:
            name, function, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        logs.set_up(name)
        compute_in_this_thread()
        value = raised = None
        try:
            with logs.each_warning_once():
                value = function(*arguments)
        except BaseException as error:
            if not isinstance(error, UserError | OSError | SystemExit):
                traceback.print_exc()
            raised = error
        try:
            pickle.loads(pickle.dumps(raised))
        except Exception:  # of any type
            raised = RuntimeError(f'{type(raised).__name__}: {raised}')
        try:
            pipe.send((value, raised))
        except OSError:
            return
