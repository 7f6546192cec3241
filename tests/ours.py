"""Between the reference's parameters and the package's: the same arrays, other shapes."""

import jax
import numpy as np
import reference

from gpt1_jax.model.transformer import Decoder

_NAMES = {
    ('norm_1', 'scale'): 'ln_1_g', ('norm_1', 'bias'): 'ln_1_b',
    ('norm_2', 'scale'): 'ln_2_g', ('norm_2', 'bias'): 'ln_2_b',
    ('mlp', 'in', 'kernel'): 'c_fc_w', ('mlp', 'in', 'bias'): 'c_fc_b',
    ('mlp', 'out', 'kernel'): 'mlp_proj_w', ('mlp', 'out', 'bias'): 'mlp_proj_b',
    ('attention', 'qkv_kernel'): 'c_attn_w', ('attention', 'qkv_bias'): 'c_attn_b',
    ('attention', 'out_kernel'): 'c_proj_w', ('attention', 'out_bias'): 'c_proj_b',
}
SIZES = dict(vocab=40, n_special=3, n_positions=16, width=16, layers=2, heads=4, mlp=32)
# So small that the reference can afford whole gradients.
TINY = dict(vocab=9, n_special=3, n_positions=8, width=4, layers=2, heads=2, mlp=8)


def random_params(seed=0, classes=2, sizes=SIZES, **changes):
    """float64 reference parameters."""
    return reference.init_params(np.random.default_rng(seed), classes=classes, **sizes | changes)


def decoder(sizes=SIZES, **changes):
    """The package's model, without dropout."""
    values = dict(vocab_size=sizes['vocab'], n_special=sizes['n_special'], n_positions=sizes['n_positions'],
                  width=sizes['width'], layers=sizes['layers'], heads=sizes['heads'], mlp_width=sizes['mlp'],
                  dropout=0.0, attention_dropout=0.0, residual_dropout=0.0)
    return Decoder(**values | changes)


def from_reference(params, heads=SIZES['heads']):
    """Reference parameters (or gradients) -> {'decoder': ..., 'head': ...} in float32."""
    width = params['table'].shape[1]
    shapes = {'c_attn_w': (width, 3, heads, width // heads), 'c_attn_b': (3, heads, width // heads),
              'c_proj_w': (heads, width // heads, width)}
    blocks = {}
    for path, name in _NAMES.items():
        node = blocks
        for key in path[:-1]:
            node = node.setdefault(key, {})
        stacked = np.stack([layer[name] for layer in params['layers']])
        node[path[-1]] = stacked.reshape(len(stacked), *shapes.get(name, stacked.shape[1:]))
    tree = {'decoder': {'table': params['table'], 'blocks': blocks},
            'head': {'kernel': params['head_w'], 'bias': params['head_b']}}
    return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)


def without_invariant(tree):
    """`tree` with the biases zeroed that a softmax does not see, of the keys and of the scores of choices: their
    gradient is exactly 0, so that what Adam makes of it is rounding."""

    def zeroed(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        if name.endswith('qkv_bias'):
            return x * np.array([1, 0, 1])[:, None, None]
        return x * (x.size > 1) if name == 'head/bias' else x

    return jax.tree_util.tree_map_with_path(zeroed, tree)


def assert_trees_close(actual, expected, rtol=1e-5, atol=1e-6):
    """Leaf by leaf; atol is relative to the largest entry of the expected leaf."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        scale = max(float(np.abs(e).max()), 1e-30)
        np.testing.assert_allclose(a, e, rtol=rtol, atol=atol * scale, err_msg=jax.tree_util.keystr(path))
