"""This project's side of part 4: python -m benchmarks.accelerator.peer_ours SIZE FORM"""

import sys
import time

import jax

from benchmarks.accelerator import peer, program, step
from gpt1_jax.meter.memory import planned
from gpt1_jax.meter.step import training_rounds


def main(size, form, dtype='auto'):
    changes, accumulation, options = step.FORMS[form]
    devices = jax.devices()[:1]  # PyTorch's side has one, too
    made = program.pretraining(size, accumulation=accumulation, devices=devices, dtype=dtype, **changes)
    compiled, seconds = made.compile(**options)
    run, _ = training_rounds(made, compiled)

    def one_round():
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    one_round()
    facts = {'form': form, 'compile_s': round(seconds, 2), 'dtype': str(made.model.dtype)}
    peer.serve({**facts, 'attention': made.model.attention, **planned(compiled)}, one_round)


if __name__ == '__main__':
    main(*sys.argv[1:])
