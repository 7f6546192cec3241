"""Fine-tuning (Radford et al. 2018, section 4.1): 3 epochs, batch 32, rate 6.25e-5, auxiliary LM loss 0.5.

    python -m gpt1_jax.main --config=configs/finetune.py:sst2 --config.init_from=runs/gpt1 \
        --config.data.source=files:/data/sst2 --workdir=runs/sst2

The argument names the data set, of the paper: cola, sst2, mrpc, qqp, stsb, mnli, snli, qnli, rte, scitail, race,
story_cloze, wnli; besides: copa, dpr, docs_package, docs_follows, docs_same, docs_continuation; or custom: a set of
your own, with its kind, fields and labels:

    python -m gpt1_jax.main --config=configs/finetune.py:custom --config.init_from=runs/gpt1 \
        --config.data.source=files:/data/mine --config.data.kind=entailment \
        --config.data.fields=premise,hypothesis --config.data.labels=yes,no --workdir=runs/mine

or a whole suite, `glue` (its nine tasks) or `all` (the paper's twelve and the three beside them), in one resumable
command, with one folder a data set under the source, median, best and worst of the seeds, and a table beside the
paper's:

    python -m gpt1_jax.main --config=configs/finetune.py:glue --config.init_from=runs/gpt1 \
        --config.data.source=files:/data --config.seeds=5 --workdir=runs/glue

Sources: `files:/dir` with train, dev and perhaps test as .jsonl[.gz], .tsv or .csv; `tfds:glue/sst2` (prepared).
Empty: the data set's own in TensorFlow Datasets. From scratch, with the same size and tokenizer:
`--config.n_transfer=-1`. The checkpoint of the best epoch by the dev metric predicts the test split, if there is one.

Hardware: 117M parameters want an accelerator; not measured yet.
"""

import ml_collections

from gpt1_jax import config as common
from gpt1_jax.data.registry import REGISTRY

DATASETS = (*REGISTRY, 'custom')
GLUE = ('cola', 'sst2', 'mrpc', 'stsb', 'qqp', 'mnli', 'qnli', 'rte', 'wnli')
SUITES = {'glue': GLUE, 'all': (*GLUE, 'snli', 'scitail', 'race', 'story_cloze', 'copa', 'dpr')}


def get_config(arg: str = 'sst2') -> ml_collections.ConfigDict:
    name = arg or 'sst2'
    common.check_choice('argument', name, (*DATASETS, *SUITES))
    model = common.model_defaults()  # the architecture is that of `init_from`
    model.head_dropout = 0.1
    config = ml_collections.ConfigDict(dict(
        task='finetune', seed=0, init_from='',
        n_transfer=common.optional_int(),  # layers to take over: 0 the table alone, -1 nothing; None all
        lm_coefficient=0.5,
        model=model,
        optimizer=common.optimizer_defaults(schedule='linear', learning_rate=6.25e-5, warmup_fraction=0.002),
        data=ml_collections.ConfigDict(dict(
            dataset=name, source='', batch_size=32, epochs=3.0, eval_batch_size=64,
            max_length=common.optional_int(),  # None: the model's positions
            limit=common.optional_int(),  # None: all training examples
            rule='',  # how what is too long is cut: longest or release; empty: the data set's own
            share_context=True,  # of multiple choice: read the choices' common text once; the release: once a choice
            score_loss='ordinal',  # of a set with scores: ordinal (six soft classes, the release) or mse
            cache='',  # folder of the token sequences; empty: gpt1_jax in the user's cache; off: none
            # Of a custom set only; names with commas between. A score from 0 to max_score in place of labels.
            kind='', fields='', labels='', label_field='label', metrics='', max_score=0)),
        **common.run_defaults()))  # evaluated after every epoch
    if name in SUITES:
        config.update(task='suite', datasets=SUITES[name], seeds=1)
    return config
