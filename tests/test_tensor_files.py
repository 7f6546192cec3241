"""Hugging Face folders as transformers 4.46 and 5.24 write them: names of every class, tied tables, several files, and
files that are missing or damaged."""

import builtins
import json
import sys
import types

import numpy as np
import pytest
import safetensors.numpy

from gpt1_jax.saved_models import store
from models import assert_close_to_largest, break_file, edit, golden_weights, hidden_of, refuses, write_checkpoint

_CHOICE = ['multiple_choice_head.summary.weight', 'multiple_choice_head.summary.bias']
SAVED = {  # prefix of the decoder's names; other names; the name of the token table
    'OpenAIGPTModel': ('', [], 'tokens_embed.weight'),
    'OpenAIGPTLMHeadModel': ('transformer.', [], 'transformer.tokens_embed.weight'),
    'OpenAIGPTDoubleHeadsModel of 4.46': ('transformer.', _CHOICE, 'transformer.tokens_embed.weight'),
    'OpenAIGPTDoubleHeadsModel of 5.24': ('transformer.', _CHOICE, 'lm_head.weight'),
    'OpenAIGPTForSequenceClassification': ('transformer.', ['score.weight'], 'transformer.tokens_embed.weight'),
}


def save_as(folder, golden, model_class, **changes):
    """A folder as the class is saved; returns its URI. Of 50 rows the last three are special: 47 tokens."""
    prefix, heads, table = SAVED[model_class]
    arrays = golden_weights(golden)
    tensors = {prefix + name: array for name, array in arrays.items() if not name.startswith(('score', 'multiple'))}
    tensors[table] = tensors.pop(f'{prefix}tokens_embed.weight')
    return write_checkpoint(folder, tensors | {name: arrays[name] for name in heads}, 47, **changes)


def split(folder, name='model.safetensors', files=3):
    """Moves the arrays of model.safetensors into several files and an index, as models past `max_shard_size` are."""
    tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
    (folder / 'model.safetensors').unlink()
    stem, suffix = name.split('.')
    names = [f'{stem}-{i + 1:05}-of-{files:05}.{suffix}' for i in range(files)]
    weight_map = {tensor: names[i % files] for i, tensor in enumerate(sorted(tensors))}
    for file in names:
        part = {tensor: array for tensor, array in tensors.items() if weight_map[tensor] == file}
        safetensors.numpy.save_file(part, folder / file, metadata={'format': 'pt'})
    index = {'metadata': {'total_size': sum(array.nbytes for array in tensors.values())}, 'weight_map': weight_map}
    (folder / f'{name}.index.json').write_text(json.dumps(index))


def assert_as_transformers(uri, golden, model_class):
    saved, classifier, params, hidden = hidden_of(uri, golden['tokens'].reshape(-1, 12))
    assert saved.n_special == 3
    assert_close_to_largest(hidden @ params['decoder']['table'][:50].T, golden['logits'])
    if 'Classification' in model_class:
        assert_close_to_largest(classifier.classify(params, hidden[:, -1:]), golden['class_logits'])
    elif 'DoubleHeads' in model_class:
        assert_close_to_largest(classifier.classify(params, hidden[:, -1].reshape(2, 2, 16)), golden['choice_logits'])
    else:
        assert classifier.head is None


@pytest.mark.parametrize('several', [False, True])
@pytest.mark.parametrize('model_class', SAVED)
def test_every_class_computes_what_transformers_computes(tmp_path, golden, model_class, several):
    uri = save_as(tmp_path, golden, model_class)
    if several:
        split(tmp_path)
    assert_as_transformers(uri, golden, model_class)


def install_torch(monkeypatch):
    """A stand-in for PyTorch whose pickles are safetensors files; returns the names of those that it has loaded."""
    loaded = []

    def tensor(array):  # a parameter: `numpy` only after `detach`
        as_float = types.SimpleNamespace(numpy=lambda: array.astype(np.float32))
        return types.SimpleNamespace(
            shape=array.shape,
            dtype=f'torch.{array.dtype}',
            detach=lambda: types.SimpleNamespace(float=lambda: as_float),
        )

    def load(path, *, map_location, weights_only, mmap):
        assert weights_only and not mmap  # these are not zip files, and no others can be mapped
        loaded.append(path.name)
        return {name: tensor(array) for name, array in safetensors.numpy.load_file(path).items()}

    monkeypatch.setitem(sys.modules, 'torch', types.SimpleNamespace(load=load, __version__='2.6.0+cpu'))
    return loaded


@pytest.mark.parametrize('files', [1, 2])
def test_pickles_go_through_the_weights_only_reader(tmp_path, golden, monkeypatch, files):
    """They hold the table by both of its names."""
    uri = save_as(tmp_path, golden, 'OpenAIGPTDoubleHeadsModel of 4.46')
    tensors = safetensors.numpy.load_file(tmp_path / 'model.safetensors')
    tensors['lm_head.weight'] = tensors['transformer.tokens_embed.weight']
    safetensors.numpy.save_file(tensors, tmp_path / 'model.safetensors')
    if files == 1:
        (tmp_path / 'model.safetensors').rename(tmp_path / 'pytorch_model.bin')
    else:
        split(tmp_path, 'pytorch_model.bin', files)
    loaded = install_torch(monkeypatch)
    assert_as_transformers(uri, golden, 'OpenAIGPTDoubleHeadsModel')
    assert sorted(loaded) == sorted(path.name for path in tmp_path.glob('*.bin'))


def test_a_pickle_is_not_read_by_a_torch_that_it_can_make_run_code(tmp_path, golden, monkeypatch):
    uri = save_as(tmp_path, golden, 'OpenAIGPTModel')
    (tmp_path / 'model.safetensors').rename(tmp_path / 'pytorch_model.bin')
    loaded = install_torch(monkeypatch)
    sys.modules['torch'].__version__ = '2.5.1+cu121'
    refuses(uri, 'pytorch_model.bin', 'can run code in PyTorch 2.5.1', 'torch 2.6')
    assert not loaded


def test_a_quantised_pickle_is_refused(tmp_path, golden, monkeypatch):
    uri = save_as(tmp_path, golden, 'OpenAIGPTModel')
    tensors = safetensors.numpy.load_file(tmp_path / 'model.safetensors')
    safetensors.numpy.save_file(tensors | {'h.0.ln_1.bias': np.zeros(16, np.int8)}, tmp_path / 'pytorch_model.bin')
    (tmp_path / 'model.safetensors').unlink()
    install_torch(monkeypatch)
    refuses(uri, 'pytorch_model.bin', 'h.0.ln_1.bias', 'int8')


def test_files_are_looked_for_in_the_order_of_transformers(tmp_path, golden):
    uri = save_as(tmp_path, golden, 'OpenAIGPTModel')
    (tmp_path / 'model.safetensors.index.json').write_text('{')
    store.open_model(uri)
    split(tmp_path)
    for name in ('pytorch_model.bin', 'pytorch_model.bin.index.json'):
        (tmp_path / name).write_text('{')
    store.open_model(uri)
    (tmp_path / 'model.safetensors.index.json').unlink()
    refuses(uri, 'pytorch_model.bin: ')
    (tmp_path / 'pytorch_model.bin').unlink()
    refuses(uri, 'pytorch_model.bin.index.json: The file is damaged')
    (tmp_path / 'pytorch_model.bin.index.json').unlink()
    refuses(uri, 'neither model.safetensors nor pytorch_model.bin', '.index.json')


def test_a_head_alone_is_called_by_its_name(tmp_path, golden):
    save_as(tmp_path, golden, 'OpenAIGPTDoubleHeadsModel of 5.24', vocab_size=47)
    refuses(f'hf:{tmp_path}', 'lm_head.weight', '[50, 16]', '[47, 16]')


TABLE, INDEX = 'tokens_embed.weight', 'model.safetensors.index.json'
FIRST, LAST = 'model-00001-of-00003.safetensors', 'model-00003-of-00003.safetensors'


def put(file):
    """Puts the token table, which is in the second file, into another file as the index has it."""
    return lambda f: edit(f / INDEX, lambda index: index['weight_map'].update({TABLE: file}) or index)


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (lambda f: (f / LAST).unlink(), [f'{LAST}: The file is missing', f'{INDEX} names it']),
        (put('model-4.safetensors'), ['model-4.safetensors: The file is missing']),
        (put(FIRST), [f'{FIRST}: The file lacks {TABLE}', INDEX]),
        (put('../other/model.safetensors'), ["'../other/model.safetensors'", 'not in the same folder']),
        (put('other/model.safetensors'), ["'other/model.safetensors'", 'not in the same folder']),
        (put(5), [INDEX, 'damaged', TABLE]),
        (lambda f: edit(f / INDEX, lambda index: index['weight_map']), ['damaged', "lacks 'weight_map'"]),
        (lambda f: (f / INDEX).write_text('{"weight_map": {'), ['damaged']),
        (
            lambda f: edit(f / INDEX, lambda index: index['weight_map'].pop(TABLE) and index),
            [f'{INDEX}: The file lacks arrays: {TABLE}'],
        ),
        (lambda f: (f / LAST).write_bytes((f / LAST).read_bytes()[:-1]), [LAST, 'damaged']),
        (put('config.json'), ['config.json', 'damaged']),
    ],
)
def test_wrong_indexes_are_named(tmp_path, golden, damage, words):
    uri = save_as(tmp_path / 'model', golden, 'OpenAIGPTModel')
    (tmp_path / 'other').mkdir()
    (tmp_path / 'model' / 'other').mkdir()
    for folder in (tmp_path / 'other', tmp_path / 'model' / 'other'):  # whose files could be read
        (folder / 'model.safetensors').write_bytes((tmp_path / 'model' / 'model.safetensors').read_bytes())
    split(tmp_path / 'model')
    store.open_model(uri)
    damage(tmp_path / 'model')
    refuses(uri, *words)


def test_an_absolute_path_in_an_index_is_refused(tmp_path, golden):
    uri = save_as(tmp_path, golden, 'OpenAIGPTModel')
    elsewhere = (tmp_path / 'model.safetensors').rename(tmp_path / 'elsewhere')
    (tmp_path / INDEX).write_text(
        json.dumps({'weight_map': dict.fromkeys(safetensors.numpy.load_file(elsewhere), str(elsewhere))})
    )
    refuses(uri, str(elsewhere), 'not in the same folder')


def test_an_index_of_safetensors_never_leads_to_a_pickle(tmp_path, golden, monkeypatch):
    uri = save_as(tmp_path, golden, 'OpenAIGPTModel')
    split(tmp_path)
    (tmp_path / 'more.bin').write_bytes(b'\x80\x02}q\x00.')  # an empty dict, pickled
    put('more.bin')(tmp_path)
    loaded = install_torch(monkeypatch)
    refuses(uri, 'more.bin', 'damaged')
    assert not loaded


@pytest.mark.parametrize('keep', [0, 5, 100, -1])
def test_a_damaged_safetensors_file_is_named(tmp_path, golden, keep):
    uri = write_checkpoint(
        tmp_path,
        {name: array for name, array in golden_weights(golden).items() if not name.startswith(('score', 'multiple'))},
    )
    break_file(tmp_path / 'model.safetensors', keep)
    refuses(uri, 'model.safetensors', 'damaged')
    (tmp_path / 'model.safetensors').unlink()
    refuses(uri, 'neither model.safetensors nor pytorch_model.bin')
    (tmp_path / 'config.json').write_text('{')
    refuses(uri, 'config.json', 'damaged')
    (tmp_path / 'config.json').unlink()
    refuses(uri, 'no config.json')


def test_a_pickle_is_not_read_without_torch(tmp_path, golden, monkeypatch):
    uri = write_checkpoint(tmp_path, {})
    (tmp_path / 'model.safetensors').rename(tmp_path / 'pytorch_model.bin')
    original = builtins.__import__

    def without_torch(name, *args, **kwargs):
        if name == 'torch':
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without_torch)
    refuses(uri, 'pytorch_model.bin', 'model.safetensors')
