r"""How fast this machine is: tokens/s, MFU, where the time of a step goes, memory, compile time, and the least time
that the compiled step would need at the ceilings of the device.

    python -m gpt1_jax.main --config=configs/benchmark.py:pretrain --workdir=runs/benchmark
    python -m gpt1_jax.main --config=configs/benchmark.py:pretrain --config.sweep=True --config.minutes=20 \
        --workdir=runs/benchmark
    python -m gpt1_jax.main --config=configs/benchmark.py:finetune --config.size=small --workdir=runs/benchmark-finetune
    python -m gpt1_jax.main --config=configs/benchmark.py:generate --workdir=runs/benchmark-generate

The argument is pretrain (default), finetune (packed steps on random examples with the lengths of SST-2 and RACE, and
the evaluation of an epoch) or generate (random weights, greedy). No data are needed: `pretrain` writes random tokens as
shards and reads them as training does, `data.source=shards:/path` reads yours. `sweep` then tries accumulation,
attention, scan, remat and batch size in turn, leaves out what does not fit into the memory, and prints the overrides of
the fastest settings for configs/pretrain.py or configs/finetune.py.

WORKDIR/benchmark.json has every figure and is written after each part, so Ctrl-C leaves what was measured;
WORKDIR/table.txt is the table. How to read it:
- The ceilings are those of a large matrix product in the dtype of the computation and of a large copy, measured first.
- `least time` is what the FLOPs and bytes of each instruction of the compiled step need at these ceilings. Its share of
  the measured time says how much is left to gain; on a CPU, caches allow more than 100 %.
- `in the loop` is the training loop with its input; waiting for the input, placing the batch, launching the step and
  waiting for the device add up to it. `alone` is the same step on batches that are already on the device. The
  difference is lost to input or launching.
- MFU is that of training: causal attention counts half, recomputation and padding not at all. It is unknown for a
  device without a vendor's peak.
- Compiled steps are kept for later runs. With JAX_ENABLE_COMPILATION_CACHE=false in the environment they are compiled
  anew, so that the compile time is measured.

Hardware: any, in one process. Time: about `minutes`, but always at least ten steps. Result: no figures on a quiet
machine yet.
"""

import ml_collections

from configs import common
from gpt1_jax.config import check_choice

WORKS = ('pretrain', 'finetune', 'generate')


def get_config(arg: str = 'pretrain') -> ml_collections.ConfigDict:
    work = arg or 'pretrain'
    check_choice('argument', work, WORKS)
    model = common.model_of_any_size()
    model.scan = work == 'finetune'  # as in configs/pretrain.py and configs/finetune.py
    config = ml_collections.ConfigDict(
        dict(
            task='benchmark',
            work=work,
            size='',  # see gpt1_jax/model/sizes.py; empty: tiny on a CPU, gpt1 elsewhere
            minutes=3.0,  # in all, about: a compilation or a single measurement is not cut short
            model=model,
            mesh=common.mesh_defaults(),
        )
    )
    if work == 'generate':
        config.batches = (1, 8, 64)  # texts at a time
        return config.lock()
    config.sweep = False  # try settings, and print the fastest
    config.optimizer = common.optimizer_defaults(schedule='cosine', learning_rate=2.5e-4, warmup_steps=2000)
    config.data = ml_collections.ConfigDict(dict(batch_size=common.optional(int)))  # None: 64 (8 on a CPU)
    if work == 'pretrain':
        config.data.source = ''  # shards:/path; empty: random tokens
        return config.lock()
    config.sets = ('sst2', 'race')  # whose lengths the examples have
    config.lm_coefficient = 0.5
    config.model.head_dropout = 0.1
    config.data.update(batch_size=32, eval_batch_size=64)
    return config.lock()
