"""Foreign weight files: bit for bit there and back, transformers' numbers, and every way in which they can be wrong."""

import builtins
import itertools
import json
import math

import flax.linen as nn
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from test_reference import GOLDEN

from gpt1_jax import config as common
from gpt1_jax.data import tokenizers
from gpt1_jax.errors import UserError
from gpt1_jax.model.heads import ClassifierHead
from gpt1_jax.model.transformer import Decoder
from gpt1_jax.training import transfer
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import params_initialiser
from gpt1_jax.weights import Source, huggingface, openai

SIZES = dict(layers=2, width=16, heads=4, mlp_width=64, n_positions=16)


def write_vocabulary(folder, size, names=('vocab.json', 'merges.txt')):
    """A vocabulary of `size` tokens in the release's format: 20 letters, alone and at a word's end; merges; newline."""
    letters = 'abcdefghijklmnopqrst'
    pairs = itertools.product(letters, [*letters, *(f'{letter}</w>' for letter in letters)])
    merges = list(itertools.islice(pairs, size - 42))
    tokens = ['<unk>', *letters, *(f'{letter}</w>' for letter in letters), *(a + b for a, b in merges), '\n</w>']
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / names[1]).write_text('\n'.join(['#version: 0.2', *(f'{a} {b}' for a, b in merges)]) + '\n')


def released_tokenizer(folder, size):
    write_vocabulary(folder, size)
    return tokenizers.load_tokenizer(folder)


@pytest.fixture(scope='module')
def sentencepiece():
    words = 'ship sail wave anchor cow field plough barn'.split()
    return tokenizers.train_sentencepiece([' '.join(words[i % 8:] + words[:i % 5]) for i in range(50)], 290)


def any_bits(rng, shape):
    """float32 of every kind: not-a-numbers, infinities, denormals and both zeros among them."""
    return rng.integers(0, 2**32, shape, np.uint32).view(np.float32)


def make_model(rng, tokenizer, n_special=0, head=None, draw=any_bits, **sizes):
    """(Source without `read`, NumPy parameters) of random values."""
    architecture = SIZES | sizes
    model = Decoder(vocab_size=tokenizer.vocab_size, n_special=n_special, **architecture)
    boxed = jax.eval_shape(params_initialiser(model, head and ClassifierHead(**head)), jax.random.key(0))
    params = jax.tree.map(lambda leaf: draw(rng, leaf.shape), nn.unbox(boxed))
    return Source(epath.Path('made'), architecture, tokenizer.vocab_size, n_special, head, tokenizer, None), params


def read(place):
    """(source, parameters) through the path that every task takes."""
    source = transfer.open_source(place)
    partitioner = Partitioner('dp', (1, 1, 1), jax.devices()[:1])
    return source, jax.device_get(transfer.load_model(source, common.model_defaults(), partitioner)[2])


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other)):
        assert a.dtype == b.dtype == np.float32 and a.shape == b.shape, path
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32), err_msg=jax.tree_util.keystr(path))


HEADS = [None, {'kind': 'classification', 'classes': 3}, {'kind': 'entailment', 'classes': 2},
         {'kind': 'similarity', 'classes': 6}, {'kind': 'multiple_choice', 'classes': 1}]


@pytest.mark.parametrize('seed', range(10))
def test_export_then_import_is_the_identity(tmp_path, sentencepiece, seed):
    rng = np.random.default_rng(seed)
    heads, head_dim = (int(n) for n in rng.integers(1, 5, 2))
    width = heads * head_dim
    sizes = dict(layers=int(rng.integers(1, 4)), width=width, heads=heads, n_positions=int(rng.integers(1, 20)))
    released = released_tokenizer(epath.Path(tmp_path / 'vocabulary'), int(rng.integers(43, 200)))
    tokenizer = (released, sentencepiece)[seed % 2]

    head = HEADS[seed // 2]
    source, params = make_model(rng, tokenizer, 3 if head else 0, head, mlp_width=4 * width, **sizes)
    huggingface.write_folder(make(tmp_path / 'hf'), source, params)
    again, back = read(f'hf:{tmp_path / "hf"}')
    assert_same_bits(back, params)
    assert again._replace(directory=source.directory, tokenizer=tokenizer, read=None) == source
    assert again.tokenizer.fingerprint == tokenizer.fingerprint

    source, params = make_model(rng, tokenizer, mlp_width=int(rng.integers(1, 40)), **sizes)
    openai.write_folder(make(tmp_path / 'openai'), source, params)
    again, back = read(f'openai:{tmp_path / "openai"}')
    assert_same_bits(back, params)
    assert again._replace(directory=source.directory, tokenizer=tokenizer, read=None) == source
    assert again.tokenizer.fingerprint == tokenizer.fingerprint


def make(folder):
    folder.mkdir()
    return epath.Path(folder)


def test_the_release_shapes(tmp_path, sentencepiece):
    """The list of PAPER section 3, at another size."""
    source, params = make_model(np.random.default_rng(0), sentencepiece)
    openai.write_folder(make(tmp_path / 'model'), source, params)
    layer = [[1, 16, 48], [48], [1, 16, 16], [16], [16], [16], [1, 16, 64], [64], [1, 64, 16], [16], [16], [16]]
    shapes = json.loads((tmp_path / 'model' / 'params_shapes.json').read_text())
    assert shapes == [[16, 16], [290, 16], *layer, *layer]
    flat = np.concatenate([np.load(tmp_path / 'model' / f'params_{i}.npy', allow_pickle=False) for i in range(10)])
    assert flat.dtype == np.float32 and flat.shape == (sum(map(math.prod, shapes)),)
    positions, tokens = flat[:256].reshape(16, 16), flat[256:256 + 290 * 16].reshape(290, 16)
    np.testing.assert_array_equal(params['decoder']['table'], np.concatenate([tokens, positions]))
    # Columns q|k|v of the first layer's c_attn, and the last layer's gain and bias at the end.
    c_attn = flat[256 + 290 * 16:][:16 * 48].reshape(16, 48)
    kernel = params['decoder']['blocks']['attention']['qkv_kernel'][0]
    for i in range(3):
        np.testing.assert_array_equal(c_attn[:, 16 * i:16 * (i + 1)], kernel[:, i].reshape(16, 16))
    norm = params['decoder']['blocks']['norm_2']
    np.testing.assert_array_equal(flat[-32:], np.concatenate([norm['scale'][1], norm['bias'][1]]))


@pytest.mark.parametrize('cuts', [[], [0, 0, 7], [1, 255, 256, 257, 5000, 5001], list(range(0, 11000, 37))])
def test_any_chunk_sizes(tmp_path, sentencepiece, cuts):
    source, params = make_model(np.random.default_rng(0), sentencepiece)
    folder = make(tmp_path / 'model')
    openai.write_folder(folder, source, params)
    flat = np.concatenate([np.load(folder / f'params_{i}.npy') for i in range(10)])
    for i in range(10):
        (folder / f'params_{i}.npy').unlink()
    for i, chunk in enumerate(np.split(flat, cuts)):
        np.save(folder / f'params_{i}.npy', chunk)
    assert_same_bits(read(f'openai:{folder}')[1], params)


def test_the_release_has_heads_of_64(tmp_path, sentencepiece):
    source, params = make_model(np.random.default_rng(0), sentencepiece, width=128, heads=2)
    openai.write_folder(make(tmp_path / 'model'), source, params)
    assert not (tmp_path / 'model' / 'hparams.json').exists()
    assert transfer.open_source(f'openai:{tmp_path / "model"}').architecture['heads'] == 2


def test_openai_export_leaves_out_special_rows_and_head(tmp_path, sentencepiece):
    source, params = make_model(np.random.default_rng(0), sentencepiece, 3, HEADS[1])
    openai.write_folder(make(tmp_path / 'model'), source, params)
    again, back = read(f'openai:{tmp_path / "model"}')
    assert again.n_special == 0 and again.head is None and back.keys() == {'decoder'}
    table = params['decoder']['table']
    assert_same_bits(back['decoder'], params['decoder'] | {'table': np.concatenate([table[:290], table[293:]])})


# Hugging Face checkpoints


@pytest.fixture(scope='module')
def golden():
    with np.load(GOLDEN, allow_pickle=False) as file:
        return dict(file)


CONFIG = dict(model_type='openai-gpt', vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=4, afn='gelu')


def golden_weights(golden):
    return {name.removeprefix('weights/'): array for name, array in golden.items() if name.startswith('weights/')}


def write_checkpoint(folder, tensors, vocabulary=50, **changes):
    """A checkpoint as transformers writes it; returns its place."""
    write_vocabulary(folder, vocabulary)
    (folder / 'config.json').write_text(json.dumps(CONFIG | changes))
    safetensors.numpy.save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    return f'hf:{folder}'


def hidden_of(place, tokens):
    source = transfer.open_source(place)
    partitioner = Partitioner('dp', (1, 1, 1), jax.devices()[:1])
    model, head, params = transfer.load_model(source, common.model_defaults(), partitioner)
    return source, head, params, model.apply({'params': params['decoder']}, tokens).hidden


def assert_close(actual, expected):
    """Within 1e-5 of the largest."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize('prefix', ['', 'transformer.'])
def test_logits_equal_those_of_transformers(tmp_path, golden, prefix):
    tensors = {prefix + name: array for name, array in golden_weights(golden).items()
               if not name.startswith(('score', 'multiple'))}
    tensors |= {'lm_head.weight': tensors[f'{prefix}tokens_embed.weight'],  # as older versions wrote
                f'{prefix}h.0.attn.bias': np.tril(np.ones((1, 1, 16, 16), np.uint8)),
                f'{prefix}position_ids': np.arange(16)}
    source, head, params, hidden = hidden_of(write_checkpoint(tmp_path, tensors), golden['tokens'].reshape(-1, 12))
    assert head is None and source.n_special == 0
    assert_close(hidden @ params['decoder']['table'][:50].T, golden['logits'])


def test_head_logits_equal_those_of_transformers(tmp_path, golden):
    """Of 50 rows the last three are special where the vocabulary has 47 tokens."""
    tensors, tokens = golden_weights(golden), golden['tokens'].reshape(-1, 12)
    scores = {name: array for name, array in tensors.items() if not name.startswith('multiple')}
    source, head, params, hidden = hidden_of(write_checkpoint(tmp_path / 'scores', scores, 47), tokens)
    assert source.n_special == 3 and source.head == {'kind': 'classification', 'classes': 3}
    assert_close(head.apply({'params': params['head']}, hidden[:, -1:]), golden['class_logits'])
    choices = {name: array for name, array in tensors.items() if not name.startswith('score')}
    source, head, params, hidden = hidden_of(write_checkpoint(tmp_path / 'choices', choices, 47), tokens)
    assert source.head == {'kind': 'multiple_choice', 'classes': 1}
    states = hidden[:, -1].reshape(2, 2, 16)
    assert_close(head.apply({'params': params['head']}, states), golden['choice_logits'])


def test_a_head_without_special_rows_is_of_no_use(tmp_path, golden):
    place = write_checkpoint(tmp_path, {name: array for name, array in golden_weights(golden).items()
                                        if not name.startswith('score')})
    assert transfer.open_source(place).head is None


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32(tmp_path, golden, dtype):
    tensors = {name: array.astype(dtype) for name, array in golden_weights(golden).items()
               if not name.startswith(('score', 'multiple'))}
    table = read(write_checkpoint(tmp_path, tensors))[1]['decoder']['table']
    expected = np.concatenate([tensors['tokens_embed.weight'], tensors['positions_embed.weight']]).astype(np.float32)
    assert_same_bits(table, expected)


# What can be wrong


def refuses(place, *words):
    with pytest.raises(UserError) as error:
        transfer.open_source(place)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert '\n' not in message


def break_file(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[:keep])


def edit(path, change):
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value)))


def wrong(value, index, shape):
    return value[:index] + [shape] + value[index + 1:]


@pytest.mark.parametrize(('damage', 'words'), [
    (lambda f: (f / 'params_3.npy').unlink(), ['params_3.npy is missing']),
    (lambda f: (f / 'params_9.npy').unlink(), ['9 files', 'params_shapes.json lists']),
    (lambda f: break_file(f / 'params_4.npy', -8), ['params_4.npy', 'truncated']),
    (lambda f: break_file(f / 'params_4.npy', 9), ['params_4.npy', 'truncated']),
    (lambda f: break_file(f / 'params_4.npy', 0), ['params_4.npy', 'truncated']),
    (lambda f: np.save(f / 'params_4.npy', np.array([{}]), allow_pickle=True), ['params_4.npy']),
    (lambda f: np.save(f / 'params_4.npy', np.zeros(3)), ['params_4.npy', 'float64']),
    (lambda f: np.save(f / 'params_4.npy', np.zeros((3, 1), np.float32)), ['params_4.npy', '[3, 1]']),
    (lambda f: np.save(f / 'params_10.npy', np.zeros(1, np.float32)), ['11 files']),
    (lambda f: (f / 'params_shapes.json').unlink(), ['no params_shapes.json']),
    (lambda f: break_file(f / 'params_shapes.json', 40), ['params_shapes.json', 'not a list']),
    (lambda f: edit(f / 'params_shapes.json', lambda s: s[:-1]), ['params_shapes.json']),
    (lambda f: edit(f / 'params_shapes.json', lambda s: [s[1], s[0], *s[2:]]), ['vocabulary', '290', '16']),
    (lambda f: edit(f / 'params_shapes.json', lambda s: wrong(s, 4, [1, 8, 32])),
     ['shape 4', 'h.0.attn.c_proj.weight']),
    (lambda f: edit(f / 'params_shapes.json', lambda s: s[:2] + s[14:]), ['params_shapes.json lists']),
    (lambda f: edit(f / 'hparams.json', lambda h: {'n_head': 3}), ['3 heads']),
    (lambda f: edit(f / 'hparams.json', lambda h: {}), ['hparams.json', 'n_head']),
    (lambda f: (f / 'hparams.json').unlink(), ['hparams.json', 'width of 16']),
    (lambda f: (f / 'sentencepiece').rmtree(), ['tokenizer']),
])
def test_wrong_openai_folders_are_named(tmp_path, sentencepiece, damage, words):
    folder = make(tmp_path / 'model')
    source, params = make_model(np.random.default_rng(0), sentencepiece)
    openai.write_folder(folder, source, params)
    transfer.open_source(f'openai:{folder}')
    damage(folder)
    refuses(f'openai:{folder}', *words)


def test_an_openai_folder_with_another_vocabulary_is_refused(tmp_path):
    folder = make(tmp_path / 'model')
    source, params = make_model(np.random.default_rng(0), released_tokenizer(epath.Path(tmp_path / 'v'), 60))
    openai.write_folder(folder, source, params)
    write_vocabulary(folder, 61, ('encoder_bpe_40000.json', 'vocab_40000.bpe'))
    refuses(f'openai:{folder}', '61', '60')


@pytest.mark.parametrize(('change', 'words'), [
    (dict(model_type='gpt2'), ["'gpt2'", 'openai-gpt']),
    (dict(afn='relu'), ['afn', "'relu'"]),
    (dict(layer_norm_epsilon=1e-6), ['layer_norm_epsilon']),
    (dict(tie_word_embeddings=False), ['tie_word_embeddings']),
    (dict(n_head=5), ['5 heads']),
    (dict(n_layer=0), ['n_layer']),
    (dict(n_embd='16'), ['n_embd']),
    (dict(vocab_size=51), ['vocabulary', '50', '51']),
    (dict(vocab_size=53), ['tokens_embed.weight', '[50, 16]', '[53, 16]']),
    (dict(n_layer=3), ['lacks', 'h.2.attn.c_attn.weight', 'and 9 more']),
    (dict(n_layer=1), ['h.1.attn.c_attn.bias', 'beside']),
    (dict(n_positions=8), ['positions_embed.weight', '[8, 16]']),
])
def test_wrong_configs_are_named(tmp_path, golden, change, words):
    tensors = {name: array for name, array in golden_weights(golden).items()
               if not name.startswith(('score', 'multiple'))}
    transfer.open_source(write_checkpoint(tmp_path, tensors))
    refuses(write_checkpoint(tmp_path, tensors, **change), *words)


@pytest.mark.parametrize(('change', 'words'), [
    (lambda t: t.pop('h.1.ln_2.bias'), ['lacks h.1.ln_2.bias']),
    (lambda t: t.update({'adapter.weight': np.zeros(3, np.float32)}), ['adapter.weight', 'beside']),
    (lambda t: t.update({'h.0.ln_1.bias': np.zeros(3, np.float32)}), ['h.0.ln_1.bias', '[3]', '[16]']),
    (lambda t: t.update({'h.0.ln_1.bias': np.zeros(16, np.int8)}), ['h.0.ln_1.bias', 'I8']),
    (lambda t: t.update({'transformer.h.0.ln_1.bias': np.zeros(16, np.float32)}), ['both', 'h.0.ln_1.bias']),
    (lambda t: t.update({'lm_head.weight': t['tokens_embed.weight'] + 1}), ['lm_head.weight', 'tied']),
])
def test_wrong_tensors_are_named(tmp_path, golden, change, words):
    tensors = {name: array for name, array in golden_weights(golden).items()
               if not name.startswith(('score', 'multiple'))}
    change(tensors)
    refuses(write_checkpoint(tmp_path, tensors), *words)


@pytest.mark.parametrize('keep', [0, 5, 100, -1])
def test_a_damaged_safetensors_file_is_named(tmp_path, golden, keep):
    place = write_checkpoint(tmp_path, {name: array for name, array in golden_weights(golden).items()
                                        if not name.startswith(('score', 'multiple'))})
    break_file(tmp_path / 'model.safetensors', keep)
    refuses(place, 'model.safetensors', 'damaged')
    (tmp_path / 'model.safetensors').unlink()
    refuses(place, 'neither model.safetensors nor pytorch_model.bin')
    (tmp_path / 'config.json').write_text('{')
    refuses(place, 'config.json', 'damaged')
    (tmp_path / 'config.json').unlink()
    refuses(place, 'no config.json')


def test_a_pickle_is_not_read_without_torch(tmp_path, golden, monkeypatch):
    place = write_checkpoint(tmp_path, {})
    (tmp_path / 'model.safetensors').rename(tmp_path / 'pytorch_model.bin')
    original = builtins.__import__

    def without_torch(name, *args, **kwargs):
        if name == 'torch':
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without_torch)
    refuses(place, 'pytorch_model.bin', 'model.safetensors')


@pytest.mark.parametrize('place', ['hf:gs://bucket/model', 'openai:gs://bucket/model'])
def test_remote_folders_are_refused(place):
    refuses(place, 'local')


def test_what_transformers_cannot_describe_is_refused(tmp_path, sentencepiece):
    source, params = make_model(np.random.default_rng(0), sentencepiece, mlp_width=32)
    with pytest.raises(UserError, match='mlp_width 32'):
        huggingface.write_folder(make(tmp_path / 'hf'), source, params)
    assert not list((tmp_path / 'hf').iterdir())
