"""Checkpoints: asynchronous, atomic, verified when read. The only file that imports Orbax.

A checkpoint is the folder `<directory>/<step>` with one sub-folder per item ('params', 'opt_state', ...) and
`record`, a JSON file with the caller's `meta`, the metrics, and the shape, dtype and checksum of every array.
Orbax does not notice changed bytes in array files, hence the checksums.
"""

import contextlib
import functools
import hashlib
import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from gpt1_jax.errors import UserError

RECORD = 'record'


class _Damaged(Exception):
    """A checkpoint that cannot be read back as it was written."""


class Checkpointer:
    """Saves to and restores from one directory.

    Reading never changes the directory: a run may read the checkpoints of another that is still writing.
    In a run of many processes every process makes the same calls.

    Args:
      directory: the folder of all checkpoints, created at the first save; `gs://` works.
      keep_latest: how many of the newest checkpoints stay; None keeps every one.
      keep_best: how many of the best stay besides.
      best_metric: the metric that ranks checkpoints, or None. A checkpoint saved without it, or with a value
        that is not finite, is never the best.
      best_mode: 'min' or 'max'.
    """

    def __init__(self, directory, *, keep_latest=2, keep_best=1, best_metric=None, best_mode='min'):
        if best_mode not in ('min', 'max'):
            raise UserError(f"best_mode is '{best_mode}': it must be 'min' or 'max'")
        if keep_latest is not None and keep_latest < 1:
            raise UserError(f'keep_latest is {keep_latest}: it must be 1 or more, or None to keep all')
        path = epath.Path(directory)
        self._directory = path if '://' in str(directory) else path.absolute()  # Orbax asks for it
        self._keep_latest, self._keep_best = keep_latest, keep_best
        self._best_metric, self._best_mode = best_metric, best_mode
        self._manager = None
        self._damaged = set()
        self._scores = {}
        logging.get_absl_logger().addFilter(_without_orbax)
        sys.unraisablehook = _unraisablehook
        # Uncompressed: zstd saves 8 % of the space of random-like numbers and costs 4 times the time.
        self._arrays = ocp.PyTreeCheckpointHandler(use_compression=False, use_zarr3=True)

    def save(self, step, items, meta, metrics=None):
        """Starts writing a checkpoint and returns once the arrays are copied; the writing goes on behind.

        A step that is already there stays as it is: give the metrics of a step with its first save. What
        `restore_latest` found damaged is removed here, since the run that goes on writes those steps again.

        Args:
          step: number of updates done.
          items: name -> pytree of arrays, for example {'params': ..., 'opt_state': ...}.
          meta: whatever else must come back, as JSON types.
          metrics: name -> float of this step, or None.

        Raises:
          UserError: this save, or the one before, cannot be written (disk full, no permission).
        """
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        leaves = {name: _describe(tree) for name, tree in items.items()}
        record = {'meta': meta, 'metrics': metrics, 'leaves': leaves}
        stored = {'sha256': _digest(record), 'record': record}
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
            manager.save(step, args=ocp.args.Composite(**saves, record=ocp.args.JsonSave(stored)), force=True)

    def restore_latest(self, abstract_items):
        """Restores the newest checkpoint that is whole; a damaged one is named in a warning and skipped.

        Args:
          abstract_items: name -> pytree of `jax.ShapeDtypeStruct` with shardings, on any mesh; only these are
            read and verified.

        Returns:
          (step, items, meta), or None where there is no checkpoint at all.

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
                logging.warning('checkpoint %s is damaged (%s): skipped', self._directory / str(step), reason)
                self._damaged.add(step)
        if steps:
            raise UserError(f'every checkpoint in {self._directory} is damaged ({_join(steps)}; {reason}): '
                            'put back a copy of one, or name another directory to start afresh')
        return None

    def restore(self, step, abstract_items):
        """Restores one step, as `restore_latest` does.

        Raises:
          UserError: there is no such step, or it is damaged, or it does not fit.
        """
        self.wait()
        if step not in self.steps():
            raise UserError(f'{self._directory} has no checkpoint of step {step}: it has '
                            f'{_join(self.steps()) or "none"}')
        try:
            return self._read(step, abstract_items)
        except _Damaged as error:
            raise UserError(f'checkpoint {self._directory / str(step)} is damaged ({error}): '
                            f'choose another step of {_join(self.steps())}') from error

    def steps(self):
        """Returns the steps of the complete checkpoints, ascending."""
        if not self._directory.exists():
            return []
        names = ocp.path.step.standard_name_format()
        return sorted(found.step for found in names.find_all(self._directory))

    def best_step(self):
        """Returns the complete step with the best metric, the earliest of equals; None where none has one."""
        return next(iter(self._by_score(self.steps())), None)

    def wait(self):
        """Blocks until the last save is complete. Raises UserError if it cannot be written."""
        if self._manager:
            with self._writing():
                self._manager.wait_until_finished()

    def close(self):
        """Waits for the last save and frees the threads. Raises UserError if the save cannot be written."""
        if self._manager:
            with self._writing():
                self._manager.close()

    def _open(self):
        """Makes the Orbax manager, at the first save only: it removes what a killed writer left."""
        if not self._manager:
            registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
            registry.add(None, ocp.args.PyTreeSave, self._arrays)
            registry.add(RECORD, ocp.args.JsonSave, ocp.JsonCheckpointHandler())
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self, cleanup_tmp_directories=True, lightweight_initialize=True)
            self._manager = ocp.CheckpointManager(self._directory, options=options, handler_registry=registry)
        return self._manager

    def should_preserve(self, checkpoints, *, context):
        """Orbax's preservation policy: the newest and the best. Its own reads files that may be damaged."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = steps[-self._keep_latest:] if self._keep_latest else steps
        kept = kept + self._by_score(steps)[:self._keep_best]
        return [step in kept for step in steps]

    def _by_score(self, steps):
        """Returns those of `steps` that have a score, best first."""
        for step in set(steps) - set(self._scores):
            try:
                self._scores[step] = self._score_of(self._read_record(step)['metrics'])
            except (OSError, ValueError, LookupError, TypeError, _Damaged):
                self._scores[step] = None
        scored = [step for step in steps if self._scores[step] is not None]
        return sorted(scored, key=lambda step: (self._scores[step], step))

    def _score_of(self, metrics):
        """Returns the value of the ranking metric, smaller is better, or None."""
        value = metrics.get(self._best_metric, math.nan)
        return (value if self._best_mode == 'min' else -value) if math.isfinite(value) else None

    def _read_record(self, step):
        """Returns the record of a step. Raises _Damaged or whatever reading a broken file raises."""
        stored = json.loads((self._directory / str(step) / RECORD / 'metadata').read_text())
        if _digest(stored['record']) != stored['sha256']:
            raise _Damaged('its record has changed')
        return stored['record']

    def _read(self, step, abstract_items):
        """Returns (step, items, meta) of one checkpoint. Raises _Damaged or UserError."""
        folder, reason, items = self._directory / str(step), '', {}
        try:
            record = self._read_record(step)
            for name, tree in abstract_items.items():
                _check_fit(folder, name, record['leaves'], tree)
                arguments = ocp.checkpoint_utils.construct_restore_args(tree)
                items[name] = self._arrays.restore(
                    folder / name, args=ocp.args.PyTreeRestore(item=tree, restore_args=arguments))
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):  # not the fault of the files
            raise
        except Exception as error:  # Orbax and TensorStore raise many types for one cause
            reason = _cause(error)
        # The processes must agree, or some would go on with this checkpoint and others with the one before.
        if not _on_every_process(not reason):
            raise _Damaged(reason or 'another process cannot read it')
        for name, tree in items.items():
            saved, read = record['leaves'][name], _describe(tree)
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
            raise UserError(f'cannot write checkpoints to {self._directory} ({_cause(error)}): free some '
                            'space or name a writable folder, then start again: the run resumes') from error


def checksums(tree):
    """Returns one 32-bit checksum per array leaf, in tree order; the same for any sharding.

    Computed where the arrays are: every word is mixed with its flat index by the finaliser of MurmurHash3, a
    bijection, and the results are added modulo 2^32. So the order of the additions does not matter, a change
    inside one word is always noticed, and any other with probability 1 - 2^-32.
    """
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return []
    mesh = getattr(getattr(leaves[0], 'sharding', None), 'mesh', None)
    return np.asarray(_checksums(mesh and NamedSharding(mesh, PartitionSpec()))(leaves)).tolist()


@functools.lru_cache(maxsize=None)
def _checksums(sharding):
    return jax.jit(lambda leaves: jnp.stack([_checksum(leaf) for leaf in leaves]), out_shardings=sharding)


def _checksum(array):
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    word = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(array, word).astype(jnp.uint32)
    index, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):  # not a reshape: that would gather a sharded array
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    mixed = words ^ (index * jnp.uint32(0x9E3779B9))
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def _describe(tree):
    """Returns name -> {'shape', 'dtype', 'checksum'} of the leaves, in tree order."""
    return {name: {'shape': list(leaf.shape), 'dtype': str(leaf.dtype), 'checksum': checksum}
            for (name, leaf), checksum in zip(_named(tree), checksums(tree))}


def _digest(record):
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def _named(tree):
    return [(jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _check_fit(folder, item, saved_items, tree):
    """Raises UserError unless the saved item has exactly the names, shapes and dtypes of `tree`."""
    if item not in saved_items:
        raise UserError(f"checkpoint {folder} has no '{item}': it has {_join(saved_items)}")
    saved = {name: (tuple(leaf['shape']), leaf['dtype']) for name, leaf in saved_items[item].items()}
    wanted = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in _named(tree)}
    for name in list(wanted) + [name for name in saved if name not in wanted]:
        there, here = saved.get(name), wanted.get(name)
        if there != here:
            there, here = (f'{pair[1]}{list(pair[0])}' if pair else 'absent' for pair in (there, here))
            raise UserError(f'checkpoint {folder} does not fit: {item}/{name} is {there} in it, {here} in '
                            'this run: use the settings that it was written with, or name another directory')


def _on_every_process(true):
    return true if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(true)).all())


def _unraisablehook(unraisable, *, former=sys.unraisablehook):
    """When one array cannot be read, TensorStore's threads find no event loop to tell of the others, and would print a
    traceback for each."""
    if str(unraisable.exc_value) != 'Event loop is closed':
        former(unraisable)


def _without_orbax(record):
    """Log filter. Orbax writes dozens of lines for each save, and its errors reach the user as UserError."""
    return '/orbax/checkpoint/' not in record.pathname


def _cause(error):
    """Returns one line of an error; of TensorStore's long ones the end, where the system's own error is."""
    line = (str(error).strip().splitlines() or [''])[0]
    line = re.split(r' See full TensorStore details| \[tensorstore_spec', line)[0]
    return (line if len(line) < 160 else '...' + line[-160:]) or type(error).__name__


def _join(names):
    return ', '.join(map(str, names))
