"""What the configs share: defaults, the saved form, and the comparison on resume."""

import json
import math

import ml_collections
from etils import epath
from ml_collections import config_dict

from gpt1_jax.data.files import make_directory, write_atomically
from gpt1_jax.errors import UserError

SIZES = {  # layers, width, heads, feed-forward width, positions, vocabulary
    'tiny': (4, 128, 4, 512, 128, 4000),
    'small': (6, 256, 4, 1024, 256, 8000),
    'gpt1': (12, 768, 12, 3072, 512, 40000),  # Radford et al. 2018, section 4.1
}
MAY_CHANGE = ('mesh', 'checkpoint', 'log', 'data.workers', 'data.cache')  # a run may be resumed with others of these

# What a number must be: (ends of keys, test, words).
_RANGES = (
    ('model.layers model.width model.heads model.mlp_width model.n_positions data.batch_size data.eval_batch_size '
     'optimizer.accumulation optimizer.max_skipped checkpoint.keep_latest checkpoint.keep_best log.every '
     'log.eval_windows', lambda x: x >= 1, 'at least 1'),
    ('data.tokens data.max_score optimizer.warmup_steps optimizer.weight_decay optimizer.max_grad_norm '
     'checkpoint.every log.eval_every lm_coefficient', lambda x: 0 <= x < math.inf, '0 or more'),
    ('data.epochs optimizer.learning_rate optimizer.eps model.init_std', lambda x: 0 < x < math.inf, 'more than 0'),
    ('model.dropout model.attention_dropout model.residual_dropout model.head_dropout optimizer.b1 optimizer.b2 '
     'optimizer.warmup_fraction', lambda x: 0 <= x < 1, 'from 0 to below 1'),
)
_CHOICES = {'model.embedding_dropout': ('table', 'sum'), 'model.softmax_rows': ('all', 'tokens'),
            'model.dtype': ('auto', 'float32', 'bfloat16')}


def model_defaults() -> ml_collections.ConfigDict:
    """How a model of any size is trained and computed. Dropout: section 4.1; the choices: the release."""
    return ml_collections.ConfigDict(dict(
        dropout=0.1, attention_dropout=0.1, residual_dropout=0.1,
        embedding_dropout='table', softmax_rows='all', init_std=0.02, scan=True, remat=False, dtype='auto'))


def model_size(size: str) -> ml_collections.ConfigDict:
    """`model_defaults` with the architecture of SIZES[size]."""
    check_choice('size', size, SIZES)
    layers, width, heads, mlp_width, n_positions, _ = SIZES[size]
    model = model_defaults()
    model.update(layers=layers, width=width, heads=heads, mlp_width=mlp_width, n_positions=n_positions,
                 init_std=round(0.02 * (768 / width) ** 0.5, 3),
                 scan=size == 'gpt1')  # unrolled layers are a fifth faster on a CPU, and few compile fast
    return model


def optimizer_defaults(**values) -> ml_collections.ConfigDict:
    """Adam of the release; `values` are those that differ between pre-training and fine-tuning."""
    return ml_collections.ConfigDict(dict(
        warmup_steps=0, warmup_fraction=0.0, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, max_grad_norm=1.0,
        accumulation=1, max_skipped=5) | values)


def data_defaults(**values) -> ml_collections.ConfigDict:
    """What `prepare` needs to turn a corpus into shards."""
    return ml_collections.ConfigDict(dict(
        source='', output='', vocab_size=40000, tokenizer='', tokenizer_sample_mb=64, held_out=0.01,
        tokens_per_shard=2**26, workers=0) | values)


def run_defaults(**log) -> dict:
    """The sub-dicts `mesh`, `checkpoint` and `log` of a training run; `log`: keys of that one besides.

    The state is saved with every evaluation, and every `checkpoint.every` steps besides (0: no).
    """
    return dict(
        mesh=ml_collections.ConfigDict(dict(strategy='dp', shape=())),
        checkpoint=ml_collections.ConfigDict(dict(every=2000, keep_latest=2, keep_best=1)),
        log=ml_collections.ConfigDict(dict(every=50, wandb=False) | log))


def optional_int():
    """A key that is None until it is set to an integer."""
    return config_dict.placeholder(int)


def check(config: ml_collections.ConfigDict, prefix: str = '') -> None:
    """Raises UserError for the first value that no run can have. `prefix`: of the keys, where the config is a part."""
    for name, value in config.items():
        full = prefix + name
        is_one_of = lambda keys: any(f'.{full}'.endswith(f'.{key}') for key in keys)
        if isinstance(value, ml_collections.ConfigDict):
            check(value, f'{full}.')
        for keys, test, words in _RANGES:
            if is_one_of(keys.split()) and value is not None and not test(value):
                raise UserError(f'{full}={value} makes no sense: give {words}')
        for key, choices in _CHOICES.items():
            if is_one_of([key]):
                check_choice(full, value, choices)


def check_no_argument(name: str, arg: str) -> None:
    """Raises UserError where configs/NAME.py, which takes no argument, is given one."""
    if arg:
        raise UserError(f'configs/{name}.py takes no argument: leave {f":{arg}"!r} out')


def check_choice(key: str, value: str, choices) -> None:
    if value not in choices:
        raise UserError(f'{key}={value!r} is unknown; choose one of {", ".join(choices)}')


def save_or_compare(config: ml_collections.ConfigDict, workdir: epath.Path, *, write: bool) -> None:
    """Writes workdir/config.json (`write`: in one process), or, where the workdir holds checkpoints, checks that they
    are of the same config.

    Raises UserError that lists the keys whose values differ (`MAY_CHANGE` excepted), or says that the config is gone.
    """
    path = workdir / 'config.json'
    given = json.loads(config.to_json_best_effort())
    if (workdir / 'checkpoints').exists():
        if not path.exists():
            raise UserError(f'{workdir} holds checkpoints but no config.json that says of which run: name another '
                            '--workdir')
        differences = [
            f'{key}: {old!r} there, {new!r} now'
            for key, (old, new) in sorted(_differences(read_json(path), given).items())
            if not any(f'{key}.'.startswith(f'{name}.') for name in MAY_CHANGE)]
        if differences:
            raise UserError(f'{workdir} holds a run of another config ({"; ".join(differences)}): give the same config '
                            'to resume it, or another --workdir')
    elif write:
        make_directory(workdir)
        write_json(path, given)


def cache_compiled_steps(directory: epath.Path) -> None:
    """Keeps what XLA compiles in `directory`, for later runs of the same shapes."""
    import jax  # configs are read before main has set up what JAX reads when it is imported

    jax.config.update('jax_compilation_cache_dir', str(directory))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def perplexity(loss: float) -> float:
    """Of nats a token; finite whatever the loss."""
    return math.exp(min(loss, 700.0))


def write_json(path: epath.Path, value) -> None:
    """Writes JSON whole or not at all. Raises UserError where that is impossible."""
    write_atomically(path, [json.dumps(value, indent=2).encode() + b'\n'])


def read_json(path: epath.Path):
    """Raises UserError where the file is no JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f'{path} is damaged ({error}): put a copy back, or name another --workdir') from error


def _differences(old, new, prefix=''):
    result = {}
    for key in {**old, **new}:
        a, b = old.get(key, 'nothing'), new.get(key, 'nothing')
        if isinstance(a, dict) and isinstance(b, dict):
            result |= _differences(a, b, f'{prefix}{key}.')
        elif a != b:
            result[prefix + key] = (a, b)
    return result
