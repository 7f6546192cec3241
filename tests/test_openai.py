"""The release's files: their shapes, any chunks, and every way in which they can be wrong."""

import json
import math

import numpy as np
import pytest
from etils import epath

from gpt1_jax.saved_models import openai, store
from models import (
    HEADS,
    assert_same_bits,
    break_file,
    edit,
    make,
    make_model,
    read,
    refuses,
    released_tokenizer,
    write_vocabulary,
)


def test_the_release_shapes(tmp_path, sentencepiece):
    """The list of PAPER section 3, at another size."""
    saved, params = make_model(np.random.default_rng(0), sentencepiece)
    openai.write_folder(make(tmp_path / 'model'), saved, params)
    layer = [[1, 16, 48], [48], [1, 16, 16], [16], [16], [16], [1, 16, 64], [64], [1, 64, 16], [16], [16], [16]]
    shapes = json.loads((tmp_path / 'model' / 'params_shapes.json').read_text())
    assert shapes == [[16, 16], [290, 16], *layer, *layer]
    flat = np.concatenate([np.load(tmp_path / 'model' / f'params_{i}.npy', allow_pickle=False) for i in range(10)])
    assert flat.dtype == np.float32 and flat.shape == (sum(map(math.prod, shapes)),)
    positions, tokens = flat[:256].reshape(16, 16), flat[256 : 256 + 290 * 16].reshape(290, 16)
    np.testing.assert_array_equal(params['decoder']['table'], np.concatenate([tokens, positions]))
    # Columns q|k|v of the first layer's c_attn, and the last layer's gain and bias at the end.
    c_attn = flat[256 + 290 * 16 :][: 16 * 48].reshape(16, 48)
    kernel = params['decoder']['blocks']['attention']['qkv_kernel'][0]
    for i in range(3):
        np.testing.assert_array_equal(c_attn[:, 16 * i : 16 * (i + 1)], kernel[:, i].reshape(16, 16))
    norm = params['decoder']['blocks']['norm_2']
    np.testing.assert_array_equal(flat[-32:], np.concatenate([norm['scale'][1], norm['bias'][1]]))


@pytest.mark.parametrize('cuts', [[], [0, 0, 7], [1, 255, 256, 257, 5000, 5001], list(range(0, 11000, 37))])
def test_any_chunk_sizes(tmp_path, sentencepiece, cuts):
    saved, params = make_model(np.random.default_rng(0), sentencepiece)
    folder = make(tmp_path / 'model')
    openai.write_folder(folder, saved, params)
    flat = np.concatenate([np.load(folder / f'params_{i}.npy') for i in range(10)])
    for i in range(10):
        (folder / f'params_{i}.npy').unlink()
    for i, chunk in enumerate(np.split(flat, cuts)):
        np.save(folder / f'params_{i}.npy', chunk)
    assert_same_bits(read(f'openai:{folder}')[1], params)


@pytest.mark.parametrize('heads', [1, 2])
def test_the_release_has_heads_of_64(tmp_path, sentencepiece, heads):
    saved, params = make_model(np.random.default_rng(0), sentencepiece, width=64 * heads, heads=heads)
    openai.write_folder(make(tmp_path / 'model'), saved, params)
    assert not (tmp_path / 'model' / 'hparams.json').exists()
    again, back = read(f'openai:{tmp_path / "model"}')
    assert again.architecture.sizes['heads'] == heads
    assert_same_bits(back, params)


def test_openai_export_leaves_out_special_rows_and_head(tmp_path, sentencepiece):
    saved, params = make_model(np.random.default_rng(0), sentencepiece, 3, HEADS[1])
    openai.write_folder(make(tmp_path / 'model'), saved, params)
    again, back = read(f'openai:{tmp_path / "model"}')
    assert again.n_special == 0 and again.head is None and back.keys() == {'decoder'}
    table = params['decoder']['table']
    assert_same_bits(back['decoder'], params['decoder'] | {'table': np.concatenate([table[:290], table[293:]])})


def wrong(value, index, shape):
    return value[:index] + [shape] + value[index + 1 :]


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (lambda f: (f / 'params_3.npy').unlink(), ['params_3.npy: The file is missing']),
        (lambda f: (f / 'params_9.npy').unlink(), ['9 files', 'params_shapes.json lists']),
        (lambda f: break_file(f / 'params_4.npy', -8), ['params_4.npy', 'truncated']),
        (lambda f: break_file(f / 'params_4.npy', 9), ['params_4.npy', 'truncated']),
        (lambda f: break_file(f / 'params_4.npy', 0), ['params_4.npy', 'truncated']),
        (lambda f: np.save(f / 'params_4.npy', np.array([{}]), allow_pickle=True), ['params_4.npy']),
        (lambda f: np.save(f / 'params_4.npy', np.zeros(3)), ['params_4.npy', 'float64']),
        (lambda f: np.save(f / 'params_4.npy', np.zeros((3, 1), np.float32)), ['params_4.npy', '[3, 1]']),
        (lambda f: np.save(f / 'params_10.npy', np.zeros(1, np.float32)), ['11 files']),
        (lambda f: (f / 'params_shapes.json').unlink(), ['no params_shapes.json']),
        (lambda f: break_file(f / 'params_shapes.json', 40), ['params_shapes.json', 'damaged']),
        (lambda f: edit(f / 'params_shapes.json', lambda s: s[:-1]), ['params_shapes.json']),
        (lambda f: edit(f / 'params_shapes.json', lambda s: [s[1], s[0], *s[2:]]), ['vocabulary', '290', '16']),
        (
            lambda f: edit(f / 'params_shapes.json', lambda s: wrong(s, 4, [1, 8, 32])),
            ['Shape 4', 'h.0.attn.c_proj.weight'],
        ),
        (lambda f: edit(f / 'params_shapes.json', lambda s: s[:2] + s[14:]), ['params_shapes.json lists']),
        (lambda f: edit(f / 'hparams.json', lambda h: {'n_head': 3}), ['3 heads']),
        (lambda f: edit(f / 'hparams.json', lambda h: {}), ['hparams.json', 'n_head']),
        (lambda f: (f / 'hparams.json').unlink(), ['hparams.json', 'width of 16']),
        (lambda f: (f / 'sentencepiece').rmtree(), ['tokenizer']),
    ],
)
def test_wrong_openai_folders_are_named(tmp_path, sentencepiece, damage, words):
    folder = make(tmp_path / 'model')
    saved, params = make_model(np.random.default_rng(0), sentencepiece)
    openai.write_folder(folder, saved, params)
    store.open_model(f'openai:{folder}')
    damage(folder)
    refuses(f'openai:{folder}', *words)


def test_an_openai_folder_with_another_vocabulary_is_refused(tmp_path):
    folder = make(tmp_path / 'model')
    saved, params = make_model(np.random.default_rng(0), released_tokenizer(epath.Path(tmp_path / 'v'), 60))
    openai.write_folder(folder, saved, params)
    write_vocabulary(folder, 61, ('encoder_bpe_40000.json', 'vocab_40000.bpe'))
    refuses(f'openai:{folder}', '61', '60')
