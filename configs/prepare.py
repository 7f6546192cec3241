r"""Makes a vocabulary and token shards from text, which `pretrain` would otherwise do first.

    python -m gpt1_jax.main --config=configs/prepare.py --config.data.source=text:/books \
        --config.data.output=/shards/books
    python -m gpt1_jax.main --config=configs/pretrain.py --config.data.source=shards:/shards/books

`data.source` is `text:` and a folder, a glob or a file (.txt, .txt.gz, .zip, .parquet, JSON lines), `tfds:` and a name,
`hf:OWNER/NAME` or `hf:OWNER/NAME:CONFIG` (of the Hugging Face hub), or `docs:`; what is not here is fetched. Without
`data.output` the shards go to WORKDIR/shards. After an interruption, run the same command again to resume.

All text is read once before anything is written: files that cannot be read are named together, and copies of a text,
nearly the same ones included, are all trained on or all held out. The books of Project Gutenberg want
`data.strip_gutenberg=True` (no header, no licence), and any text with hard line wraps `data.unwrap=True`.

`runner=dataflow` (or `spark`, `flink`; `direct` to try it here) reads a corpus of files on many machines, with Apache
Beam, and gives the same shards; see launch/README.md. Only that needs Beam, in an environment of its own:
`pip install -r launch/beam.txt`.

Hardware: any; all cores are used. Time: 35 s for 263 MB of novels on 2 cores, with a peak of 605 MB of memory, and
at most 587 MB in the largest worker (measured). Result: 64.6 million tokens to train on, 4.17 characters each.
"""

import ml_collections

from configs import common
from gpt1_jax.config import check_no_argument


def get_config(arg: str = '') -> ml_collections.ConfigDict:
    check_no_argument('prepare', arg)
    return ml_collections.ConfigDict(
        dict(
            task='prepare',
            data=common.data_defaults(),
            runner='local',  # what reads the text: local (this machine), or direct, dataflow, spark or flink of Beam
            runner_options='',  # of Beam, as on a command line: '--project=... --region=... --temp_location=gs://...'
        )
    ).lock()
