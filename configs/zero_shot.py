r"""What a language model knows without fine-tuning, by the paper's heuristics, over its checkpoints (Radford et al.
2018, section 5, and figure 2, right).

    python -m gpt1_jax.main --config=configs/zero_shot.py --config.init_from=runs/gpt1@all \
        --config.data.source=files:/data --workdir=runs/gpt1-zero-shot

`init_from` is a run (its best checkpoint), RUN@STEP, or RUN@all: every checkpoint that it has kept, see
`checkpoint.keep_log` and `checkpoint.keep_every` in configs/pretrain.py; or `openai:DIR`, `hf:DIR`, `hf:OWNER/NAME`.
The source has one folder per data set, as for configs/finetune.py:all; empty: each set's own in TensorFlow Datasets, or
else on the Hugging Face hub. A set that is not there is left out and named. The command can be resumed: finished
checkpoints are kept in WORKDIR/zero_shot.json.

The heuristics, and which split is used, are in gpt1_jax/evaluation/zero_shot.py. A table of raw scores (per cent) and
of scores scaled so that 0 is chance and 1 the best supervised result of the time is printed and written to
WORKDIR/table.txt; results.json has both, and the threshold that was chosen for CoLA on its train split.

Hardware: any. Time: 4.4 minutes a checkpoint for a model of 0.9M parameters with 128 positions on 2 busy CPU cores, the
six sets whole (measured); most of it is RACE, 19,548 sequences, and `data.limit` shortens it. Result: that model, after
1M tokens, is near chance everywhere, and so is one of 1.85M after 30M (measured); the paper's curves are not
reproduced yet.
"""

import ml_collections

from configs import common
from gpt1_jax.config import check_no_argument
from gpt1_jax.evaluation.paper import ZERO_SHOT


def get_config(arg: str = '') -> ml_collections.ConfigDict:
    check_no_argument('zero_shot', arg)
    return ml_collections.ConfigDict(
        dict(
            task='zero_shot',
            init_from='',  # a run, RUN@STEP or RUN@all, see above
            datasets=tuple(ZERO_SHOT),
            # Choices that the paper leaves open or makes; the other value shows their effect.
            start_token=False,  # put the token that ends a text before each sequence
            length_normalised=True,  # mean log-probability of the tokens (the paper), or the sum
            condition='given',  # answers of race, story_cloze, copa: given the text before them (the paper), or alone
            data=ml_collections.ConfigDict(
                dict(
                    source='',  # URI of the data sets, see above
                    download=True,  # fetch what is not here, of tfds: and hf:
                    limit=common.optional(int),  # of the examples of each split, evenly spread; None: all
                    batch_size=8,  # sequences of the model's positions
                )
            ),
            model=common.model_defaults(),  # only what concerns computation; the architecture is that of `init_from`
            mesh=common.mesh_defaults(),
        )
    ).lock()
