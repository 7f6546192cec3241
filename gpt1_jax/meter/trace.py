"""The kernels that take most of a step, by JAX's profiler, and how near each is to its ceiling."""

import collections
import pathlib
import re

import jax

from gpt1_jax.meter import hlo

TOP = 20


def summary(folder: pathlib.Path, text: str, steps: int, ceilings: tuple) -> dict:
    """The kernels of a trace.

    Args:
      folder: of `jax.profiler.trace`.
      text: of the compiled program.
      steps: their number in the trace.
      ceilings: (FLOP/s, bytes/s) measured on this device, None if unknown.

    Returns:
      'device_ms_per_step', of all kernels (more than the step takes if some run in parallel);
      'collectives_ms_per_step', of those in which devices communicate; 'kernels': the 20 instructions that take most
      time, each with its longest kernel, its share, bytes and FLOPs per step (of all calls), and 'of_ceiling': the
      least time that these need at the ceilings, divided by the time taken.

    Raises:
      ValueError: the trace has no kernel.
    """
    flops_per_s, bytes_per_s = ceilings
    costs = hlo.costs(text)
    seconds, copied, longest = collections.Counter(), collections.Counter(), {}
    launches = collections.defaultdict(collections.Counter)
    for op, kernel, nanoseconds, copy_bytes in _events(folder, {op for op in costs if costs[op].opcode in hlo.CONTROL}):
        seconds[op] += nanoseconds / 1e9 / steps
        copied[op] += copy_bytes / steps
        launches[op][kernel] += 1 / steps
        longest[op] = max(longest.get(op, (0, '')), (nanoseconds, kernel))
    total = sum(seconds.values())
    kernels = []
    for op, time in seconds.most_common(TOP):
        calls = min(launches[op].values())  # one call may launch several kernels
        cost = costs.get(op, hlo.Cost('', '', 0.0, copied[op] / calls))
        flops, moved = cost.flops * calls, cost.bytes * calls
        least = max(flops / flops_per_s, moved / bytes_per_s) if flops_per_s and bytes_per_s and moved else None
        kernels.append(
            {
                'instruction': op,
                'kernel': longest[op][1][:80],
                'source': cost.op_name[-80:],
                'calls_per_step': round(calls, 2),
                'ms_per_step': time * 1e3,
                'share': time / total,
                'gflop': flops / 1e9,
                'gb': moved / 1e9,
                'of_ceiling': least and least / time,
            }
        )
    # A kernel may belong to a module whose text is not known, or, in a CUDA graph, lack its instruction.
    collective = lambda op: (
        (op in costs and costs[op].collective) or op.startswith(hlo.COLLECTIVES) or 'nccl' in longest[op][1].lower()
    )
    return {
        'device_ms_per_step': total * 1e3,
        'collectives_ms_per_step': sum(time for op, time in seconds.items() if collective(op)) * 1e3,
        'kernels_shown': sum(k['share'] for k in kernels),
        'kernels': kernels,
    }


def _events(folder, spanning):
    """(HLO instruction, kernel, nanoseconds, bytes read and written by a copy) of every kernel and copy on the first
    device, each once. spanning: instructions with events that span those of others on a TPU or a CPU.

    A GPU and a CPU give the instruction in a statistic, a TPU in the event's name. A kernel without it, such as one of
    a CUDA graph, is listed under its own name.
    """
    path = max(folder.rglob('*.xplane.pb'), key=lambda path: path.stat().st_mtime)
    data = jax.profiler.ProfileData.from_file(str(path))
    planes = {plane.name: plane for plane in data.planes}
    first = min((name for name in planes if re.fullmatch('/device:[GT]PU:[0-9]+', name)), default='/host:CPU')
    kind = first.split(':')[1]
    # Other lines of a device show the same kernels by module, step or source. A GPU's stream with overhead of CUPTI has
    # a name that begins with CUPTI.
    kept = {'GPU': ('Stream', 'CUPTI'), 'TPU': ('XLA Ops',), 'CPU': ('',)}[kind]
    found = False
    for event in (event for line in planes[first].lines if line.name.startswith(kept) for event in line.events):
        stats = {name.lower(): value for name, value in event.stats}
        op, copied = stats.get('hlo_op'), 0
        if kind == 'GPU':
            if not stats.keys() & {'kernel_details', 'memcpy_details', 'memset_details', 'cuda_graph_exec_id'}:
                continue  # an allocation, or overhead of CUPTI
            size = re.search(r'\bsize:(\d+)', str(stats.get('memcpy_details')))
            op, copied = op or event.name, 2 * int(size[1]) if size else 0
        else:
            if kind == 'TPU':
                op = event.name.split(' = ')[0].removeprefix('%')
            if not op or op in spanning or event.name.startswith('end: '):
                continue
        found = True
        yield op, event.name, event.duration_ns, copied
    if not found:
        raise ValueError(
            'the trace has no kernel, only '
            + '; '.join(f'{name} ({", ".join(line.name for line in plane.lines)})' for name, plane in planes.items())
        )
