"""Part 1: the machine and its two ceilings, those of a large matrix product and of a large copy."""

from benchmarks.accelerator.measure import Context
from gpt1_jax.meter import ceilings


def run(context: Context) -> None:
    context.report |= ceilings.machine()
    context.save()
    seconds = min(10.0, context.left() / 6)
    for dtype in ('bfloat16', 'float32'):
        with context.attempt(f'product_{dtype}') as piece:
            context.need(5)
            piece |= ceilings.product(dtype, seconds)
    with context.attempt('copy') as piece:
        context.need(5)
        piece |= ceilings.copy(seconds)
