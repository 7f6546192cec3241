"""Metrics of a run: JSON lines, TensorBoard and, when asked, Weights & Biases."""

import contextlib
import functools
import importlib.util
import json
import math
import os
import queue
import statistics
import sys
import threading
import time
import types
import uuid
from collections.abc import Callable, Iterable, Mapping

from absl import logging
from etils import epath

from gpt1_jax import lock
from gpt1_jax.errors import UserError
from gpt1_jax.files import check_form, exists, is_local, parse_json, write_atomically
from gpt1_jax.training.partitioning import is_writer

_WAITING = 1000  # lines that may wait for a sink
_CLOSING_SECONDS = 30.0  # that a sink may take for its last lines
_FLUSH_SECONDS = 30.0

_LINE = {str: (float, str)}


class MetricWriter:
    """Writes scalars to `workdir/metrics.jsonl`, to `workdir/tensorboard` if tensorboardX is installed, and to
    Weights & Biases if asked. A fault of the last two is a warning: the run goes on without them, and never waits.

    Only process 0 writes; in the others every method does nothing.

    In Weights & Biases a resumed run continues its record, which also shows `config`. Raises UserError if wandb is
    needed but not installed, or the folder cannot be written.
    """

    def __init__(self, workdir: epath.PathLike, *, use_wandb: bool = False, config: Mapping | None = None):
        self._active = is_writer()
        self._workdir = epath.Path(workdir)
        self._path = self._workdir / 'metrics.jsonl'
        self._file = self._sinks = None
        self._use_wandb, self._config = use_wandb, config
        self._first_step, self._flushed = None, 0.0
        if self._active:
            with self._writable():
                self._workdir.mkdir(parents=True, exist_ok=True)
            if use_wandb:
                import_wandb()

    def truncate_after(self, step: int, *, unevaluated: bool = False) -> None:
        """Removes what was written after `step`, and a last line cut short by a kill; TensorBoard hides later points.

        Call it before the first `write` of a resumed run: its file then equals that of an uninterrupted run, except
        for times and rates. unevaluated: whether the run will evaluate this step (again); its evaluation is then
        removed too.
        """
        self._first_step = step + 1
        if not self._active or not exists(self._path):
            return
        kept = []
        for line in _lines(self._path):
            with contextlib.suppress(ValueError, KeyError, TypeError, UserError):  # the line cut short
                values = _parse(self._path, line)
                if values['step'] < step or values['step'] == step and ('loss' in values or not unevaluated):
                    kept.append(line + '\n')
        write_atomically(self._path, [''.join(kept).encode()])

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one JSON line {"step", "time", **metrics}, flushed; `time` is in seconds since 1970.

        In a remote store a flush uploads the whole file, so it is done every half minute at most, or by `flush`.

        JSON has no NaN and no infinities: they become the strings 'nan', 'inf' and '-inf', which float() reads back.
        """
        if not self._active:
            return
        metrics = {name: float(value) for name, value in metrics.items()}
        now = time.time()
        line = {'step': int(step), 'time': round(now, 3)}
        line |= {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
        with self._writable():
            self._file = self._file or self._path.open('a')
            self._check_place()
            self._file.write(json.dumps(line) + '\n')
        if is_local(self._path) or now - self._flushed > _FLUSH_SECONDS:
            self.flush()
        if self._sinks is None:
            self._sinks = self._start_sinks()
        for sink in self._sinks:
            sink.write(int(step), metrics, now)

    def flush(self) -> None:
        """Makes safe what was written. Call it before a checkpoint, so that no line of an earlier step can get lost."""
        if self._file:
            with self._writable():
                self._file.flush()
            self._flushed = time.time()

    def close(self) -> None:
        """Flushes and closes everything."""
        try:
            if self._file:
                with self._writable():
                    self._file.close()
        finally:
            for sink in self._sinks or ():
                sink.close()
            self._file = self._sinks = None

    def _check_place(self):
        """Raises UserError if the open file is no longer the one at its path."""
        lock.check(self._workdir)
        if is_local(self._path):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path)):
                    return
            raise UserError(
                f'{self._path}: The file was removed or replaced while this run wrote to it. Put its folder back, or '
                'start again in a new --workdir.'
            )

    def _start_sinks(self):
        sinks = []
        if importlib.util.find_spec('tensorboardX'):
            folder = self._workdir / 'tensorboard'
            sinks.append(_Sink(str(folder), functools.partial(_TensorBoard, folder, self._first_step)))
        else:
            logging.log_first_n(logging.INFO, 'tensorboardX is not installed: metrics go to metrics.jsonl only', 1)
        if self._use_wandb:
            sinks.append(_Sink('Weights & Biases', functools.partial(_WeightsAndBiases, self._workdir, self._config)))
        return sinks

    @contextlib.contextmanager
    def _writable(self):
        try:
            yield
        except OSError as error:
            raise UserError(
                f'{self._workdir}: Metrics cannot be written ({error}). Make room or give write '
                'permission, then run the same command again to resume.'
            ) from error


class _Sink:
    """Hands lines to a writer in a thread of its own, which may be slow, hang or fail: the run does not notice.

    Args:
      name: of where it writes, for people.
      make: () -> an object with `write(step, metrics, time)`, `flush()` and `close()`.
    """

    def __init__(self, name: str, make: Callable):
        self._name, self._make = name, make
        self._lines = queue.Queue(_WAITING)
        self._fault = ''  # '': none yet; None: already logged
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def write(self, *line) -> None:
        """Hands over a line; logs a fault of earlier lines, once."""
        self._tell()
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._blame(f'it is {_WAITING} lines behind')

    def close(self) -> None:
        """Waits, for a bounded time, until the remaining lines are written."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(_CLOSING_SECONDS)
        if self._thread.is_alive():
            self._blame(f'it takes longer than {_CLOSING_SECONDS:g} s')
        if sys.exc_info()[0] is None:  # else the run ends with an error, which should stand alone
            self._tell()

    def _blame(self, reason):
        self._fault = reason if self._fault == '' else self._fault

    def _tell(self):
        if self._fault:
            message = '%s: Not all metrics are written there (%s). metrics.jsonl has them.'
            logging.warning(message, self._name, self._fault)
            self._fault = None

    def _run(self):
        try:
            writer, flush_at = self._make(), 0.0
            while True:
                try:
                    line = self._lines.get(timeout=max(0.0, flush_at - time.monotonic()))
                except queue.Empty:
                    writer.flush()
                    flush_at = time.monotonic() + _FLUSH_SECONDS
                    continue
                if line is None:
                    break
                writer.write(*line)
            writer.close()
        except BaseException as error:  # of any type, and a thread would print its traceback
            self._blame(str(error).partition('\n')[0] or type(error).__name__)


class _TensorBoard:
    """Writes event files. Not with SummaryWriter: a full disk kills its thread, for which it then waits for ever."""

    def __init__(self, folder, first_step):
        from tensorboardX import event_file_writer, record_writer
        from tensorboardX.proto import event_pb2

        folder.mkdir(exist_ok=True)  # not the workdir: where it was removed, the run ends
        remote = types.SimpleNamespace(open=_open_remote, directory_check=lambda path: None)
        record_writer.register_writer_factory('gs', remote)  # its own needs one more package
        # Without the suffix, two files opened within a second would have the same name.
        self._events = event_file_writer.EventsWriter(str(folder / 'events'), f'.{time.time_ns()}')
        self._event = event_pb2.Event
        if first_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            for fields in ({'file_version': 'brain.Event:2'}, {'session_log': start}):
                self._events.write_event(self._event(step=first_step, wall_time=time.time(), **fields))

    def write(self, step, metrics, now):
        for name, value in metrics.items():
            # Not with tensorboardX's own function, which warns of each number that is not finite.
            scalar = {'value': [{'tag': name, 'simple_value': value}]}
            self._events.write_event(self._event(step=step, wall_time=now, summary=scalar))

    def flush(self):
        self._events.flush()

    def close(self):
        self._events.close()


def _open_remote(path):
    """A file of gs:// without `fileno`, which tensorboardX calls where there is one."""
    file = epath.Path(path).open('wb')
    return types.SimpleNamespace(write=file.write, flush=file.flush, close=file.close)


class _WeightsAndBiases:
    def __init__(self, workdir, config):
        self._wandb, identity = import_wandb(), workdir / 'wandb_id'
        if not identity.exists():
            identity.write_text(uuid.uuid4().hex)
        with self._torn_down_after_a_fault():
            self._run = self._wandb.init(
                project='gpt1_jax',
                name=workdir.name or 'run',
                dir=str(workdir) if is_local(workdir) else None,
                config=config,
                id=identity.read_text(),
                resume='allow',
            )

    def write(self, step, metrics, now):
        with self._torn_down_after_a_fault():
            self._run.log(metrics, step=step)

    def flush(self):
        """wandb flushes by itself."""

    def close(self):
        with self._torn_down_after_a_fault():
            self._run.finish()

    @contextlib.contextmanager
    def _torn_down_after_a_fault(self):
        """Else wandb would call its own process, which may have died, at exit, and print a traceback."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                self._wandb.teardown()
            raise


def import_wandb() -> types.ModuleType:
    """The package wandb. Raises UserError if it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise UserError('log.wandb: The package wandb is not installed. Install it with pip install wandb.') from error
    return wandb


def read_metrics(workdir: epath.Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, [] if there is none; one cut short by a kill is left out. The strings 'nan',
    'inf' and '-inf' become numbers again. Raises UserError for JSON that is not a line of metrics."""
    path, lines = workdir / 'metrics.jsonl', []
    for line in _lines(path) if path.exists() else ():
        with contextlib.suppress(ValueError):
            lines.append({name: float(value) for name, value in _parse(path, line).items()})
    return lines


def _lines(path):
    return path.read_bytes().decode(errors='replace').splitlines()


def _parse(path, line):
    value = parse_json(line)
    check_form(path, value, _LINE, 'Remove this line, which holds no metrics.')
    return value


def median_speed(lines: Iterable[Mapping[str, float]]) -> float | None:
    """The median of the tokens/s in the lines of `read_metrics`; None if there are none."""
    speeds = [line['tokens_per_second'] for line in lines if 'tokens_per_second' in line]
    return statistics.median(speeds) if speeds else None
