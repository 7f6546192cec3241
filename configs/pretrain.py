"""Pre-training (Radford et al. 2018, section 4.1): 117M parameters, 64 x 512 tokens a step, 100 epochs.

    python -m gpt1_jax.main --config=configs/pretrain.py --workdir=runs/gpt1
    python -m gpt1_jax.main --config=configs/pretrain.py:small --config.data.source=text:/books --workdir=runs/small
    python -m gpt1_jax.main --config=configs/pretrain.py:lstm --config.data.source=text:/books --workdir=runs/lstm

The argument is a size: tiny, small, gpt1 (default); or tiny_lstm, small_lstm, lstm: the LSTM that the paper compares
with (section 5: one layer of 2,048 units), everything else being equal. `data.source` is a corpus (`tfds:pg19`,
`hf:OWNER/NAME`, `text:/books`, `docs:`), which is first prepared in WORKDIR/shards, or `shards:/path`, prepared before.
`init_from` (a workdir, `openai:DIR`, `hf:DIR`, `hf:OWNER/NAME`) starts from another model's parameters; size and
tokenizer must be the same.

gpt1_large_batch is gpt1 in batches of 512 x 512 tokens, for slices that are too wide for 64 rows. Its settings are not
the paper's, and nobody has trained with them yet. With k = 8 times the batch they follow the square-root scaling rule
of Adam (Malladi et al. 2022, "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", arXiv:2205.10287): the
rate grows by sqrt(k), 1 - b1 and 1 - b2 by k, and eps shrinks by sqrt(k). What the rule does not cover is kept per
token: the length of the run and of the warm-up, and the weight decay, whose sum over the run (rate x decay x steps)
stays the same if the decay grows by sqrt(k). The norm at which gradients are clipped stays. 8 is the largest power of
two that leaves b1 above 0.

Hardware: gpt1 needs an accelerator (the paper: 8 GPUs, one month); not measured yet.
Result: the paper's model has token perplexity 18.4 on BooksCorpus; not reproduced yet (BooksCorpus is not public).
"""

import ml_collections

from configs import common
from gpt1_jax.config import check_choice
from gpt1_jax.evaluation.paper import ZERO_SHOT
from gpt1_jax.model.sizes import SIZES

LARGE_BATCH = 'gpt1_large_batch'


def get_config(arg: str = 'gpt1') -> ml_collections.ConfigDict:
    check_choice('size', arg or 'gpt1', (*SIZES, LARGE_BATCH))
    size = 'gpt1' if arg == LARGE_BATCH else arg or 'gpt1'
    config = ml_collections.ConfigDict(
        dict(
            task='pretrain',
            seed=0,  # of initial values, dropout and the order of the windows
            init_from='',  # '': from scratch
            model=common.model_size(size),
            optimizer=common.optimizer_defaults(schedule='cosine', learning_rate=2.5e-4, warmup_steps=2000),
            # The length of the run is `tokens`, or `epochs` if that is 0.
            data=common.data_defaults(
                source='tfds:pg19', vocab_size=SIZES[size].vocab_size, batch_size=64, epochs=100.0, tokens=0
            ),
            **common.run_defaults(
                eval_every=2000,  # steps between evaluations; 0: only the last
                eval_windows=2000,  # of the held-out part
                zero_shot=dict(  # scores without fine-tuning, see configs/zero_shot.py
                    every=0,  # steps between them; 0: none
                    source='',  # URI of the data sets
                    datasets=tuple(ZERO_SHOT),
                    limit=500,  # examples of each split, evenly spread
                ),
            ),
        )
    )
    if arg == LARGE_BATCH:
        _scale_batch(config, 8)
    return config.lock()


def _scale_batch(config, k):
    """Multiplies the batch by k; all else as this file's docstring says."""
    config.data.batch_size *= k
    optimizer, root = config.optimizer, k**0.5
    optimizer.update(
        learning_rate=optimizer.learning_rate * root,
        b1=round(1 - k * (1 - optimizer.b1), 6),
        b2=round(1 - k * (1 - optimizer.b2), 6),
        eps=optimizer.eps / root,
        weight_decay=optimizer.weight_decay * root,
        warmup_steps=optimizer.warmup_steps // k,
    )
    for part, key in ((config.log, 'eval_every'), (config.checkpoint, 'every')):  # steps: as often per token as before
        part[key] //= k
