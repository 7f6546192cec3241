"""The paper's method in miniature, on text that every machine has: the installed packages' documentation strings.

    bash launch/quickstart.sh
    python -m gpt1_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Trains a SentencePiece vocabulary, makes shards and pre-trains a small decoder for one to two minutes. Then fine-tunes
on four data sets made from the same kind of text, one for each input transformation, with and without pre-training,
and prints a table.

Hardware: 2 CPU cores. Time: 2 min 9 s to 3 min 54 s on four virtual machines (measured). Result: README.md, measured.
"""

import ml_collections

from configs import finetune, pretrain
from gpt1_jax.config import check_no_argument

PACKAGES = 'docs:numpy,scipy,sklearn,jax,keras,flax,optax,orbax'


def get_config(arg: str = '') -> ml_collections.ConfigDict:
    check_no_argument('quickstart', arg)
    language_model = pretrain.get_config('tiny')
    # One layer learns most in such a short time; less than one epoch needs no dropout.
    language_model.model.update(layers=1, dropout=0.0, attention_dropout=0.0, residual_dropout=0.0)
    # The dev examples of the data sets are made from the files that are held out here, a fifth of all.
    language_model.data.update(
        source=PACKAGES, vocab_size=2000, tokenizer_sample_mb=4, held_out=0.2, batch_size=4, tokens=1_300_000
    )
    language_model.optimizer.update(learning_rate=2e-3, warmup_steps=50)
    language_model.log.update(every=50, eval_every=0, eval_windows=200)
    language_model.checkpoint.every = 1000
    classifier = finetune.get_config('docs_package')
    classifier.data.update(source=PACKAGES, epochs=1.0, limit=1000, batch_size=8)
    classifier.optimizer.learning_rate = 2e-3
    classifier.log.every = 20
    return ml_collections.ConfigDict(
        dict(
            task='quickstart',
            seed=0,
            datasets=('docs_package', 'docs_follows', 'docs_same', 'docs_continuation'),
            pretrain=language_model,
            finetune=classifier,
        )
    )
