"""Command lines as users type them: what each key is given, and the one sentence for each mistake."""

import collections
import importlib
import pathlib
import random
import sys

import pytest
from absl import flags

import damages
from gpt1_jax import command_line, config, main
from gpt1_jax.errors import UserError
from helpers import ROOT

pytestmark = pytest.mark.filterwarnings('ignore:the load_module')  # ml_collections


@pytest.fixture
def given(monkeypatch):
    """A command line, in words -> its config."""
    monkeypatch.chdir(ROOT)

    def given(*words):
        for name in [name for name in flags.FLAGS if name.startswith('config.')]:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        flags.FLAGS['config'].value = None
        sys.modules.pop('config_config', None)  # ml_collections loads the next config into the module of the last
        others = main._parse(['main', *words])
        if others[1:] or flags.FLAGS['config'].value is None:
            main.main(others)
        config.check(flags.FLAGS['config'].value)
        return flags.FLAGS['config'].value

    return given


@pytest.fixture
def refusal(given, capsys):
    """A command line, in words -> the one line with which the program refuses it."""

    def refusal(*words):
        try:
            with pytest.raises(SystemExit) as caught:
                given(*words)
            assert caught.value.code == 2
            line, *others = capsys.readouterr().err.splitlines()
        except main.UserError as error:  # of what comes after the flags, which `_run` prints
            line, others = f'error: {error}', ()
        assert line.startswith('error: ') and not others
        return line.removeprefix('error: ')

    return refusal


@pytest.mark.parametrize(
    ('flags', 'key', 'value'),
    [
        ('pretrain.py --config.data.tokens=1e9', 'data.tokens', 10**9),
        ('pretrain.py --config.data.tokens=1.5e3', 'data.tokens', 1500),
        ('pretrain.py --config.data.tokens=1_000_000', 'data.tokens', 10**6),
        ('pretrain.py --config.data.tokens=64.0', 'data.tokens', 64),
        ('pretrain.py --config.data.tokens 0x10', 'data.tokens', 16),
        ('pretrain.py -config.seed -3', 'seed', -3),
        ('pretrain.py --config.data.epochs=3', 'data.epochs', 3.0),
        ('finetune.py --config.data.limit=1e3', 'data.limit', 1000),
        ('finetune.py --config.data.limit=None', 'data.limit', None),
        ('paper.py:tiny --config.zero_shot.data.limit=none', 'zero_shot.data.limit', None),  # of a number
        ('finetune.py --config.n_transfer -1', 'n_transfer', -1),
        ('finetune.py:glue --config.datasets=cola,rte', 'datasets', ('cola', 'rte')),
        ('finetune.py:glue --config.datasets=(cola,rte)', 'datasets', ('cola', 'rte')),
        ("finetune.py:glue --config.datasets=('cola','rte')", 'datasets', ('cola', 'rte')),
        ('finetune.py:glue --config.datasets=cola', 'datasets', ('cola',)),
        ('finetune.py:glue --config.datasets=cola --config.datasets=rte', 'datasets', ('cola', 'rte')),
        ('layer_transfer.py --config.layers=0,2,4', 'layers', (0, 2, 4)),
        ('layer_transfer.py --config.layers=', 'layers', ()),
        ('pretrain.py --config.mesh.shape=-1,1,1', 'mesh.shape', (-1, 1, 1)),
        ('pretrain.py --config.mesh.shape -1,1,1', 'mesh.shape', (-1, 1, 1)),
        ('ablation.py:lambda --config.coefficients=0,0.5', 'coefficients', (0, 0.5)),
        ('generate.py --config.stream=no', 'stream', False),
        ('generate.py --config.stream=0', 'stream', False),
        ('generate.py --noconfig.stream', 'stream', False),
        ('generate.py --config.interactive', 'interactive', True),
        ('generate.py --config.interactive=Yes', 'interactive', True),
        ('generate.py --config.prompt=', 'prompt', ''),
        ('generate.py --config.prompt=a=b', 'prompt', 'a=b'),
        ('generate.py --config.prompt -a', 'prompt', '-a'),
        ('finetune.py:custom --config.data.fields=a,b', 'data.fields', 'a,b'),
        ("finetune.py:glue --config.variants={'scratch':{'n_transfer':-1}}", 'variants.scratch.n_transfer', -1),
    ],
)
def test_values(given, flags, key, value):
    found = given(*f'--config=configs/{flags}'.split())
    for name in key.split('.'):
        found = found[name]
    assert found == value and type(found) is type(value)


def test_flags_from_a_file(given, tmp_path):
    (tmp_path / 'flags').write_text('# mine\n--config=configs/pretrain.py\n--config.data.tokens=1e6\n')
    assert given(f'--flagfile={tmp_path}/flags', '--config.seed=2').data.tokens == 10**6


NOT_WHOLE = 'This is not a whole number. Write it like 64, 1_000_000 or 1e9.'
NOT_A_NUMBER = 'This is not a number. Write it like 0.1 or 2.5e-4.'
NOT_A_BOOL = 'This is neither true nor false. Write True or False.'
MISSING = 'The value is missing. Write {0}=VALUE.'
NO_KEY = 'The config has no such key.'
NO_FLAG = 'There is no such flag.'
NOT_VALID = 'is not valid. It must be'


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        # Values of another type.
        ('pretrain.py --config.data.batch_size=big', f'--config.data.batch_size=big: {NOT_WHOLE}'),
        ('pretrain.py --config.data.batch_size=', f'--config.data.batch_size=: {NOT_WHOLE}'),
        ('pretrain.py --config.data.batch_size=6.5', f'--config.data.batch_size=6.5: {NOT_WHOLE}'),
        ('pretrain.py --config.data.batch_size 1e-3', f'--config.data.batch_size=1e-3: {NOT_WHOLE}'),
        ('pretrain.py --config.data.batch_size=1e99', f'--config.data.batch_size=1e99: {NOT_WHOLE}'),
        ('pretrain.py --config.data.batch_size=nan', f'--config.data.batch_size=nan: {NOT_WHOLE}'),
        ('pretrain.py --config.data.batch_size=True', f'--config.data.batch_size=True: {NOT_WHOLE}'),
        ('pretrain.py --config.seed=4,5', f'--config.seed=4,5: {NOT_WHOLE}'),
        ('pretrain.py --config.seed=(4)', f'--config.seed=(4): {NOT_WHOLE}'),
        ('finetune.py --config.data.limit=all', f'--config.data.limit=all: {NOT_WHOLE}'),
        ('pretrain.py --config.seed=None', '--config.seed=None: This key is always a number. Write one, such as 0.'),
        ('pretrain.py --config.optimizer.learning_rate=fast', f'--config.optimizer.learning_rate=fast: {NOT_A_NUMBER}'),
        ('pretrain.py --config.optimizer.learning_rate=', f'--config.optimizer.learning_rate=: {NOT_A_NUMBER}'),
        ('pretrain.py --config.optimizer.learning_rate=2,5', f'--config.optimizer.learning_rate=2,5: {NOT_A_NUMBER}'),
        ('pretrain.py --config.data.epochs=None', f'--config.data.epochs=None: {NOT_A_NUMBER}'),
        ('generate.py --config.stream=maybe', f'--config.stream=maybe: {NOT_A_BOOL}'),
        ('generate.py --config.stream=2', f'--config.stream=2: {NOT_A_BOOL}'),
        ('generate.py --config.stream=', f'--config.stream=: {NOT_A_BOOL}'),
        ('generate.py --noconfig.stream=no', '--noconfig.stream=no'),
        ('generate.py --config.stream False', 'False: This is not a flag.'),
        (
            'finetune.py:glue --config.datasets={1:2}',
            '--config.datasets={1:2}: This is not a list of words or numbers.',
        ),
        ("finetune.py:glue --config.datasets=(['cola'],)", 'This is not a list of words or numbers.'),
        ('pretrain.py --config.mesh.shape=a,b,c', "mesh.shape: ('a', 'b', 'c') is not valid. Each must be"),
        ('pretrain.py --config.mesh.shape=0.5,1,1', 'mesh.shape: (0.5, 1, 1) is not valid. Each must be'),
        ('layer_transfer.py --config.layers=first', "layers: ('first',) is not valid. Each must be 0 or more."),
        ('layer_transfer.py --config.layers=None', 'This is not a list of words or numbers.'),
        ('ablation.py:share --config.shares=0.5,2', 'shares: (0.5, 2) is not valid. Each must be more than 0'),
        ('benchmark.py:generate --config.batches=1,1.5', 'batches: (1, 1.5) is not valid. Each must be a whole num'),
        ('layer_transfer.py --config.layers=0,1.5', 'layers: (0, 1.5) is not valid. Each must be a whole number.'),
        ('benchmark.py:generate --config.batches=x', "batches: ('x',) is not valid. Each must be at least 1."),
        ('pretrain.py --config.data=4', '--config.data=4: This is a part of the config. Set its keys, such as'),
        ("pretrain.py --config.data={'tokens':4}", 'This is a part of the config. Set its keys, such as'),
        ('finetune.py:glue --config.variants=scratch', '--config.variants=scratch: This is not a dict. Write it like'),
        # Values that no run can have.
        ('pretrain.py --config.data.batch_size=0', f'data.batch_size: 0 {NOT_VALID} at least 1.'),
        ('pretrain.py --config.data.batch_size=-1e3', f'data.batch_size: -1000 {NOT_VALID} at least 1.'),
        ('pretrain.py --config.optimizer.learning_rate=nan', f'optimizer.learning_rate: nan {NOT_VALID} more than 0.'),
        ('pretrain.py --config.optimizer.learning_rate=inf', f'optimizer.learning_rate: inf {NOT_VALID} 0, or from'),
        (f'pretrain.py --config.seed={10**30}', f'seed: {10**30} {NOT_VALID} a whole number of 64 bits.'),
        (
            'pretrain.py --config.model.dtype=half',
            "model.dtype: 'half' is unknown. Choose one of auto, float32, bfloat",
        ),
        ('pretrain.py --config.task=finetune', "task: There is no task 'finetune' in this config. Use the config file"),
        ('quickstart.py --config.finetune.task=x', "finetune.task: There is no task 'x' in this config. Use the conf"),
        # Values that are not there.
        ('pretrain.py --workdir', MISSING.format('--workdir')),
        ('pretrain.py --workdir=', MISSING.format('--workdir')),
        ('pretrain.py --workdir --config.seed=4', MISSING.format('--workdir')),
        ('pretrain.py --config.seed', MISSING.format('--config.seed')),
        ('pretrain.py --config.data.source --workdir=x', MISSING.format('--config.data.source')),
        ('pretrain.py --config.data.source --noconfig.model.scan', MISSING.format('--config.data.source')),
        # Names.
        ('pretrain.py --config.data.batch-size=4', f'data.batch-size: {NO_KEY} Did you mean batch_size?'),
        ('pretrain.py --config.optimiser.x=4', f'optimiser: {NO_KEY} Did you mean optimizer?'),
        ('pretrain.py --config.optimizer.x=4', f'optimizer.x: {NO_KEY} The keys of optimizer are accumulation, b1, b2'),
        ('pretrain.py --config.xyzzy=4', f'xyzzy: {NO_KEY} The keys here are checkpoint, data, init_from, log, mesh'),
        ('pretrain.py --config..seed=4', f'.seed: {NO_KEY} Did you mean seed?'),
        ('pretrain.py --config.data..source=x', f'data..source: {NO_KEY} Did you mean data.source?'),
        ('pretrain.py --config.data.=x', f'data.: {NO_KEY} Did you mean data?'),
        ('pretrain.py --config.=4', f'--config.: {NO_KEY} The keys here are '),
        ('pretrain.py --config.seed.high=4', f'seed.high: {NO_KEY} Write --config.seed=VALUE.'),
        ('pretrain.py --config.data["source"]=x', f'data["source"]: {NO_KEY} The keys here are '),
        (
            'pretrain.py --noconfig.seed',
            '--noconfig.seed: This key is neither true nor false. Write --config.seed=VALUE',
        ),
        ('pretrain.py --config:seed=4', f'--config:seed: {NO_FLAG} Did you mean --config?'),
        ('pretrain.py --seed=4', f'--seed: {NO_FLAG} Did you mean --config.seed?'),
        ('pretrain.py --data.batch-size=4', f'--data.batch-size: {NO_FLAG} Did you mean --config.data.batch_size?'),
        ('pretrain.py --work-dir=x', f'--work-dir: {NO_FLAG} Did you mean --workdir?'),
        ('pretrain.py --xyzzy=4', f'--xyzzy: {NO_FLAG} Keys of the config are set with --config.KEY=VALUE.'),
        ('pretrain.py config.seed=4', 'config.seed=4: This is not a flag. Write --config=FILE, --workdir=DIR'),
        ('pretrain.py —-config.seed=4', '—-config.seed=4: This is not a flag.'),  # a dash of a word processor
        ('pretrain.py -- --config.seed=4', '--config.seed=4: This is not a flag.'),
        ('pretrain.py --distributed=maybe', '--distributed=maybe: The value is not valid ('),
        ('pretrain.py --config=configs/pretrain.py', '--config: It is given twice. Give one config.'),
        ('pretrain.py --flagfile=/nowhere/flags', '--flagfile: The file cannot be read ('),
        ('pretrain.py --flagfile', '--flagfile: The file cannot be read ('),
        # Config files and their arguments.
        ('finetun.py', 'configs/finetun.py: The config file cannot be read ([Errno 2] No such file or directory'),
        ('finetun.py:sst2', 'Did you mean configs/finetune.py:sst2?'),
        ('finetune:sst2', 'Did you mean configs/finetune.py:sst2?'),
        ('xyzzy.py', 'Use one of configs/.'),
        ('', 'configs/: The config file cannot be read ('),
        ('common.py', 'configs/common.py: The config file has an error (AttributeError: '),
        ('prepare.py:tiny', "configs/prepare.py: It takes no argument. Leave ':tiny' out."),
        ('finetune.py:sst', "argument: 'sst' is unknown. Choose one of cola, sst2, "),
    ],
)
def test_a_mistake_is_one_line(refusal, flags, message):
    assert message in refusal(*f'--config=configs/{flags}'.split(' '))


def test_a_config_file_is_read_from_any_folder(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [path for path in sys.path if path and pathlib.Path(path) != ROOT])
    for name in [name for name in sys.modules if name.split('.')[0] == 'configs']:
        monkeypatch.delitem(sys.modules, name)
    assert given(f'--config={ROOT}/configs/finetune.py:sst2', '--config.seed=3').seed == 3
    assert importlib.import_module('configs.generate')  # as the paper's plan does


@pytest.mark.parametrize(
    ('key', 'hint'), [('data.epoch', 'Did you mean epochs?'), ('xyzzy', 'Use the keys of the config that it changes.')]
)
def test_a_wrong_key_in_a_config_file_of_ones_own(refusal, tmp_path, key, hint):
    (tmp_path / 'mine.py').write_text(
        'from configs import finetune\n\ndef get_config():\n    config = finetune.get_config()\n'
        f'    config.{key} = 4\n    return config\n'
    )
    message = refusal(f'--config={tmp_path}/mine.py')
    assert message.endswith(f'mine.py: It sets {key.split(".")[-1]}, but the config has no such key. {hint}')


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ('', 'No config is given. Try --config=configs/quickstart.py.'),
        ('--config', '--config: The value is missing. Write --config=VALUE.'),
        ('--config=', '--config: The value is missing. Write --config=VALUE.'),
        ('--config --workdir=x', '--config: The value is missing. Write --config=VALUE.'),
        ('--confg=configs/pretrain.py --config.seed=4', f'--confg: {NO_FLAG} Did you mean --config?'),
        ('--config.seed=4', '--config.seed: There is no --config before it. Write --config=FILE first.'),
        ('--config.seed=4 --config=configs/pretrain.py', '--config.seed: There is no --config before it.'),
        ('pretrain', 'pretrain: This is not a flag. Write --config=FILE'),
        ('--config=finetune', 'Did you mean configs/finetune.py?'),
        ('--config=README.md', 'README.md: The config file has an error (SyntaxError: '),
    ],
)
def test_a_mistake_with_the_config_is_one_line(refusal, words, message):
    assert message in refusal(*words.split())


@pytest.mark.parametrize(
    ('flags', 'wrong', 'nearest'),
    [
        ('pretrain.py --config.optimiser=1', 'optimiser', 'optimizer'),
        ('pretrain.py --config.batch_size=4', 'batch_size', 'data.batch_size'),  # it is right elsewhere
        ('pretrain.py --noconfig.model.scam', 'model.scam', 'scan'),
        ('finetune.py:glue --config.seed 3 --config.dataset --config.data.limit=4', 'dataset', 'datasets'),
        ('finetune.py:custom --config.data.feilds=a', 'data.feilds', 'fields'),
        ('finetune.py --config.data.optimiser.b1=0', 'data.optimiser', 'optimizer'),
        ('prepare.py --config.dta.source=x', 'dta', 'data'),
        ('generate.py --config.top-k=4', 'top-k', 'top_k'),
        (
            'quickstart.py --config.pretrain.optimizer.learningrate=4',
            'pretrain.optimizer.learningrate',
            'learning_rate',
        ),
    ],
)
@pytest.mark.parametrize('form', ['--config=configs/', '--config configs/'])
def test_a_misspelt_key_is_named_with_the_nearest(refusal, form, flags, wrong, nearest):
    assert refusal(*f'{form}{flags}'.split()) == f'{wrong}: {NO_KEY} Did you mean {nearest}?'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (None, 'cannot be read ([Errno 2] No such file'),
        ('def get_config(', 'has an error (SyntaxError: '),
        ('x = 1', 'has an error (AttributeError: '),
        ('def get_config():\n    return {}["a"]', "has an error (KeyError: 'a')"),
        ('def get_config():\n    raise ValueError("two\\nlines")', 'has an error (ValueError: two lines)'),
        ('def get_config():\n    return {}', 'This is not a config with a task'),
        (
            'import types\n\nget_config = lambda: types.SimpleNamespace(task="prepare")',
            'This is not a config with a task',
        ),
    ],
)
def test_a_config_file_that_does_not_work_is_one_line(refusal, tmp_path, text, message):
    if text:
        (tmp_path / 'mine.config').write_text(text)
    line = refusal(f'--config={tmp_path}/mine.config', '--config.seed=1')
    assert f'{tmp_path}/mine.config' in line and message in line


def test_a_value_of_another_type_in_a_config_file(refusal, tmp_path):
    (tmp_path / 'mine.py').write_text(
        'from ml_collections import ConfigDict\n\n\ndef get_config():\n'
        '    return ConfigDict(dict(task="prepare", data=dict(batch_size="8")))\n'
    )
    assert refusal(f'--config={tmp_path}/mine.py') == "data.batch_size: '8' is not valid. It must be at least 1."


@pytest.mark.parametrize(
    ('flag', 'value'), [('--config.scan', True), ('--noconfig.scan', False), ('--config.scan=no', False)]
)
def test_a_truth_value_that_is_none_by_default(given, tmp_path, flag, value):
    (tmp_path / 'mine.py').write_text(
        'from ml_collections import ConfigDict, config_dict\n\n\ndef get_config():\n'
        '    return ConfigDict(dict(task="prepare", scan=config_dict.placeholder(bool)))\n'
    )
    assert given(f'--config={tmp_path}/mine.py', flag).scan is value


def test_a_file_of_flags_that_is_no_text(refusal, tmp_path):
    (tmp_path / 'flags').write_bytes(b'\xff\xfe\x00')
    assert refusal(f'--flagfile={tmp_path}/flags').startswith('--flagfile: The file cannot be read (')


def test_a_whole_number_in_another_form_is_exact(given):
    """2^53 is where floats no longer are."""
    assert given('--config=configs/pretrain.py', '--config.data.tokens=9007199254740991.0').data.tokens == 2**53 - 1


VALUES = [
    *('', 'x', '-1', '0', '1', '3', '1e3', '0.5', '1e-400', '1e400', 'nan', '-inf', 'None', 'True', 'no', '2147483648'),
    *(str(2**63), str(-(2**63) - 1), '9' * 5000, '1_0', '0x1f', '../x', '/dev/null', 'http://x/y', 's3://x', 'gs://'),
    *(
        'x' * 300,
        '\udcff',
        'a\nb',
        '(',
        '()',
        '1,2,3',
        '-1,-1,-1',
        '[' * 1000,
        '{}',
        '{"a": {"b": 1}}',
        '{1: 2}',
        '{"a.b": 1}',
    ),
    *('%s', '$HOME', '~', "'", '"', ' ', '\u0663', 'text:', 'hf:', 'shards:', 'files:/x', '__import__("os")'),
]


@damages.in_memory()
def test_random_overrides(given, request):
    """Whatever keys are given: a config, or one sentence."""
    rng, outcomes = random.Random(0), collections.Counter()
    names = [path.stem for path in sorted((ROOT / 'configs').glob('*.py')) if path.stem != 'common']
    keys = {
        name: list(command_line._entries(importlib.import_module(f'configs.{name}').get_config())) for name in names
    }
    for _ in range(request.config.getoption('--damages') // 4):
        name = rng.choice(names)
        words = [f'--config=configs/{name}.py']
        for key, _ in rng.choices(keys[name], k=rng.randint(1, 3)):
            words.append(f'--config.{key}={rng.choice(VALUES)}')
        if rng.random() < 0.1:
            words[rng.randrange(len(words))] = rng.choice(VALUES)
        try:
            with damages.in_time():
                given(*words)
            outcomes['a config'] += 1
        except SystemExit as end:
            assert end.code == 2, words
            outcomes['refused'] += 1
        except UserError:
            outcomes['refused'] += 1
        except BaseException as error:
            raise AssertionError(words) from error
    assert min(outcomes['a config'], outcomes['refused']) > 0, outcomes
