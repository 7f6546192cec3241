"""Fine-tuning (Radford et al. 2018, section 4.1): 3 epochs, batch 32, rate 6.25e-5, auxiliary LM loss 0.5.

    python -m gpt1_jax.main --config=configs/finetune.py:sst2 --config.init_from=runs/gpt1 \
        --config.data.source=files:/data/sst2 --workdir=runs/sst2

The argument names the data set: sst2 (default), rte, stsb, mrpc, story_cloze, docs_package, docs_follows, docs_same,
docs_continuation, or custom: a set of your own, with its kind, fields and labels:

    python -m gpt1_jax.main --config=configs/finetune.py:custom --config.init_from=runs/gpt1 \
        --config.data.source=files:/data/mine --config.data.kind=entailment \
        --config.data.fields=premise,hypothesis --config.data.labels=yes,no --workdir=runs/mine

Sources: `files:/dir` with train and dev as .jsonl[.gz], .tsv or .csv; `tfds:glue/sst2` (prepared). Empty: the data
set's own. From scratch, with the same size and tokenizer: `--config.n_transfer=-1`.

Hardware: 117M parameters want an accelerator; not measured yet.
"""

import ml_collections

from gpt1_jax import config as common


def get_config(arg: str = 'sst2') -> ml_collections.ConfigDict:
    model = common.model_defaults()  # the architecture is that of `init_from`
    model.head_dropout = 0.1
    return ml_collections.ConfigDict(dict(
        task='finetune', seed=0, init_from='',
        n_transfer=common.optional_int(),  # layers to take over: 0 the table alone, -1 nothing; None all
        lm_coefficient=0.5,
        model=model,
        optimizer=common.optimizer_defaults(schedule='linear', learning_rate=6.25e-5, warmup_fraction=0.002),
        data=ml_collections.ConfigDict(dict(
            dataset=arg or 'sst2', source='', batch_size=32, epochs=3.0, eval_batch_size=64,
            max_length=common.optional_int(),  # None: the model's positions
            limit=common.optional_int(),  # None: all training examples
            # Of a custom set only; names with commas between. A score from 0 to max_score in place of labels.
            kind='', fields='', labels='', label_field='label', metrics='', max_score=0)),
        **common.run_defaults(checkpoint_every=0, eval_every=0)))
