"""One checkpoint: a folder with a sub-folder per item ('params', 'opt_state', ...) and the record, read and verified.

The record is a JSON file with the caller's `meta`, the metrics, and the shape, dtype and checksum of every array.
Orbax does not notice changed bytes in array files, hence the checksums. A checkpoint is damaged only if it does not
hold what was written. A file that cannot be read is tried again, then named.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import unflatten_dict
from jax.experimental import multihost_utils

from gpt1_jax.errors import UserError
from gpt1_jax.files import is_local, package_version, patiently
from gpt1_jax.training import checksums

RECORD = 'record'
_WHOLE, _DAMAGED, _UNREADABLE = range(3)
_known: set[tuple] = set()  # (folder of an item, checksum of its record) that this process has found whole

if not package_version('google-cloud-storage'):
    # Orbax needs this package to find and remove empty folders of a bucket. They do no harm.
    ocp.utils.gcs_utils.is_hierarchical_namespace_enabled = lambda path: False


class Damaged(Exception):
    """A checkpoint does not hold what was written."""


class Unreadable(UserError):
    """The system does not let a file be read, which says nothing about its content."""

    def __str__(self) -> str:
        return f'{self.args[0]}. Give read permission, or repair the disk; then run the same command again.'


class RecordHandler(ocp.JsonCheckpointHandler):
    """Writes what a function returns. It is called in the background, because it waits for the checksums."""

    async def async_save(self, directory, item=None, args=None):
        del item

        async def write():
            if jax.process_index() == 0:
                (directory / 'metadata').write_text(json.dumps(args.item()))

        return [ocp.future.CommitFutureAwaitingContractedSignals(write(), name=RECORD)]


def start_describing(tree: Any) -> Callable[[], dict[str, dict]]:
    """A function that waits for name -> {'shape', 'dtype', 'checksum'} of the leaves, in tree order."""
    found = {name: {'shape': list(leaf.shape), 'dtype': str(leaf.dtype)} for name, leaf in _named(tree)}
    wait = checksums.start(tree)
    return lambda: {
        name: one | {'checksum': checksum} for (name, one), checksum in zip(found.items(), wait(), strict=True)
    }


def array_handler() -> ocp.PyTreeCheckpointHandler:
    """For the items. Uncompressed: zstd saves 8 % of the space of random-like numbers and takes 4 times as long."""
    return ocp.PyTreeCheckpointHandler(use_compression=False, use_zarr3=True)


def seal(record: dict) -> dict:
    """A record with its own checksum, as it is stored."""
    return {'sha256': _digest(record), 'record': record}


def read_record(folder: epath.Path) -> dict:
    """The record of a checkpoint. Raises Damaged or Unreadable."""
    path = folder / RECORD / 'metadata'
    try:
        stored = json.loads(patiently(path.read_text))
        if _digest(stored['record']) == stored['sha256']:
            return stored['record']
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise Damaged(cause(error)) from error
    except OSError as error:
        raise Unreadable(f'{path}: The file cannot be read ({error.strerror or error})') from error
    raise Damaged('the record has changed')


def read(folder: epath.Path, abstract_items: Mapping) -> tuple[dict, dict]:
    """(items, meta) of a checkpoint; in a run of many processes, all must call it.

    abstract_items: name -> pytree of `jax.ShapeDtypeStruct` with shardings; only these are read and verified.

    Raises Damaged, Unreadable, or UserError if an item does not fit.
    """
    fault, items = None, {}
    try:
        record = read_record(folder)
        for name, tree in abstract_items.items():
            _check_fit(folder, name, record['leaves'], tree)
            items[name] = _restore(folder / name, tree, ocp.checkpoint_utils.construct_restore_args(tree))
    except (Damaged, Unreadable) as error:
        fault = error
    # The processes must agree, or some would resume from this checkpoint and others from an older one.
    state = _DAMAGED if isinstance(fault, Damaged) else _UNREADABLE if fault else _WHOLE
    worst = _worst_of_all_processes(state)
    if worst == _UNREADABLE:
        raise fault if state == worst else Unreadable(f'{folder}: Another process cannot read it')
    if worst == _DAMAGED:
        raise Damaged(str(fault or 'another process cannot read it'))
    for name, tree in items.items():
        _check_content(folder, name, record, tree)
    return items, record['meta']


def verify(folder: epath.Path, item: str) -> None:
    """Reads an item, a tree of dicts, if this process has not found it whole before. Raises Damaged or Unreadable."""
    record = read_record(folder)
    if (folder / item, seal(record)['sha256']) in _known:
        return
    saved = record['leaves'][item].items()
    tree = unflatten_dict({name: jax.ShapeDtypeStruct(leaf['shape'], leaf['dtype']) for name, leaf in saved}, sep='/')
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    _check_content(folder, item, record, _restore(folder / item, tree, as_numpy))


def cause(error: Exception) -> str:
    """An error in one line; of TensorStore's long ones the end, which has the system's own error."""
    line = getattr(error, 'strerror', None) or (str(error).strip().splitlines() or [''])[0]
    line = re.split(r' See full TensorStore details| \[tensorstore_spec', line)[0]
    return (line if len(line) < 160 else '...' + line[-160:]) or type(error).__name__


def join(names: Iterable) -> str:
    """'a, b, c'"""
    return ', '.join(map(str, names))


def _restore(folder, tree, arguments):
    """The arrays of an item, not yet verified. Raises Damaged or Unreadable."""
    for last in (False, True):  # twice: an error of the disk may have passed
        try:
            return _reader().restore(folder, args=ocp.args.PyTreeRestore(item=tree, restore_args=arguments))
        except (MemoryError, jax.errors.JaxRuntimeError):  # not the fault of the files
            raise
        except Exception as error:  # Orbax and TensorStore raise many types for one cause
            _check_readable(folder)
            if last:
                raise Damaged(cause(error)) from error


@functools.cache
def _reader():
    return array_handler()


def _worst_of_all_processes(state):
    return state if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.array(state)).max())


def _check_fit(folder, item, saved_items, tree):
    """Raises UserError unless the saved item has exactly the names, shapes and dtypes of `tree`."""
    if item not in saved_items:
        raise UserError(f'{folder}: The checkpoint has no {item!r}, only {join(saved_items)}. Name another --workdir.')
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


def _check_content(folder, item, record, tree):
    """Raises Damaged unless the arrays of an item have the checksums of its record."""
    saved, read_back = record['leaves'][item], start_describing(tree)()
    if wrong := [leaf for leaf in read_back if read_back[leaf]['checksum'] != saved[leaf]['checksum']]:
        raise Damaged(f'{item}: the bytes of {join(wrong)} have changed')
    _known.add((folder / item, seal(record)['sha256']))


def _check_readable(folder):
    """Reads all files of a folder. Raises Unreadable, which names the first that cannot be read."""

    def fail(error):
        raise error

    # Without `onerror` os.walk leaves out a folder that it cannot read.
    walk = os.walk(folder, onerror=fail) if is_local(folder) else folder.walk()
    where = folder
    try:
        for parent, _, names in walk:
            for name in names:
                where = epath.Path(parent) / name
                patiently(where.read_bytes)
    except FileNotFoundError:
        return
    except Exception as error:  # of many types for gs://
        raise Unreadable(f'{where}: The file cannot be read ({cause(error)})') from error


def _digest(record):
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def _named(tree):
    return [
        (jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
