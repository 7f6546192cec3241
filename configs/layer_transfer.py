"""How much each transferred layer helps (Radford et al. 2018, section 5 and figure 2, left).

    python -m gpt1_jax.main --config=configs/layer_transfer.py:mnli --config.init_from=runs/gpt1 \
        --config.data.source=files:/data --workdir=runs/layer_transfer_mnli

Fine-tunes on one data set with the table and the first n = 0, 1, ... layers of `init_from`; prints a table of train and
dev scores over n. The argument names the data set; the paper's are mnli and race. The source has one folder per data
set. WORKDIR/NAME/layersN/seedN are the runs. The command can be resumed, and more layers or seeds added later.
Other keys: configs/finetune.py.

The layers that are not transferred are new, as in the release (`n_transfer`). With `rest=absent` they are left out, and
the model has n layers. With none it cannot tell texts of one length apart, so its curve begins at chance; the paper's
begins 9 points below its end on MNLI.

Hardware: 117M parameters need an accelerator; time: 13 fine-tuning runs a seed; not measured yet.
Result: in the paper every layer helps, all 12 by about 9 points on MNLI; not reproduced yet.
"""

import ml_collections

from configs import finetune
from gpt1_jax.config import check_choice
from gpt1_jax.data.labelled.registry import REGISTRY


def get_config(arg: str = 'mnli') -> ml_collections.ConfigDict:
    name = arg or 'mnli'
    check_choice('argument', name, REGISTRY)
    config = finetune.get_config(name)
    config.unlock()
    del config.n_transfer  # it is what varies
    config.update(
        task='layer_transfer',
        rest='fresh',  # the other layers: fresh (new ones, as in the release) or absent (left out)
        layers=(),  # numbers of layers to transfer, such as (0,2,4); empty: from 0 to all
        seeds=1,  # fine-tuning runs of each number
        workers=0,  # runs at a time; 0: see configs/finetune.py
    )
    config.data.score_train = 1000  # for the curve of training examples
    return config.lock()
