"""Pre-training that goes on from another model. Whole runs are in test_main.py and test_earlier_runs.py."""

import random
import shutil
import sys

import jax
import numpy as np
import pytest
from etils import epath

from configs import pretrain as pretrain_config
from gpt1_jax.data.corpus.preparation import prepare
from gpt1_jax.data.corpus.shards import load_shards
from gpt1_jax.data.tokenizers.loading import load_tokenizer
from gpt1_jax.errors import UserError
from gpt1_jax.saved_models import huggingface, store
from gpt1_jax.tasks import pretrain
from gpt1_jax.training import loop
from gpt1_jax.training.partitioning import Partitioner
from helpers import sentence
from models import ARCHITECTURE, assert_same_bits, make, make_model, read, write_workdir


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """A config of one step on shards of its own; the folder of the workdir `first`, a model of that size; its
    parameters."""
    folder, rng = tmp_path_factory.mktemp('prepared'), random.Random(0)
    (folder / 'books').mkdir()
    for i in range(4):
        (folder / 'books' / f'{i}.txt').write_text('\n'.join(sentence(rng, ('sea', 'farm')[i % 2]) for _ in range(100)))
    config = pretrain_config.get_config('tiny')
    config.model.update(ARCHITECTURE | {'layers': 1})
    config.data.update(
        source=f'text:{folder}/books', vocab_size=330, held_out=0.2, workers=1, batch_size=8, tokens=16 * 8
    )
    prepare(config.data, folder / 'shards')
    config.data.source = f'shards:{folder}/shards'
    normal = lambda rng, shape: rng.normal(0, 0.1, shape).astype(np.float32)
    tokenizer = load_tokenizer(folder / 'shards' / 'tokenizer')
    saved, params = make_model(np.random.default_rng(0), tokenizer, draw=normal, layers=1)
    write_workdir(make(folder / 'first'), saved, params)
    return config, folder, params


def going_on(prepared, init_from, **data):
    config = prepared[0].copy_and_resolve_references()
    config.init_from = init_from
    config.data.update(data)
    config.optimizer.update(warmup_steps=0, learning_rate=0.0)
    return config


@pytest.mark.slow
def test_pretraining_goes_on(prepared, tmp_path, monkeypatch):
    """With rate 0 the parameters stay those of the model that it goes on from."""
    _, folder, params = prepared
    uri = f'hf:{tmp_path}/hf'
    huggingface.write_folder(make(tmp_path / 'hf'), store.open_model(str(folder / 'first')), params)
    # The mesh is not what is tested, and a step on many devices takes its time.
    monkeypatch.setattr(pretrain, 'Partitioner', lambda *_: Partitioner('dp', (1, 1, 1), jax.devices()[:1]))
    result = pretrain.run(going_on(prepared, uri), epath.Path(tmp_path / 'on'))
    assert result.facts['steps'] == 1
    assert_same_bits(read(str(tmp_path / 'on'))[1], params)


@pytest.mark.slow
def test_shards_that_moved_and_a_longer_run(prepared, tmp_path, monkeypatch):
    """A stopped run goes on with the same bits where its shards are elsewhere, and a new run from its model."""
    monkeypatch.setattr(pretrain, 'Partitioner', lambda *_: Partitioner('dp', (1, 1, 1), jax.devices()[:1]))
    config = prepared[0].copy_and_resolve_references()
    config.data.tokens = 2 * 16 * 8
    config.optimizer.warmup_steps = 0
    whole, stopped = (epath.Path(tmp_path / name) for name in ('whole', 'stopped'))
    shutil.copytree(prepared[1] / 'shards', tmp_path / 'a')
    pretrain.run(config, whole)
    config.data.source = f'shards:{tmp_path}/a'
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(loop.PreemptionGuard, 'should_stop', lambda self, step: step == 1)
        pretrain.run(config, stopped)
    (tmp_path / 'a').rename(tmp_path / 'b')
    config.data.source = f'shards:{tmp_path}/whole/../b'
    pretrain.run(config, stopped)
    assert_same_bits(read(str(stopped))[1], read(str(whole))[1])

    config.data.tokens *= 2
    with pytest.raises(UserError, match='To train on from its model') as caught:
        pretrain.run(config, stopped)
    (flag,) = (word for word in str(caught.value).split() if word.startswith('--config.'))
    config.init_from = flag.removeprefix('--config.init_from=')
    longer = pretrain.run(config, epath.Path(tmp_path / 'longer'))
    assert longer.facts['tokens'] == 4 * 16 * 8 and longer.model['tokens_seen'] == (4 + 2) * 16 * 8


def test_another_size_or_tokenizer_is_refused_before_anything_is_written(prepared, tmp_path):
    config, folder, _ = prepared
    workdir = epath.Path(tmp_path / 'on')

    def refused(config, *words):
        with pytest.raises(UserError) as error:
            pretrain.run(config, workdir)
        assert all(word in str(error.value) for word in words) and not workdir.exists(), error.value

    first = str(folder / 'first')
    other = going_on(prepared, first)
    other.model.update(heads=2, n_positions=8)
    refused(other, 'model.heads: 2', 'Set --config.model.heads=4 --config.model.n_positions=16.')
    refused(going_on(prepared, '/nowhere'), '/nowhere')
    books = f'text:{folder}/books'
    refused(going_on(prepared, first, source=books), 'newly trained', 'data.tokenizer')
    elsewhere = config.data.copy_and_resolve_references()
    elsewhere.update(source=books, vocab_size=320)
    prepare(elsewhere, tmp_path / 'shards')
    fingerprint = load_shards(tmp_path / 'shards').tokenizer_fingerprint
    refused(going_on(prepared, first, source=f'shards:{tmp_path}/shards'), fingerprint, 'data.tokenizer')
    refused(going_on(prepared, first, source=books, tokenizer=f'{tmp_path}/shards/tokenizer'), fingerprint)


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'model.heads': 3}, 'model'),
        ({'optimizer.schedule': 'stairs'}, 'optimizer.schedule'),
        ({'optimizer.warmup_steps': 5, 'optimizer.warmup_fraction': 0.1}, 'optimizer.warmup_steps'),
        ({'log.wandb': True}, 'log.wandb'),
        ({'log.zero_shot.every': 5, 'log.zero_shot.datasets': ('rase',)}, 'log.zero_shot.datasets'),
        ({'log.zero_shot.every': 5, 'log.zero_shot.datasets': ()}, 'log.zero_shot.datasets'),
        ({'data.held_out': 0.0}, 'data.held_out'),
    ],
)
def test_what_needs_no_text_is_refused_before_it_is_prepared(prepared, tmp_path, monkeypatch, changes, words):
    config, folder, _ = prepared
    config = config.copy_and_resolve_references()
    config.data.source = f'text:{folder}/books'
    config.update_from_flattened_dict(changes)
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(UserError) as error:
        pretrain.run(config, epath.Path(tmp_path / 'on'))
    assert str(error.value).startswith(f'{words}: ') and not (tmp_path / 'on/shards').exists(), error.value
