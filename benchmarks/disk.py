"""What a run asks of the disk: batches, read on one core, and checkpoints, beside a raw write of as many bytes.

    python -m benchmarks.disk --shards=DIR --out=DIR

`--shards` is a folder that `prepare` wrote, `--size` a size by name with its batch; `--out` is a folder on the disk to
measure. Prints the rate of each tenth of an epoch's batches and the memory of the process after it: first the batches
alone, then as a run reads them, ahead of the step. Then, on all cores, medians (extremes) of three checkpoints: seconds
that the loop waits, that the whole save takes, and that the raw write takes.
"""

import argparse
import itertools
import os
import pathlib
import resource
import time

from benchmarks.accelerator.measure import BATCH_SIZES
from gpt1_jax.data.corpus.shards import load_shards
from gpt1_jax.data.corpus.windows import PretrainingBatches
from gpt1_jax.data.prefetch import prefetch
from gpt1_jax.errors import UserError
from gpt1_jax.model.sizes import SIZES


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--shards', required=True)
    parser.add_argument('--out', type=pathlib.Path, required=True)
    parser.add_argument('--size', default='gpt1', choices=BATCH_SIZES)
    args = parser.parse_args()
    try:
        split = load_shards(args.shards).splits['train']
        args.out.mkdir(parents=True, exist_ok=True)
    except (UserError, OSError) as error:
        parser.error(str(error))
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    read(split, args.size)
    os.sched_setaffinity(0, cores)
    save(args.size, args.out)


def read(split, size):
    batches = PretrainingBatches(split, batch_size=BATCH_SIZES[size], length=SIZES[size].sizes['n_positions'], seed=0)
    steps = batches.windows_per_epoch // BATCH_SIZES[size]
    in_turn = map(batches.batch_at, range(steps))
    for name, stream in (('alone', in_turn), ('ahead of the step', prefetch(batches, 0, steps))):
        print(f'batches {name}, an epoch of {split.tokens:,} tokens on one core: million tokens/s (GB of memory)')
        tenths = []
        for _ in range(10):
            started, tokens = time.perf_counter(), 0
            for batch in itertools.islice(stream, steps // 10):
                tokens += batches.count_tokens(batch)
            rate = tokens / (time.perf_counter() - started) / 1e6
            tenths.append(f'{rate:.1f} ({resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f})')
        print('  ' + ' '.join(tenths), flush=True)


def save(size, folder):
    from benchmarks.accelerator import program, use  # now: JAX counts the cores when it starts

    found = use.checkpoint_cost(program.pretraining(size).new_state().items(), folder)
    print(f'checkpoint of {found["gb"]:.2f} GB')
    for name, what in (('stall_s', 'the loop waits'), ('save_s', 'whole save'), ('raw_write_s', 'raw write')):
        one = found[name]
        print(f'  {what}: {one["median"]:.3f} ({one["min"]:.3f} to {one["max"]:.3f}) s')


if __name__ == '__main__':
    main()
