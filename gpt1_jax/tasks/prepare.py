"""Text to a vocabulary and token shards."""

import time

from etils import epath
from ml_collections import ConfigDict

from gpt1_jax.data.corpus.beam import on_beam
from gpt1_jax.data.corpus.passes import HERE
from gpt1_jax.data.corpus.preparation import prepare
from gpt1_jax.errors import UserError
from gpt1_jax.files import exists
from gpt1_jax.report.results import Result, record
from gpt1_jax.workdir import open_workdir


def run(config: ConfigDict, workdir: epath.Path) -> Result:
    """Prepares `config.data.source` in `config.data.output`, by default WORKDIR/shards.

    Facts: `documents` and `tokens` by split, `vocab_size`; `characters_per_token`, None if an earlier version of this
    program made the shards.
    """
    started, workdir = time.monotonic(), epath.Path(workdir)
    open_workdir(config, workdir, write=True)
    output = epath.Path(config.data.output or workdir / 'shards').expanduser()
    there = exists(output / 'index.json')
    shards = prepare(config.data, output, _passes(config, output))
    if there:  # finished earlier: it may be damaged since
        shards.verify()
    tokens = {name: split.tokens for name, split in shards.splits.items()}
    facts = {
        'documents': {name: split.documents for name, split in shards.splits.items()},
        'tokens': tokens,
        'vocab_size': shards.vocab_size,
        'characters_per_token': shards.characters and shards.characters / max(1, sum(tokens.values())),
    }
    return record(config, workdir, started, facts=facts)


def _passes(config, output):
    if config.runner != 'local':
        return on_beam(config.runner, config.runner_options, config.data.source, output)
    if config.runner_options:
        raise UserError(f'runner_options: {config.runner_options!r} is for a runner. Name one with --config.runner.')
    return HERE
