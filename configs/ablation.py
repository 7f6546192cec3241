"""What each part of the method gives (Radford et al. 2018, table 5), and what the paper leaves open.

    python -m gpt1_jax.main --config=configs/ablation.py:table5 --config.init_from=runs/gpt1 \
        --config.lstm_from=runs/lstm --config.data.source=files:/data --config.seeds=3 --workdir=runs/ablation_table5

The argument is the study:
  table5  the full method; without pre-training; without the auxiliary LM loss; an LSTM in place of the transformer.
  lambda  weights of the auxiliary loss.
  share   parts of the training examples, with and without pre-training.

Fine-tunes on each data set in each variant of the method; prints a table of the medians over the seeds, beside the
paper's table 5. The source has one folder per data set. WORKDIR/NAME/VARIANT/seedN are the runs. The command can be
resumed, and other data sets, seeds or values added later: `--config.datasets=cola,sst2`. The table then has only what
was asked for, the report all of the study. Other keys: configs/finetune.py.

Hardware: 117M parameters need an accelerator; time: table5 is 32 fine-tuning runs a seed, lambda 48, share 80; not
measured yet. Result: the paper's averages are 74.7, 59.9, 75.0 and 69.1; not reproduced yet.
Of models of 1.85M parameters on 3,000 rows a set: 47.7, 41.0, 47.6 and 42.7 (measured, README.md).
"""

import ml_collections

from configs import finetune
from gpt1_jax.config import check_choice
from gpt1_jax.evaluation.paper import TABLE_5

STUDIES = ('table5', 'lambda', 'share')


def get_config(arg: str = 'table5') -> ml_collections.ConfigDict:
    study = arg or 'table5'
    check_choice('argument', study, STUDIES)
    config = finetune.get_config('glue')
    config.unlock()
    del config.n_transfer, config.rest, config.variants
    config.update(
        task='ablation',
        study=study,
        datasets=tuple(TABLE_5['full']),
        lstm_from='',  # table5: workdir of the LSTM's pre-training (configs/pretrain.py:lstm); empty: no such row
        coefficients=(0.0, 0.1, 0.25, 0.5, 1.0, 2.0),  # lambda: values of lm_coefficient
        shares=(0.01, 0.03, 0.1, 0.3, 1.0),  # share: values of data.share
    )
    return config.lock()
