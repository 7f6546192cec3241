"""The values that no run can have, the arguments of the configs, and one config for all processes."""

import functools
import importlib
import operator
import pathlib
import re

import ml_collections
import pytest

from configs import (
    ablation,
    benchmark,
    compile as compile_config,
    convert,
    evaluate,
    finetune,
    generate,
    layer_transfer,
    pretrain,
    quickstart,
    report,
)
from gpt1_jax import config as common, peers
from gpt1_jax.errors import UserError
from helpers import flat_keys


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
    'name', sorted({path.stem for path in pathlib.Path(finetune.__file__).parent.glob('*.py')} - {'common'})
)
def test_no_key_can_be_added_to_a_config(name):
    """In Python as on the command line: a misspelt key would be ignored."""
    config = importlib.import_module(f'configs.{name}').get_config()
    for part in (config, *(value for value in config.values() if isinstance(value, ml_collections.ConfigDict))):
        if part not in (config.get('pretrained'), config.get('scratch')):  # changes of another config
            with pytest.raises(AttributeError, match='"seeed" does not exist'):
                part.seeed = 1


def test_variants_have_any_names():
    config = finetune.get_config('glue')
    config.variants.scratch = {'n_transfer': -1}
    assert config.to_dict()['variants'] == {'scratch': {'n_transfer': -1}}
    with pytest.raises(AttributeError, match='Did you mean "n_transfer"'):
        config.n_transfers = -1


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
        ('checkpoint.keep_every', -1, '0 or more'),
        ('model.init_std', 0.0, 'more than 0'),
        ('optimizer.warmup_fraction', 1.0, 'from 0 to below 1'),
        ('log.zero_shot.limit', 0, 'at least 1'),
        ('mesh.shape', (0.5, 1, 1), 'Each must be a whole number'),
        ('mesh.shape', (float('inf'), 1, 1), 'Each must be a whole number'),
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
        (benchmark, 'minutes', 0.0),
        (generate, 'temperature', 1e-31),
        (generate, 'top_p', 1e-31),
        *((generate, 'prompts', 'http://x/y'), (report, 'runs', 's3://x'), (convert, 'target', 'hf:http://x')),
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
