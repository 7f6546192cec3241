"""Text to a vocabulary and token shards."""

import time

from etils import epath
from ml_collections import ConfigDict

from gpt1_jax.config import open_workdir
from gpt1_jax.data.corpus.preparation import prepare
from gpt1_jax.report.results import Result, record


def run(config: ConfigDict, workdir: epath.Path) -> Result:
    """Prepares `config.data.source` in `config.data.output`, by default WORKDIR/shards.

    Facts: `documents` and `tokens` by split, `vocab_size`; `characters_per_token`, None where the shards were there.
    """
    started, workdir = time.monotonic(), epath.Path(workdir)
    open_workdir(config, workdir, write=True)
    shards = prepare(config.data, config.data.output or workdir / 'shards')
    tokens = {name: split.tokens for name, split in shards.splits.items()}
    facts = {
        'documents': {name: split.documents for name, split in shards.splits.items()},
        'tokens': tokens,
        'vocab_size': shards.vocab_size,
        'characters_per_token': shards.characters and shards.characters / sum(tokens.values()),
    }
    return record(config, workdir, started, facts=facts)
