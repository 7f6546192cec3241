"""Checkpoints: asynchronous, atomic, verified when read. The only file that imports Orbax.

A checkpoint is the folder `<directory>/<step>` with one sub-folder per item ('params', 'opt_state', ...) and
`record`, a JSON file with the caller's `meta`, the metrics, and the shape, dtype and checksum of every array.
Orbax does not notice changed bytes in array files, hence the checksums.
"""

import contextlib
import copy
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from gpt1_jax.errors import UserError
from gpt1_jax.training import checksums

RECORD = 'record'


class _Damaged(Exception):
    """A checkpoint that cannot be read back as it was written."""


class Checkpointer:
    """Saves to and restores from one directory.

    Reading never changes the directory: a run may read the checkpoints of another that is still writing.
    In a run of many processes, every process must make the same calls.

    Args:
      directory: the folder of all checkpoints, created by the first save; `gs://` works.
      keep_latest: how many of the newest checkpoints to keep; None keeps all.
      keep_best: how many of the best to keep as well.
      keep: step -> whether to keep it for good.
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
        keep: Callable[[int], bool] = lambda step: False,
        best_metric: str | None = None,
        best_mode: str = 'min',
    ):
        path = epath.Path(directory)
        self._directory = path if '://' in str(directory) else path.absolute()  # Orbax asks for it
        self._keep_latest, self._keep_best, self._keep = keep_latest, keep_best, keep
        self._best_metric, self._best_mode = best_metric, best_mode
        self._manager = None
        self._damaged = set()
        self._scores = {}
        logging.get_absl_logger().addFilter(_without_orbax)
        sys.unraisablehook = _unraisablehook
        # Uncompressed: zstd saves 8 % of the space of random-like numbers and costs 4 times the time.
        self._arrays = ocp.PyTreeCheckpointHandler(use_compression=False, use_zarr3=True)

    def save(self, step: int, items: Mapping, meta: Mapping, metrics: Mapping[str, float] | None = None) -> None:
        """Starts writing a checkpoint, which goes on in the background; the caller may donate or delete the arrays.

        A step that already exists is not written again, so its metrics must come with its first save. Steps that
        `restore_latest` found damaged are deleted here, because the resumed run writes them again.

        Args:
          step: number of updates done.
          items: name -> pytree of arrays, for example {'params': ..., 'opt_state': ...}.
          meta: anything else to restore, as JSON types.
          metrics: name -> value at this step.

        Raises UserError if this save or the previous one failed (disk full, no permission).
        """
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        described = {name: _start_describing(tree) for name, tree in items.items()}
        meta = copy.deepcopy(meta)  # because the caller may go on to change it

        def record():
            leaves = {name: describe() for name, describe in described.items()}
            record = {'meta': meta, 'metrics': metrics, 'leaves': leaves}
            return {'sha256': _digest(record), 'record': record}

        with self._writing():
            manager = self._open()
            manager.wait_until_finished()
            for damaged in sorted(self._damaged.intersection(manager.all_steps())):
                manager.delete(damaged)
            self._damaged.clear()
            if step in manager.all_steps():
                return
            self._scores[step] = self._score_of(metrics)
            saves = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
            manager.save(step, args=ocp.args.Composite(**saves, record=ocp.args.JsonSave(record)), force=True)

    def restore_latest(self, abstract_items: Mapping) -> tuple[int, dict, dict] | None:
        """Restores the newest intact checkpoint; skips damaged ones with a warning.

        Args:
          abstract_items: name -> pytree of `jax.ShapeDtypeStruct` with shardings, on any mesh; only these are
            read and verified.

        Returns:
          (step, items, meta), or None if there is no checkpoint at all.

        Raises:
          UserError: every checkpoint is damaged; or an item, a parameter, a shape or a dtype differs.
        """
        self.wait()
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._read(step, abstract_items)
            except _Damaged as error:
                reason = str(error)
                logging.warning('%s: The checkpoint is damaged (%s). Skipped.', self._directory / str(step), reason)
                self._damaged.add(step)
        if steps:
            raise UserError(
                f'{self._directory}: Every checkpoint is damaged ({_join(steps)}; {reason}). Restore a '
                'copy of one, or start again in another --workdir.'
            )
        return None

    def restore(self, step: int, abstract_items: Mapping) -> tuple[int, dict, dict]:
        """Restores one step. Raises UserError if it does not exist, is damaged, or does not fit."""
        self.wait()
        steps = self.steps()
        if step not in steps:
            raise UserError(
                f'{self._directory}: There is no checkpoint of step {step}. The steps here are '
                f'{_join(steps) or "none"}.'
            )
        try:
            return self._read(step, abstract_items)
        except _Damaged as error:
            raise UserError(
                f'{self._directory / str(step)}: The checkpoint is damaged ({error}). Choose another of '
                f'the steps {_join(steps)}.'
            ) from error

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, ascending."""
        if not self._directory.exists():
            return []
        names = ocp.path.step.standard_name_format()
        return sorted(found.step for found in names.find_all(self._directory))

    def best_step(self) -> int | None:
        """The complete step with the best metric, the earliest of equals; None if none has the metric."""
        return next(iter(self._by_score(self.steps())), None)

    def wait(self) -> None:
        """Blocks until the last save is complete. Raises UserError if it failed."""
        if self._manager:
            with self._writing():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and frees the threads. Raises UserError if the save failed."""
        if self._manager:
            with self._writing():
                self._manager.close()

    def _open(self):
        """The Orbax manager. Made by the first save, not before: it deletes what a killed writer left."""
        if not self._manager:
            registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
            registry.add(None, ocp.args.PyTreeSave, self._arrays)
            registry.add(RECORD, ocp.args.JsonSave, _RecordHandler())
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self, cleanup_tmp_directories=True, lightweight_initialize=True
            )
            self._manager = ocp.CheckpointManager(self._directory, options=options, handler_registry=registry)
        return self._manager

    def should_preserve(self, checkpoints: Sequence, *, context: Any) -> list[bool]:
        """The preservation policy: the newest, the best and the kept ones. Orbax's own policy reads files that may
        be damaged."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = steps[-self._keep_latest :] if self._keep_latest else steps
        kept = kept + self._by_score(steps)[: self._keep_best]
        return [step in kept or self._keep(step) for step in steps]

    def _by_score(self, steps):
        """Those of `steps` that have a score, best first."""
        for step in set(steps) - set(self._scores):
            try:
                self._scores[step] = self._score_of(self._read_record(step)['metrics'])
            except (OSError, ValueError, LookupError, TypeError, _Damaged):
                self._scores[step] = None
        scored = [step for step in steps if self._scores[step] is not None]
        return sorted(scored, key=lambda step: (self._scores[step], step))

    def _score_of(self, metrics):
        """The value of the ranking metric, negated if larger is better; None if it is missing or not finite."""
        value = metrics.get(self._best_metric, math.nan)
        return (value if self._best_mode == 'min' else -value) if math.isfinite(value) else None

    def _read_record(self, step):
        """The record of a step. Raises _Damaged, or anything that reading a broken file may raise."""
        stored = json.loads((self._directory / str(step) / RECORD / 'metadata').read_text())
        if _digest(stored['record']) != stored['sha256']:
            raise _Damaged('the record has changed')
        return stored['record']

    def _read(self, step, abstract_items):
        """(step, items, meta) of one checkpoint. Raises _Damaged or UserError."""
        folder, reason, items = self._directory / str(step), '', {}
        try:
            record = self._read_record(step)
            for name, tree in abstract_items.items():
                _check_fit(folder, name, record['leaves'], tree)
                arguments = ocp.checkpoint_utils.construct_restore_args(tree)
                items[name] = self._arrays.restore(
                    folder / name, args=ocp.args.PyTreeRestore(item=tree, restore_args=arguments)
                )
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):  # not the fault of the files
            raise
        except Exception as error:  # Orbax and TensorStore raise many types for one cause
            reason = _cause(error)
        # The processes must agree, or some would resume from this checkpoint and others from an older one.
        if not _on_every_process(not reason):
            raise _Damaged(reason or 'another process cannot read it')
        for name, tree in items.items():
            saved, read = record['leaves'][name], _start_describing(tree)()
            wrong = [leaf for leaf in read if read[leaf]['checksum'] != saved[leaf]['checksum']]
            if wrong:
                raise _Damaged(f'{name}: the bytes of {_join(wrong)} have changed')
        return step, items, record['meta']

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # see _read
            raise UserError(
                f'{self._directory}: Checkpoints cannot be written ({_cause(error)}). Make room or give '
                'write permission, then run the same command again to resume.'
            ) from error


class _RecordHandler(ocp.JsonCheckpointHandler):
    """Writes what a function returns. It is called in the background, because it waits for the checksums."""

    async def async_save(self, directory, item=None, args=None):
        del item

        async def write():
            if jax.process_index() == 0:
                (directory / 'metadata').write_text(json.dumps(args.item()))

        return [ocp.future.CommitFutureAwaitingContractedSignals(write(), name=RECORD)]


def _start_describing(tree):
    """A function that waits for name -> {'shape', 'dtype', 'checksum'} of the leaves, in tree order."""
    found = {name: {'shape': list(leaf.shape), 'dtype': str(leaf.dtype)} for name, leaf in _named(tree)}
    wait = checksums.start(tree)
    return lambda: {
        name: one | {'checksum': checksum} for (name, one), checksum in zip(found.items(), wait(), strict=True)
    }


def _digest(record):
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def _named(tree):
    return [
        (jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _check_fit(folder, item, saved_items, tree):
    """Raises UserError unless the saved item has exactly the names, shapes and dtypes of `tree`."""
    if item not in saved_items:
        raise UserError(f'{folder}: The checkpoint has no {item!r}, only {_join(saved_items)}. Name another --workdir.')
    saved = {name: (tuple(leaf['shape']), leaf['dtype']) for name, leaf in saved_items[item].items()}
    wanted = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in _named(tree)}
    for name in list(wanted) + [name for name in saved if name not in wanted]:
        there, here = saved.get(name), wanted.get(name)
        if there != here:
            there, here = (f'{pair[1]}{list(pair[0])}' if pair else 'absent' for pair in (there, here))
            raise UserError(
                f'{folder}: The checkpoint does not fit this run: {item}/{name} is {there} there, {here} '
                'here. Use the config that it was written with, or another --workdir.'
            )


def _on_every_process(true):
    return true if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(true)).all())


def _unraisablehook(unraisable, *, former=sys.unraisablehook):
    """Hides tracebacks of TensorStore. When one array cannot be read, its threads find no event loop to report the
    others to, and would print a traceback for each."""
    if str(unraisable.exc_value) != 'Event loop is closed':
        former(unraisable)


def _without_orbax(record):
    """Log filter. Orbax writes dozens of lines for each save; its errors reach the user as UserError anyway."""
    return '/orbax/checkpoint/' not in record.pathname


def _cause(error):
    """One line of an error; of TensorStore's long ones the end, which has the system's own error."""
    line = (str(error).strip().splitlines() or [''])[0]
    line = re.split(r' See full TensorStore details| \[tensorstore_spec', line)[0]
    return (line if len(line) < 160 else '...' + line[-160:]) or type(error).__name__


def _join(names):
    return ', '.join(map(str, names))
