"""Conversions in every direction, and what they refuse."""

import filecmp

import numpy as np
import pytest
from etils import epath

from configs import convert as convert_config
from gpt1_jax.errors import UserError
from gpt1_jax.report import results
from gpt1_jax.saved_models import openai
from gpt1_jax.tasks import convert
from helpers import run as run_main
from models import HEADS, assert_same_bits, assert_same_model, make, make_model, read, released_tokenizer, write_workdir


def converted(source, target):
    """The URI of the target. The workdir is beside it, FOLDER.workdir."""
    config = convert_config.get_config()
    config.update(source=str(source), target=str(target))
    workdir = epath.Path(f'{str(target).rpartition(":")[2]}.workdir')
    assert convert.run(config, workdir) == results.read(workdir)
    return str(target)


def assert_same_files(one, other):
    names = sorted(path.name for path in one.iterdir() if path.is_file())
    assert names == sorted(path.name for path in other.iterdir() if path.is_file())
    assert filecmp.cmpfiles(one, other, names, shallow=False) == (names, [], [])


@pytest.fixture(params=['released', 'sentencepiece'])
def tokenizer(request, tmp_path, sentencepiece):
    return sentencepiece if request.param == 'sentencepiece' else released_tokenizer(epath.Path(tmp_path / 'v'), 60)


@pytest.mark.parametrize(
    ('tokenizer', 'head'),
    [('released', HEADS[0]), ('sentencepiece', HEADS[1]), ('sentencepiece', HEADS[3]), ('released', HEADS[4])],
    indirect=['tokenizer'],
)
def test_a_run_to_hugging_face_and_back(tmp_path, tokenizer, head):
    saved, params = make_model(np.random.default_rng(0), tokenizer, 3 if head else 0, head)
    write_workdir(make(tmp_path / 'run'), saved, params)
    there = converted(tmp_path / 'run', f'hf:{tmp_path}/there')
    back = converted(there, tmp_path / 'back')
    again, returned = read(back)
    assert_same_bits(returned, params)
    assert_same_model(again, saved)
    converted(back, f'hf:{tmp_path}/again')
    assert_same_files(tmp_path / 'there', tmp_path / 'again')


def test_the_release_to_all_and_back(tmp_path, tokenizer):
    saved, params = make_model(np.random.default_rng(0), tokenizer)
    openai.write_folder(make(tmp_path / 'release'), saved, params)
    forms = [f'openai:{tmp_path}/release', f'hf:{tmp_path}/hf', f'{tmp_path}/run', f'openai:{tmp_path}/back']
    for one, other in zip(forms, forms[1:]):
        converted(one, other)
    assert_same_files(tmp_path / 'release', tmp_path / 'back')
    assert_same_bits(read(forms[2])[1], params)


def refuses(source, target, *words):
    with pytest.raises(UserError) as error:
        converted(source, target)
    assert all(word in str(error.value) for word in words), error.value


def test_what_is_refused_leaves_nothing_behind(tmp_path, sentencepiece, monkeypatch):
    saved, params = make_model(np.random.default_rng(0), sentencepiece, mlp_width=32)
    run = make(tmp_path / 'run')
    write_workdir(run, saved, params)
    before = sorted(run.iterdir())
    refuses(run, f'hf:{tmp_path}/hf', 'mlp_width 32')
    refuses(f'openai:{run}', f'hf:{tmp_path}/hf', 'params_shapes.json')
    write_workdir(make(tmp_path / 'table'), *make_model(np.random.default_rng(0), sentencepiece, layers=0))
    for scheme in ('openai', 'hf'):
        refuses(tmp_path / 'table', f'{scheme}:{tmp_path}/of_table', 'models without layers')
    refuses(run, run, 'exists already')
    refuses(run, f'openai:{run}', 'exists already')
    refuses(run, '', 'target: It is empty')
    refuses(run, f'torch:{tmp_path}/there', 'target: The form torch: is unknown', 'hf:DIR')
    refuses('', run, 'source: It is empty')

    def full(path, parts):
        raise UserError(f'Cannot write {path} (No space left on device)')

    monkeypatch.setattr(openai, 'write_atomically', full)
    refuses(run, f'openai:{tmp_path}/openai', 'No space left')
    monkeypatch.undo()
    monkeypatch.setattr(convert, 'record', lambda *args, **kwargs: full('results.json', []))
    refuses(run, f'openai:{tmp_path}/openai', 'No space left')
    assert (
        sorted(tmp_path.iterdir()) == [tmp_path / 'openai.workdir', run, tmp_path / 'table']
        and sorted(run.iterdir()) == before
    )
    assert list((tmp_path / 'openai.workdir').iterdir()) == [tmp_path / 'openai.workdir' / 'config.json']  # the last's


def test_from_the_command_line(tmp_path, sentencepiece):
    saved, params = make_model(np.random.default_rng(0), sentencepiece, 3, HEADS[1])
    write_workdir(make(tmp_path / 'run'), saved, params)
    (tmp_path / 'model').mkdir()
    _, error = run_main(
        'convert.py',
        f'--config.source={tmp_path}/run',
        f'--config.target=openai:{tmp_path}/model',
        f'--workdir={tmp_path}/work',
    )
    assert 'no place for the 3 special rows and the head' in error
    table, result = params['decoder']['table'], results.read(epath.Path(tmp_path / 'work'))
    written = sum(len(np.load(path)) for path in (tmp_path / 'model').glob('*.npy'))
    assert result.model['parameters'] == written
    assert f'openai:{tmp_path}/model: {written:,} parameters from {tmp_path}/run' in error
    assert_same_bits(
        read(f'openai:{tmp_path}/model')[1]['decoder'],
        params['decoder'] | {'table': np.concatenate([table[:290], table[293:]])},
    )


def test_a_name_on_the_hub_is_not_taken_for_a_folder(tmp_path, sentencepiece, monkeypatch):
    saved, params = make_model(np.random.default_rng(0), sentencepiece)
    write_workdir(make(tmp_path / 'run'), saved, params)
    monkeypatch.chdir(tmp_path)
    refuses('run', 'hf:me/gpt1', 'target: hf:me/gpt1 is a name on the hub, to which', 'give hf:./me/gpt1.')
    assert list(tmp_path.iterdir()) == [tmp_path / 'run']
    for target in ('hf:./me/gpt1', 'hf:me/other'):  # now there is a folder `me`
        converted('run', target)
    assert {path.name for path in (tmp_path / 'me').iterdir() if '.' not in path.name} == {'gpt1', 'other'}


def test_the_target_is_not_the_workdir(tmp_path, sentencepiece, monkeypatch):
    """Both have a config.json."""
    saved, params = make_model(np.random.default_rng(0), sentencepiece)
    write_workdir(make(tmp_path / 'run'), saved, params)
    config = convert_config.get_config()
    monkeypatch.chdir(tmp_path)
    config.update(source='run', target='hf:there')
    with pytest.raises(UserError, match='^target: there .* Name another --workdir'):
        convert.run(config, epath.Path(tmp_path / 'there'))
    assert list(tmp_path.iterdir()) == [tmp_path / 'run']
