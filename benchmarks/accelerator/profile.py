"""Part 3, second half: the kernels that take most of a step, by JAX's profiler, and how near each is to its ceiling."""

import shutil

import jax

from benchmarks.accelerator import program, step
from benchmarks.accelerator.measure import USUAL, Context
from gpt1_jax.meter.step import training_rounds
from gpt1_jax.meter.timing import STEPS
from gpt1_jax.meter.trace import summary


def run(context: Context) -> None:
    with context.attempt('profile') as piece:
        context.need(40)
        form = context.earlier('step').get('fastest', USUAL)
        changes, accumulation, _ = step.FORMS[form]  # the whole part runs without CUDA graphs
        made = program.pretraining(context.size, accumulation=accumulation, **changes)
        compiled, _ = made.compile()
        one_round, _ = training_rounds(made, compiled)
        folder = context.out / 'trace'
        shutil.rmtree(folder, ignore_errors=True)
        with jax.profiler.trace(str(folder)):
            one_round()
        piece |= {'form': form, 'steps': STEPS, **summary(folder, compiled.as_text(), STEPS, ceilings_of(context))}
        shutil.rmtree(folder, ignore_errors=True)


def ceilings_of(context: Context) -> tuple[float | None, float | None]:
    """(FLOP/s, bytes/s) that part 1 measured, or (None, None)."""
    report = context.earlier('ceilings')
    try:
        dtype = 'float32' if report['platform'] == 'cpu' else 'bfloat16'
        return (report[f'product_{dtype}']['tflops']['median'] * 1e12, report['copy']['gb_per_s']['median'] * 1e9)
    except KeyError:
        return None, None
