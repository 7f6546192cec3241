"""Conversions in every direction, what they refuse, and runs that go on from what was converted."""

import filecmp
import json
import random

import jax
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from test_main import run as run_main, sentence
from test_transfer import write_workdir
from test_weights import (  # noqa: F401
    HEADS, SIZES, assert_same_bits, make, make_model, read, released_tokenizer, sentencepiece)

from configs import convert as convert_config, pretrain as pretrain_config
from gpt1_jax.data.shards import load_shards
from gpt1_jax.data.tokenizers import load_tokenizer
from gpt1_jax.errors import UserError
from gpt1_jax.tasks import convert, prepare, pretrain
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.weights import huggingface, openai


def converted(source, target):
    """The place of the target."""
    config = convert_config.get_config()
    config.update(source=str(source), target=str(target))
    convert.run(config, None)
    return str(target)


def assert_same_files(one, other):
    names = sorted(path.name for path in one.iterdir() if path.is_file())
    assert names == sorted(path.name for path in other.iterdir() if path.is_file())
    assert filecmp.cmpfiles(one, other, names, shallow=False) == (names, [], [])


@pytest.fixture(params=['released', 'sentencepiece'])
def tokenizer(request, tmp_path, sentencepiece):  # noqa: F811
    return sentencepiece if request.param == 'sentencepiece' else released_tokenizer(epath.Path(tmp_path / 'v'), 60)


@pytest.mark.parametrize(('tokenizer', 'head'), [
    ('released', HEADS[0]), ('sentencepiece', HEADS[1]), ('sentencepiece', HEADS[3]), ('released', HEADS[4])],
    indirect=['tokenizer'])
def test_a_run_to_hugging_face_and_back(tmp_path, tokenizer, head):
    source, params = make_model(np.random.default_rng(0), tokenizer, 3 if head else 0, head)
    write_workdir(make(tmp_path / 'run'), source, params)
    there = converted(tmp_path / 'run', f'hf:{tmp_path}/there')
    back = converted(there, tmp_path / 'back')
    again, returned = read(back)
    assert_same_bits(returned, params)
    assert again._replace(directory=source.directory, tokenizer=tokenizer, read=None) == source
    assert again.tokenizer.fingerprint == tokenizer.fingerprint
    converted(back, f'hf:{tmp_path}/again')
    assert_same_files(tmp_path / 'there', tmp_path / 'again')


def test_the_release_to_all_and_back(tmp_path, tokenizer):
    source, params = make_model(np.random.default_rng(0), tokenizer)
    openai.write_folder(make(tmp_path / 'release'), source, params)
    forms = [f'openai:{tmp_path}/release', f'hf:{tmp_path}/hf', f'{tmp_path}/run', f'openai:{tmp_path}/back']
    for one, other in zip(forms, forms[1:]):
        converted(one, other)
    assert_same_files(tmp_path / 'release', tmp_path / 'back')
    assert_same_bits(read(forms[2])[1], params)


@pytest.mark.parametrize(('head', 'model_class', 'words'), [
    (HEADS[0], 'OpenAIGPTLMHeadModel', []),
    (HEADS[2], 'OpenAIGPTForSequenceClassification', ['`score.bias`', 'hypothesis']),
    (HEADS[3], 'OpenAIGPTForSequenceClassification', ['`score.bias`', 'Both orders']),
    (HEADS[4], 'OpenAIGPTDoubleHeadsModel', ['mc_logits']),
])
def test_what_transformers_reads(tmp_path, tokenizer, head, model_class, words):
    """Names and keys as transformers 5 loads them; what it does not express is in the card."""
    source, params = make_model(np.random.default_rng(0), tokenizer, 3 if head else 0, head)
    folder = make(tmp_path / 'hf')
    huggingface.write_folder(folder, source, params)
    config = json.loads((folder / 'config.json').read_text())
    rows = source.vocab_size + source.n_special
    expected = dict(model_type='openai-gpt', architectures=[model_class], vocab_size=rows, n_positions=16, n_embd=16,
                    n_layer=2, n_head=4, afn='gelu')
    assert config | expected == config
    tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
    assert tensors['transformer.tokens_embed.weight'].shape == (rows, 16)
    card = (folder / 'README.md').read_text()
    assert all(word in card for word in [model_class, 'Embedding dropout', 'Position rows', *words])
    if head and head['kind'] == 'multiple_choice':
        np.testing.assert_array_equal(tensors['multiple_choice_head.summary.weight'], params['head']['kernel'].T)
        np.testing.assert_array_equal(tensors['multiple_choice_head.summary.bias'], params['head']['bias'])
    elif head:
        np.testing.assert_array_equal(tensors['score.weight'], params['head']['kernel'].T)
        assert len(config['id2label']) == head['classes'] and config['pad_token_id'] == 0
    if source.vocab_size == 60:
        assert {'vocab.json', 'merges.txt'} < {path.name for path in folder.iterdir()}
        added = json.loads((folder / 'tokenizer_config.json').read_text())['added_tokens_decoder']
        names = dict(zip(('60', '61', '62'), huggingface.SPECIAL_TOKENS)) if head else {}
        assert {i: token['content'] for i, token in added.items()} == names
    else:
        assert 'SentencePiece' in card and not (folder / 'tokenizer_config.json').exists()


def refuses(source, target, *words):
    with pytest.raises(UserError) as error:
        converted(source, target)
    assert all(word in str(error.value) for word in words), error.value


def test_what_is_refused_leaves_nothing_behind(tmp_path, sentencepiece, monkeypatch):  # noqa: F811
    source, params = make_model(np.random.default_rng(0), sentencepiece, mlp_width=32)
    run = make(tmp_path / 'run')
    write_workdir(run, source, params)
    before = sorted(run.iterdir())
    refuses(run, f'hf:{tmp_path}/hf', 'mlp_width 32')
    refuses(f'openai:{run}', f'hf:{tmp_path}/hf', 'params_shapes.json')
    refuses(run, run, 'there already')
    refuses(run, f'openai:{run}', 'there already')
    refuses(run, '', 'target is empty')
    refuses('', run, 'source is empty')

    def full(path, parts):
        raise UserError(f'Cannot write {path} (No space left on device)')

    monkeypatch.setattr(openai, 'write_atomically', full)
    refuses(run, f'openai:{tmp_path}/openai', 'No space left')
    assert list(tmp_path.iterdir()) == [run] and sorted(run.iterdir()) == before


def test_from_the_command_line(tmp_path, sentencepiece):  # noqa: F811
    source, params = make_model(np.random.default_rng(0), sentencepiece, 3, HEADS[1])
    write_workdir(make(tmp_path / 'run'), source, params)
    (tmp_path / 'model').mkdir()
    error = run_main('convert.py', f'--config.source={tmp_path}/run', f'--config.target=openai:{tmp_path}/model')
    assert 'no place for the 3 special rows and the head' in error
    table = params['decoder']['table']
    assert_same_bits(read(f'openai:{tmp_path}/model')[1]['decoder'],
                     params['decoder'] | {'table': np.concatenate([table[:290], table[293:]])})


# Further pre-training


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """A config of one step on shards of its own; where the workdir of a model of that kind is; its parameters."""
    folder, rng = tmp_path_factory.mktemp('prepared'), random.Random(0)
    (folder / 'books').mkdir()
    for i in range(4):
        (folder / 'books' / f'{i}.txt').write_text('\n'.join(sentence(rng, ('sea', 'farm')[i % 2]) for _ in range(100)))
    config = pretrain_config.get_config('tiny')
    config.model.update(SIZES | {'layers': 1})
    config.data.update(source=f'text:{folder}/books', vocab_size=330, held_out=0.2, workers=1, batch_size=8,
                       tokens=16 * 8)
    prepare.prepare(config.data, folder / 'shards')
    config.data.source = f'shards:{folder}/shards'
    normal = lambda rng, shape: rng.normal(0, 0.1, shape).astype(np.float32)
    tokenizer = load_tokenizer(folder / 'shards' / 'tokenizer')
    source, params = make_model(np.random.default_rng(0), tokenizer, draw=normal, layers=1)
    write_workdir(make(folder / 'first'), source, params)
    return config, folder, params


def going_on(prepared, init_from, **data):
    config = prepared[0].copy_and_resolve_references()
    config.init_from = init_from
    config.data.update(data)
    config.optimizer.update(warmup_steps=0, learning_rate=0.0)
    return config


def test_pretraining_goes_on(prepared, tmp_path, monkeypatch):
    """With rate 0 the parameters stay those of the model that was converted."""
    _, folder, params = prepared
    place = converted(folder / 'first', f'hf:{tmp_path}/hf')
    # The mesh is not what is tested, and a step on many devices takes its time.
    monkeypatch.setattr(pretrain, 'Partitioner', lambda *_: Partitioner('dp', (1, 1, 1), jax.devices()[:1]))
    results = pretrain.run(going_on(prepared, place), epath.Path(tmp_path / 'on'))
    assert results['steps'] == 1
    assert_same_bits(read(str(tmp_path / 'on'))[1], params)


def test_another_size_or_tokenizer_is_refused_before_anything_is_written(prepared, tmp_path):
    config, folder, _ = prepared
    workdir = epath.Path(tmp_path / 'on')

    def refused(config, *words):
        with pytest.raises(UserError) as error:
            pretrain.run(config, workdir)
        assert all(word in str(error.value) for word in words) and not workdir.exists(), error.value

    first = str(folder / 'first')
    other = going_on(prepared, first)
    other.model.heads = 2
    refused(other, 'model.heads=2', 'model.heads=4')
    refused(going_on(prepared, '/nowhere'), '/nowhere')
    books = f'text:{folder}/books'
    refused(going_on(prepared, first, source=books), 'newly trained', 'data.tokenizer')
    elsewhere = config.data.copy_and_resolve_references()
    elsewhere.update(source=books, vocab_size=320)
    prepare.prepare(elsewhere, tmp_path / 'shards')
    fingerprint = load_shards(tmp_path / 'shards').tokenizer_fingerprint
    refused(going_on(prepared, first, source=f'shards:{tmp_path}/shards'), fingerprint, 'data.tokenizer')
    refused(going_on(prepared, first, source=books, tokenizer=f'{tmp_path}/shards/tokenizer'), fingerprint)
