"""Fine-tuning (Radford et al. 2018, section 4.1): 3 epochs, batch 32, rate 6.25e-5, auxiliary LM loss 0.5.

    python -m gpt1_jax.main --config=configs/finetune.py:sst2 --config.init_from=runs/gpt1 \
        --config.data.source=files:/data/sst2 --workdir=runs/sst2

The argument names a data set of gpt1_jax/data/labelled/registry.py, which has all of the paper's (for a list, give any
other name), or is custom: your own data set, with its kind, fields and labels. For multiple choice the last field is a
list; if each choice has a column of its own, `choices` names the columns:

    python -m gpt1_jax.main --config=configs/finetune.py:custom --config.init_from=runs/gpt1 \
        --config.data.source=files:/data/mine --config.data.kind=entailment \
        --config.data.fields=premise,hypothesis --config.data.labels=yes,no --workdir=runs/mine

or is a whole suite, `glue` (its nine tasks) or `all` (the paper's twelve and three more). The source then has one
folder per data set. The command can be resumed; it prints median, best and worst of the seeds and the paper's results:

    python -m gpt1_jax.main --config=configs/finetune.py:glue --config.init_from=runs/gpt1 \
        --config.data.source=files:/data --config.seeds=5 --workdir=runs/glue

Sources: `files:/dir` with train, dev (or validation, val) and optionally test as .jsonl, .json, .tsv, .csv (each also
as .gz) or .parquet, or as the authors of the set, GLUE, `datasets` or the hub ship it; `tfds:glue/sst2`;
`hf:nyu-mll/glue:sst2` (OWNER/NAME:CONFIG of the Hugging Face hub). Empty: the data set's own in TensorFlow Datasets, or
else on the hub; the log says which. What is not here is fetched. `init_from` may also be
`hf:openai-community/openai-gpt`, the released model. `--config.n_transfer=-1` trains from scratch, with the same size
and tokenizer. The checkpoint of the best epoch by the dev metric predicts the test split, if there is one.
WORKDIR/dev.npz keeps its logits on the dev set, WORKDIR/dev_errors.jsonl some of the examples that it gets wrong.

Hardware: 117M parameters need an accelerator; models of a few million run on a CPU. Time: 4 minutes for RTE with 1.85 M
parameters on 2 cores (measured); at 117M not measured yet. Result: the paper's scores, which the tables show beside
yours, need the paper's model and are not reproduced yet; README has those of small models.
"""

import ml_collections

from configs import common
from gpt1_jax.config import check_choice
from gpt1_jax.data.labelled.registry import REGISTRY, SUITES

DATASETS = (*REGISTRY, 'custom')


def get_config(arg: str = 'sst2') -> ml_collections.ConfigDict:
    name = arg or 'sst2'
    check_choice('argument', name, (*DATASETS, *SUITES))
    model = common.model_defaults()  # the architecture is that of `init_from`
    model.head_dropout = 0.1
    config = ml_collections.ConfigDict(
        dict(
            task='finetune',
            seed=0,  # of the new parameters, dropout, the order and the share of the examples
            init_from='',  # the model to fine-tune
            n_transfer=common.optional(int),  # layers to transfer; 0: only the table; -1: not even that; None: all
            rest='fresh',  # the other layers: fresh (new ones, as in the release) or absent (left out)
            lm_coefficient=0.5,  # weight of the auxiliary LM loss (section 3.2)
            model=model,
            optimizer=common.optimizer_defaults(schedule='linear', learning_rate=6.25e-5, warmup_fraction=0.002),
            data=ml_collections.ConfigDict(
                dict(
                    dataset=name,  # of the registry, or custom
                    source='',  # URI, see above
                    download=True,  # fetch what is not here, of tfds: and hf:
                    batch_size=32,  # examples
                    epochs=3.0,  # at most, if `patience` is set
                    patience=0,  # stop after this many epochs in a row without a better dev score; 0: never
                    eval_batch_size=64,  # examples
                    max_length=common.optional(int),  # None: the model's positions
                    limit=common.optional(int),  # None: all training examples
                    share=1.0,  # share of these to use, drawn with the seed
                    score_train=0,  # training examples that the best checkpoint is also scored on
                    rule='',  # how long sequences are cut: longest or release; empty: the data set's own
                    share_context=True,  # multiple choice: read the context once for all choices (release: per choice)
                    score_loss='ordinal',  # loss of a set with scores: ordinal (six soft classes, the release) or mse
                    cache='',  # folder of the token sequences; empty: gpt1_jax in the user's cache; off: none
                    # Only for custom; names are separated by commas, and one with a comma stands in quotes.
                    kind='',  # classification, entailment, similarity or multiple_choice
                    fields='',  # columns of the texts
                    choices='',  # of multiple choice: the columns of the choices, if these are not one list
                    labels='',  # names of the labels, in the order of their ids
                    label_field='label',  # column of the label
                    metrics='',  # the first picks the best epoch; empty: accuracy, or pearson; f1 is of the 2nd label
                    max_score=0,  # highest score, for scores from 0 in place of labels
                )
            ),
            **common.run_defaults(),  # evaluated after every epoch
        )
    )
    if name in SUITES:
        # Variants: name -> changed keys of this config, such as {'scratch': {'n_transfer': -1}}.
        config.update(
            task='sweep',
            datasets=SUITES[name],
            seeds=1,
            variants=ml_collections.ConfigDict(),
            workers=0,  # runs at a time; 0: on a CPU and with a narrow model one per core, up to 8, else 1
        )
    config.lock()  # a misspelt key is then refused in Python too, as on the command line
    if name in SUITES:
        config.variants.unlock()  # their names are free
    return config
