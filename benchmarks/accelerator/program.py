"""The project's own steps at a given size, with random batches."""

import types

import numpy as np

from benchmarks.accelerator.measure import BATCH_SIZES
from configs import finetune as finetune_config, pretrain as pretrain_config
from gpt1_jax.data.labelled.sequences import Encoded
from gpt1_jax.meter import work
from gpt1_jax.model.architecture import Architecture
from gpt1_jax.model.classifier import ClassifierHead
from gpt1_jax.model.sizes import SIZES
from gpt1_jax.training import program
from gpt1_jax.training.partitioning import Partitioner


def pretraining(
    size: str, *, accumulation: int = 1, batch_size: int | None = None, devices=None, **model_changes
) -> work.Work:
    """Pre-training steps on random tokens. model_changes: keys of `config.model`."""
    config = pretrain_config.get_config(size)
    config.model.update(model_changes)
    config.optimizer.accumulation = accumulation
    config.data.batch_size = batch_size or BATCH_SIZES[size]
    partitioner = Partitioner('dp', devices=devices)
    made = program.pretraining(config, SIZES[size].vocab_size, work.TOTAL_STEPS, partitioner)
    shapes = program.pretraining_batch(config, made.classifier.model, partitioner)
    weight = 1 / (config.data.batch_size * config.model.n_positions)

    def batch_at(step):
        tokens = np.random.default_rng(step).integers(0, SIZES[size].vocab_size, shapes['tokens'].shape)
        return {
            'tokens': tokens.astype(shapes['tokens'].dtype),
            'weights': np.full(shapes['weights'].shape, weight, np.float32),
        }

    return work.Work(made, types.SimpleNamespace(batch_at=batch_at, from_shards=False))


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
) -> work.Work:
    """Fine-tuning steps on `encoded`, with the auxiliary loss. model_changes: keys of `config.model`."""
    config = finetune_config.get_config()
    config.model.update(model_changes)
    config.data.batch_size = batch_size
    return work.finetuning(
        config,
        Architecture(SIZES[size].kind, SIZES[size].sizes),
        SIZES[size].vocab_size,
        ClassifierHead(kind, classes, config.model.head_dropout),
        encoded,
        Partitioner('dp', devices=devices),
        packing=packing,
    )
