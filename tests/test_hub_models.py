"""Models by their names on the hub."""

import numpy as np
import pytest

from gpt1_jax.errors import UserError
from gpt1_jax.saved_models import hub_models, huggingface, store
from models import assert_same_bits, assert_same_model, make, make_model, read, released_tokenizer

NAME = 'someone/some-model'


@pytest.fixture
def folder(tmp_path):
    """A model as transformers writes it, with what else repositories hold."""
    saved, params = make_model(np.random.default_rng(0), released_tokenizer(tmp_path / 'vocabulary', 60), 0)
    huggingface.write_folder(make(tmp_path / 'folder'), saved, params)
    for name in ('pytorch_model.bin', 'tf_model.h5', 'generation_config.json'):
        (tmp_path / 'folder' / name).write_bytes(b'x')
    return tmp_path / 'folder'


def upload(server, folder, **kwargs):
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    return server.add(NAME, files, **kwargs)


def fetched(server):
    return {path.rpartition('/')[2] for path in server.fetched()}


def test_a_name_is_as_good_as_its_folder(hub_server, folder):
    upload(hub_server, folder)
    saved, params = read(f'hf:{folder}')
    again, back = read(f'hf:{NAME}')
    assert_same_model(again, saved)
    assert_same_bits(back, params)
    assert fetched(hub_server) == {
        'config.json',
        'model.safetensors',
        'vocab.json',
        'merges.txt',
        'tokenizer_config.json',
    }


def test_a_local_folder_of_the_name_is_taken_first(hub_server, folder, tmp_path, monkeypatch):
    (tmp_path / 'someone').mkdir()
    folder.rename(tmp_path / 'someone' / 'some-model')
    monkeypatch.chdir(tmp_path)
    assert str(store.open_model(f'hf:{NAME}').directory) == NAME
    assert hub_server.asked == []


def test_a_revision(hub_server, folder):
    upload(hub_server, folder, revision='v1')
    (folder / 'config.json').write_text('{"model_type": "bert"}')
    upload(hub_server, folder)
    assert store.open_model(f'hf:{NAME}@v1').vocab_size == 60
    with pytest.raises(UserError, match="another architecture, model_type 'bert'"):
        store.open_model(f'hf:{NAME}')


def test_another_model_is_noticed_before_its_weights_are_fetched(hub_server):
    hub_server.add(NAME, {'config.json': b'{"model_type": "llama"}', 'model.safetensors': b'x' * 1000})
    with pytest.raises(UserError, match="another architecture, model_type 'llama'"):
        store.open_model(f'hf:{NAME}')
    assert fetched(hub_server) == {'config.json'}
    hub_server.add('someone/empty', {'README.md': b''})
    with pytest.raises(UserError, match='hf:someone/empty: The repository has no config.json'):
        store.open_model('hf:someone/empty')


def test_no_network(hub_server):
    hub_server.shutdown()
    hub_server.server_close()
    with pytest.raises(UserError, match=r'^hf:openai-community/openai-gpt: There is no such folder here.*hf download'):
        store.open_model('hf:openai-community/openai-gpt')


def test_what_is_no_name_is_a_folder(hub_server):
    for uri in ('hf:/nowhere/at/all', 'hf:openai-gpt', 'hf:a/b/c', f'hf:{NAME}:config'):
        with pytest.raises(UserError, match='There is no config.json'):
            store.open_model(uri)
    assert hub_server.asked == []


@pytest.mark.parametrize(
    ('names', 'weights'),
    [
        (['model.safetensors', 'model-00001-of-00002.safetensors', 'pytorch_model.bin'], ['model.safetensors']),
        (
            ['model.safetensors.index.json', 'model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
            + ['pytorch_model.bin'],
            ['model.safetensors.index.json', 'model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'],
        ),
        (['pytorch_model.bin', 'flax_model.msgpack', 'onnx/model.onnx'], ['pytorch_model.bin']),
        (
            ['pytorch_model.bin.index.json', 'pytorch_model-00001-of-00001.bin', 'x.safetensors'],
            ['pytorch_model.bin.index.json', 'pytorch_model-00001-of-00001.bin'],
        ),
        (['tf_model.h5'], []),
    ],
)
def test_which_files(names, weights):
    small = ['vocab.json', 'merges.txt', 'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json']
    others = ['README.md', 'config.json', 'sentencepiece/model', 'eval/vocab.json', 'generation_config.json']
    found = hub_models.files([*names, *small, *others])
    assert sorted(found) == sorted(['config.json', *small, 'sentencepiece/model', *weights])
