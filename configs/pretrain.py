"""Pre-training (Radford et al. 2018, section 4.1): 117M parameters, 64 x 512 tokens a step, 100 epochs.

    python -m gpt1_jax.main --config=configs/pretrain.py --workdir=runs/gpt1
    python -m gpt1_jax.main --config=configs/pretrain.py:small --config.data.source=text:/books --workdir=runs/small

The argument picks a size: tiny, small, gpt1 (default). `data.source` is a corpus (`tfds:pg19`, `text:/books`,
`docs:`), prepared into WORKDIR/shards on first use, or `shards:/path`, prepared before. `init_from` (a workdir,
`openai:DIR`, `hf:DIR`) goes on from another model's parameters; size and tokenizer must be that model's.

Hardware: gpt1 wants an accelerator (the paper: 8 GPUs, one month); not measured yet.
Result: the paper's model has token perplexity 18.4 on BooksCorpus; not reproduced yet (BooksCorpus is not public).
"""

import ml_collections

from gpt1_jax import config as common


def get_config(arg: str = 'gpt1') -> ml_collections.ConfigDict:
    size = arg or 'gpt1'
    return ml_collections.ConfigDict(dict(
        task='pretrain', seed=0, init_from='',  # '': from scratch
        model=common.model_size(size),
        optimizer=common.optimizer_defaults(schedule='cosine', learning_rate=2.5e-4, warmup_steps=2000),
        # The run's length: `tokens` where it is not 0, else `epochs`.
        data=common.data_defaults(source='tfds:pg19', vocab_size=common.SIZES[size][-1], batch_size=64, epochs=100.0,
                                  tokens=0),
        **common.run_defaults(eval_every=2000, eval_windows=2000)))  # steps between evaluations (0: only the last)
