"""Part 5: fine-tuning on sequences of the lengths of SST-2 and RACE, generation, and the cost of a checkpoint."""

import os
import pathlib
import shutil
import time

import jax
import numpy as np

from benchmarks.accelerator import program
from benchmarks.accelerator.measure import Context
from gpt1_jax.meter import generation
from gpt1_jax.meter.timing import rates, rounds, spread
from gpt1_jax.meter.work import SETS
from gpt1_jax.model import decoding
from gpt1_jax.model.sizes import SIZES
from gpt1_jax.tasks.generate import jit_steps
from gpt1_jax.training.checkpoint import Checkpointer

_STEPS = 4  # fine-tuning steps in a round
BATCHES = (1, 8, 64)  # of generation


def run(context: Context) -> None:
    for name in SETS:
        finetune(context, name)
    for batch in BATCHES:
        generate(context, batch)
    checkpoint(context)


def finetune(context: Context, name: str) -> None:
    """Packed steps with the auxiliary loss; a batch has as many rows as it needs."""
    of_set = SETS[name]
    batch_size = 32  # the paper's
    vocab_size, longest = SIZES[context.size].vocab_size, SIZES[context.size].sizes['n_positions']
    with context.attempt(f'fine-tuning, {name}') as piece:
        context.need(50)
        encoded = of_set.make(vocab_size, of_set.batches * batch_size, longest)
        made = program.finetuning(context.size, of_set.kind, of_set.classes, encoded, batch_size=batch_size)
        state = [made.new_state()]
        step = made.program.train_step
        numpy_batches = [made.batches.batch_at(i) for i in range(_STEPS)]
        put = [made.program.partitioner.put_batch(batch) for batch in numpy_batches]

        def one_round():
            for batch in put:
                state[0], metrics = step(state[0], batch)
            jax.block_until_ready(metrics)

        started = time.perf_counter()
        one_round()
        compile_s = time.perf_counter() - started
        times = rounds(one_round, seconds=min(10.0, context.left() / 8))
        real = sum(int(np.count_nonzero(batch['segment_ids'])) for batch in numpy_batches)
        held = sum(batch['segment_ids'].size for batch in numpy_batches)
        piece |= {
            'batch_size': batch_size,
            'examples_per_s': rates(_STEPS * batch_size, times),
            'real_tokens_per_s': real / spread(times)['median'],
            'rows_filled': real / held,
            'shapes': sorted({str(batch['tokens'].shape) for batch in numpy_batches}),
            'first_round_s': round(compile_s, 2),
        }


def generate(context: Context, batch: int) -> None:
    """Greedy generation with random weights; as many new tokens as in the prompt."""
    with context.attempt(f'generation, batch {batch}') as piece:
        context.need(25)
        made = program.pretraining(context.size, devices=jax.devices()[:1])
        model, partitioner = made.model, made.program.partitioner
        places = 2 * generation.prompt_length(model)
        found, _ = generation.measure(
            model,
            generation.random_parameters(model, partitioner),
            partitioner,
            jit_steps(model, partitioner, places, decoding.Sampling()),
            batch=batch,
            seconds=min(8.0, context.left() / 8),
        )
        piece |= found


def checkpoint(context: Context) -> None:
    """How long `save` stalls the loop, how long the whole save takes, and a raw write of as many bytes."""
    with context.attempt('checkpoint') as piece:
        context.need(30)
        piece |= checkpoint_cost(program.pretraining(context.size).new_state().items(), context.out)


def checkpoint_cost(items: dict, folder: pathlib.Path) -> dict:
    """The figures of `checkpoint` for saving these items below `folder`: their size in GB, and spreads in seconds."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
    stalls, saves, raw = [], [], []
    for step in range(4):  # the first one warms up
        checkpointer = Checkpointer(folder / 'checkpoint')
        started = time.perf_counter()
        checkpointer.save(step, items, {})
        stalls.append(time.perf_counter() - started)
        checkpointer.close()
        saves.append(time.perf_counter() - started)
        shutil.rmtree(folder / 'checkpoint')
        raw.append(_raw_write(folder / 'raw', size))
    return {
        'gb': size / 1e9,
        'stall_s': spread(stalls[1:]),
        'save_s': spread(saves[1:]),
        'raw_write_s': spread(raw[1:]),
    }


def _raw_write(path, size):
    data = np.random.default_rng(0).integers(0, 255, min(size, 2**26), np.uint8).tobytes()
    started = time.perf_counter()
    with path.open('wb') as file:
        for begin in range(0, size, len(data)):
            file.write(data[: size - begin])
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return seconds
