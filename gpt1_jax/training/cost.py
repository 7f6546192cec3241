"""What a run will cost, roughly, before it begins: the machine's speed, and the tokens that it reads."""

import dataclasses
import fractions
import math
import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from gpt1_jax.data.labelled.examples import Examples
from gpt1_jax.data.labelled.loading import available_splits, load_examples, uri_of
from gpt1_jax.data.labelled.registry import REGISTRY, Dataset
from gpt1_jax.data.tokenizers import N_SPECIAL
from gpt1_jax.errors import UserError
from gpt1_jax.model import architecture

CHARACTERS = 4  # in a token, about; 4.17 in novels with 40,000 pieces
_SPECIAL = 3  # tokens around the texts of a sequence
_SAMPLE = 500  # examples of a split whose length is measured
_ROWS = 2**14  # of the matrix that is multiplied
# Speed of a training step, as a share of that of a matrix product of the same width. Measured on 2 CPU cores that other
# work shared: 0.6 to 1.2, for transformer and LSTM of the sizes tiny and small.
_STEP = 0.6


def training_speed(width: int) -> float:
    """FLOP/s of training a model of this width on all devices, from about a second of matrix products."""
    cpu = jax.default_backend() == 'cpu'
    dtype = jnp.float32 if cpu else jnp.bfloat16
    product, a, b = jax.jit(jnp.matmul), jnp.ones((_ROWS, width), dtype), jnp.ones((width, 4 * width), dtype)
    product(a, b).block_until_ready()  # compiles
    products, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < 1:
        product(a, b).block_until_ready()
        products += 1
    devices = 1 if cpu else jax.device_count()  # CPU devices share the cores
    return _STEP * devices * products * 2 * a.size * 4 * width / seconds


def flops_per_token(pretraining: ConfigDict) -> float:
    """FLOPs of training on one token, for the model of a pre-training config."""
    model = architecture.build(
        pretraining.model, pretraining.data.vocab_size, N_SPECIAL, platform=jax.default_backend()
    )
    return model.flops_per_token()


def whole_steps(steps: float) -> int:
    """The number of updates of a run, at least 1. Raises UserError for more than their counter, of 32 bits, holds."""
    if not steps < 2**31 - 1:
        raise UserError(
            f'data.epochs: {steps:.3g} updates are too many. Set data.epochs or data.tokens for less than 2e9.'
        )
    return max(1, round(steps))


def checkpoints(checkpoint: ConfigDict, steps: int) -> int:
    """About how many checkpoints a run of this many steps keeps; the best one may be one more."""
    log = 1 + int(checkpoint.keep_log * math.log10(steps)) if checkpoint.keep_log else 0
    every = steps // checkpoint.keep_every if checkpoint.keep_every else 0
    return min(steps, log + every + checkpoint.keep_latest)


@dataclasses.dataclass(frozen=True)
class LabelledSet:
    """Sizes of a labelled set.

    Attributes:
      examples: split -> their number, of the splits that can be read; of 'train' and 'dev' only if they are labelled.
      tokens: of an example in fine-tuning, about, if a text that choices share is read once.
      separate: the same, if each choice is a sequence of its own.
      problem: why nothing can be fine-tuned on it; '' if it can be.
    """

    examples: dict[str, int]
    tokens: float
    separate: float
    problem: str


def labelled_set(name: str, source: str, n_positions: int, download: bool = True) -> LabelledSet:
    """The sizes of a set of the registry in a source of several (see loading.uri_of), for a model with `n_positions`.

    download: see loading.load_examples.
    """
    dataset, numbers, problems, lengths = REGISTRY[name], {}, [], []
    uri = uri_of(dataset, source)
    if uri is None:
        return LabelledSet({}, 0.0, 0.0, f'{source} has no folder for it')
    for split in dict.fromkeys(('train', 'dev', *available_splits(dataset, uri, download))):
        try:
            examples = load_examples(dataset, uri, split, download=download)
            if split in ('train', 'dev'):
                lengths += _lengths(dataset, examples)
            numbers[split] = len(examples)
        except UserError as error:
            problems.append(str(error))
    mean = lambda tokens: sum(tokens) / max(1, len(lengths))
    cut = lambda length: min(n_positions, length)
    return LabelledSet(
        numbers,
        mean(cut(context) + sum(map(cut, own)) for context, own in lengths),
        mean(sum(cut(context + of_one) for of_one in own) for context, own in lengths),
        ''.join(problems[:1]),
    )


def _lengths(dataset: Dataset, examples: Examples) -> list[tuple[float, list[float]]]:
    """About, of some examples: (tokens of the text that choices share, or 0; tokens of each sequence without that)."""
    tokens = lambda *texts: sum(map(len, texts)) / CHARACTERS
    lengths = []
    for i in range(0, len(examples), max(1, len(examples) // _SAMPLE)):
        *texts, last = (column[i] for column in examples.fields.values())
        if dataset.kind == 'multiple_choice':
            context, *given = texts
            lengths.append((tokens(context), [tokens(*given, choice) + _SPECIAL for choice in last]))
        else:
            orders = 2 if dataset.kind == 'similarity' else 1
            lengths.append((0.0, orders * [tokens(*texts, last) + _SPECIAL]))
    return lengths


def used_examples(data: ConfigDict, number: int) -> int:
    """How many of `number` training examples `config.data` takes: of the first `limit` the share, rounded up."""
    number = number if data.limit is None else min(number, data.limit)
    return math.ceil(fractions.Fraction(str(data.share)) * number)  # exact: 0.07 * 100 is more than 7


def too_few(data: ConfigDict, number: int) -> str:
    """Why `config.data` cannot take its training examples from `number` of them; '' if it can."""
    used = used_examples(data, number)
    return f'its {used} training examples are fewer than data.batch_size={data.batch_size}' * (used < data.batch_size)


# Work as a number of trained tokens; a token that is only scored costs a third of one.


def finetuning_tokens(of_set: LabelledSet, data: ConfigDict, share: float = 1.0) -> float:
    """Tokens that a fine-tuning run reads, with `data` of its config and this share of the training examples."""
    trained = data.epochs * share * min(of_set.examples['train'], data.limit or math.inf)
    others = sum(number for split, number in of_set.examples.items() if split not in ('train', 'dev'))
    scored = (data.epochs + 1) * of_set.examples['dev'] + others + data.score_train
    return of_set.tokens * (trained + scored / 3)


def zero_shot_tokens(name: str, of_set: LabelledSet, limit: int | None) -> float:
    """Tokens that the zero-shot scores of one checkpoint on a data set take."""
    rows, splits, most = of_set.examples, REGISTRY[name].splits, limit or math.inf
    if name == 'dpr' and 'test' in rows:
        examples = min(rows['test'], most)
    elif splits['train'] == splits['dev']:  # nothing is held out
        examples = min(rows.get('train', 0) + rows['dev'], most)
    else:
        examples = min(rows['dev'], most) + (min(rows['train'], most) if name == 'cola' else 0)  # for its threshold
    return examples * (2 if name == 'sst2' else 1) * of_set.separate / 3
