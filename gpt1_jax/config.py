"""Checks of a config's values, its saved form, and the comparison on resume."""

import json
import math
from collections.abc import Iterable

import ml_collections
from absl import logging
from etils import epath

from gpt1_jax.errors import UserError
from gpt1_jax.files import make_directory, read_json, write_json

# These may change when a run is resumed: they change no number by more than rounding.
MAY_CHANGE = ('mesh', 'checkpoint', 'log', 'data.workers', 'data.cache', 'model.scan', 'model.remat', 'model.attention')

# Keys that were added later, with the value that keeps the behaviour of older runs.
_BEFORE = {'model.kind': 'transformer', 'rest': 'fresh', 'data.patience': 0, 'data.share': 1.0, 'data.score_train': 0}
_ABSENT = 'nothing'
_KEPT = ('checkpoints', 'zero_shot.json')  # what only the same config may add to, in a workdir

# Ranges of numbers: (ends of their keys, test, words).
_RANGES = (
    (
        'model.layers model.width model.heads model.mlp_width model.units model.n_positions '
        'batch_size data.eval_batch_size optimizer.accumulation optimizer.max_skipped checkpoint.keep_latest '
        'checkpoint.keep_best log.every log.eval_windows log.zero_shot.limit samples max_tokens',
        lambda x: x >= 1,
        'at least 1',
    ),
    (
        'data.tokens data.max_score data.score_train data.patience optimizer.warmup_steps optimizer.weight_decay '
        'optimizer.max_grad_norm checkpoint.every checkpoint.keep_every checkpoint.keep_log log.eval_every '
        'log.zero_shot.every lm_coefficient temperature top_k',
        lambda x: 0 <= x < math.inf,
        '0 or more',
    ),
    (
        'data.epochs optimizer.learning_rate optimizer.eps model.init_std minutes',
        lambda x: 0 < x < math.inf,
        'more than 0',
    ),
    (
        'model.dropout model.attention_dropout model.residual_dropout model.head_dropout optimizer.b1 optimizer.b2 '
        'optimizer.warmup_fraction',
        lambda x: 0 <= x < 1,
        'from 0 to below 1',
    ),
    ('top_p data.share', lambda x: 0 < x <= 1, 'more than 0 and at most 1'),
)
_CHOICES = {
    'model.embedding_dropout': ('table', 'sum'),
    'model.softmax_rows': ('all', 'tokens'),
    'model.attention': ('auto', 'xla', 'kernel'),
    'model.dtype': ('auto', 'float32', 'bfloat16'),
    'rest': ('fresh', 'absent'),
}


def check(config: ml_collections.ConfigDict, prefix: str = '') -> None:
    """Raises UserError for the first impossible value. prefix: of the keys, if the config is part of another."""
    for name, value in config.items():
        full = prefix + name
        is_one_of = lambda keys: any(f'.{full}'.endswith(f'.{key}') for key in keys)
        if isinstance(value, ml_collections.ConfigDict):
            check(value, f'{full}.')
            continue
        for keys, test, words in _RANGES:
            if is_one_of(keys.split()) and value is not None and not test(value):
                raise UserError(f'{full}: {value} is not possible. It must be {words}.')
        for key, choices in _CHOICES.items():
            if is_one_of([key]):
                check_choice(full, value, choices)


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


def open_workdir(config: ml_collections.ConfigDict, workdir: epath.Path, *, write: bool) -> None:
    """Logs the config and writes workdir/config.json; if the workdir holds a run to resume, compares the two instead.

    write: whether this process writes. Raises UserError if keys other than MAY_CHANGE differ from those of the run in
    the workdir, or its config.json is missing.
    """
    path = workdir / 'config.json'
    given = as_json(config)
    logging.info('config: %s', json.dumps(given))
    if kept := [name for name in _KEPT if (workdir / name).exists()]:
        if not path.exists():
            raise UserError(f'{workdir}: It holds {kept[0]} but no config.json of their run. Name another --workdir.')
        differences = [
            f'{key}: {old!r} there, {new!r} now'
            for key, (old, new) in sorted(_differences(read_json(path), given).items())
            if not any(f'{key}.'.startswith(f'{name}.') for name in MAY_CHANGE)
        ]
        if differences:
            raise UserError(
                f'{workdir}: It holds a run of another config ({"; ".join(differences)}). Give the same '
                'config to resume it, or another --workdir.'
            )
    elif write:
        make_directory(workdir)
        write_json(path, given)


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
