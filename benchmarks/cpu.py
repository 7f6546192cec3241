"""The pre-training step on a CPU, here and in PyTorch, at four sizes, in float32 and in bfloat16.

    python -m benchmarks.cpu --torch_python=/env/bin/python --rounds=7

`--torch_python` is an interpreter with torch; by default this one. One size, dtype and peer at a time: both sides in
processes of their own, in turns, five updates a round, before each of which five more are not counted.
PyTorch uses `scaled_dot_product_attention`, as it comes or in `torch.compile`; all else as in
`benchmarks.accelerator.peer_torch`. Prints median, minimum and maximum of tokens/s, and of ours over theirs in each
pair of neighbouring rounds. Nothing else should run on the machine.
"""

import argparse
import os
import pathlib
import sys

from benchmarks import arguments
from benchmarks.accelerator.measure import BATCH_SIZES
from benchmarks.accelerator.peer import SIDES, Worker
from gpt1_jax.meter.timing import STEPS, rates, spread
from gpt1_jax.model.sizes import SIZES, Size

# name: width, layers, tokens in a row, rows, vocabulary; heads of 64
SHAPES = {
    'd128': (128, 4, 128, 16, 4096),
    'd256': (256, 4, 128, 16, 8192),
    'd512': (512, 8, 256, 4, 16384),
    'd768': (768, 12, 512, 2, 40000),  # the paper's model
}
DTYPES = ('float32', 'bfloat16')
PATIENCE = 3600  # seconds that a side may take to compile, or for a round


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sizes', type=arguments.names(SHAPES), default=','.join(SHAPES))
    parser.add_argument('--dtypes', type=arguments.names(DTYPES), default=','.join(DTYPES))
    parser.add_argument('--torch_python', type=arguments.interpreter('torch'), default=sys.executable)
    parser.add_argument('--rounds', type=arguments.count, default=7)
    parser.add_argument('--serve', default='', help=argparse.SUPPRESS)  # a side, in a process of its own
    args = parser.parse_args()
    register()
    if args.serve:
        serve(args.serve, args.sizes[0], args.dtypes[0])
        return
    print(f'{"size":6} {"dtype":9} {"peer":14} {"ours, tokens/s":>22} {"theirs, tokens/s":>22} {"ours / theirs":>18}')
    for size in args.sizes:
        for dtype in args.dtypes:
            for peer in SIDES[1:]:
                report = compare(size, dtype, peer, args.torch_python, args.rounds)
                print(f'{size:6} {dtype:9} {peer:14} {report}', flush=True)


def register() -> None:
    """Makes the sizes known by name."""
    for name, (width, layers, positions, rows, vocab_size) in SHAPES.items():
        sizes = dict(layers=layers, width=width, heads=width // 64, mlp_width=4 * width, n_positions=positions)
        SIZES[name], BATCH_SIZES[name] = Size('transformer', sizes, vocab_size), rows


def serve(side: str, size: str, dtype: str) -> None:
    """One side, as `peer.Worker` wants it."""
    if side == 'ours':  # imports of what only this side has
        from benchmarks.accelerator import peer_ours
        from gpt1_jax.processes import compute_in_this_thread, keep_freed_memory

        keep_freed_memory()  # as `gpt1_jax.main` does
        compute_in_this_thread()
        peer_ours.main(size, 'unrolled', dtype)
    else:
        from benchmarks.accelerator import peer_torch

        peer_torch.main(size, side, dtype)


def compare(size: str, dtype: str, peer: str, torch_python: str, rounds: int) -> str:
    """Figures of both sides, as columns of the table."""
    command = lambda python, side: [
        *(python, '-m', 'benchmarks.cpu', f'--serve={side}', f'--sizes={size}', f'--dtypes={dtype}')
    ]
    workers = []
    try:
        for python, side in ((sys.executable, 'ours'), (torch_python, peer)):
            workers.append(Worker(command(python, side), PATIENCE))
        # Two each, of which the second counts: a virtual machine may take back what is free while a side waits.
        pairs = [[(worker.round(PATIENCE), worker.round(PATIENCE))[1] for worker in workers] for _ in range(rounds)]
    except ValueError as error:
        return f'- ({error})'
    finally:
        for worker in workers:
            worker.close()
    tokens = STEPS * BATCH_SIZES[size] * SIZES[size].sizes['n_positions']
    ours, theirs = (rates(tokens, times) for times in zip(*pairs))
    return ' '.join(
        (
            *(f'{span(figures, ".0f"):>22}' for figures in (ours, theirs)),
            f'{span(spread([theirs / ours for ours, theirs in pairs]), ".2f"):>18}',
        )
    )


def span(figures: dict, form: str) -> str:
    """'median (minimum to maximum)'"""
    return f'{figures["median"]:{form}} ({figures["min"]:{form}} to {figures["max"]:{form}})'


if __name__ == '__main__':
    os.chdir(pathlib.Path(__file__).parents[1])  # the sides are started as modules
    main()
