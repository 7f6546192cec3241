"""Part 3: tokens/s, MFU, memory and compile time of the forms of the pre-training step."""

import jax

from benchmarks.accelerator import ceilings, program
from benchmarks.accelerator.measure import BATCH_SIZES, STEPS, Context, rates, rounds
from gpt1_jax.training.throughput import mfu, peak_flops

FORMS = {  # name: (keys of config.model, micro-batches)
    'scan': ({'scan': True}, 1),
    'unrolled': ({'scan': False}, 1),
    'scan, 2 micro-batches': ({'scan': True}, 2),
    'scan, 4 micro-batches': ({'scan': True}, 4),
}


def run(context: Context) -> None:
    context.report['machine'] = ceilings.machine()
    fastest = None
    compile_s = 30.0
    for name, (changes, accumulation) in FORMS.items():
        with context.attempt(name) as piece:
            context.need(compile_s + 10)
            made = program.pretraining(context.size, accumulation=accumulation, **changes)
            step, compile_s = made.compile()
            piece |= {'compile_s': round(compile_s, 2), **memory(step)}
            one_round, state = training_rounds(made, step)
            times = rounds(one_round, seconds=min(15.0, context.left() / 6))
            piece |= speed(made, context.size, times)
            if fastest is None or piece['tokens_per_s']['median'] > fastest[0]:
                fastest = piece['tokens_per_s']['median'], name
            state.clear()  # frees its memory
    if fastest:
        context.report['fastest'] = fastest[1]
        context.save()


def training_rounds(made, step):
    """(run, state): `run()` makes a few updates and waits for the last; `state` is a list that holds the state."""
    state, batches = [made.new_state()], [made.put(i) for i in range(STEPS)]

    def run():
        for batch in batches:
            state[0], metrics = step(state[0], batch)
        jax.block_until_ready(metrics)

    run()
    return run, state


def speed(made, size, times) -> dict:
    """Tokens/s and MFU (causal attention counted half) of rounds of `training_rounds`."""
    tokens = BATCH_SIZES[size] * made.model.n_positions
    per_s = rates(STEPS * tokens, times)
    peak = peak_flops(jax.devices()[0].device_kind, made.model.dtype)
    flops = made.model.flops_per_token()
    utilisation = mfu(per_s['median'], flops, peak, jax.device_count())
    return {
        'dtype': str(made.model.dtype),
        'tokens_per_step': tokens,
        'tokens_per_s': per_s,
        'step_ms': tokens / per_s['median'] * 1e3,
        'mfu': utilisation,
        'model_flops_per_s': per_s['median'] * flops,
    }


def memory(compiled) -> dict:
    """GB on one device, as planned by the compiler."""
    analysis = compiled.memory_analysis()
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    temporary = analysis.temp_size_in_bytes
    return {'memory_gb': (held + temporary) / 1e9, 'temporary_gb': temporary / 1e9}
