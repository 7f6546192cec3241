"""The task prepare: what its workdir holds."""

import json
import random

import pytest
from etils import epath

from configs.prepare import get_config
from gpt1_jax.data.corpus import shards
from gpt1_jax.errors import UserError
from gpt1_jax.report import results
from gpt1_jax.tasks import prepare
from helpers import some_words


def test_the_workdir_holds_shards_config_and_result(tmp_path):
    rng = random.Random(0)
    for name in ('a', 'b', 'c'):
        (tmp_path / f'{name}.txt').write_text('\n'.join(some_words(rng, 9) for _ in range(100)))
    config, workdir = get_config(), epath.Path(tmp_path / 'work')
    config.data.update(source=f'text:{tmp_path}', vocab_size=300, held_out=0.4, workers=1)
    result = prepare.run(config, workdir)
    loaded = shards.load_shards(workdir / 'shards')
    tokens = {name: split.tokens for name, split in loaded.splits.items()}
    assert result.facts['tokens'] == tokens and min(tokens.values()) > 300
    assert sum(result.facts['documents'].values()) == 3 and result.facts['vocab_size'] == 300
    characters = sum(len(path.read_text()) for path in tmp_path.glob('*.txt'))
    assert result.facts['characters_per_token'] == pytest.approx(characters / sum(tokens.values()))
    assert (result.task, result.scores, result.model) == ('prepare', [], None)
    assert results.read(workdir) == result
    assert json.loads((workdir / 'config.json').read_text()) == config.to_dict()
    assert prepare.run(config, workdir).facts == result.facts
    earlier = json.loads((workdir / 'shards' / 'index.json').read_text())
    for name in ('characters', 'sha256'):
        del earlier[name]
    (workdir / 'shards' / 'index.json').write_text(json.dumps(earlier))
    assert prepare.run(config, workdir).facts == result.facts | {'characters_per_token': None}
    shard = workdir / 'shards' / 'train-00000.bin'
    shard.write_bytes(b'\x07' + shard.read_bytes()[1:])
    with pytest.raises(UserError, match='train-00000.bin: The file is damaged'):
        prepare.run(config, workdir)
