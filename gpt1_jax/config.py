"""Checks of a config's values, its saved form, and how two configs differ."""

import json
import os
import re
from collections.abc import Iterable

import ml_collections

from gpt1_jax import peers
from gpt1_jax.errors import UserError

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


def compare(old: dict, new: dict) -> dict[str, tuple]:
    """Dotted key -> (old value, new value) where two configs (JSON types) differ, except in MAY_CHANGE.

    A key that was added after the old config has its former value there. Two spellings of one path are the same.
    """
    is_free = lambda key: any(f'.{name}.' in f'.{key}.' for name in MAY_CHANGE)
    is_same = lambda key, a, b: (is_place(key) and _place(a) == _place(b)) or (key, a, b) == _ONCE
    differences = sorted(_differences(old, new).items())
    return {key: pair for key, pair in differences if not is_free(key) and not is_same(key, *pair)}


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
