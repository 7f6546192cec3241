"""The speed of training, where its time goes, and the memory that it takes."""

import contextlib
import pathlib
import statistics
import tempfile

import jax

from gpt1_jax.meter import trace
from gpt1_jax.meter.memory import check_room, in_memory, peak, peak_bytes, planned
from gpt1_jax.meter.step import loop, roofline, summary, training_rounds, with_mfu
from gpt1_jax.meter.timing import STEPS, rounds, spread
from gpt1_jax.meter.work import Work, from_cache


def measure(work: Work, *, seconds: float, distinct: int = 1, ceilings: tuple[float, float] | None = None) -> dict:
    """The speed of training; with `ceilings`, also where its time goes.

    Args:
      seconds: about, without compiling; at least ten steps are done.
      distinct: number of steps after which the batches, whose shapes may differ, begin again.
      ceilings: the device's FLOP/s and bytes/s, measured.

    Returns:
      `summary` and `with_mfu` of the loop; 'compile_s', and whether that is 'from_cache'; 'planned_gb', the memory of
      one device that the compiler plans, and `memory.peak`.
      With ceilings also 'alone_ms', of a step on batches that are on the devices; 'collectives_ms', the part of it that
      collectives take, None if the profiler does not see them; 'roofline', see there, with its least time as a share
      'of_alone' and 'of_step'.

    Raises:
      NoRoomError: the memory is too small. UserError: even for the state alone.
    """
    work.program.check_room()  # before compiling, which takes for ever if it cannot fit
    devices, step = work.program.partitioner.mesh.local_devices, work.program.train_step
    with in_memory():
        before = peak_bytes(devices)
        found, texts, first = _compile(work, distinct, devices)
        state = work.new_state()
        for index in first:  # the calls may compile again
            state, metrics = step(state, work.put(index))
            jax.block_until_ready(metrics)
        turns = loop(work, step, state, seconds=seconds if ceilings is None else seconds * 2 / 3)
        del state
        found |= summary(turns)
        found |= with_mfu(work, found['tokens_per_s'])
        if ceilings is not None:
            found['roofline'] = _mean([roofline(text, *ceilings) for text in texts])
            in_time = int(seconds / 9 / (found['step_ms'] / 1e3))  # three rounds in a third of the time
            steps = distinct if distinct > 1 else max(1, min(STEPS, in_time))
            found |= _alone(work, steps, seconds / 3, texts[0], found['roofline']['collectives'])
            least = found['roofline']['least_ms']
            found['roofline'] |= {'of_alone': least / found['alone_ms']['median'], 'of_step': least / found['step_ms']}
        return found | peak(devices, before, found['planned_gb'])


def _compile(work, distinct, devices):
    """(facts, the text of each of the `distinct` steps' program, the first step of each shape)"""
    programs, shapes, seconds = {}, [], 0.0
    with from_cache() as hits:
        for index in range(distinct):
            shape = work.batches.batch_at(index)['tokens'].shape
            shapes.append(shape)
            if shape not in programs:
                compiled, taken = work.compile(index)
                programs[shape] = index, compiled.as_text(), planned(compiled)['memory_gb']
                seconds += taken
    most = max(gb for _, _, gb in programs.values())
    check_room(most, devices)
    facts = {'compile_s': round(seconds, 2), 'from_cache': bool(hits), 'planned_gb': most}
    return facts, [programs[shape][1] for shape in shapes], [index for index, *_ in programs.values()]


def _alone(work, steps, seconds, text, collectives):
    one_round, _ = training_rounds(work, work.program.train_step, steps)
    times = rounds(one_round, seconds=seconds)
    found = {'alone_ms': spread([t / steps * 1e3 for t in times]), 'collectives_ms': None if collectives else 0.0}
    if collectives:
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ValueError):  # of a trace without kernels
            with jax.profiler.trace(folder):
                one_round()
            kernels = trace.summary(pathlib.Path(folder), text, steps, (None, None))
            found['collectives_ms'] = kernels['collectives_ms_per_step']
    return found


def _mean(dicts):
    return {name: statistics.fmean(one[name] for one in dicts) for name in dicts[0]}
