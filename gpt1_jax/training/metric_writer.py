"""Metrics of a run: JSON lines, TensorBoard and, when asked, Weights & Biases."""

import contextlib
import json
import math
import statistics
import time
from collections.abc import Iterable, Mapping

from absl import logging
from etils import epath

from gpt1_jax.errors import UserError
from gpt1_jax.files import write_atomically
from gpt1_jax.training.partitioning import is_writer


class MetricWriter:
    """Writes scalars to `workdir/metrics.jsonl`, to `workdir/tensorboard` if tensorboardX is installed, and to
    Weights & Biases if asked.

    Only process 0 writes; in the others every method does nothing.

    A resumed run continues its record there, which also shows `config`. Raises UserError if wandb is needed but not
    installed, or the folder cannot be written.
    """

    def __init__(self, workdir: epath.PathLike, *, use_wandb: bool = False, config: Mapping | None = None):
        self._active = is_writer()
        self._workdir = epath.Path(workdir)
        self._path = self._workdir / 'metrics.jsonl'
        self._file = self._tensorboard = self._wandb = None
        self._first_step = None
        if self._active:
            with self._writable():
                self._workdir.mkdir(parents=True, exist_ok=True)
            if use_wandb:
                self._wandb = _start_wandb(self._workdir, config)

    def truncate_after(self, step: int) -> None:
        """Removes what was written after `step`, and a last line cut short by a kill; TensorBoard hides later points.

        Call it before the first `write` of a resumed run: its file then equals that of an uninterrupted run, except
        for times and rates.
        """
        self._first_step = step + 1
        if not self._active or not self._path.exists():
            return
        kept = []
        for line in self._path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # the line cut short
                if json.loads(line)['step'] <= step:
                    kept.append(line + '\n')
        write_atomically(self._path, [''.join(kept).encode()])

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one JSON line {"step", "time", **metrics}, flushed; `time` is in seconds since 1970.

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
            self._file.write(json.dumps(line) + '\n')
            self._file.flush()
            if self._tensorboard is None:
                self._tensorboard = _open_tensorboard(self._workdir, self._first_step)
            for name, value in metrics.items() if self._tensorboard else ():
                self._tensorboard.add_scalar(name, value, step, now)
        if self._wandb:
            self._wandb.log(metrics, step=step)

    def close(self) -> None:
        """Flushes and closes everything."""
        for sink in (self._file, self._tensorboard):
            if sink:
                with self._writable():
                    sink.close()
        if self._wandb:
            self._wandb.finish()
        self._file = self._tensorboard = self._wandb = None

    @contextlib.contextmanager
    def _writable(self):
        try:
            yield
        except OSError as error:
            raise UserError(
                f'{self._workdir}: Metrics cannot be written ({error}). Make room or give write '
                'permission, then run the same command again to resume.'
            ) from error


def read_metrics(workdir: epath.Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, [] if there is none; one cut short by a kill is left out. The strings 'nan',
    'inf' and '-inf' become numbers again."""
    path, lines = workdir / 'metrics.jsonl', []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            lines.append({name: float(value) for name, value in json.loads(line).items()})
    return lines


def median_speed(lines: Iterable[Mapping[str, float]]) -> float | None:
    """The median of the tokens/s in the lines of `read_metrics`; None if there are none."""
    speeds = [line['tokens_per_second'] for line in lines if 'tokens_per_second' in line]
    return statistics.median(speeds) if speeds else None


def _open_tensorboard(workdir, first_step):
    """A writer, or False if tensorboardX is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        logging.log_first_n(logging.INFO, 'tensorboardX is not installed: metrics go to metrics.jsonl only', 1)
        return False
    # Without the suffix, two files opened within a second would have the same name.
    return SummaryWriter(
        str(workdir / 'tensorboard'), purge_step=first_step, flush_secs=30, filename_suffix=f'.{time.time_ns()}'
    )


def _start_wandb(workdir, config):
    try:
        import wandb
    except ImportError as error:
        raise UserError('log.wandb: The package wandb is not installed. Install it with pip install wandb.') from error
    name = workdir.name or 'run'
    identity = workdir / 'wandb_id'
    if not identity.exists():
        identity.write_text(wandb.util.generate_id())
    return wandb.init(
        project='gpt1_jax', name=name, dir=str(workdir), config=config, id=identity.read_text(), resume='allow'
    )
