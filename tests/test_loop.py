"""The training loop where it is told to stop, or goes wrong: nothing is lost, and nothing depends on it."""

import json
import random
import shutil

import pytest
from etils import epath

from configs import prepare as prepare_config
from configs import pretrain as pretrain_config
from gpt1_jax.errors import STOPPED_EXIT_STATUS, UserError
from gpt1_jax.tasks import prepare, pretrain
from gpt1_jax.training import loop

WORDS = 'ship sail wave anchor harbour captain the and'.split()


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp('loop'), random.Random(0)
    (folder / 'text').mkdir()
    for number in range(3):
        text = '\n'.join(' '.join(rng.choices(WORDS, k=9)) for _ in range(100))
        (folder / 'text' / f'{number}.txt').write_text(text)
    config = prepare_config.get_config()
    config.data.update(source=f'text:{folder / "text"}', vocab_size=290, held_out=0.3, workers=1)
    prepare.prepare(config.data, folder / 'shards')
    return folder / 'shards'


def config(shards):
    """12 steps, evaluated every 4, saved every 3; dropout on."""
    config = pretrain_config.get_config('tiny')
    config.model.update(layers=1, width=16, heads=2, mlp_width=32, n_positions=16)
    config.data.update(source=f'shards:{shards}', batch_size=8, tokens=8 * 16 * 12)
    config.optimizer.update(warmup_steps=2, learning_rate=0.01)
    config.log.update(every=1, eval_every=4)
    config.checkpoint.every = 3
    return config


def metrics(workdir):
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ('time', 'tokens_per_second')}
            for line in lines]


@pytest.fixture(scope='module')
def whole(shards, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp('whole'))
    return workdir, pretrain.run(config(shards), workdir)


@pytest.mark.parametrize('steps', [(4,), (5,), (12,), (1, 2, 8, 9)])
def test_where_a_run_is_stopped_makes_no_difference(shards, whole, tmp_path, monkeypatch, steps):
    """At an evaluation, between two, at the last step, and several times."""
    workdir = epath.Path(tmp_path)
    for stop in steps:
        monkeypatch.setattr(loop.PreemptionGuard, 'should_stop', lambda self, step: step == stop)
        if stop == 12:
            pretrain.run(config(shards), workdir)
        else:
            with pytest.raises(SystemExit) as caught:
                pretrain.run(config(shards), workdir)
            assert caught.value.code == STOPPED_EXIT_STATUS
    monkeypatch.undo()
    assert pretrain.run(config(shards), workdir) == whole[1]
    assert metrics(workdir) == metrics(whole[0])
    assert {path.name for path in (workdir / 'checkpoints').iterdir()} == {
        path.name for path in (whole[0] / 'checkpoints').iterdir()}


def test_damaged_shards_are_not_trained_on(shards, tmp_path):
    shutil.copytree(shards, tmp_path / 'shards')
    path = tmp_path / 'shards' / 'train-00000.bin'
    path.write_bytes(b'\xff\xff' + path.read_bytes()[2:])
    with pytest.raises(UserError, match='train-00000.bin is damaged'):
        pretrain.run(config(tmp_path / 'shards'), epath.Path(tmp_path / 'run'))


def test_a_loss_that_stays_infinite_ends_the_run_with_its_batch(shards, tmp_path):
    bad = config(shards)
    bad.optimizer.update(learning_rate=1e38, max_grad_norm=0.0, max_skipped=3)
    with pytest.raises(UserError, match='not finite for 3 steps in a row, up to step .*windows at tokens'):
        pretrain.run(bad, epath.Path(tmp_path))
