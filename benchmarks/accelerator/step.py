"""Part 3: tokens/s, MFU, memory and compile time of the forms of the pre-training step."""

import jax

from benchmarks.accelerator import program
from benchmarks.accelerator.measure import BATCH_SIZES, USUAL, Context
from gpt1_jax.meter.ceilings import machine
from gpt1_jax.meter.memory import planned
from gpt1_jax.meter.step import speed, training_rounds
from gpt1_jax.meter.timing import STEPS, rounds
from gpt1_jax.meter.work import from_cache

FORMS = {  # name: (keys of config.model, micro-batches, compiler options, which only a GPU has)
    USUAL: ({'scan': False}, 1, {}),
    'unrolled, without CUDA graphs': ({'scan': False}, 1, {'xla_gpu_enable_command_buffer': ''}),
    'unrolled, attention by XLA': ({'scan': False, 'attention': 'xla'}, 1, {}),
    'scan': ({'scan': True}, 1, {}),
    'scan, 4 micro-batches': ({'scan': True}, 4, {}),
}


def run(context: Context) -> None:
    context.report['machine'] = machine()
    fastest, compile_s = 0.0, 30.0
    for name, (changes, accumulation, options) in FORMS.items():
        if options and jax.default_backend() != 'gpu':
            continue
        with context.attempt(name) as piece:
            context.need(compile_s + 10)
            made = program.pretraining(context.size, accumulation=accumulation, **changes)
            with from_cache() as hits:
                step, compile_s = made.compile(**options)
            piece |= {'compile_s': round(compile_s, 2), 'from_cache': bool(hits), 'attention': made.model.attention}
            piece |= planned(step)
            compile_s = 30.0 if hits else compile_s  # the next form may not be in the cache
            one_round, state = training_rounds(made, step)
            times = rounds(one_round, seconds=min(15.0, context.left() / 6))
            tokens = BATCH_SIZES[context.size] * made.model.n_positions
            piece |= speed(made, STEPS * tokens, times)
            if piece['tokens_per_s']['median'] > fastest:
                fastest, context.report['fastest'] = piece['tokens_per_s']['median'], name
            state.clear()  # frees its memory
