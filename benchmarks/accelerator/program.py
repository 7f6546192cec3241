"""The project's own steps at a given size, with random batches."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from benchmarks.accelerator.measure import BATCH_SIZES
from configs import finetune as finetune_config, pretrain as pretrain_config
from gpt1_jax.data.labelled.packing import FinetuningBatches
from gpt1_jax.data.labelled.sequences import Encoded
from gpt1_jax.data.tokenizers import N_SPECIAL
from gpt1_jax.model.architecture import Architecture
from gpt1_jax.model.classifier import ClassifierHead
from gpt1_jax.model.sizes import SIZES
from gpt1_jax.training import program
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import TrainState

_TOTAL_STEPS = 10**6  # of the schedule


@dataclasses.dataclass
class Made:
    """A program and its batches.

    Attributes:
      program: see training.program.
      batch: step -> NumPy batch of that update.
    """

    program: program.Program
    batch: Callable

    @property
    def model(self):
        return self.program.classifier.model

    def new_state(self) -> TrainState:
        return self.program.create_state(0)

    def put(self, step: int) -> dict:
        """The batch of update `step`, on the devices."""
        return self.program.partitioner.put_batch(self.batch(step))

    def compile(self, **compiler_options):
        """(compiled step, which donates its state; seconds of tracing, lowering and compiling)."""
        started = time.perf_counter()
        lowered = self.program.train_step.lower(self.program.abstract, self.put(0))
        return lowered.compile(compiler_options or None), time.perf_counter() - started


def pretraining(
    size: str, *, accumulation: int = 1, batch_size: int | None = None, devices=None, **model_changes
) -> Made:
    """Pre-training steps on random tokens. model_changes: keys of `config.model`."""
    config = pretrain_config.get_config(size)
    config.model.update(model_changes)
    config.optimizer.accumulation = accumulation
    config.data.batch_size = batch_size or BATCH_SIZES[size]
    partitioner = Partitioner('dp', devices=devices)
    made = program.pretraining(config, SIZES[size].vocab_size, _TOTAL_STEPS, partitioner)
    shapes = program.pretraining_batch(config, made.classifier.model, partitioner)
    weight = 1 / (config.data.batch_size * config.model.n_positions)

    def batch(step):
        tokens = np.random.default_rng(step).integers(0, SIZES[size].vocab_size, shapes['tokens'].shape)
        return {
            'tokens': tokens.astype(shapes['tokens'].dtype),
            'weights': np.full(shapes['weights'].shape, weight, np.float32),
        }

    return Made(made, batch)


def finetuning(
    size: str,
    kind: str,
    classes: int,
    encoded: Encoded,
    *,
    batch_size: int,
    packing: bool = True,
    devices=None,
    **model_changes,
) -> Made:
    """Fine-tuning steps on `encoded`, with the auxiliary loss. model_changes: keys of `config.model`."""
    config = finetune_config.get_config()
    config.model.update(scan=size == 'gpt1')
    config.model.update(model_changes)
    partitioner = Partitioner('dp', devices=devices)
    head = ClassifierHead(kind, classes, config.model.head_dropout)
    batches = FinetuningBatches(
        encoded,
        batch_size=batch_size,
        packing=packing,
        placement=partitioner.placement,
        share_context=kind == 'multiple_choice',
    )
    loss = 'multiple_choice' if kind == 'multiple_choice' else 'classification'
    base = Architecture(SIZES[size].kind, SIZES[size].sizes)
    made = program.finetuning(config, base, SIZES[size].vocab_size, head, loss, _TOTAL_STEPS, partitioner)
    return Made(made, batches.batch_at)


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
    drawn = np.interp(rng.uniform(size=n), _QUANTILES, lengths).round().astype(int)
    return np.clip(drawn, 1, longest)
