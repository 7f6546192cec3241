"""What a run may be resumed with, and which runs a workdir holds."""

import json
import pathlib
import re

import ml_collections
import pytest
from etils import epath

from configs import evaluate, finetune, pretrain, zero_shot
from gpt1_jax.config import _BEFORE, MAY_CHANGE, as_json
from gpt1_jax.errors import UserError
from gpt1_jax.workdir import check_workdir, keep_content, open_workdir
from helpers import flat_keys


def test_a_run_goes_on_with_other_workers_but_not_other_data(tmp_path):
    workdir = epath.Path(tmp_path)
    config = pretrain.get_config()
    open_workdir(config, workdir, write=True)
    (workdir / 'checkpoints').mkdir()
    config.data.workers, config.mesh.strategy, config.log.every = 3, 'fsdp', 7
    config.optimizer.on_divergence = 'rollback'
    open_workdir(config, workdir, write=True)
    config.data.batch_size = 32
    with pytest.raises(UserError, match=r'another config \(data.batch_size: 64 there, 32 now\)'):
        open_workdir(config, workdir, write=True)
    (workdir / 'config.json').write_text('{')
    with pytest.raises(UserError, match='config.json: The file is damaged'):
        open_workdir(config, workdir, write=True)


# Runs that a version before 0.2 began: their config.json, where they came from and where their data are shortened.


def earlier(name):
    return json.loads((pathlib.Path(__file__).parent / 'fixtures' / f'config_{name}.json').read_text())


def as_today(stored):
    """The config that a user gives today for the same run."""
    config = {'pretrain': pretrain, 'finetune': finetune}[stored['task']].get_config()
    config.update(stored)
    return config


def unfinished(workdir, stored):
    (workdir / 'checkpoints').mkdir(parents=True)
    (workdir / 'config.json').write_text(json.dumps(stored))
    return epath.Path(workdir)


RUNS = ['pretrain', 'finetune', 'suite_run']


@pytest.mark.parametrize('name', RUNS)
def test_every_later_key_says_what_held_before_it(name):
    then, now = (set(flat_keys(values)) for values in (earlier(name), as_today(earlier(name)).to_dict()))
    may_change = {key for key in now if f'{key}.'.startswith(tuple(f'{name}.' for name in MAY_CHANGE))}
    assert now - then - may_change <= set(_BEFORE) and then <= now


@pytest.mark.parametrize('name', RUNS)
def test_an_earlier_run_is_resumed(tmp_path, name):
    stored = earlier(name)
    workdir = unfinished(tmp_path, stored)
    open_workdir(as_today(stored), workdir, write=True)  # it raises otherwise
    assert json.loads((workdir / 'config.json').read_text()) == stored


@pytest.mark.parametrize(
    ('task', 'key', 'value'),
    [
        ('pretrain', 'model.kind', 'lstm'),
        ('finetune', 'rest', 'absent'),
        ('finetune', 'data.share', 0.5),
        ('finetune', 'data.score_train', 100),
        ('finetune', 'data.choices', 'a,b'),
    ],
)
def test_an_earlier_run_is_not_resumed_with_another_value_of_a_later_key(tmp_path, task, key, value):
    workdir = unfinished(tmp_path, earlier(task))
    config = as_today(earlier(task))
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=rf'another config \({key}: {_BEFORE[key]!r} there, {value!r} now\)'):
        open_workdir(config, workdir, write=True)


def test_an_earlier_run_keeps_the_initial_values_that_were_the_default(tmp_path):
    stored, config = earlier('finetune'), as_today(earlier('finetune'))
    assert stored['model']['init_std'] == 0.02 and finetune.get_config('sst2').model.init_std is None
    config.model.init_std = None
    open_workdir(config, unfinished(tmp_path / 'same', stored), write=True)
    for there, now in ((0.02, 0.03), (0.049, None)):
        stored['model']['init_std'] = there
        config.model.init_std = now
        with pytest.raises(UserError, match=rf'another config \(model.init_std: {there} there, {now} now\)'):
            open_workdir(config, unfinished(tmp_path / str(there), stored), write=True)


@pytest.mark.parametrize(
    ('there', 'now', 'difference'),
    [
        ({'seed': 0}, {'seed': 0, 'new': 3}, "new: 'nothing' there, 3 now"),
        ({'seed': 0, 'old': None}, {'seed': 0}, "old: None there, 'nothing' now"),
    ],
)
def test_a_key_of_one_side_alone_is_a_difference(tmp_path, there, now, difference):
    with pytest.raises(UserError, match=f'another config .{difference}.'):
        open_workdir(ml_collections.ConfigDict(now), unfinished(tmp_path, there), write=True)


def test_a_source_that_is_none_is_a_difference(tmp_path):
    workdir = unfinished(tmp_path, {'task': 'pretrain', 'data': {'source': 3}})
    with pytest.raises(UserError, match='data.source: 3 there'):
        open_workdir(pretrain.get_config(), workdir, write=True, fingerprint=lambda uri: uri.upper())


def test_a_run_without_its_config_is_refused(tmp_path):
    workdir = unfinished(tmp_path, {})
    (workdir / 'config.json').unlink()
    with pytest.raises(UserError, match='no config.json of their run'):
        open_workdir(pretrain.get_config(), workdir, write=True)


def test_one_process_writes(tmp_path):
    open_workdir(pretrain.get_config(), epath.Path(tmp_path) / 'run', write=False)
    assert not list(tmp_path.iterdir())


# Sources that have moved.


def of_source(uri, task='pretrain'):
    config = {'pretrain': pretrain, 'finetune': finetune}[task].get_config()
    config.data.source = uri
    return config


def begun(tmp_path, config, **kwargs):
    workdir = epath.Path(tmp_path / 'run')
    open_workdir(config, workdir, write=True, **kwargs)
    (workdir / 'checkpoints').mkdir()
    return workdir


def refused(config, workdir, **kwargs):
    with pytest.raises(UserError, match='It holds a run with another config') as caught:
        open_workdir(config, workdir, write=True, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize('task', ['pretrain', 'finetune'])
def test_a_path_may_be_written_in_another_way(tmp_path, monkeypatch, task):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'a')
    workdir = begun(tmp_path, of_source(f'files:{tmp_path}/a', task))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    for path in (f'{tmp_path}/b/../a', f'{tmp_path}/a/', './a', 'a', '~/a', 'link'):
        open_workdir(of_source(f'files:{path}', task), workdir, write=True)  # it raises otherwise
    refused(of_source(f'text:{tmp_path}/a', task), workdir)
    refused(of_source('', task), workdir)
    refused(of_source('gs://a', task), workdir)
    remote = begun(tmp_path / 'remote', of_source('text:gs://a/b', task))
    refused(of_source('text:gs://c/../a/b', task), remote)
    config = of_source(f'files:{tmp_path}/a', task)
    config.init_from = str(tmp_path / 'a')
    refused(config, workdir)


def test_the_folder_of_the_shards_may_be_written_in_another_way(tmp_path, monkeypatch):
    config = of_source('text:/books')
    config.data.output = str(tmp_path / 'shards')
    workdir = begun(tmp_path, config)
    monkeypatch.chdir(tmp_path)
    config.data.output = 'shards'
    open_workdir(config, workdir, write=True)  # it raises otherwise
    config.data.output = 'others'
    refused(config, workdir)


def test_findings_of_zero_shot_scores_belong_to_their_config(tmp_path):
    config, workdir = zero_shot.get_config(), epath.Path(tmp_path)
    open_workdir(config, workdir, write=True)
    (workdir / 'zero_shot.json').write_text('[]')
    open_workdir(config, workdir, write=True)  # it raises otherwise
    config.init_from = '/another'
    refused(config, workdir)


@pytest.mark.parametrize('path', ['a\0b', '\ud800'])
def test_what_is_no_path_is_a_difference(tmp_path, path):
    message = refused(of_source('text:/a'), begun(tmp_path, of_source(f'text:{path}')))
    assert f'data.source: {f"text:{path}"!r} there' in message


def test_a_source_that_moved_goes_on_where_its_content_is_the_same(tmp_path):
    content = {'shards:/a': 'one', 'shards:/b': 'one', f'shards:{tmp_path}': 'two'}
    known = dict(fingerprint=lambda uri: content.get(uri, ''))
    workdir = begun(tmp_path, of_source('shards:/a'), **known)
    assert (workdir / 'source.txt').read_text() == 'one'
    del content['shards:/a']
    open_workdir(of_source('shards:/b'), workdir, write=True, **known)  # it raises otherwise
    message = refused(of_source(f'shards:{tmp_path}'), workdir, **known)
    assert f"'shards:/a with content one' there, 'shards:{tmp_path} with content two' now" in message
    assert 'ln -s' not in message
    content['shards:/a'] = 'two'  # prepared anew, at the same place
    assert 'content one' in refused(of_source('shards:/a'), workdir, **known)
    assert 'ln -s' not in refused(of_source('shards:/nowhere'), workdir, **known)


def test_a_run_that_kept_no_fingerprint_goes_on_where_both_places_are_there(tmp_path, monkeypatch):
    tmp_path /= 'a b'
    tmp_path.mkdir()
    workdir = begun(tmp_path, of_source('shards:/a'))
    assert not (workdir / 'source.txt').exists()
    moved = f'shards:{tmp_path}'
    content = {moved: 'one'}
    known = dict(fingerprint=lambda uri: content.get(uri, ''))
    message = refused(of_source(moved), workdir, **known)
    assert message.endswith(f"make a link at the old one (ln -s '{tmp_path}' /a) and give the old value.")
    monkeypatch.chdir(tmp_path.parent)
    assert f"(ln -s '{tmp_path}' /a)" in refused(of_source('shards:a b'), workdir)
    assert 'ln -s' not in refused(of_source(f'text:{tmp_path}'), workdir)
    assert 'ln -s' not in refused(of_source(str(tmp_path)), begun(tmp_path / 'of_none', of_source('')))
    content['shards:/a'] = 'one'  # the link
    for _ in range(2):
        open_workdir(of_source(moved), workdir, write=True, **known)
        assert (workdir / 'source.txt').read_text() == 'one'
        (workdir / 'source.txt').write_text('')  # emptied by a crash of the machine: as if it was not there


def test_a_start_that_kept_nothing_binds_no_later_one(tmp_path):
    workdir = epath.Path(tmp_path / 'run')
    for content in ('one', 'two'):  # stopped before its first checkpoint, and started with other data
        open_workdir(of_source('shards:/a'), workdir, write=True, fingerprint=lambda uri: content)
        assert (workdir / 'source.txt').read_text() == content
    open_workdir(of_source('text:/a'), workdir, write=True)
    assert not (workdir / 'source.txt').exists()


def test_content_that_is_known_late_is_compared_too(tmp_path):
    workdir = epath.Path(tmp_path / 'run')
    workdir.mkdir()
    for content in ('one', 'two'):
        open_workdir(of_source('files:/a', 'finetune'), workdir, write=True)
        keep_content(workdir, 'files:/a', content, write=True)
    (workdir / 'checkpoints').mkdir()
    keep_content(workdir, 'files:/a', 'two', write=True)  # it raises otherwise
    with pytest.raises(UserError, match='began with other data: the content of files:/a has changed'):
        keep_content(workdir, 'files:/a', 'one', write=False)


def test_the_refusal_of_a_longer_run_says_how_to_train_on(tmp_path):
    workdir = begun(tmp_path, of_source('shards:/a'))
    longer = of_source('shards:/a')
    longer.data.tokens = 900_000
    message = refused(longer, workdir)
    assert message.endswith(
        f'To train on from its model, for data.tokens more, add --config.init_from={workdir} --workdir=NEW.'
    )
    longer.data.batch_size = 3
    assert 'train on' not in refused(longer, workdir)
    text = begun(tmp_path / 'text', of_source('text:/books'))
    longer = of_source('text:/books')
    longer.data.epochs = 200.0
    assert f'--config.init_from={text} --config.data.source=shards:{text}/shards ' in refused(longer, text)
    longer.data.output = '/shards'
    apart = begun(tmp_path / 'apart', longer)
    longer.data.epochs = 300.0
    assert f'--config.init_from={apart} --config.data.source=shards:/shards ' in refused(longer, apart)
    tuned = begun(tmp_path / 'tuned', of_source('files:/a', 'finetune'))
    longer = of_source('files:/a', 'finetune')
    longer.data.epochs = 9.0
    assert 'train on' not in refused(longer, tuned)


# Workdirs of finished runs whose checkpoints are deleted: results.json alone tells what they were.


def finished(workdir, config):
    workdir.mkdir()
    (workdir / 'results.json').write_text(json.dumps({'format_version': 1, 'config': config}))
    return epath.Path(workdir)


@pytest.mark.parametrize('of', [pretrain, finetune])
def test_a_finished_run_is_no_other_one(tmp_path, of):
    config = of.get_config()
    workdir = finished(tmp_path / 'run', as_json(config))
    config.mesh.strategy = 'fsdp'
    check_workdir(config, workdir)
    assert not (workdir / 'config.json').exists()
    open_workdir(config, workdir, write=True)  # it raises otherwise
    before = (workdir / 'config.json').read_text()
    config.data.epochs = 50.0
    message = refused(config, workdir)
    assert f'(data.epochs: {of.get_config().data.epochs} there, 50.0 now)' in message and 'To train on' not in message
    with pytest.raises(UserError, match=re.escape(message)):
        check_workdir(config, workdir)
    assert f"(task: '{config.task}' there, 'evaluate' now)" in refused(evaluate.get_config('sst2'), workdir)
    assert (workdir / 'config.json').read_text() == before


def test_a_finished_run_of_another_task_is_none_of_fine_tuning(tmp_path):
    """Which takes results that are there for its own; what writes them anew may go on."""
    config = evaluate.get_config('sst2')
    workdir = finished(tmp_path / 'run', as_json(config))
    assert "(task: 'evaluate' there, 'finetune' now)" in refused(finetune.get_config('sst2'), workdir)
    assert not (workdir / 'config.json').exists()
    for config.split in ('test', 'dev'):
        open_workdir(config, workdir, write=True)
        assert json.loads((workdir / 'config.json').read_text())['split'] == config.split
    open_workdir(pretrain.get_config(), workdir, write=True)


@pytest.mark.parametrize('name', RUNS)
def test_an_earlier_finished_run_is_the_same(tmp_path, name):
    workdir, config = finished(tmp_path / 'run', earlier(name)), as_today(earlier(name))
    open_workdir(config, workdir, write=True)
    config.data.epochs = 50.0
    assert 'data.epochs: ' in refused(config, workdir)


@pytest.mark.parametrize('text', ['{"dev_score": 0.5}', '{"config": 3}', '{"config'])
def test_results_that_tell_no_config_bind_no_run(tmp_path, text):
    (tmp_path / 'results.json').write_text(text)
    open_workdir(finetune.get_config(), epath.Path(tmp_path), write=True)
    assert (tmp_path / 'config.json').exists()
