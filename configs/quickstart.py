"""The paper's method in miniature, on text that every machine has: the installed packages' documentation strings.

    bash launch/quickstart.sh
    python -m gpt1_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Trains a SentencePiece vocabulary and a small decoder on running text for about a minute. Then fine-tunes it on 200
examples of each of four data sets, one for each input transformation, and trains the same model from scratch on them,
each until dev stops improving. Prints accuracies on test beside those of a bag of words with logistic regression, and
writes a report. `seeds` fine-tunes that many times; each draws 200 other examples.

The settings of each start are those with the best mean on the dev sets, seed 0. The learning rates tried were 2e-4,
4e-4 and 8e-4 from the pre-trained model and 5e-4, 1.5e-3 and 4e-3 from scratch, each without the auxiliary loss and
with one of weight 0.5.

Hardware: 2 CPU cores. Time and result: README.md, measured.
"""

import ml_collections

from configs import finetune, generate, pretrain
from gpt1_jax.config import check_no_argument

PACKAGES = 'docs:numpy,scipy,sklearn,matplotlib,jax,keras,flax,optax,orbax,tensorflow'


def get_config(arg: str = '') -> ml_collections.ConfigDict:
    check_no_argument('quickstart', arg)
    language_model = pretrain.get_config('tiny')
    language_model.model.update(layers=2, n_positions=64, dropout=0.0, attention_dropout=0.0, residual_dropout=0.0)
    language_model.data.update(
        source='', vocab_size=2000, tokenizer_sample_mb=4, held_out=0.02, batch_size=8, tokens=1_300_000
    )  # source: what the task writes
    language_model.optimizer.update(learning_rate=2e-3, warmup_steps=50)
    language_model.log.update(every=50, eval_every=500, eval_windows=100)
    classifier = finetune.get_config('docs_number')
    # A fifth of the 1,000 training examples. The rate is constant: with a falling one, the end of a run would depend on
    # `epochs`, not on dev.
    classifier.data.update(source=PACKAGES, share=0.2, batch_size=16, epochs=40.0, patience=10)
    classifier.optimizer.update(schedule='constant', warmup_fraction=0.0, warmup_steps=20)
    classifier.model.update(init_std=language_model.model.init_std, scan=False)
    classifier.log.every = 12  # an epoch
    sample = generate.get_config()
    sample.update(prompt='The function returns', max_tokens=60, temperature=0.8, top_k=40)
    config = ml_collections.ConfigDict(
        dict(
            task='quickstart',
            seed=0,  # of all parts
            seeds=1,  # of fine-tuning
            workers=0,  # runs of fine-tuning at a time; 0: one per core
            datasets=('docs_number', 'docs_same', 'docs_next', 'docs_cloze'),
            pretrain=language_model,
            finetune=classifier,
            # What the two starts change in `finetune`.
            pretrained=dict(lm_coefficient=0.0, optimizer=dict(learning_rate=4e-4)),
            scratch=dict(lm_coefficient=0.0, n_transfer=-1, optimizer=dict(learning_rate=1.5e-3)),
            generate=sample,
        )
    )
    config.lock()
    for start in (config.pretrained, config.scratch):
        start.unlock()  # any keys of `finetune`
    return config
