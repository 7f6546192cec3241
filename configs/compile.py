r"""Compiles the real training programs for a TPU slice that is not there: memory of a chip and whether it fits, FLOPs,
bytes, what the chips send each other, and an estimate of step time and MFU.

    python -m gpt1_jax.main --config=configs/compile.py:v5e-8
    python -m gpt1_jax.main --config=configs/compile.py:2xv5e-8 --config.mesh.strategy=fsdp --config.data.batch_size=128
    python -m gpt1_jax.main --config=configs/compile.py:v6e-8 --config.sweep=True

The argument is the slice: v5e-8 (default), v4-8, v4-32, v5p-8, v6e-8, v5e-16, ... or several equal ones with a slow
network between them, such as 2xv5e-8. It needs `pip install "jax[tpu]"`, but no TPU, data or weights. `sweep`
tries strategies, micro-batches, remat and scan for pre-training, leaves out what does not fit, and prints the overrides
of the fastest for configs/pretrain.py.

The times are estimates. That of the computation is XLA's own, which counts a loop's body once; the other rounds are
added by instruction. That of communication is what the chips send, divided by the bandwidth of the links, as if nothing
overlapped. No program of this project has been timed on a TPU yet.

Hardware: any with 8 GB of memory. Time: 1 to 4 minutes a program on 2 cores, for 117M parameters. Result:
WORKDIR/table.txt, and all figures as the facts of WORKDIR/results.json.
"""

import ml_collections

from configs import common
from gpt1_jax.meter import slices


def get_config(arg: str = 'v5e-8') -> ml_collections.ConfigDict:
    slices.named(arg or 'v5e-8')
    model = common.model_of_any_size()
    model.scan = common.optional(bool)  # None: as in their configs, off for pre-training and on for fine-tuning
    model.head_dropout = 0.1
    return ml_collections.ConfigDict(
        dict(
            task='compile',
            slice=arg or 'v5e-8',  # kind and number of chips, see above
            size='gpt1',  # see gpt1_jax/model/sizes.py
            works=('pretrain', 'sst2', 'race'),  # pre-training, and fine-tuning on sets whose lengths are known
            as_run=True,  # compile also as a run does: its memory and the time to compile; else only the estimate
            entries=0,  # for each program, show this many kinds of instructions: those that move the most bytes
            sweep=False,  # try settings, and recommend one
            lm_coefficient=0.5,  # of fine-tuning
            model=model,
            optimizer=common.optimizer_defaults(schedule='cosine', learning_rate=2.5e-4, warmup_steps=2000),
            data=ml_collections.ConfigDict(dict(batch_size=64, finetune_batch_size=32)),
            mesh=common.mesh_defaults(),
        )
    ).lock()
