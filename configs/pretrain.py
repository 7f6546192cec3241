"""Pre-training (Radford et al. 2018, section 4.1): 117M parameters, 64 x 512 tokens a step, 100 epochs.

    python -m gpt1_jax.main --config=configs/pretrain.py --workdir=runs/gpt1
    python -m gpt1_jax.main --config=configs/pretrain.py:small --config.data.source=text:/books --workdir=runs/small
    python -m gpt1_jax.main --config=configs/pretrain.py:lstm --config.data.source=text:/books --workdir=runs/lstm

The argument is a size: tiny, small, gpt1 (default); or tiny_lstm, small_lstm, lstm: the LSTM that the paper compares
with (section 5: one layer of 2,048 units), all else being equal. `data.source` is a corpus (`tfds:pg19`,
`hf:OWNER/NAME`, `text:/books`, `docs:`), which is first prepared in WORKDIR/shards, or `shards:/path`, prepared before.
`init_from` (a workdir, `openai:DIR`, `hf:DIR`, `hf:OWNER/NAME`) starts from another model's parameters; size and
tokenizer must be the same.

Hardware: gpt1 needs an accelerator (the paper: 8 GPUs, one month); not measured yet.
Result: the paper's model has token perplexity 18.4 on BooksCorpus; not reproduced yet (BooksCorpus is not public).
"""

import ml_collections

from configs import common
from gpt1_jax.evaluation.paper import ZERO_SHOT
from gpt1_jax.model.sizes import SIZES


def get_config(arg: str = 'gpt1') -> ml_collections.ConfigDict:
    size = arg or 'gpt1'
    return ml_collections.ConfigDict(
        dict(
            task='pretrain',
            seed=0,
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
                    limit=500,  # examples of each split, the first ones
                ),
            ),
        )
    )
