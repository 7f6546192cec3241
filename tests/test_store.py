"""What a workdir says of its model, in the form of today and of before; what is no saved model."""

import contextlib
import json
import shutil
import types

import jax
import numpy as np
import pytest
from etils import epath

from gpt1_jax import peers
from gpt1_jax.errors import DamagedError, UserError
from gpt1_jax.saved_models import huggingface, openai, store
from gpt1_jax.training import room
from gpt1_jax.training.checkpoint import Checkpointer
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import abstract_params
from models import (
    HEADS,
    assert_same_bits,
    assert_same_model,
    classifier_of,
    edit,
    make,
    make_model,
    read,
    refuses,
    write_workdir,
)

ONE_DEVICE = Partitioner('dp', (1, 1, 1), jax.devices()[:1])


def description(folder):
    """Without its checksum, as earlier versions wrote it."""
    stored = json.loads((folder / 'model.json').read_text())
    stored.pop('sha256', None)
    return stored


def test_what_is_no_saved_model_is_named(tmp_path):
    for uri in ('/nowhere', str(tmp_path), 'gs:/nowhere', f'hf:{tmp_path}', f'openai:{tmp_path}', 'hf:/nowhere'):
        with pytest.raises(UserError, match='nowhere|' + tmp_path.name):
            store.open_model(uri)


@pytest.mark.parametrize('name', ['none', 'none@7', 'owner/name'])
def test_a_folder_that_is_not_there_is_told_from_one_without_a_model(tmp_path, name):
    with pytest.raises(UserError, match=f'^{tmp_path}/{name}: There is no such folder. .* hf:OWNER'):
        store.open_model(f'{tmp_path}/{name}')


def test_the_runs_of_a_sweep_are_named_in_its_place(tmp_path, sentencepiece):
    saved, _ = make_model(np.random.default_rng(0), sentencepiece)
    listed = [f'sst2/seed{seed}' for seed in range(13)]
    (tmp_path / 'runs.json').write_text(json.dumps([{'path': path} for path in listed]))
    with pytest.raises(UserError, match='it has no model.json'):  # nor has any of its runs
        store.open_model(str(tmp_path))
    (tmp_path / 'sst2').mkdir()
    store.describe_run(make(tmp_path / listed[1]), classifier_of(saved), sentencepiece)
    said = f'{tmp_path}: This is the workdir of a sweep, not of one run. Name one of its runs: {tmp_path}/sst2/seed1'
    refuses(str(tmp_path), f'{said}.')
    for path in listed[2:]:
        shutil.copytree(tmp_path / listed[1], tmp_path / path)
    refuses(f'{tmp_path}@3', f'{tmp_path}/sst2/seed10 or 2 more.')


def test_a_uri_is_a_scheme_and_a_folder_or_a_workdir(monkeypatch):
    monkeypatch.setenv('HOME', '/home/someone')
    assert store.split_uri('openai:a/b') == ('openai', epath.Path('a/b'))
    assert store.split_uri('hf:~/b') == ('hf', epath.Path('/home/someone/b'))
    for workdir in ('runs/a', 'a:b', 'gs://bucket/hf:b'):
        assert store.split_uri(workdir) == ('', epath.Path(workdir))


def test_a_run_without_a_checkpoint_is_named(tmp_path, sentencepiece):
    saved, _ = make_model(np.random.default_rng(0), sentencepiece)
    store.describe_run(epath.Path(tmp_path), classifier_of(saved), sentencepiece)
    with pytest.raises(UserError, match='no checkpoint yet'):
        read(str(tmp_path))


def test_a_model_that_does_not_fit_is_not_read(tmp_path, sentencepiece, monkeypatch):
    saved, params = make_model(np.random.default_rng(0), sentencepiece)
    write_workdir(make(tmp_path / 'run'), saved, params)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    monkeypatch.setattr(room, 'memory', lambda devices, *names: size)
    store.load_model(store.open_model(str(tmp_path / 'run')), {}, ONE_DEVICE)
    monkeypatch.setattr(room, 'memory', lambda devices, *names: size - 1)
    with pytest.raises(UserError, match='run: The parameters take 0.0 GB on each device'):
        store.load_model(store.open_model(str(tmp_path / 'run')), {}, ONE_DEVICE)


@pytest.mark.parametrize('head', HEADS)
def test_what_is_described_is_opened(tmp_path, sentencepiece, head):
    saved, params = make_model(np.random.default_rng(0), sentencepiece, 3 if head else 0, head)
    write_workdir(make(tmp_path / 'run'), saved, params)
    again, back = read(str(tmp_path / 'run'))
    assert_same_model(again, saved)
    assert_same_bits(back, params)
    assert description(tmp_path / 'run') == {
        'format_version': 2,
        'kind': 'transformer',
        'architecture': {'layers': 2, 'width': 16, 'heads': 4, 'mlp_width': 64, 'n_positions': 16},
        'vocab_size': 290,
        'n_special': 3 if head else 0,
        'head': head and {'kind': head.kind, 'classes': head.classes},
        'best_metric': None,
        'best_mode': 'min',
        'tokens_before': None,
        'tokens_per_step': 0,
        'labels': None,
    }


def save_three(folder, saved, metrics, **ranks):
    """A run whose parameters say their step, each with its metrics; it began after 1000 tokens."""
    store.describe_run(
        make(folder), classifier_of(saved), saved.tokenizer, tokens_before=1000, tokens_per_step=7, **ranks
    )
    _, params = make_model(np.random.default_rng(0), saved.tokenizer, saved.n_special, saved.head)
    checkpointer = Checkpointer(epath.Path(folder / 'checkpoints'), keep_latest=None)
    for step, values in enumerate(metrics, 1):
        params['decoder']['table'][...] = step
        checkpointer.save(step, {'params': jax.tree.map(np.array, params)}, {}, values)  # copies: saves go on
    checkpointer.close()


def step_of(folder):
    saved, params = read(str(folder))
    return int(params['decoder']['table'][0, 0]), saved.tokens_seen()


MEASURED = [
    {'valid_loss': 3.0, 'dev_score': 0.9, 'other': 1.0},
    {'valid_loss': 1.0, 'dev_score': 0.5, 'other': 3.0},
    {'valid_loss': 2.0, 'dev_score': 0.7, 'other': 2.0},
]


@pytest.mark.parametrize(
    ('ranks', 'step', 'head'),
    [
        (dict(best_metric='valid_loss', best_mode='min'), 2, HEADS[1]),
        (dict(best_metric='dev_score', best_mode='max'), 1, HEADS[0]),
        (dict(best_metric='other', best_mode='max'), 2, HEADS[1]),
        (dict(best_metric='other', best_mode='min'), 1, HEADS[0]),
        ({}, 3, HEADS[1]),
    ],
)
def test_the_best_checkpoint_is_the_one_that_the_run_says(tmp_path, sentencepiece, ranks, step, head):
    """Whatever the head: today nothing is guessed."""
    saved, _ = make_model(np.random.default_rng(0), sentencepiece, 3 if head else 0, head)
    save_three(tmp_path / 'run', saved, MEASURED, **ranks)
    assert step_of(tmp_path / 'run') == (step, 1000 + 7 * step)


def test_a_step_can_be_named(tmp_path, sentencepiece):
    """Whatever ranks; a folder that really has such a name is that folder."""
    saved, _ = make_model(np.random.default_rng(0), sentencepiece)
    save_three(tmp_path / 'run', saved, MEASURED, best_metric='valid_loss')
    for step in (1, 2, 3):
        assert step_of(tmp_path / f'run@{step}') == (step, 1000 + 7 * step)
    assert store.kept_steps(str(tmp_path / 'run')) == [1, 2, 3]
    refuses(f'{tmp_path}/run@4', 'no checkpoint of step 4', 'steps here are 1, 2, 3')
    refuses(f'{tmp_path}/other@4', 'other@4', 'There is no such folder')
    with pytest.raises(OSError, match='name too long'):
        store.open_model(f'{tmp_path}/run@' + '9' * 5000)
    (tmp_path / 'run').rename(tmp_path / 'run@3')
    assert step_of(tmp_path / 'run@3') == (2, 1014)
    assert step_of(tmp_path / 'run@3@1') == (1, 1007)


def test_a_run_that_may_train_on_is_told_of(tmp_path, sentencepiece, caplog):
    saved, _ = make_model(np.random.default_rng(0), sentencepiece)
    run = tmp_path / 'run'
    warns = lambda uri: caplog.clear() or store.warn_unless_finished(uri) or f'{uri} is not finished' in caplog.text
    assert not warns(str(run))  # nothing is there
    save_three(run, saved, MEASURED)
    assert warns(str(run)) and not warns(f'{run}@2') and not warns(f'openai:{run}')
    (run / 'results.json').touch()
    assert not warns(str(run))


@pytest.mark.parametrize('asked_first', [False, True])
def test_where_the_best_is_damaged_the_next_best_is_all_that_is_told_of(tmp_path, sentencepiece, asked_first):
    """Its step and its tokens are those of the parameters, whichever is asked for first."""
    saved, _ = make_model(np.random.default_rng(0), sentencepiece)
    save_three(tmp_path / 'run', saved, MEASURED, best_metric='valid_loss')
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '2' / 'params')
    opened, step = store.open_model(str(tmp_path / 'run')), None
    if asked_first:
        step = opened.step()
    params = opened.read(abstract_params(classifier_of(saved), ONE_DEVICE))
    assert int(params['decoder']['table'][0, 0]) == opened.step() == 3 and step in (None, 3)
    assert opened.tokens_seen() == 1021
    with pytest.raises(DamagedError, match=f'/2: The checkpoint is damaged .* whole: {tmp_path}/run@3.$'):
        read(f'{tmp_path}/run@2')
    assert step_of(f'{tmp_path}/run@3') == (3, 1021)


def as_before(folder):
    """Makes a workdir's model.json that of a version before 0.2."""
    edit(
        folder / 'model.json',
        lambda now: {name: now[name] for name in ('architecture', 'vocab_size', 'n_special', 'head')},
    )


@pytest.mark.parametrize(('head', 'step'), [(HEADS[0], 2), (HEADS[1], 1)])
def test_version_1_is_read(tmp_path, sentencepiece, head, step):
    """A model without a head was ranked by its loss, one with a head by its score on dev."""
    saved, _ = make_model(np.random.default_rng(0), sentencepiece, 3 if head else 0, head)
    save_three(tmp_path / 'run', saved, MEASURED, best_metric='other', best_mode='max')
    as_before(tmp_path / 'run')
    assert_same_model(store.open_model(str(tmp_path / 'run')), saved)
    assert step_of(tmp_path / 'run') == (step, None)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda stored: stored | {'format_version': 3}, ['version 3', 'reads 1 and 2', 'newer version']),
        (lambda stored: stored | {'kind': 'rnn'}, ["'rnn'", 'only transformer']),
        (lambda stored: stored | {'kind': ['transformer']}, ['damaged']),
        (lambda stored: stored | {'architecture': {'layers': 2}}, ['damaged', "'width'"]),
        (lambda stored: stored | {'architecture': 3}, ['damaged']),
        (lambda stored: stored | {'head': 3}, ['damaged']),
        (lambda stored: stored | {'n_special': 1}, ['damaged', 'n_special 1 is not valid']),
        (lambda stored: stored | {'best_mode': 'mix'}, ['damaged', "best_mode 'mix'"]),
        (lambda stored: stored | {'architecture': stored['architecture'] | {'width': 10**12}}, ['width 1000000000000']),
        (lambda stored: stored | {'architecture': stored['architecture'] | {'heads': 0}}, ['heads 0 is not valid']),
        (lambda stored: stored | {'tokens_per_step': 2**63}, ['damaged', 'tokens_per_step']),
        (lambda stored: stored | {'head': {'kind': 'classification', 'units': 3}}, ['damaged', 'classes']),
        (lambda stored: [stored], ['damaged']),
        *(
            (lambda stored, name=name: {key: value for key, value in stored.items() if key != name}, ['damaged', name])
            for name in (
                'kind',
                'architecture',
                'vocab_size',
                'n_special',
                'head',
                'best_metric',
                'best_mode',
                'tokens_before',
                'tokens_per_step',
            )
        ),
        *(
            (
                lambda stored, name=name: {
                    key: stored[key] for key in ('architecture', 'vocab_size', 'n_special', 'head') if key != name
                },
                ['damaged', name],  # of version 1
            )
            for name in ('architecture', 'vocab_size', 'n_special', 'head')
        ),
    ],
)
def test_a_wrong_description_is_one_sentence(tmp_path, sentencepiece, change, words):
    saved, params = make_model(np.random.default_rng(0), sentencepiece)
    write_workdir(make(tmp_path / 'run'), saved, params)
    edit(tmp_path / 'run' / 'model.json', change)
    refuses(str(tmp_path / 'run'), str(tmp_path / 'run' / 'model.json'), *words)


def test_the_vocabulary_of_a_description_is_that_of_the_tokenizer(tmp_path, sentencepiece):
    """A table with as many rows in all would be cut elsewhere."""
    saved, _ = make_model(np.random.default_rng(0), sentencepiece)
    store.describe_run(make(tmp_path / 'run'), classifier_of(saved), sentencepiece)
    edit(tmp_path / 'run' / 'model.json', lambda stored: stored | {'vocab_size': 287, 'n_special': 3})
    refuses(str(tmp_path / 'run'), 'The tokenizer has 290 tokens, but model.json says 287')


@pytest.mark.parametrize('keep', [0, 1, 40, -3])
def test_a_cut_description_is_one_sentence(tmp_path, sentencepiece, keep):
    saved, params = make_model(np.random.default_rng(0), sentencepiece)
    write_workdir(make(tmp_path / 'run'), saved, params)
    path = tmp_path / 'run' / 'model.json'
    path.write_text(path.read_text()[:keep])
    refuses(str(tmp_path / 'run'), str(path), 'damaged')


def test_what_only_the_checksum_of_a_description_tells(tmp_path, sentencepiece):
    saved, _ = make_model(np.random.default_rng(0), sentencepiece)
    store.describe_run(make(tmp_path / 'run'), classifier_of(saved), sentencepiece, best_metric='one', best_mode='min')
    path = tmp_path / 'run' / 'model.json'
    path.write_text(path.read_text().replace('"min"', '"max"'))
    refuses(str(tmp_path / 'run'), 'another checksum')


@pytest.mark.parametrize('form', ['', 'openai:', 'hf:'])
def test_a_process_that_reads_another_model_than_process_0_says_so(tmp_path, sentencepiece, monkeypatch, form):
    """Each would give its own shards of the arrays, and the run would train a mix."""
    write = {'': write_workdir, 'openai:': openai.write_folder, 'hf:': huggingface.write_folder}[form]
    for name, seed in (('a', 0), ('copy', 0), ('b', 1)):
        saved, params = make_model(np.random.default_rng(seed), sentencepiece, layers=1, width=4, heads=1, mlp_width=16)
        write(make(tmp_path / name), saved, params)
    said = []
    monkeypatch.setattr(peers, 'current', types.SimpleNamespace(agree=lambda value: said.append(value) or [value]))
    read(f'{form}{tmp_path}/a')
    for name, expected in (
        ('copy', contextlib.nullcontext()),
        ('b', pytest.raises(UserError, match='/b: What is here is not what process 0 reads there')),
    ):
        of_first = iter(list(said))
        monkeypatch.setattr(peers, 'current', types.SimpleNamespace(agree=lambda value, first=of_first: [next(first)]))
        with expected:
            read(f'{form}{tmp_path}/{name}')
