"""A workdir belongs to one run: who may go on in it, and what is refused."""

import json
import os
import shlex
from collections.abc import Callable

import ml_collections
from absl import logging
from etils import epath

from gpt1_jax.config import as_json, compare, is_place
from gpt1_jax.errors import UserError
from gpt1_jax.files import exists, make_directory, read_json, write_atomically, write_json

_KEPT = ('checkpoints', 'zero_shot.json')  # only a run with the same config may add to these
_CONTENT = 'source.txt'  # the fingerprint of what a run reads


def open_workdir(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    *,
    write: bool,
    fingerprint: Callable[[str], str] = lambda source: '',
) -> None:
    """Logs the config and writes workdir/config.json; if the workdir holds a run to resume, or one that trained and is
    finished, compares the two instead.

    Args:
      write: whether this process writes.
      fingerprint: `data.source` -> a string that identifies its content; '' if it is unknown. A run may go on with the
        same content in another place, but not with other content; workdir/source.txt keeps its fingerprint.
    Raises:
      UserError: keys other than MAY_CHANGE differ from those of the run in the workdir, or its config.json is missing.
    """
    path, given = workdir / 'config.json', as_json(config)
    logging.info('config: %s', json.dumps(given))
    now, stored, of_run = fingerprint(_source(given)), _of_run(workdir, given), ''
    if stored is not None:
        of_run, differences = _content(workdir), compare(stored, given)
        there = of_run or fingerprint(_source(stored))
        if there and now:
            differences.pop('data.source', None)
        if there and now and there != now:
            differences['data.source'] = (
                f'{_source(stored)} with content {there}',
                f'{_source(given)} with content {now}',
            )
        _refuse(workdir, given, differences)
    if write and (stored is None or not exists(path)):
        make_directory(workdir)
        write_json(path, given)
    if write and stored is None:
        (workdir / _CONTENT).unlink(missing_ok=True)  # of an earlier start that kept nothing else
    if write and now and not of_run:
        write_atomically(workdir / _CONTENT, [now.encode()])


def check_workdir(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Raises UserError where `open_workdir` would, whatever the content of `data.source`; writes nothing."""
    given = as_json(config)
    if (stored := _of_run(workdir, given)) is not None:
        _refuse(workdir, given, compare(stored, given))


def keep_content(workdir: epath.Path, source: str, content: str, *, write: bool) -> None:
    """Like the fingerprint of `open_workdir`, for data whose content is only known once they are read.

    Raises UserError if the run in the workdir began with other content.
    """
    of_run = _content(workdir) if any(exists(workdir / name) for name in _KEPT) else ''
    if of_run and of_run != content:
        raise UserError(
            f'{workdir}: Its run began with other data: the content of {source} has changed since. Restore it to '
            'resume the run, or name another --workdir.'
        )
    if write and not of_run:
        write_atomically(workdir / _CONTENT, [content.encode()])


def _of_run(workdir, given):
    """The config of the run in the workdir, if only a run with the same config may continue or replace it; else None.

    given: the config of the run that is to begin.
    """
    path = workdir / 'config.json'
    if kept := [name for name in _KEPT if exists(workdir / name)]:
        if not exists(path):
            raise UserError(f'{workdir}: It holds {kept[0]} but no config.json of their run. Name another --workdir.')
        return read_json(path)
    results = workdir / 'results.json'
    try:
        stored = read_json(results, {'config': dict})['config'] if exists(results) else None
    except UserError:  # damaged, which is reported where it is read; or of a version that kept no config
        return None
    # What was trained is not replaced, and `finetune` takes any results for its own; other tasks write theirs anew.
    is_kept = stored and (stored.get('task') in ('pretrain', 'finetune') or given.get('task') == 'finetune')
    return stored if is_kept else None


def _refuse(workdir, given, differences):
    """Raises UserError unless there are no differences."""
    differences = {'task': differences['task']} if 'task' in differences else differences  # then most keys differ
    if differences:
        words = '; '.join(f'{key}: {old!r} there, {new!r} now' for key, (old, new) in differences.items())
        raise UserError(
            f'{workdir}: It holds a run with another config ({words}). Give the same config to resume it, or '
            f'another --workdir.{_advice(workdir, given, differences)}'
        )


def _advice(workdir, given, differences):
    """How to go on where the data have only moved, or a run is to be longer; else ''."""
    if all(map(is_place, differences)):
        moved = [tuple(str(value).rpartition(':') for value in pair) for pair in differences.values()]
        if all(old[0] == new[0] and old[2] and os.path.exists(new[2]) for old, new in moved):
            links = '; '.join(f'ln -s {shlex.join([os.path.abspath(new[2]), old[2]])}' for old, new in moved)
            return f' If it is the same in another place, make a link at the old one ({links}) and give the old value.'
    is_longer = differences.keys() <= {'data.tokens', 'data.epochs'}
    if given.get('task') == 'pretrain' and is_longer and exists(workdir / 'checkpoints'):
        data = given['data']
        shards = f' --config.data.source=shards:{data["output"] or workdir / "shards"}'
        return (
            f' To train on from its model, for data.tokens more, add --config.init_from={workdir}'
            f'{"" if data["source"].startswith("shards:") else shards} --workdir=NEW.'
        )
    return ''


def _content(workdir):
    """The fingerprint of the data of the run in the workdir; '' if it keeps none."""
    path = workdir / _CONTENT
    return path.read_bytes().decode(errors='replace') if exists(path) else ''


def _source(config):
    data = config.get('data')
    source = data.get('source') if isinstance(data, dict) else ''
    return source if isinstance(source, str) else ''  # in a damaged config.json it may be anything
