"""Converts a model between the release's files, a Hugging Face folder and the workdir of a run.

    python -m gpt1_jax.main --config=configs/convert.py --config.source=openai:/gpt1/model --config.target=hf:/gpt1-hf
    python -m gpt1_jax.main --config=configs/convert.py --config.source=runs/sst2 --config.target=hf:/sst2-hf

`source` and `target` are each `openai:DIR`, `hf:DIR` or a workdir; `source` may be `hf:OWNER/NAME`, which is fetched.
An hf: folder loads in transformers, and its README.md says what transformers does not express; an openai: folder has no
special rows and no head. To train from such a folder or to evaluate it, no conversion is needed: `init_from` accepts
it.

Hardware: any; about 2 GB of memory for 117M parameters. Time: about 3 s of processor time to read 117M parameters; the
rest depends on the disk.
"""

import ml_collections

from gpt1_jax.config import check_no_argument


def get_config(arg: str = '') -> ml_collections.ConfigDict:
    check_no_argument('convert', arg)
    return ml_collections.ConfigDict(dict(task='convert', source='', target='')).lock()
