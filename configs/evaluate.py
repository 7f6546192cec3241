"""Metrics and predictions of a fine-tuned model on any split of its data set; or how well a model predicts a text.

    python -m gpt1_jax.main --config=configs/evaluate.py:sst2 --config.init_from=runs/sst2 \
        --config.data.source=files:/data/sst2 --config.split=dev --workdir=runs/sst2-dev

The argument names the data set and `data.source` says where it is, as in configs/finetune.py. The split is one of
train, dev, test; for MNLI also dev_mismatched and test_mismatched. `init_from` is the workdir of a fine-tuning run; its
best checkpoint is used. The argument `text` scores running text instead: see configs/evaluate_text.py.

The metrics, also per class, are in WORKDIR/results.json. The predictions are in WORKDIR/predictions; those of GLUE's
test splits have the form of a submission. Run a command that was stopped or killed again to resume it.

Hardware: any. Time: not measured yet. Result: on dev, the scores of the best checkpoint in the run's own results.json.
"""

import ml_collections

from configs import evaluate_text, finetune
from gpt1_jax.config import check_choice


def get_config(arg: str = 'sst2') -> ml_collections.ConfigDict:
    if arg == 'text':
        return evaluate_text.get_config()
    check_choice('argument', arg or 'sst2', (*finetune.DATASETS, 'text'))
    config = finetune.get_config(arg)
    return ml_collections.ConfigDict(
        dict(task='evaluate', init_from='', split='dev', model=config.model, data=config.data, mesh=config.mesh)
    ).lock()
