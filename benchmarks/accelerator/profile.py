"""Part 3, its other half: which kernels take most of a step, by JAX's profiler, and how far each is from its ceiling."""

import collections
import pathlib
import shutil

import jax

from benchmarks.accelerator import hlo, program, step
from benchmarks.accelerator.measure import STEPS, Context

TOP = 20


def run(context: Context) -> None:
    with context.attempt('profile') as piece:
        context.need(40)
        form = context.earlier('step').get('fastest', 'scan')
        changes, accumulation = step.FORMS[form]
        made = program.pretraining(context.size, accumulation=accumulation, **changes)
        compiled, _ = made.compile()
        one_round, _ = step.training_rounds(made, compiled)
        folder = context.out / 'trace'
        shutil.rmtree(folder, ignore_errors=True)
        with jax.profiler.trace(str(folder)):
            one_round()
        piece |= {'form': form, 'steps': STEPS, **summary(folder, compiled.as_text(), STEPS, ceilings_of(context))}
        shutil.rmtree(folder, ignore_errors=True)


def ceilings_of(context: Context) -> tuple[float | None, float | None]:
    """(FLOP/s, bytes/s) that part 1 measured here, None where it did not."""
    report = context.earlier('ceilings')
    try:
        dtype = 'float32' if report['platform'] == 'cpu' else 'bfloat16'
        return (report[f'product_{dtype}']['tflops']['median'] * 1e12, report['copy']['gb_per_s']['median'] * 1e9)
    except KeyError:
        return None, None


def summary(folder: pathlib.Path, text: str, steps: int, ceilings: tuple) -> dict:
    """The kernels of a trace.

    Args:
      folder: of `jax.profiler.trace`. text: the program's compiled text. steps: how many the trace holds.
      ceilings: FLOP/s and bytes/s measured on this device, None where unknown.
    Returns:
      'device_ms_per_step', of all kernels; 'kernels': the 20 that take most, each with its share, bytes and FLOPs a
      step (of all its calls), and 'of_ceiling': the least time that these need at the ceilings, over its time.
    """
    flops_per_s, bytes_per_s = ceilings
    costs = hlo.costs(text)
    seconds, calls, names = collections.Counter(), collections.Counter(), {}
    for op, event, nanoseconds in _events(folder):
        if costs[op].opcode not in hlo.CONTROL if op in costs else True:
            seconds[op] += nanoseconds / 1e9 / steps
            calls[op] += 1 / steps
            names[op] = event
    total = sum(seconds.values())
    kernels = []
    for op, time in seconds.most_common(TOP):
        cost = costs.get(op, hlo.Cost('', '', 0.0, 0.0))
        flops, moved = cost.flops * calls[op], cost.bytes * calls[op]
        least = max(flops / flops_per_s, moved / bytes_per_s) if flops_per_s and bytes_per_s and moved else None
        kernels.append({
            'instruction': op, 'kernel': names[op][:80], 'source': cost.op_name[-80:], 'calls_per_step': round(calls[op], 2),
            'ms_per_step': time * 1e3, 'share': time / total, 'gflop': flops / 1e9, 'gb': moved / 1e9,
            'of_ceiling': least and least / time})
    return {'device_ms_per_step': total * 1e3, 'kernels_shown': sum(k['share'] for k in kernels), 'kernels': kernels}


def _events(folder):
    """(HLO instruction, kernel, nanoseconds) of every kernel on the first device: GPU and CPU say the instruction in a
    statistic, a TPU in the event's name."""
    path = max(folder.rglob('*.xplane.pb'), key=lambda path: path.stat().st_mtime)
    data = jax.profiler.ProfileData.from_file(str(path))
    planes = {plane.name: plane for plane in data.planes}
    first = next((name for name in sorted(planes) if name.startswith('/device:') and name.endswith(':0')), '/host:CPU')
    for line in planes[first].lines:
        if first.startswith('/device:TPU') and line.name != 'XLA Ops':
            continue
        for event in line.events:
            op = dict(event.stats).get('hlo_op')
            if first.startswith('/device:TPU'):
                op = event.name.split(' = ')[0].removeprefix('%')
            if op and not event.name.startswith('end: '):
                yield op, event.name, event.duration_ns
