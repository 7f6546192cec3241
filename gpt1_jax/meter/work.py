"""What is measured: a program and its batches, and random examples with the lengths of real data sets."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from gpt1_jax.config import check_choice
from gpt1_jax.data.labelled.packing import FinetuningBatches, rows_for
from gpt1_jax.data.labelled.sequences import Encoded
from gpt1_jax.data.tokenizers import N_SPECIAL
from gpt1_jax.errors import UserError
from gpt1_jax.model.architecture import KINDS, Architecture
from gpt1_jax.model.classifier import ClassifierHead
from gpt1_jax.model.sizes import SIZES
from gpt1_jax.training import program
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import TrainState

_MOST = 2**22  # random examples, which are all in memory
TOTAL_STEPS = 10**6  # of the schedule


def sized(config: ConfigDict, size: str) -> ConfigDict:
    """A copy of a config whose model has the kind of SIZES[size], and its sizes if they are None. Raises UserError."""
    check_choice('size', size, SIZES)
    config = config.copy_and_resolve_references()
    config.size, named = size, SIZES[size]
    for name, value in named.sizes.items():
        if config.model[name] is None:
            config.model[name] = value
    with config.unlocked():
        config.model.kind = named.kind
    return config


@dataclasses.dataclass
class Work:
    """A program and its batches.

    Attributes:
      program: see training.program.
      batches: has `batch_at(step) -> NumPy batch of that update`; in `step.loop` also `count_tokens(batch)`.
    """

    program: program.Program
    batches: Any

    @property
    def model(self) -> nn.Module:
        return self.program.classifier.model

    def new_state(self) -> TrainState:
        return self.program.create_state(0)

    def put(self, step: int) -> dict:
        """The batch of update `step`, on the devices."""
        return self.program.partitioner.put_batch(self.batches.batch_at(step))

    def compile(self, step: int = 0, **compiler_options: str) -> tuple[jax.stages.Compiled, float]:
        """(compiled step for the shapes of update `step`, which donates its state; seconds of tracing, lowering and
        compiling)."""
        batch, started = self.put(step), time.perf_counter()
        lowered = self.program.train_step.lower(self.program.abstract, batch)
        return lowered.compile(compiler_options or None), time.perf_counter() - started


@contextlib.contextmanager
def from_cache() -> Iterator[list]:
    """A list that gets an entry for each program that is read from the cache in the block instead of being compiled."""
    hits = []
    listen = lambda event, **_: hits.append(event) if event == '/jax/compilation_cache/cache_hits' else None
    jax.monitoring.register_event_listener(listen)
    try:
        yield hits
    finally:
        jax.monitoring.unregister_event_listener(listen)


class Cycle:
    """The first `steps` of some batches, again and again: few shapes, all of which can be compiled beforehand."""

    from_shards = False

    def __init__(self, batches: FinetuningBatches, steps: int):
        self._batches, self._steps = batches, steps
        self.count_tokens = batches.count_tokens

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """The arrays of update `step`, packed anew each time."""
        return self._batches.batch_at(step % self._steps)


def finetuning(
    config: ConfigDict,
    base: Architecture,
    vocab_size: int,
    head: ClassifierHead,
    encoded: Encoded,
    partitioner: Partitioner,
    *,
    packing: bool = True,
) -> Work:
    """Fine-tuning of a model of architecture `base` on `encoded`, as a fine-tuning config says."""
    share_context = head.kind == 'multiple_choice' and 'share_context' not in KINDS[base.kind].CANNOT
    batches = FinetuningBatches(
        encoded,
        batch_size=config.data.batch_size,
        accumulation=config.optimizer.accumulation,
        packing=packing,
        placement=partitioner.placement,
        share_context=share_context,
        rows=rows_for(partitioner.platform),
    )
    return Work(program.finetuning(config, base, vocab_size, head, head.kind, TOTAL_STEPS, partitioner), batches)


@dataclasses.dataclass(frozen=True)
class LabelledSet:
    """A labelled set, after which random examples are made.

    Attributes:
      kind, classes: of its head.
      make: (vocab_size, n, longest) -> n random examples with sequences of its lengths, at most `longest` tokens.
      batches: in a training epoch here, which stands for the set's own; data.labelled.packing chooses shapes by it.
      train, dev: numbers of its examples.
    """

    kind: str
    classes: int
    make: Callable
    batches: int
    train: int
    dev: int


# Lengths in tokens at the quantiles below, measured with 40,000 SentencePiece pieces of 455 novels: training sentences
# of SST-2 with special tokens; articles of RACE with the question, and answers (5,000 questions, cut to 512 tokens).
SST2_LENGTHS = (3, 4, 6, 10, 18, 27, 45, 67)
RACE_CONTEXTS, RACE_ANSWERS = (104, 267, 328, 386, 445, 497, 507, 508), (1, 2, 4, 7, 10, 12, 19, 38)
_QUANTILES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1)


def sentences(vocab_size: int, n: int, longest: int) -> Encoded:
    """n random single sequences of SST-2's lengths."""
    rng = np.random.default_rng(0)
    start, _, extract = range(vocab_size, vocab_size + N_SPECIAL)
    lengths = np.maximum(3, _draw(rng, SST2_LENGTHS, n, longest))
    sequences = [[np.array([start, *rng.integers(0, vocab_size, length - 2), extract], np.int32)] for length in lengths]
    return Encoded(sequences, rng.integers(0, 2, n).astype(np.int32), [str(i) for i in range(n)], 0, 0)


def questions(vocab_size: int, n: int, longest: int) -> Encoded:
    """n random questions with four answers each, of RACE's lengths."""
    rng = np.random.default_rng(0)
    start, delimiter, extract = range(vocab_size, vocab_size + N_SPECIAL)
    answers = _draw(rng, RACE_ANSWERS, 4 * n, longest // 4).reshape(n, 4)
    contexts = np.minimum(_draw(rng, RACE_CONTEXTS, n, longest), longest - 3 - answers.max(axis=1))
    sequences = []
    for context, lengths in zip(contexts, answers):
        text = rng.integers(0, vocab_size, context)
        sequences.append(
            [
                np.array([start, *text, delimiter, *rng.integers(0, vocab_size, length), extract], np.int32)
                for length in lengths
            ]
        )
    return Encoded(sequences, rng.integers(0, 4, n).astype(np.int32), [str(i) for i in range(n)], 0, 0)


def _draw(rng, lengths, n, longest):
    if n > _MOST:
        raise UserError(f'data.batch_size: Batches of this size need {n:,} random examples. Lower it.')
    drawn = np.interp(rng.uniform(size=n), _QUANTILES, lengths).round().astype(int)
    return np.clip(drawn, 1, longest)


SETS = {
    'sst2': LabelledSet('classification', 2, sentences, 600, 67_349, 872),
    'race': LabelledSet('multiple_choice', 1, questions, 20, 87_866, 4_887),
}
