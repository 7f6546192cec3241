"""The values that no run can have, the arguments of the configs, and what a run may be resumed with."""

import functools
import importlib
import json
import operator
import pathlib
import re

import ml_collections
import pytest
from etils import epath

from configs import (
    ablation,
    benchmark,
    compile as compile_config,
    evaluate,
    finetune,
    generate,
    layer_transfer,
    pretrain,
    quickstart,
)
from gpt1_jax import config as common, peers
from gpt1_jax.errors import UserError


@pytest.mark.parametrize(
    'config',
    [
        pretrain.get_config(),
        pretrain.get_config(pretrain.LARGE_BATCH),
        finetune.get_config('custom'),
        finetune.get_config('glue'),
        layer_transfer.get_config(),
        ablation.get_config(),
        quickstart.get_config(),
    ],
)
def test_the_configs_themselves_are_right(config):
    assert common.check(config) is None  # it raises otherwise


@pytest.mark.parametrize(
    'key, value, words',
    [
        ('data.batch_size', 0, 'at least 1'),
        ('model.layers', 0, 'at least 1'),
        ('log.every', 0, 'at least 1'),
        ('optimizer.accumulation', -2, 'at least 1'),
        ('checkpoint.keep_best', 0, 'at least 1'),
        ('data.batch_size', 2**21, 'at most 1,048,576'),
        ('model.width', 10**12, 'at most 131,072'),
        ('model.layers', 5000, 'at most 4,096'),
        ('data.max_score', 10**6, 'at most 131,072'),
        ('optimizer.accumulation', 10**8, 'at most 1,048,576'),
        ('data.workers', 2**31, 'from 0 to 4,096'),
        ('data.tokens_per_shard', 10**12, 'less than 2,147,483,648'),
        ('data.limit', -5, 'at least 1'),
        ('seed', 2**63, 'of 64 bits'),
        ('data.tokens', -1, '0 or more'),
        ('checkpoint.every', -3, '0 or more'),
        ('optimizer.max_grad_norm', -1.0, '0 or more'),
        ('data.epochs', 0.0, 'more than 0'),
        ('optimizer.learning_rate', -1.0, 'more than 0'),
        ('optimizer.learning_rate', float('nan'), 'more than 0'),
        ('optimizer.learning_rate', float('inf'), '0, or from 1e-37 to 1e38'),
        ('optimizer.learning_rate', 1e39, '0, or from 1e-37 to 1e38'),
        ('optimizer.eps', 1e-50, '0, or from 1e-37 to 1e38'),
        ('optimizer.weight_decay', 1e-40, '0, or from 1e-37 to 1e38'),
        ('optimizer.max_grad_norm', float('inf'), '0, or from 1e-37 to 1e38'),
        ('model.init_std', 1e39, '0, or from 1e-37 to 1e38'),
        ('data.held_out', float('nan'), '0, or from 1e-37 to 1e38'),
        ('optimizer.b1', 1 - 1e-8, 'at most 0.999999'),
        ('optimizer.b2', 1 - 1e-8, 'at most 0.999999'),
        ('model.dropout', 1.0, 'from 0 to below 1'),
        ('optimizer.b1', 1.0, 'from 0 to below 1'),
        ('model.embedding_dropout', 'rows', 'table, sum'),
        ('model.softmax_rows', 'some', 'all, tokens'),
        ('model.dtype', 'float16', 'auto, float32, bfloat16'),
        ('rest', 'old', 'fresh, absent'),
        ('data.share', 0.0, 'more than 0 and at most 1'),
        ('data.share', 1.5, 'more than 0 and at most 1'),
        ('data.score_train', -1, '0 or more'),
    ],
)
def test_senseless_values_are_named(key, value, words):
    configs = pretrain.get_config(), finetune.get_config()
    config = next(config for config in configs if key in flat_keys(config.to_dict()))
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as caught:
        common.check(config)
    assert str(caught.value).startswith(f'{key}: {value!r} is ') and words in str(caught.value)


@pytest.mark.parametrize(
    ('config', 'key'),
    [
        (generate, 'prompt'),
        (finetune, 'data.source'),
        (finetune, 'init_from'),
        (pretrain, 'data.tokens'),
        (pretrain, 'data.batch_size'),
        (pretrain, 'model.width'),
        (quickstart, 'pretrain.seed'),
    ],
)
def test_none_is_refused_where_it_stands_for_no_default(config, key):
    """ml_collections takes it for any key."""
    config = config.get_config()
    config.update_from_flattened_dict({key: None})
    with pytest.raises(UserError, match=f'^{key}: None is not valid. Give a value, or leave it as the config file'):
        common.check(config)


def test_none_is_taken_where_a_config_file_allows_it():
    names = [path.stem for path in pathlib.Path(common.__file__).parents[1].glob('configs/*.py')]
    configs = [importlib.import_module(f'configs.{name}').get_config() for name in names if name != 'common']
    configs += [benchmark.get_config('finetune'), benchmark.get_config('generate'), finetune.get_config('glue')]
    optional, of_size = set(), set()
    for config in configs:
        for key in flat_keys(config.to_dict()):
            if functools.reduce(operator.getitem, key.split('.'), config) is None:
                (of_size if 'size' in config else optional).add(key.rpartition('.')[2])
        assert common.check(ml_collections.ConfigDict(config.to_dict())) is None  # without its references
    assert optional == {*common._OPTIONAL} and of_size - optional == {*common._OF_SIZE}


@pytest.mark.parametrize('uri', ['http://x/y', 'text:https://x', 'shards:file:///x', 's3://bucket/a'])
def test_a_place_that_no_file_is_read_from_is_named(uri):
    config = pretrain.get_config()
    config.data.source = uri
    with pytest.raises(UserError, match=rf'^data.source: {uri!r} cannot be read or written. Give a local path'):
        common.check(config)
    for fine in ('gs://bucket/a', 'text:gs://bucket/a', 'hf:owner/name', 'a:b', '/a/b'):
        config.data.source = fine
        common.check(config)
    config = generate.get_config()
    config.prompt = 'see http://x/y'
    common.check(config)


def test_values_of_the_parts_are_checked_too():
    config = quickstart.get_config()
    config.finetune.model.head_dropout = 1.5
    with pytest.raises(UserError, match='^finetune.model.head_dropout: 1.5 '):
        common.check(config)
    config = finetune.get_config()
    config.lm_coefficient = -2.0
    with pytest.raises(UserError, match='^lm_coefficient: -2.0 '):
        common.check(config)
    config = quickstart.get_config()
    config.finetune.lm_coefficient = -2.0
    with pytest.raises(UserError, match='^finetune.lm_coefficient: -2.0 '):
        common.check(config)
    config = ablation.get_config()
    config.coefficients = 0.5, 1e39
    with pytest.raises(UserError, match=r'^coefficients: \(0.5, 1e\+39\) is .* Each must be 0, or from 1e-37'):
        common.check(config)
    config = quickstart.get_config()
    config.seeds = 0
    with pytest.raises(UserError, match='^seeds: 0 is not valid. It must be at least 1.'):
        common.check(config)
    config.seeds = 10**12  # of which a list is made
    with pytest.raises(UserError, match='^seeds: 1000000000000 is not valid. It must be at most 10,000.'):
        common.check(config)


@pytest.mark.parametrize(
    ('of', 'key', 'value'),
    [
        (compile_config, 'data.finetune_batch_size', 0),
        (compile_config, 'data.finetune_batch_size', 10**12),
        (compile_config, 'entries', -1),
        (benchmark, 'minutes', 1e308),
    ],
)
def test_keys_of_a_single_task_are_checked_too(of, key, value):
    config = of.get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=f'^{key}: '):
        common.check(config)


def test_an_empty_list_of_programs_is_named():
    config = compile_config.get_config()
    config.works = ()
    with pytest.raises(UserError, match='^works: It is empty. Give at least one, such as pretrain,sst2.$'):
        common.check(config)


@pytest.mark.parametrize(
    'name', sorted(path.stem for path in pathlib.Path(pretrain.__file__).parent.glob('*.py') if path.stem != 'common')
)
def test_an_argument_that_a_config_does_not_take_is_refused(name):
    """Where a config takes some, all that the message names are right."""
    get_config = importlib.import_module(f'configs.{name}').get_config
    assert get_config('') == get_config()
    with pytest.raises(UserError, match=r'nosuch:thing') as caught:
        get_config('nosuch:thing')
    if f'configs/{name}.py: It takes no argument.' not in str(caught.value):
        choices = str(caught.value).removesuffix('.').split('Choose one of ')[1].split(', ')
        assert len({str(get_config(choice)) for choice in choices}) == len(choices) > 1


def test_the_large_batch_follows_its_rule():
    """Adam's square-root rule; warm-up, evaluations and checkpoints after as many tokens; as much decay in all."""
    values = lambda config: {
        key: functools.reduce(operator.getitem, key.split('.'), config) for key in flat_keys(config)
    }
    paper, large = (values(pretrain.get_config(name).to_dict()) for name in ('gpt1', pretrain.LARGE_BATCH))
    k = 8
    expected = {
        'data.batch_size': 512,
        'optimizer.learning_rate': 2.5e-4 * k**0.5,
        'optimizer.b1': 0.2,
        'optimizer.b2': 0.992,
        'optimizer.eps': 1e-8 / k**0.5,
        'optimizer.warmup_steps': 2000 / k,
        'log.eval_every': 2000 / k,
        'checkpoint.every': 2000 / k,
    }
    decay = lambda values, steps: values['optimizer.learning_rate'] * values['optimizer.weight_decay'] * steps
    assert decay(large, 1000 / k) == pytest.approx(decay(paper, 1000))
    changed = {key: large[key] for key in paper if large[key] != paper[key] and key != 'optimizer.weight_decay'}
    assert paper.keys() == large.keys() and changed == pytest.approx(expected)


def test_every_data_set_and_suite_is_an_argument():
    assert {'cola', 'race', 'docs_same', 'custom'} <= set(finetune.DATASETS)
    for name in finetune.DATASETS:
        assert finetune.get_config(name).data.dataset == evaluate.get_config(name).data.dataset == name
    assert finetune.get_config('glue').task == 'sweep' and evaluate.get_config('text').task == 'evaluate_text'
    with pytest.raises(UserError, match="'glue'"):  # a suite is not one data set
        evaluate.get_config('glue')


def test_a_run_goes_on_with_other_workers_but_not_other_data(tmp_path):
    workdir = epath.Path(tmp_path)
    config = pretrain.get_config()
    common.open_workdir(config, workdir, write=True)
    (workdir / 'checkpoints').mkdir()
    config.data.workers, config.mesh.strategy, config.log.every = 3, 'fsdp', 7
    common.open_workdir(config, workdir, write=True)
    config.data.batch_size = 32
    with pytest.raises(UserError, match=r'another config \(data.batch_size: 64 there, 32 now\)'):
        common.open_workdir(config, workdir, write=True)
    (workdir / 'config.json').write_text('{')
    with pytest.raises(UserError, match='config.json: The file is damaged'):
        common.open_workdir(config, workdir, write=True)


# Runs that a version before 0.2 began: their config.json, where they came from and where their data are shortened.


def earlier(name):
    return json.loads((pathlib.Path(__file__).parent / 'fixtures' / f'config_{name}.json').read_text())


def as_today(stored):
    """The config that a user gives today for the same run."""
    config = {'pretrain': pretrain, 'finetune': finetune}[stored['task']].get_config()
    config.update(stored)
    return config


def flat_keys(values, prefix=''):
    for key, value in values.items():
        yield from flat_keys(value, f'{prefix}{key}.') if isinstance(value, dict) else [prefix + key]


def unfinished(workdir, stored):
    (workdir / 'checkpoints').mkdir(parents=True)
    (workdir / 'config.json').write_text(json.dumps(stored))
    return epath.Path(workdir)


RUNS = ['pretrain', 'finetune', 'suite_run']


@pytest.mark.parametrize('name', RUNS)
def test_every_later_key_says_what_held_before_it(name):
    then, now = (set(flat_keys(values)) for values in (earlier(name), as_today(earlier(name)).to_dict()))
    may_change = {key for key in now if f'{key}.'.startswith(tuple(f'{name}.' for name in common.MAY_CHANGE))}
    assert now - then - may_change <= set(common._BEFORE) and then <= now


@pytest.mark.parametrize('name', RUNS)
def test_an_earlier_run_is_resumed(tmp_path, name):
    stored = earlier(name)
    workdir = unfinished(tmp_path, stored)
    common.open_workdir(as_today(stored), workdir, write=True)  # it raises otherwise
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
    with pytest.raises(UserError, match=rf'another config \({key}: {common._BEFORE[key]!r} there, {value!r} now\)'):
        common.open_workdir(config, workdir, write=True)


def test_an_earlier_run_keeps_the_initial_values_that_were_the_default(tmp_path):
    stored, config = earlier('finetune'), as_today(earlier('finetune'))
    assert stored['model']['init_std'] == 0.02 and finetune.get_config('sst2').model.init_std is None
    config.model.init_std = None
    common.open_workdir(config, unfinished(tmp_path / 'same', stored), write=True)
    for there, now in ((0.02, 0.03), (0.049, None)):
        stored['model']['init_std'] = there
        config.model.init_std = now
        with pytest.raises(UserError, match=rf'another config \(model.init_std: {there} there, {now} now\)'):
            common.open_workdir(config, unfinished(tmp_path / str(there), stored), write=True)


@pytest.mark.parametrize(
    ('there', 'now', 'difference'),
    [
        ({'seed': 0}, {'seed': 0, 'new': 3}, "new: 'nothing' there, 3 now"),
        ({'seed': 0, 'old': None}, {'seed': 0}, "old: None there, 'nothing' now"),
    ],
)
def test_a_key_of_one_side_alone_is_a_difference(tmp_path, there, now, difference):
    with pytest.raises(UserError, match=f'another config .{difference}.'):
        common.open_workdir(ml_collections.ConfigDict(now), unfinished(tmp_path, there), write=True)


def test_a_run_without_its_config_is_refused(tmp_path):
    workdir = unfinished(tmp_path, {})
    (workdir / 'config.json').unlink()
    with pytest.raises(UserError, match='no config.json of their run'):
        common.open_workdir(pretrain.get_config(), workdir, write=True)


def test_all_processes_of_a_run_have_one_config(monkeypatch):
    config = pretrain.get_config('tiny')
    common.check_same(config)  # alone
    first = common.as_json(config)
    first['data'].update(source='shards:/elsewhere', tokenizer='/elsewhere')  # a host may have other paths
    monkeypatch.setattr(peers, 'agree', lambda value: [first, value])
    common.check_same(config)
    first['log']['every'], first['seed'], config.log.every, config.seed = 6, 0, 7, 3
    words = 'log.every: 6 there, 7 here; seed: 0 there, 3 here'
    with pytest.raises(UserError, match=re.escape(f'Process 0 was given another config ({words})')):
        common.check_same(config)


def test_one_process_writes(tmp_path):
    common.open_workdir(pretrain.get_config(), epath.Path(tmp_path) / 'run', write=False)
    assert not list(tmp_path.iterdir())


# Sources that have moved.


def of_source(uri, task='pretrain'):
    config = {'pretrain': pretrain, 'finetune': finetune}[task].get_config()
    config.data.source = uri
    return config


def begun(tmp_path, config, **kwargs):
    workdir = epath.Path(tmp_path / 'run')
    common.open_workdir(config, workdir, write=True, **kwargs)
    (workdir / 'checkpoints').mkdir()
    return workdir


def refused(config, workdir, **kwargs):
    with pytest.raises(UserError, match='It holds a run with another config') as caught:
        common.open_workdir(config, workdir, write=True, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize('task', ['pretrain', 'finetune'])
def test_a_path_may_be_written_in_another_way(tmp_path, monkeypatch, task):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'a')
    workdir = begun(tmp_path, of_source(f'files:{tmp_path}/a', task))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    for path in (f'{tmp_path}/b/../a', f'{tmp_path}/a/', './a', 'a', '~/a', 'link'):
        common.open_workdir(of_source(f'files:{path}', task), workdir, write=True)  # it raises otherwise
    refused(of_source(f'text:{tmp_path}/a', task), workdir)
    refused(of_source('', task), workdir)
    refused(of_source('gs://a', task), workdir)
    remote = begun(tmp_path / 'remote', of_source('text:gs://a/b', task))
    refused(of_source('text:gs://c/../a/b', task), remote)
    config = of_source(f'files:{tmp_path}/a', task)
    config.init_from = str(tmp_path / 'a')
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
    common.open_workdir(of_source('shards:/b'), workdir, write=True, **known)  # it raises otherwise
    message = refused(of_source(f'shards:{tmp_path}'), workdir, **known)
    assert f"'shards:/a with content one' there, 'shards:{tmp_path} with content two' now" in message
    assert 'ln -s' not in message
    content['shards:/a'] = 'two'  # prepared anew, at the same place
    assert 'content one' in refused(of_source('shards:/a'), workdir, **known)
    assert 'ln -s' not in refused(of_source('shards:/nowhere'), workdir, **known)


def test_a_run_that_kept_no_fingerprint_goes_on_where_both_places_are_there(tmp_path):
    tmp_path /= 'a b'
    tmp_path.mkdir()
    workdir = begun(tmp_path, of_source('shards:/a'))
    assert not (workdir / 'source.txt').exists()
    moved = f'shards:{tmp_path}'
    content = {moved: 'one'}
    known = dict(fingerprint=lambda uri: content.get(uri, ''))
    message = refused(of_source(moved), workdir, **known)
    assert message.endswith(f"make a link at the old one (ln -s '{tmp_path}' /a) and give the old value.")
    content['shards:/a'] = 'one'  # the link
    for _ in range(2):
        common.open_workdir(of_source(moved), workdir, write=True, **known)
        assert (workdir / 'source.txt').read_text() == 'one'
        (workdir / 'source.txt').write_text('')  # emptied by a crash of the machine: as if it was not there


def test_a_start_that_kept_nothing_binds_no_later_one(tmp_path):
    workdir = epath.Path(tmp_path / 'run')
    for content in ('one', 'two'):  # stopped before its first checkpoint, and started with other data
        common.open_workdir(of_source('shards:/a'), workdir, write=True, fingerprint=lambda uri: content)
        assert (workdir / 'source.txt').read_text() == content
    common.open_workdir(of_source('text:/a'), workdir, write=True)
    assert not (workdir / 'source.txt').exists()


def test_content_that_is_known_late_is_compared_too(tmp_path):
    workdir = epath.Path(tmp_path / 'run')
    workdir.mkdir()
    for content in ('one', 'two'):
        common.open_workdir(of_source('files:/a', 'finetune'), workdir, write=True)
        common.keep_content(workdir, 'files:/a', content, write=True)
    (workdir / 'checkpoints').mkdir()
    common.keep_content(workdir, 'files:/a', 'two', write=True)  # it raises otherwise
    with pytest.raises(UserError, match='began with other data: the content of files:/a has changed'):
        common.keep_content(workdir, 'files:/a', 'one', write=False)


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
    workdir = finished(tmp_path / 'run', common.as_json(config))
    config.mesh.strategy = 'fsdp'
    common.check_workdir(config, workdir)
    assert not (workdir / 'config.json').exists()
    common.open_workdir(config, workdir, write=True)  # it raises otherwise
    before = (workdir / 'config.json').read_text()
    config.data.epochs = 50.0
    message = refused(config, workdir)
    assert f'(data.epochs: {of.get_config().data.epochs} there, 50.0 now)' in message and 'To train on' not in message
    with pytest.raises(UserError, match=re.escape(message)):
        common.check_workdir(config, workdir)
    assert f"(task: '{config.task}' there, 'evaluate' now)" in refused(evaluate.get_config('sst2'), workdir)
    assert (workdir / 'config.json').read_text() == before


def test_a_finished_run_of_another_task_is_none_of_fine_tuning(tmp_path):
    """Which takes results that are there for its own; what writes them anew may go on."""
    config = evaluate.get_config('sst2')
    workdir = finished(tmp_path / 'run', common.as_json(config))
    assert "(task: 'evaluate' there, 'finetune' now)" in refused(finetune.get_config('sst2'), workdir)
    assert not (workdir / 'config.json').exists()
    for config.split in ('test', 'dev'):
        common.open_workdir(config, workdir, write=True)
        assert json.loads((workdir / 'config.json').read_text())['split'] == config.split
    common.open_workdir(pretrain.get_config(), workdir, write=True)


@pytest.mark.parametrize('name', RUNS)
def test_an_earlier_finished_run_is_the_same(tmp_path, name):
    workdir, config = finished(tmp_path / 'run', earlier(name)), as_today(earlier(name))
    common.open_workdir(config, workdir, write=True)
    config.data.epochs = 50.0
    assert 'data.epochs: ' in refused(config, workdir)


@pytest.mark.parametrize('text', ['{"dev_score": 0.5}', '{"config": 3}', '{"config'])
def test_results_that_tell_no_config_bind_no_run(tmp_path, text):
    (tmp_path / 'results.json').write_text(text)
    common.open_workdir(finetune.get_config(), epath.Path(tmp_path), write=True)
    assert (tmp_path / 'config.json').exists()
