"""The project's own steps at a given size, built from shapes: no data, no weights."""

import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.accelerator.measure import BATCH_SIZES
from gpt1_jax import config as common
from gpt1_jax.data.encoded import Encoded
from gpt1_jax.data.packing import FinetuningBatches
from gpt1_jax.data.tokenizers import N_SPECIAL
from gpt1_jax.model.heads import ClassifierHead
from gpt1_jax.model.transformer import model_from_config
from gpt1_jax.training import steps, telemetry
from gpt1_jax.training.optimizer import make_optimizer
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import TrainState, abstract_state, create_state, params_initialiser


@dataclasses.dataclass
class Program:
    """model; partitioner; abstract: the state's shapes and shardings; loss_fn, step: not yet jitted; batch: step ->
    NumPy batch of update `step`, leaves [micro-batches, ...]; flops_per_token: of forward and backward pass."""

    model: object
    partitioner: Partitioner
    abstract: TrainState
    loss_fn: Callable
    step: Callable
    batch: Callable
    init: Callable
    flops_per_token: float

    def new_state(self, seed: int = 0) -> TrainState:
        with self.partitioner.activate():
            return self.init(seed)

    def put(self, step: int) -> dict:
        """The batch of update `step`, on the devices."""
        return self.partitioner.put_batch(self.batch(step), axis=1)

    def compile(self, **compiler_options):
        """(the jitted, donated step, compiled for its shapes; seconds of tracing, lowering and compiling)."""
        started = time.perf_counter()
        with self.partitioner.activate():
            jitted = steps.jit_train_step(self.step, self.abstract, self.partitioner)
            batch = jax.eval_shape(lambda: self.batch(0))
            compiled = jitted.lower(self.abstract, batch).compile(compiler_options or None)
        return compiled, time.perf_counter() - started


def pretraining(size: str, *, accumulation: int = 1, batch_size: int | None = None, devices=None,
                **model_changes) -> Program:
    """Pre-training steps on random tokens; `model_changes` are keys of `config.model`."""
    model = _model(size, 0, model_changes)
    partitioner = Partitioner('dp', devices=devices)
    rows = batch_size or BATCH_SIZES[size]

    def batch(step):
        shape = accumulation, rows // accumulation, model.n_positions + 1
        return {'tokens': np.random.default_rng(step).integers(0, model.vocab_size, shape).astype(np.uint16)}

    return _program(model, None, partitioner, steps.pretrain_loss_fn(model, partitioner.groups, rows), batch,
                    common.optimizer_defaults(schedule='cosine', learning_rate=2.5e-4, warmup_steps=2000), 10**6)


def finetuning(size: str, kind: str, classes: int, encoded: Encoded, *, batch_size: int, packing: bool = True,
               head_dropout: float = 0.1, devices=None, **model_changes) -> Program:
    """Fine-tuning steps on `encoded`, with the auxiliary loss."""
    model = _model(size, N_SPECIAL, model_changes)
    partitioner = Partitioner('dp', devices=devices)
    head = ClassifierHead(kind, classes, head_dropout)
    batches = FinetuningBatches(encoded, batch_size=batch_size, packing=packing, groups=partitioner.groups,
                                local_groups=partitioner.local_groups, share_context=kind == 'multiple_choice')
    loss = 'multiple_choice' if kind == 'multiple_choice' else 'classification'
    return _program(
        model, head, partitioner, steps.finetune_loss_fn(model, head, loss, 0.5), batches.batch_at,
        common.optimizer_defaults(schedule='linear', learning_rate=6.25e-5, warmup_fraction=0.002), 10**6)


def _model(size, n_special, changes):
    config = common.model_size(size)
    config.update(changes)
    return model_from_config(config, common.SIZES[size][-1], n_special)


def _program(model, head, partitioner, loss_fn, batch, optimizer_config, total_steps):
    optimizer, rate = make_optimizer(optimizer_config, total_steps)
    init_params = params_initialiser(model, head)
    abstract = abstract_state(init_params, optimizer, partitioner)
    return Program(model, partitioner, abstract, loss_fn, steps.train_step(loss_fn, optimizer, rate), batch,
                   lambda seed: create_state(init_params, optimizer, abstract, seed),
                   telemetry.decoder_flops_per_token(model))


# Lengths in tokens at the quantiles below. Measured with 40,000 SentencePiece pieces of 455 novels: SST-2's training
# sentences with their special tokens; RACE's articles with their question, and its answers (5,000 questions, cut to 512
# tokens).
SST2_LENGTHS = (3, 4, 6, 10, 18, 27, 45, 67)
RACE_CONTEXTS, RACE_ANSWERS = (104, 267, 328, 386, 445, 497, 507, 508), (1, 2, 4, 7, 10, 12, 19, 38)
_QUANTILES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1)


def sentences(vocab_size: int, n: int, longest: int, seed: int = 0) -> Encoded:
    """n random single sequences of SST-2's lengths."""
    rng = np.random.default_rng(seed)
    start, _, extract = range(vocab_size, vocab_size + N_SPECIAL)
    lengths = np.maximum(3, _draw(rng, SST2_LENGTHS, n, longest))
    sequences = [[np.array([start, *rng.integers(0, vocab_size, length - 2), extract], np.int32)] for length in lengths]
    return Encoded(sequences, rng.integers(0, 2, n).astype(np.int32), [str(i) for i in range(n)], 0, 0)


def questions(vocab_size: int, n: int, longest: int, seed: int = 0) -> Encoded:
    """n random questions with four answers each, of RACE's lengths."""
    rng = np.random.default_rng(seed)
    start, delimiter, extract = range(vocab_size, vocab_size + N_SPECIAL)
    answers = _draw(rng, RACE_ANSWERS, 4 * n, longest // 4).reshape(n, 4)
    contexts = np.minimum(_draw(rng, RACE_CONTEXTS, n, longest), longest - 3 - answers.max(axis=1))
    sequences = []
    for context, lengths in zip(contexts, answers):
        text = rng.integers(0, vocab_size, context)
        sequences.append([np.array([start, *text, delimiter, *rng.integers(0, vocab_size, length), extract], np.int32)
                          for length in lengths])
    return Encoded(sequences, rng.integers(0, 4, n).astype(np.int32), [str(i) for i in range(n)], 0, 0)


def _draw(rng, lengths, n, longest):
    drawn = np.interp(rng.uniform(size=n), _QUANTILES, lengths).round().astype(int)
    return np.clip(drawn, 1, longest)
