"""A pre-training step compiled for a TPU that is not here: bytes, time by XLA's estimate, memory, and what moves them.

    python -m benchmarks.compiled --topology=v5e:2x4

needs libtpu (`pip install "jax[tpu]"`), but no TPU. Nothing runs, so the times are XLA's own estimates: good for
comparing two programs, unproven against a clock. XLA counts a kernel with the cost that it declares, and a loop once
(unroll the layers). The table by instruction counts loops as often as they run, and of a kernel each array once.
"""

import argparse
import ast
import collections
import os
import re
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')

from jax.experimental import topologies

from configs import pretrain
from gpt1_jax.meter import hlo
from gpt1_jax.model.sizes import SIZES
from gpt1_jax.training import program
from gpt1_jax.training.partitioning import Partitioner

# At XLA's default effort the estimate is negative, and bytes count prefetching copies; at -1 both are clean.
_CLEAN = {'exec_time_optimization_effort': -1.0}


def compile_step(topology: str, size: str, changes: dict, options: dict):
    """The compiled step, and the seconds and seconds of CPU that it took. changes: 'model.scan' -> value."""
    devices = topologies.get_topology_desc(topology, platform='tpu').devices
    config = pretrain.get_config(size)
    config.update_from_flattened_dict(changes)
    partitioner = Partitioner(config.mesh.strategy, config.mesh.shape, devices)
    made = program.pretraining(config, SIZES[size].vocab_size, 10**6, partitioner)
    batch = program.pretraining_batch(config, made.classifier.model, partitioner)
    clocks = time.perf_counter, time.process_time
    started = [clock() for clock in clocks]
    compiled = made.train_step.lower(made.abstract, batch).compile(options)
    return compiled, [clock() - start for clock, start in zip(clocks, started)]


def place(op_name: str) -> str:
    """Where in the model an instruction comes from: 'forward blocks/mlp', without numbers of layers."""
    names = [part for part in re.split(r'[/()]', op_name) if part]
    kept = [name for name in names if re.fullmatch(r'(blocks|attention|mlp|norm_\d|in|out|_lm_loss\w*|lm_loss)', name)]
    way = 'backward' if 'transpose' in names else 'forward' if 'jvp' in names else 'update'
    return f'{way} {"/".join(dict.fromkeys(kept))} {names[-1] if names else ""}'


def report(compiled, seconds: list[float], entries: int) -> str:
    """The figures as text."""
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    estimate = cost['optimal_seconds']
    lines = [
        f'bytes {cost["bytes accessed"] / 1e9:.2f} GB, {cost["flops"] / 1e12:.2f} TFLOP, '
        f'estimate {f"{estimate * 1e3:.2f} ms" if estimate > 0 else "none"}, '
        f'peak {memory.peak_memory_in_bytes / 1e9:.2f} GB '
        f'(arguments {memory.argument_size_in_bytes / 1e9:.2f}, temporary {memory.temp_size_in_bytes / 1e9:.2f}); '
        f'compiled in {seconds[0]:.0f} s, {seconds[1]:.0f} s of CPU'
    ]
    totals, calls = collections.Counter(), collections.Counter()
    for one, times in hlo.executed(compiled.as_text()):
        what = f'{one.opcode:20} {place(one.op_name)}'
        totals[what] += one.bytes * times
        calls[what] += times
    lines.append(f'by instruction, loops counted: {totals.total() / 1e9:.2f} GB')
    lines += [f'{moved / 1e9:8.3f} GB {calls[what]:5} x {what}' for what, moved in totals.most_common(entries)]
    return '\n'.join(lines)


def main():
    """Parses the command line and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--topology', default='v5e:2x4', help='v5e:2x4, v6e:2x4, v5p:2x2x1, ...')
    parser.add_argument('--size', default='gpt1')
    parser.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', help='keys of the config')
    parser.add_argument('--default_effort', action='store_true', help="compile as a run does; XLA's estimate is void")
    parser.add_argument('--entries', type=int, default=40, help='lines of the table by instruction')
    parser.add_argument('--text', help='file for the text of the compiled program')
    args = parser.parse_args()
    changes = {key: ast.literal_eval(value) for key, value in (each.split('=', 1) for each in args.set)}
    compiled, seconds = compile_step(args.topology, args.size, changes, {} if args.default_effort else _CLEAN)
    print(f'{args.topology} {args.size} {changes}', report(compiled, seconds, args.entries), sep='\n', flush=True)
    if args.text:
        with open(args.text, 'w') as file:
            file.write(compiled.as_text())


if __name__ == '__main__':
    main()
