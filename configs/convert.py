"""A model from one form to another: the release's files, a Hugging Face folder, the workdir of a run.

    python -m gpt1_jax.main --config=configs/convert.py --config.source=openai:/gpt1/model --config.target=hf:/gpt1-hf
    python -m gpt1_jax.main --config=configs/convert.py --config.source=runs/sst2 --config.target=hf:/sst2-hf

`source` and `target` are each `openai:DIR`, `hf:DIR` or a workdir. An hf: folder loads in transformers, and its
README.md says what transformers does not express; an openai: folder has no special rows and no head. To train from or
evaluate an openai: or hf: folder no conversion is needed: `init_from` takes them too.

Hardware: any; about 2 GB of memory for 117M parameters. Time: 117M parameters cost about
3 s of processor time to read; the rest is the disk's.
"""

import ml_collections

from gpt1_jax import config as common


def get_config(arg: str = '') -> ml_collections.ConfigDict:
    common.check_no_argument('convert', arg)
    return ml_collections.ConfigDict(dict(task='convert', source='', target=''))
