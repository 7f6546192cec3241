"""A training step: its speed alone and inside the loop, its memory, and the least time that it needs."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from gpt1_jax.data.prefetch import prefetch, warm_up
from gpt1_jax.meter import hlo
from gpt1_jax.meter.timing import STEPS, rates, spread
from gpt1_jax.meter.work import Work
from gpt1_jax.training.state import TrainState
from gpt1_jax.training.throughput import mfu, peak_flops

_MOST = 10**5  # steps of a measurement
_ROUNDS = 10
_FEWEST = 4  # steps: one that is left out, and three that are measured


def training_rounds(work: Work, step: Callable, steps: int = STEPS) -> tuple[Callable, list]:
    """(run, state): `run()` does `steps` updates on batches that are on the devices, and waits for the last; `state` is
    a list with the state as its only element."""
    state, batches = [work.new_state()], [work.put(i) for i in range(steps)]

    def run():
        for batch in batches:
            state[0], metrics = step(state[0], batch)
        jax.block_until_ready(metrics)
        return metrics

    if run()['skipped']:
        raise FloatingPointError('the loss or its gradient is not finite: such a step must not be measured')
    return run, state


def speed(work: Work, tokens: float, times: Sequence[float]) -> dict:
    """Tokens/s, MFU and time of a step. times: seconds of rounds of `training_rounds`. tokens: in each of these."""
    found = with_mfu(work, rates(tokens, times))
    per_step = tokens / STEPS
    return found | {'tokens_per_step': per_step, 'step_ms': per_step / found['tokens_per_s']['median'] * 1e3}


def with_mfu(work: Work, tokens_per_s: dict) -> dict:
    """Tokens/s (`timing.spread`), and the MFU that follows from it (causal attention counted half)."""
    devices, flops = work.program.partitioner.mesh.devices, work.program.flops_per_token
    peak = peak_flops(devices.flat[0].device_kind, work.model.dtype)
    return {
        'dtype': str(work.model.dtype),
        'tokens_per_s': tokens_per_s,
        'mfu': mfu(tokens_per_s['median'], flops, peak, devices.size),
        'model_flops_per_s': tokens_per_s['median'] * flops,
    }


def roofline(text: str, flops_per_s: float, bytes_per_s: float, *, rounds: bool = True) -> dict:
    """The least time of a compiled program on one device, without that of a network.

    Args:
      text: of the program.
      flops_per_s, bytes_per_s: the device's ceilings.
      rounds: whether what a loop executes counts in each of its rounds, or once.

    Returns:
      'gflop' of its matrix products; 'gb' moved; 'arithmetic_ms', 'memory_ms': the least times of all FLOPs and of all
      bytes; 'least_ms': the sum over instructions of the longer of the two; 'collectives': their number;
      'collectives_gb': moved by them.
    """
    executed = hlo.executed(text, rounds)
    flops = sum(times * one.flops for one, times in executed)
    moved = sum(times * one.bytes for one, times in executed)
    least = sum(times * max(one.flops / flops_per_s, one.bytes / bytes_per_s) for one, times in executed)
    between = [(one, times) for one, times in executed if one.collective and not one.opcode.endswith('-done')]
    return {
        'gflop': flops / 1e9,
        'gb': moved / 1e9,
        'arithmetic_ms': flops / flops_per_s * 1e3,
        'memory_ms': moved / bytes_per_s * 1e3,
        'least_ms': least * 1e3,
        'collectives': sum(times for _, times in between),
        'collectives_gb': sum(times * one.bytes for one, times in between) / 1e9,
    }


class Step(NamedTuple):
    """One turn of the loop.

    Attributes:
      input, placing, dispatch, waiting: seconds of the host until the batch is there, until it is on the devices, until
        the step is launched (finished, if it is computed in the call, as on a CPU), until the step before is finished.
      end: on the clock.
      tokens, examples: of the step before it.
    """

    input: float
    placing: float
    dispatch: float
    waiting: float
    end: float
    tokens: float
    examples: float


def loop(work: Work, step: Callable, state: TrainState, *, seconds: float) -> list[Step]:
    """Trains like `training.loop`, which reads the metrics of a step when the next one is dispatched, for `seconds`; at
    least 4 steps. The first ones find batches that were read before; `summary` leaves them out."""
    clock = time.perf_counter
    warm_up(work.batches)
    turns, pending, begin = [], None, clock()
    batches = prefetch(work.batches, 0, _MOST)
    while True:
        before = clock()
        batch = next(batches)
        there = clock()
        placed = work.program.partitioner.put_batch(batch)
        on_devices = clock()
        state, metrics = step(state, placed)
        launched = clock()
        if pending is not None:
            jax.device_get(pending[0])
            end = clock()
            parts = there - before, on_devices - there, launched - on_devices, end - launched
            turns.append(Step(*parts, end, *pending[1:]))
        pending = metrics, work.batches.count_tokens(batch), _examples(batch)
        if len(turns) >= _FEWEST and clock() - begin >= seconds or len(turns) == _MOST - 1:
            jax.block_until_ready(metrics)
            return turns


def _examples(batch):
    return int((batch['example_ids'] >= 0).sum()) if 'example_ids' in batch else 0


def summary(turns: Sequence[Step]) -> dict:
    """The speed of a loop, without its first fifth.

    Returns:
      'steps'; 'tokens_per_s' and, in fine-tuning, 'examples_per_s' of up to ten rounds (`timing.spread`); 'step_ms', of
      the mean step; the parts that add up to it, in 'host_ms' and as shares in 'host_share'.
    """
    first = max(1, len(turns) // 5)
    kept = turns[first:]
    size = -(-len(kept) // _ROUNDS)
    found = [kept[i : i + size] for i in range(0, len(kept) - size + 1, size)]
    starts = [turns[first - 1].end, *(one[-1].end for one in found)]
    times = [one[-1].end - start for one, start in zip(found, starts)]
    seconds = found[-1][-1].end - starts[0]
    steps = len(found) * size
    parts = {
        name: sum(getattr(turn, name) for turn in kept[:steps]) for name in ('input', 'placing', 'dispatch', 'waiting')
    }
    rate = lambda name: spread([sum(getattr(turn, name) for turn in one) / t for one, t in zip(found, times)])
    return {
        'steps': steps,
        'tokens_per_s': rate('tokens'),
        **({'examples_per_s': rate('examples')} if kept[0].examples else {}),
        'step_ms': seconds / steps * 1e3,
        'host_ms': {name: part / steps * 1e3 for name, part in parts.items()},
        'host_share': {name: part / seconds for name, part in parts.items()},
    }
