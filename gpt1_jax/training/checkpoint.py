"""Checkpoints: asynchronous, atomic, verified when read. Only the files checkpoint*.py import Orbax.

A checkpoint is the folder `<directory>/<step>`, see checkpoint_folder.py.
"""

import contextlib
import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from gpt1_jax import peers
from gpt1_jax.errors import DamagedError, UserError
from gpt1_jax.files import exists, is_local, patiently, write_atomically
from gpt1_jax.training import checkpoint_folder, checkpoint_noise, room
from gpt1_jax.training.checkpoint_folder import Damaged, Unreadable, cause, join

_WAIT_SECONDS = 1.0  # for a save: a longer wait is logged
_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


class Checkpointer:
    """Saves to and restores from one directory.

    Reading never changes the directory: a run may read the checkpoints of another that is still writing.
    In a run of many processes, every process must make the same calls.

    Args:
      directory: the folder of all checkpoints, created by the first save; `gs://` works.
      keep_latest: how many of the newest checkpoints to keep; None keeps all.
      keep_best: how many of the best to keep as well.
      counts: step -> whether it counts as one of the newest; else it is kept only until the next save. None: all do.
      keep: step -> whether to keep it for good; None: none.
      best_metric: the metric that ranks checkpoints, or None. A checkpoint saved without it, or with a value
        that is not finite, is never the best.
      best_mode: 'min' or 'max'.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep_latest: int | None = 2,
        keep_best: int = 1,
        counts: Callable[[int], bool] | None = None,
        keep: Callable[[int], bool] | None = None,
        best_metric: str | None = None,
        best_mode: str = 'min',
    ):
        path = epath.Path(directory)
        self._directory = path.absolute() if is_local(path) else path  # Orbax asks for it
        self._keep_latest, self._keep_best, self._counts = keep_latest, keep_best, counts
        self._keep = keep or (lambda step: False)
        self._best_metric, self._best_mode = best_metric, best_mode
        self._manager = None
        self._starts_apart = None  # whether `_start` does
        self._thread = futures.ThreadPoolExecutor(1, 'checkpoint')
        self._started = None
        self._damaged = set()
        self._scores = {}
        self._waited = False
        checkpoint_noise.hide()

    def save(self, step: int, items: Mapping, meta: Mapping, metrics: Mapping[str, float] | None = None) -> None:
        """Starts writing a checkpoint, which goes on in the background; the caller may donate or delete the arrays.

        A step that already exists is not written again, so its metrics must come with its first save. Steps that
        `restore_latest` found damaged are deleted here, because the resumed run writes them again. If the previous save
        is not complete, this one waits for it: Orbax allows 20 minutes.

        Args:
          step: number of updates done.
          items: name -> pytree of arrays, for example {'params': ..., 'opt_state': ...}.
          meta: anything else to restore, as JSON types.
          metrics: name -> value at this step.

        Raises UserError if the previous save failed, or this one at its start (disk full, no permission). If this one
        fails later, the next call says so.
        """
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        described = {name: checkpoint_folder.start_describing(tree) for name, tree in items.items()}
        meta = copy.deepcopy(meta)  # because the caller may go on to change it

        def record():
            leaves = {name: describe() for name, describe in described.items()}
            return checkpoint_folder.seal({'meta': meta, 'metrics': metrics, 'leaves': leaves})

        with self._writing():
            manager = self._open()
            self._wait_for_the_save_before()
            self._delete(sorted(self._damaged.intersection(manager.all_steps())))
            self._damaged.clear()
            if step in manager.all_steps():
                return
            self._scores[step] = self._score_of(metrics)
            self._start(step, items, ocp.args.JsonSave(record))

    def restore_latest(
        self, abstract_items: Mapping, steps: Sequence[int] | None = None
    ) -> tuple[int, dict, dict] | None:
        """Restores the newest intact checkpoint; skips damaged ones with a warning.

        Args:
          abstract_items: name -> pytree of `jax.ShapeDtypeStruct` with shardings, on any mesh; only these are
            read and verified.
          steps: the steps to try, ascending; None: all.

        Returns:
          (step, items, meta), or None if there are no steps to try.

        Raises:
          UserError: every checkpoint is damaged; a file cannot be read; or an item, a parameter, a shape or a dtype
            differs.
        """
        self.wait()
        return self._restore_first(reversed(self.steps() if steps is None else steps), abstract_items)

    def restore_best(self, abstract_items: Mapping, first: Sequence[int] = ()) -> tuple[int, dict, dict] | None:
        """As `restore_latest`, but the best intact checkpoint; of those without the ranking metric, which come last,
        the newest. first: steps to try before all others."""
        self.wait()
        return self._restore_first(dict.fromkeys((*first, *self.steps_by_rank())), abstract_items)

    def _restore_first(self, steps: Iterable[int], abstract_items: Mapping) -> tuple[int, dict, dict] | None:
        """As `restore_latest`, but the first intact one of `steps`."""
        steps = list(steps)
        restored = next(self.restore_each(steps, abstract_items), None)
        if steps and restored is None:
            raise UserError(
                f'{self._directory}: Every checkpoint is damaged ({join(sorted(steps))}). Restore a copy of one, or '
                'start again in another --workdir.'
            )
        return restored

    def restore_each(self, steps: Iterable[int], abstract_items: Mapping) -> Iterator[tuple[int, dict, dict]]:
        """(step, items, meta) of those of `steps` that are not damaged, in order; logs a warning for the others."""
        self.wait()
        return self._whole(steps, lambda step: (step, *checkpoint_folder.read(self._folder(step), abstract_items)))

    def whole_steps(self, item: str) -> Iterator[int]:
        """The complete steps, by rank, whose `item`, a tree of dicts, holds what was written; logs a warning for the
        others. A process reads each of them once, as a whole. Raises UserError if a file cannot be read."""
        return self._whole(
            self.steps_by_rank(), lambda step: checkpoint_folder.verify(self._folder(step), item) or step
        )

    def _whole(self, steps, read):
        """What `read` returns of those steps that are not damaged."""
        for step in steps:
            try:
                yield read(step)
            except Damaged as error:
                logging.warning('%s: The checkpoint is damaged (%s). Skipped.', self._folder(step), error)
                self._damaged.add(step)

    def restore(self, step: int, abstract_items: Mapping) -> tuple[int, dict, dict]:
        """Restores one step. Raises UserError if it does not exist or does not fit, DamagedError if it is damaged."""
        self.wait()
        self.check_step(step)
        try:
            return step, *checkpoint_folder.read(self._folder(step), abstract_items)
        except Damaged as error:
            advice = 'No other checkpoint is whole: restore a copy.'
            others = self.restore_each((other for other in self.steps_by_rank() if other != step), abstract_items)
            if other := next(others, None):
                advice = f'Use that of step {other[0]}, which is whole: {self._directory.parent}@{other[0]}.'
            raise DamagedError(f'{self._folder(step)}: The checkpoint is damaged ({error}). {advice}') from error

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, ascending."""
        if not exists(self._directory):
            return []
        if is_local(self._directory):
            patiently(lambda: os.listdir(self._directory))  # Orbax would take a folder that it cannot read for empty
        names = ocp.path.step.standard_name_format()
        return sorted(found.step for found in names.find_all(self._directory))

    def check_step(self, step: int, where: str = '') -> None:
        """Raises UserError, which names the steps that exist, if this one does not. where: for the message."""
        steps = self.steps()
        if step not in steps:
            whole = list(self._whole(steps, lambda step: (step, self._read_record(step))[0]))
            raise UserError(
                f'{where or self._directory}: There is no checkpoint of step {step}. The steps here are '
                f'{join(whole) or "none"}.'
            )

    def steps_by_rank(self) -> list[int]:
        """The complete steps: those with the metric, the best first, then the others, the newest first."""
        steps = self.steps()
        return list(dict.fromkeys((*self._by_score(steps), *reversed(steps))))

    def describe(self, step: int, meta: Mapping, metrics: Mapping[str, float]) -> None:
        """Gives a complete checkpoint other `meta` and `metrics`, as if it had been saved with these, and deletes the
        checkpoints that then need not be kept. Raises UserError if that fails."""
        self.wait()
        metrics = {name: float(value) for name, value in metrics.items()}
        with self._writing():
            record = self._read_record(step) | {'meta': meta, 'metrics': metrics}
            if jax.process_index() == 0:
                content = json.dumps(checkpoint_folder.seal(record)).encode()
                write_atomically(self._folder(step) / checkpoint_folder.RECORD / 'metadata', [content])
            self._scores[step] = self._score_of(metrics)
            steps = self.steps()
            self._delete(sorted(set(steps) - self._kept(steps)))

    def delete_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps. Raises UserError if that fails."""
        self.wait()
        with self._writing():
            self._delete(later := [other for other in self.steps() if other > step])
            for other in later:
                self._scores.pop(other, None)

    def fingerprint(self, step: int) -> str:
        """64 hex characters that change with the checkpoint of a step; '' if its record cannot be read."""
        try:
            return checkpoint_folder.seal(self._read_record(step))['sha256']
        except (Damaged, Unreadable):
            return ''

    def wait(self) -> None:
        """Blocks until the last save is complete. Raises UserError if it failed."""
        if self._manager:
            with self._writing():
                self._finish()

    def close(self) -> None:
        """Waits for the last save and frees the threads. Raises UserError if the save failed."""
        if self._manager:
            with self._writing():
                try:
                    self._finish()
                finally:
                    self._thread.shutdown()
                    self._manager.close()

    def _open(self):
        """The Orbax manager. Made by the first save, not before: it deletes what a killed writer left."""
        if not self._manager:
            registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
            registry.add(None, ocp.args.PyTreeSave, checkpoint_folder.array_handler())
            registry.add(checkpoint_folder.RECORD, ocp.args.JsonSave, checkpoint_folder.RecordHandler())
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self, cleanup_tmp_directories=True, lightweight_initialize=True
            )
            self._manager = ocp.CheckpointManager(self._directory, options=options, handler_registry=registry)
        return self._manager

    def _start(self, step, items, record):
        """Orbax returns once the arrays are on the host, because the caller's next step donates their memory. If an
        accelerator has room for copies, these go to the host in another thread while the next steps run."""
        if self._starts_apart is None:  # several processes must save in the same order as they compute
            self._starts_apart = jax.process_count() == 1 and room.is_spare(items)

        def start(items):
            saves = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
            self._manager.save(step, args=ocp.args.Composite(**saves, record=record), force=True)

        if self._starts_apart:
            self._started = self._thread.submit(start, _copy(items))
        else:
            start(items)

    def _finish(self):
        """Waits for the end of the last save."""
        started, self._started = self._started, None
        if started:
            started.result()
        self._manager.wait_until_finished()

    def _delete(self, steps):
        """Deletes checkpoints, after all processes have come here: Orbax makes them wait for each other at each one."""
        if steps:
            manager = self._open()
            peers.meet()
            for step in steps:
                manager.delete(step)

    def should_preserve(self, checkpoints: Sequence, *, context: Any) -> list[bool]:
        """The preservation policy: the newest, the best and the kept ones. Orbax's own policy reads files that may
        be damaged."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = self._kept(steps)
        return [step in kept for step in steps]

    def _kept(self, steps):
        counted = list(filter(self._counts, steps)) if self._counts else steps
        newest = steps[-1:] + (counted[-self._keep_latest :] if self._keep_latest else steps)
        return {*newest, *self._by_score(steps)[: self._keep_best], *filter(self._keep, steps)}

    def _by_score(self, steps):
        """The steps among `steps` that have a score, best first."""
        for step in set(steps) - set(self._scores):
            try:
                self._scores[step] = self._score_of(self._read_record(step)['metrics'])
            except Damaged as error:
                self._scores[step] = None
                if step not in self._damaged:
                    logging.warning('%s: The checkpoint is damaged (%s). It has no rank.', self._folder(step), error)
        scored = [step for step in steps if self._scores[step] is not None]
        return sorted(scored, key=lambda step: (self._scores[step], step))

    def _score_of(self, metrics):
        """The value of the ranking metric, negated if larger is better; None if it is missing or not finite."""
        value = metrics.get(self._best_metric, math.nan)
        return (value if self._best_mode == 'min' else -value) if math.isfinite(value) else None

    def _folder(self, step):
        return self._directory / str(step)

    def _read_record(self, step):
        return checkpoint_folder.read_record(self._folder(step))

    def _wait_for_the_save_before(self):
        started = time.monotonic()
        self._finish()
        waited = time.monotonic() - started
        if waited > _WAIT_SECONDS and not self._waited:
            self._waited = True
            logging.warning(
                '%s: A save took longer than the steps up to the next one, which waited %.0f s for it. Save less often '
                '(checkpoint.every, log.eval_every), or to a faster disk. This warning is not repeated.',
                self._directory,
                waited,
            )

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # Orbax and TensorStore raise many types for one cause
            raise UserError(
                f'{self._directory}: Checkpoints cannot be written ({cause(error)}). Make room or give '
                'write permission, then run the same command again to resume.'
            ) from error
