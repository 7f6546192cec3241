"""Checks of a config's values, its saved form, and the comparison on resume."""

import json
import os
import re
import shlex
from collections.abc import Callable, Iterable

import ml_collections
from absl import logging
from etils import epath

from gpt1_jax import peers
from gpt1_jax.errors import UserError
from gpt1_jax.files import exists, make_directory, read_json, write_atomically, write_json

# These may change when a run is resumed: they change no number by more than rounding.
MAY_CHANGE = (
    *'mesh checkpoint log workers runner runner_options data.workers data.cache data.download'.split(),
    *'model.scan model.remat model.attention'.split(),
    'optimizer.on_divergence',  # without effect as long as the loss does not diverge
)

# Keys that were added later, with the value that keeps the behaviour of older runs.
_BEFORE = {
    'model.kind': 'transformer',
    'rest': 'fresh',
    'data.patience': 0,
    'data.share': 1.0,
    'data.score_train': 0,
    'data.choices': '',
    'data.download': True,
    'data.text_column': '',
    'data.strip_gutenberg': False,
    'data.unwrap': False,
    'optimizer.on_divergence': 'stop',
}
_ABSENT = 'nothing'
_ONCE = ('model.init_std', 0.02, None)  # key, former default, default of today: a run keeps what it began with
_KEPT = ('checkpoints', 'zero_shot.json')  # in a workdir: only a run with the same config may add to these
_CONTENT = 'source.txt'  # the fingerprint of what a run reads
_PLACES = ('source', 'init_from', 'tokenizer', 'output')  # last parts of the keys whose values name a place
_PATHS = (*_PLACES, 'prompts', 'target', 'runs', 'cache')
# Last parts of the keys that may be None, which stands for a default; and of those that may if the config has a `size`.
_OPTIONAL = 'init_std limit max_length n_transfer stride'.split()
_OF_SIZE = 'batch_size heads layers mlp_width n_positions scan units width'.split()

MOST_LAYERS = 2**12  # each of which is traced, and compiled unless model.scan is set
MOST_SIZE = 2**17  # of a model: far beyond what fits anywhere, far below what overflows

# Ranges of numbers: (ends of their keys, test, words).
_RANGES = (
    (
        'model.layers model.width model.heads model.mlp_width model.units model.n_positions '
        'batch_size data.eval_batch_size data.finetune_batch_size optimizer.accumulation optimizer.max_skipped '
        'checkpoint.keep_latest checkpoint.keep_best log.every log.eval_windows log.zero_shot.limit samples max_tokens '
        'batches seeds',
        lambda x: x >= 1,
        'at least 1',
    ),
    (
        'data.tokens data.max_score data.score_train data.patience optimizer.warmup_steps optimizer.weight_decay '
        'optimizer.max_grad_norm checkpoint.every checkpoint.every_minutes checkpoint.keep_every checkpoint.keep_log '
        'log.eval_every log.zero_shot.every lm_coefficient temperature top_k layers coefficients entries',
        lambda x: x >= 0,
        '0 or more',
    ),
    ('data.epochs optimizer.learning_rate optimizer.eps model.init_std minutes', lambda x: x > 0, 'more than 0'),
    (
        'model.dropout model.attention_dropout model.residual_dropout model.head_dropout optimizer.b1 optimizer.b2 '
        'optimizer.warmup_fraction',
        lambda x: 0 <= x < 1,
        'from 0 to below 1',
    ),
    (
        'model.width model.heads model.mlp_width model.units model.n_positions data.max_score',
        lambda x: x <= MOST_SIZE,
        f'at most {MOST_SIZE:,}',
    ),
    (
        'batch_size data.eval_batch_size data.finetune_batch_size optimizer.accumulation batches data.vocab_size',
        lambda x: x <= 2**20,
        f'at most {2**20:,}',
    ),
    (
        'data.tokens_per_shard data.tokenizer_sample_mb optimizer.warmup_steps top_k max_tokens minutes',
        lambda x: x < 2**31,
        f'less than {2**31:,}',
    ),
    ('model.layers', lambda x: x <= MOST_LAYERS, f'at most {MOST_LAYERS:,}'),
    ('seeds', lambda x: x <= 10_000, 'at most 10,000'),
    ('workers', lambda x: 0 <= x <= 4096, 'from 0 to 4,096'),
    ('optimizer.b1 optimizer.b2', lambda x: x <= 0.999999, 'at most 0.999999'),  # in float32 more may be 1
    ('temperature', lambda x: x == 0 or x >= 1e-30, '0, or at least 1e-30'),
    ('data.limit', lambda x: x >= 1, 'at least 1'),
    ('top_p', lambda x: 1e-30 <= x <= 1, 'from 1e-30 to 1'),
    ('data.share shares', lambda x: 0 < x <= 1, 'more than 0 and at most 1'),
    ('seed', lambda x: -(2**63) <= x < 2**63, 'a whole number of 64 bits'),
    ('mesh.shape batches layers', lambda x: x == int(x), 'a whole number'),
    ('n_transfer limit max_length stride', lambda x: isinstance(x, int), 'a whole number'),  # if it is not None
)
# For every float, also those that the step never sees: beyond these limits float32 has 0 or infinity.
_FLOAT32 = lambda x: not isinstance(x, float) or x == 0 or 1e-37 <= abs(x) <= 1e38, '0, or from 1e-37 to 1e38'
_FILLED = {'batches': '1,8', 'sets': 'sst2,race', 'works': 'pretrain,sst2'}  # lists that may not be empty: an example
_CHOICES = {
    'model.embedding_dropout': ('table', 'sum'),
    'model.softmax_rows': ('all', 'tokens'),
    'model.attention': ('auto', 'xla', 'kernel'),
    'model.dtype': ('auto', 'float32', 'bfloat16'),
    'rest': ('fresh', 'absent'),
    'runner': ('local', 'direct', 'dataflow', 'spark', 'flink'),
    'optimizer.on_divergence': ('stop', 'rollback'),
}


def check(config: ml_collections.ConfigDict, prefix: str = '', sized: bool = False) -> None:
    """Raises UserError for the first impossible value. For a part of a config: `prefix` of its keys, and whether the
    whole is `sized`, that is, has a `size`."""
    sized = sized or 'size' in config
    for name, value in config.items():
        full = prefix + name
        is_one_of = lambda keys: any(f'.{full}'.endswith(f'.{key}') for key in keys)
        if isinstance(value, ml_collections.ConfigDict) and name not in _OPTIONAL:
            check(value, f'{full}.', sized)
            continue
        if value is None and full.rpartition('.')[2] not in _OPTIONAL + _OF_SIZE * sized:
            raise UserError(f'{full}: None is not valid. Give a value, or leave it as the config file has it.')
        if isinstance(value, str) and full.rpartition('.')[2] in _PATHS:
            check_place(full, value)
        ranges = [(test, words) for keys, test, words in _RANGES if is_one_of(keys.split())]
        for test, words in (*ranges, _FLOAT32):
            if not all(_passes(one, test) for one in _elements(value)):
                which = 'Each' if isinstance(value, tuple) else 'It'
                raise UserError(f'{full}: {value!r} is not valid. {which} must be {words}.')
        for key, example in _FILLED.items():
            if is_one_of([key]) and not value:
                raise UserError(f'{full}: It is empty. Give at least one, such as {example}.')
        for key, choices in _CHOICES.items():
            if is_one_of([key]):
                check_choice(full, value, choices)


def check_place(key: str, value: str) -> None:
    """Raises UserError if the value of a key names a place of a kind that no file is read from, such as http://."""
    found = re.search(r'([\w+.-]+)://', value)
    if found and found[1] != 'gs':
        raise UserError(f'{key}: {value!r} cannot be read or written. Give a local path, or gs://...')


def _elements(value):
    """The elements of a tuple; any other value alone, but () for None."""
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _passes(value, test):
    try:
        return test(value)
    except (TypeError, ValueError, OverflowError):  # not a number, or infinity
        return False


def check_no_argument(name: str, arg: str) -> None:
    """Raises UserError if an argument is given to configs/NAME.py, which takes none."""
    if arg:
        raise UserError(f'configs/{name}.py: It takes no argument. Leave {f":{arg}"!r} out.')


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Raises UserError if the value of a key is not one of `choices`."""
    if value not in choices:
        raise UserError(f'{key}: {value!r} is unknown. Choose one of {", ".join(choices)}.')


def as_json(config: ml_collections.ConfigDict) -> dict:
    """A config as JSON types."""
    return json.loads(config.to_json_best_effort())


def check_same(config: ml_collections.ConfigDict) -> None:
    """Raises UserError if the config of this process is not that of process 0 of its run. Paths may differ."""
    given = as_json(config)
    differences = _differences(peers.agree(given)[0], given)
    if found := {key: pair for key, pair in differences.items() if key.rpartition('.')[2] not in _PATHS}:
        words = '; '.join(f'{key}: {first!r} there, {own!r} here' for key, (first, own) in sorted(found.items()))
        raise UserError(
            f'processes: Process 0 was given another config ({words}). Start all processes with the same command.'
        )


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


def _content(workdir):
    """The fingerprint of the data of the run in the workdir; '' if it keeps none."""
    path = workdir / _CONTENT
    return path.read_bytes().decode(errors='replace') if exists(path) else ''


def compare(old: dict, new: dict) -> dict[str, tuple]:
    """Dotted key -> (old value, new value) where two configs (JSON types) differ, except in MAY_CHANGE.

    A key that was added after the old config has its former value there. Two spellings of one path are the same.
    """
    is_free = lambda key: any(f'.{name}.' in f'.{key}.' for name in MAY_CHANGE)
    is_same = lambda key, a, b: (is_place(key) and _place(a) == _place(b)) or (key, a, b) == _ONCE
    differences = sorted(_differences(old, new).items())
    return {key: pair for key, pair in differences if not is_free(key) and not is_same(key, *pair)}


def _source(config):
    data = config.get('data')
    source = data.get('source') if isinstance(data, dict) else ''
    return source if isinstance(source, str) else ''  # in a damaged config.json it may be anything


def is_place(key: str) -> bool:
    """Whether the value of a dotted key names a place."""
    return key.rpartition('.')[2] in _PLACES


def _place(value):
    """The value with its local path, if it has one, in canonical form; a scheme may stand before it."""
    scheme, colon, path = value.rpartition(':') if isinstance(value, str) else ('', '', '')
    if not path or '://' in value:
        return value
    try:
        return f'{scheme}{colon}{os.path.realpath(os.path.expanduser(path))}'
    except ValueError:  # NUL, or half a character: not a path
        return value


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


def _differences(old, new, prefix=''):
    """Dotted key -> (old value, new value) where they differ."""
    result = {}
    for key in {**old, **new}:
        name = prefix + key
        a, b = (_BEFORE.get(name, _ABSENT) if key not in values else values[key] for values in (old, new))
        if isinstance(a, dict) and isinstance(b, dict):
            result |= _differences(a, b, f'{name}.')
        elif a != b:
            result[name] = (a, b)
    return result
