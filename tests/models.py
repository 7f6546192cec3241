"""Models, parameters and saved models that several test files need."""

import itertools
import json
import random
import re

import jax
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

import reference
from configs import common
from gpt1_jax.data.tokenizers.loading import load_tokenizer
from gpt1_jax.data.tokenizers.sentence_piece import train_sentencepiece
from gpt1_jax.errors import UserError
from gpt1_jax.model.architecture import Architecture
from gpt1_jax.model.classifier import Classifier, ClassifierHead
from gpt1_jax.model.lstm import LSTM
from gpt1_jax.model.transformer import Decoder
from gpt1_jax.saved_models import store
from gpt1_jax.saved_models.parameters import SavedModel
from gpt1_jax.training.checkpoint import Checkpointer
from gpt1_jax.training.partitioning import Partitioner, unbox
from helpers import some_words

# Between the reference's parameters and the package's: the same arrays, other shapes.

_NAMES = {
    ('norm_1', 'scale'): 'ln_1_g',
    ('norm_1', 'bias'): 'ln_1_b',
    ('norm_2', 'scale'): 'ln_2_g',
    ('norm_2', 'bias'): 'ln_2_b',
    ('mlp', 'in', 'kernel'): 'c_fc_w',
    ('mlp', 'in', 'bias'): 'c_fc_b',
    ('mlp', 'out', 'kernel'): 'mlp_proj_w',
    ('mlp', 'out', 'bias'): 'mlp_proj_b',
    ('attention', 'qkv_kernel'): 'c_attn_w',
    ('attention', 'qkv_bias'): 'c_attn_b',
    ('attention', 'out_kernel'): 'c_proj_w',
    ('attention', 'out_bias'): 'c_proj_b',
}
SIZES = dict(vocab=40, n_special=3, n_positions=16, width=16, layers=2, heads=4, mlp=32)
# So small that the reference can afford whole gradients.
TINY = dict(vocab=9, n_special=3, n_positions=8, width=4, layers=2, heads=2, mlp=8)


def random_params(seed=0, classes=2, sizes=SIZES, **changes):
    """float64 reference parameters."""
    return reference.init_params(np.random.default_rng(seed), classes=classes, **sizes | changes)


def shape(sizes):
    """The attributes that a model of any kind takes from the sizes of a reference."""
    names = {'vocab_size': 'vocab', 'n_special': 'n_special', 'n_positions': 'n_positions', 'width': 'width'}
    return {name: sizes[key] for name, key in names.items()}


def decoder(sizes=SIZES, **changes):
    """The package's model, without dropout."""
    values = shape(sizes) | dict(
        layers=sizes['layers'],
        heads=sizes['heads'],
        mlp_width=sizes['mlp'],
        dropout=0.0,
        attention_dropout=0.0,
        residual_dropout=0.0,
    )
    return Decoder(**values | changes)


def lstm(sizes=SIZES, **changes):
    """The package's LSTM of as many units as `mlp`, without dropout."""
    values = shape(sizes) | dict(layers=1, units=sizes['mlp'], dropout=0.0, residual_dropout=0.0)
    return LSTM(**values | changes)


def random_lstm_params(seed=0, sizes=SIZES):
    """float64 reference parameters of `lstm`; its own are the same arrays."""
    names = dict(vocab=sizes['vocab'], n_special=sizes['n_special'], width=sizes['width'], units=sizes['mlp'])
    return reference.lstm_params(np.random.default_rng(seed), **names)


def from_reference(params, heads=SIZES['heads']):
    """Reference parameters (or gradients) -> {'decoder': ..., 'head': ...} in float32."""
    width = params['table'].shape[1]
    shapes = {
        'c_attn_w': (width, 3, heads, width // heads),
        'c_attn_b': (3, heads, width // heads),
        'c_proj_w': (heads, width // heads, width),
    }
    blocks = {}
    for path, name in _NAMES.items():
        node = blocks
        for key in path[:-1]:
            node = node.setdefault(key, {})
        stacked = np.stack([layer[name] for layer in params['layers']])
        node[path[-1]] = stacked.reshape(len(stacked), *shapes.get(name, stacked.shape[1:]))
    tree = {
        'decoder': {'table': params['table'], 'blocks': blocks},
        'head': {'kernel': params['head_w'], 'bias': params['head_b']},
    }
    return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)


def without_invariant(tree):
    """`tree` with the biases zeroed that a softmax does not see, of the keys and of the scores of choices: their
    gradient is exactly 0, so that what Adam makes of it is rounding."""

    def zeroed(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        if name.endswith('qkv_bias'):
            return x * np.array([1, 0, 1]).reshape((1,) * (x.ndim - 3) + (3, 1, 1))
        return x * (x.size > 1) if name == 'head/bias' else x

    return jax.tree_util.tree_map_with_path(zeroed, tree)


def assert_trees_close(actual, expected, rtol=1e-5, atol=1e-6):
    """Leaf by leaf; atol is relative to the largest entry of the expected leaf."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        scale = max(float(np.abs(e).max()), 1e-30)
        np.testing.assert_allclose(a, e, rtol=rtol, atol=atol * scale, err_msg=jax.tree_util.keystr(path))


# Saved models.

ARCHITECTURE = dict(layers=2, width=16, heads=4, mlp_width=64, n_positions=16)
HEADS = [
    None,
    ClassifierHead('classification', 3),
    ClassifierHead('entailment', 2),
    ClassifierHead('similarity', 6),
    ClassifierHead('multiple_choice', 1),
]
HF_CONFIG = dict(model_type='openai-gpt', vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=4, afn='gelu')
SIZES_32 = SIZES | dict(n_positions=32)


def make(folder):
    folder.mkdir()
    return epath.Path(folder)


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
    return load_tokenizer(folder)


def any_bits(rng, shape):
    """float32 of every kind: not-a-numbers, infinities, denormals and both zeros among them."""
    return rng.integers(0, 2**32, shape, np.uint32).view(np.float32)


def classifier_of(saved):
    """The model with its head that a saved model describes."""
    model = Decoder(vocab_size=saved.vocab_size, n_special=saved.n_special, **saved.architecture.sizes)
    return Classifier(model, saved.head)


def make_model(rng, tokenizer, n_special=0, head=None, draw=any_bits, **sizes):
    """(SavedModel without `read`, NumPy parameters) of random values."""
    architecture = Architecture('transformer', ARCHITECTURE | sizes)
    saved = SavedModel(epath.Path('made'), architecture, tokenizer.vocab_size, n_special, head, tokenizer, None)
    boxed = jax.eval_shape(classifier_of(saved).init, jax.random.key(0))
    return saved, jax.tree.map(lambda leaf: draw(rng, leaf.shape), unbox(boxed))


def load(uri, partitioner=None):
    """(saved model, classifier, parameters) through the path that every task takes."""
    saved = store.open_model(uri)
    partitioner = partitioner or Partitioner('dp', (1, 1, 1), jax.devices()[:1])
    return saved, *store.load_model(saved, common.model_defaults(), partitioner)


def read(uri):
    """(saved model, NumPy parameters)."""
    saved, _, params = load(uri)
    return saved, jax.device_get(params)


def assert_same_model(one, other):
    """All that is known without reading the parameters, the folder apart."""
    apart = dict.fromkeys(('directory', 'tokenizer', 'read', 'tokens_seen', 'step', 'fingerprint'))
    assert one._replace(**apart) == other._replace(**apart)
    assert one.tokenizer.fingerprint == other.tokenizer.fingerprint


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other)):
        assert a.dtype == b.dtype == np.float32 and a.shape == b.shape, path
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32), err_msg=jax.tree_util.keystr(path))


def golden_weights(golden):
    return {name.removeprefix('weights/'): array for name, array in golden.items() if name.startswith('weights/')}


def write_checkpoint(folder, tensors, vocabulary=50, **changes):
    """A checkpoint as transformers writes it; returns its URI."""
    write_vocabulary(folder, vocabulary)
    (folder / 'config.json').write_text(json.dumps(HF_CONFIG | changes))
    safetensors.numpy.save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    return f'hf:{folder}'


def hidden_of(uri, tokens):
    saved, classifier, params = load(uri)
    return saved, classifier, params, classifier.read(params, tokens).hidden


def assert_close_to_largest(actual, expected):
    """Within 1e-5 of the largest."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def refuses(uri, *words):
    with pytest.raises(UserError) as error:
        store.open_model(uri)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert re.fullmatch(r'\S+: [A-Z].*\. [A-Z].*\.', message), message  # one line: WHERE: WHAT is wrong. HOW to fix it.


def edit(path, change):
    """Changes a JSON file, which then has no checksum, as earlier versions wrote it."""
    value = json.loads(path.read_text())
    if isinstance(value, dict):
        value.pop('sha256', None)
    path.write_text(json.dumps(change(value)))


def break_file(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[:keep])


def write_workdir(folder, saved, params):
    """As a run leaves it."""
    store.describe_run(folder, classifier_of(saved), saved.tokenizer)
    save_parameters(folder, params)


def save_parameters(folder, params):
    checkpointer = Checkpointer(folder / 'checkpoints')
    checkpointer.save(7, {'params': jax.device_put(params)}, {})
    checkpointer.close()


def save_run(directory):
    """The workdir of a run with random parameters; (tokenizer, reference parameters)."""
    rng = random.Random(0)
    tokenizer = train_sentencepiece([some_words(rng, 12) for _ in range(300)], 320)
    sizes = SIZES_32 | dict(vocab=tokenizer.vocab_size)
    parameters = random_params(sizes=sizes)
    store.describe_run(directory, Classifier(decoder(sizes)), tokenizer)
    save_parameters(directory, {'decoder': from_reference(parameters)['decoder']})
    return tokenizer, parameters
