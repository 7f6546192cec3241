"""The attention kernels, interpreted on a CPU, against `attend`: values, gradients, the mask to the bit, any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from gpt1_jax.errors import UserError
from gpt1_jax.model import architecture
from gpt1_jax.model.attention import Visible, attend, attend_in_kernel
from gpt1_jax.model.dropout import keep_mask
from gpt1_jax.training.partitioning import Partitioner

RNG = np.random.default_rng(0)
KEY = jax.random.key(3)
HEADS, HEAD_DIM, LENGTH = 4, 64, 200  # two groups of two heads, two blocks of queries, the second not full
WIDTH = HEADS * HEAD_DIM
SEGMENTS = np.sort(RNG.integers(0, 4, (2, LENGTH))).astype(np.int32)
CONTEXTS = np.where(RNG.random((2, LENGTH)) < 0.5, SEGMENTS, np.maximum(SEGMENTS - 1, 0)).astype(np.int32)
CASES = {'whole rows': (None, None), 'segments': (SEGMENTS, None), 'contexts': (SEGMENTS, CONTEXTS)}


def slow(*values):
    return pytest.param(values if len(values) > 1 else values[0], marks=pytest.mark.slow)


MESHES = [('dp', (8, 1, 1)), ('fsdp+tp', (2, 2, 2)), slow('fsdp', (2, 4, 1)), slow('tp', (1, 2, 4))]


def inputs(rows=2, length=LENGTH, width=WIDTH):
    """The projection, its bias and the gradient of the result."""
    return (
        RNG.normal(size=size).astype(np.float32)
        for size in ((3, rows, length, width), (3, width), (rows, length, width))
    )


def by_kernel(qkv, bias, ids=(None, None), rate=0.0, heads=HEADS):
    return attend_in_kernel(qkv, bias, Visible(None, None, *ids), heads, rate, KEY if rate else None, 'cpu')


def by_xla(qkv, bias, ids=(None, None), rate=0.0, heads=HEADS):
    _, rows, length, width = qkv.shape
    query, key, value = (qkv + bias[:, None, None].astype(qkv.dtype)).reshape(3, rows, length, heads, -1)
    order = jnp.broadcast_to(jnp.arange(length), (rows, length))
    return attend(query, key, value, Visible(order, order, *ids), rate, KEY if rate else None).reshape(
        rows, length, width
    )


def with_gradients(function, qkv, bias, gradient, **options):
    def both(qkv, bias, gradient):
        out, pull = jax.vjp(functools.partial(function, **options), qkv, bias)
        return out, *pull(gradient)

    return jax.jit(both)(qkv, bias, gradient)


def assert_close(actual, expected):
    """To rounding, of sums of up to LENGTH terms, each a product of some."""
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=3e-6 * np.abs(other).max())


@pytest.mark.parametrize(('case', 'rate'), [('whole rows', 0.0), ('segments', 0.3), ('contexts', 0.3)])
def test_values_and_gradients_are_those_of_the_reference(case, rate):
    arrays = list(inputs())
    expected = with_gradients(by_xla, *arrays, ids=CASES[case], rate=rate)
    assert_close(with_gradients(by_kernel, *arrays, ids=CASES[case], rate=rate), expected)


@pytest.mark.parametrize(('heads', 'width', 'length'), [(8, 128, 20), (4, 128, 128), (2, 256, 130)])
def test_other_heads_and_lengths(heads, width, length):
    arrays = list(inputs(1, length, width))
    expected = with_gradients(by_xla, *arrays, rate=0.2, heads=heads)
    assert_close(with_gradients(by_kernel, *arrays, rate=0.2, heads=heads), expected)


def test_the_mask_is_that_of_the_reference_to_the_bit():
    """All scores are 0, so a query's probabilities are equal where they are not dropped. Through values that are one at
    one of HEAD_DIM keys each, they appear in the result; through such gradients, in those of the values."""
    one = np.zeros((3, 2, LENGTH, HEADS, HEAD_DIM), np.float32)
    kept, kept_again = np.zeros((2, 2, HEADS, LENGTH, LENGTH), bool)
    run = jax.jit(functools.partial(with_gradients, by_kernel, rate=0.3))
    for start in range(0, LENGTH, HEAD_DIM):
        some = range(start, min(start + HEAD_DIM, LENGTH))
        ones = one.copy()
        ones[2, :, some, :, range(len(some))] = 1
        ones = ones.reshape(3, 2, LENGTH, WIDTH)
        mixed, to_qkv, _ = run(ones, np.zeros((3, WIDTH), np.float32), ones[2])
        split = lambda x: np.asarray(x).reshape(2, LENGTH, HEADS, HEAD_DIM)[..., : len(some)]
        kept[..., some] = split(mixed).transpose(0, 2, 1, 3) > 0
        kept_again[:, :, some] = split(to_qkv[2]).transpose(0, 2, 3, 1) > 0
    expected = np.tril(keep_mask(KEY, kept.shape, 0.3))
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_array_equal(kept_again, expected)


@pytest.mark.parametrize('mesh', MESHES)
def test_a_mesh_changes_nothing(mesh):
    arrays = list(inputs(rows=8, length=20, width=512))
    ids = np.sort(RNG.integers(0, 3, (8, 20))).astype(np.int32)
    options = dict(ids=(ids, ids[::-1]), rate=0.3, heads=8)
    expected = with_gradients(by_kernel, *arrays, **options)
    partitioner = Partitioner(*mesh)
    run = partitioner.jit(functools.partial(with_gradients, by_kernel, **options))
    on_mesh = run(*arrays)
    np.testing.assert_array_equal(on_mesh[0], expected[0])
    np.testing.assert_array_equal(on_mesh[1], expected[1])
    assert_close(on_mesh[2:], expected[2:])  # the devices' sums, added in another order


def test_bfloat16_is_as_near_to_float32_as_the_reference_is():
    """Both round what enters a product to 8 bits; the kernels keep the gradient of the probabilities in float32."""
    arrays = list(inputs())
    rounded = [arrays[0].astype(jnp.bfloat16), arrays[1], arrays[2].astype(jnp.bfloat16)]
    options = dict(ids=CASES['contexts'], rate=0.3)
    exact = with_gradients(by_xla, *(jnp.float32(x) for x in rounded), **options)
    errors = [
        [np.linalg.norm(np.float32(x) - y) for x, y in zip(with_gradients(function, *rounded, **options), exact)]
        for function in (by_kernel, by_xla)
    ]
    assert all(ours <= 1.2 * theirs for ours, theirs in zip(*errors)), errors


SIZES = models.TINY | dict(width=128, heads=2, n_positions=16, mlp=32)
PARAMS = {'params': models.from_reference(models.random_params(sizes=SIZES), heads=2)['decoder']}
TOKENS = RNG.integers(0, SIZES['vocab'], (2, 16))
IDS = np.repeat([[1, 2, 3, 0]], 4, axis=1).repeat(2, axis=0)


def loss_and_gradient(attention, kernels, **changes):
    """kernels: how many calls of kernels there must be."""
    rates = dict(dropout=0.1, attention_dropout=0.2, residual_dropout=0.1)
    model = models.decoder(SIZES, attention=attention, **rates, **changes)

    def loss(params):
        inputs = TOKENS, None, IDS, np.where(IDS == 3, 1, IDS)
        return jnp.sum(model.apply(params, *inputs, train=True, rngs={'dropout': KEY}).hidden ** 3)

    both = jax.jit(jax.value_and_grad(loss))
    assert len(list(calls(jax.make_jaxpr(both)(PARAMS).jaxpr))) == kernels
    return both(PARAMS)


@pytest.mark.parametrize('changes', [{}, slow({'scan': False}), slow({'remat': True})])
def test_a_model_with_the_kernel_is_the_model(changes):
    loss, gradient = loss_and_gradient('kernel', 3 if changes.get('remat') else 2, **changes)
    expected, expected_gradient = loss_and_gradient('xla', 0, **changes)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    models.assert_trees_close(gradient, expected_gradient, atol=2e-5)


def test_evaluation_without_dropout():
    kernel, xla = (models.decoder(SIZES, attention=each).apply(PARAMS, TOKENS).hidden for each in ('kernel', 'xla'))
    np.testing.assert_allclose(kernel, xla, rtol=1e-4, atol=1e-4)


ELEMENTWISE = (
    'add sub mul max reduce_max reduce_sum and or xor le ge shift_right_logical jit'.split()
)  # jit: of `where`


def calls(jaxpr):
    """The equations of kernels, wherever they are."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'pallas_call':
            yield equation
        else:
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')):
                inner = getattr(inner, 'jaxpr', inner)
                yield from calls(inner) if hasattr(inner, 'eqns') else ()


@pytest.mark.parametrize(('rate', 'case'), [(0.0, 'whole rows'), (0.3, 'whole rows'), (0.3, 'contexts')])
def test_the_declared_cost_is_what_a_count_gives(rate, case):
    """Bytes by the shapes; products and exponentials by the causal blocks; the rest by the jaxpr."""
    rows, tokens = 2, 256
    jaxpr = jax.make_jaxpr(functools.partial(with_gradients, by_kernel, ids=CASES[case], rate=rate))(*inputs())
    forward, backward = calls(jaxpr.jaxpr)
    scores = rows * HEADS * (128 * 128 + 128 * 256)  # the second block of queries sees both blocks of keys
    one, ids = rows * tokens * WIDTH * 4, rows * tokens * 4 * sum(each is not None for each in CASES[case])
    small = 3 * WIDTH * 4, rows * HEADS * tokens * 4  # the bias, the logarithms
    moved = 3 * one + one + sum(small) + ids, 3 * one + one + 3 * one + sum(small) + rows * 3 * WIDTH * 4 + ids
    for equation, products, expected in zip((forward, backward), (2, 5), moved, strict=True):
        size = lambda one: max(x.aval.size for x in (*one.invars, *one.outvars))
        elementwise = sum(size(one) for one in equation.params['jaxpr'].eqns if one.primitive.name in ELEMENTWISE)
        cost = equation.params['cost_estimate']
        assert cost.transcendentals == scores and cost.bytes_accessed == expected
        programs = rows * WIDTH // 128
        assert cost.flops == pytest.approx(scores * products * 2 * 128 + programs * elementwise, rel=0.01)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(n_positions=2048), 'longer than 1024'),
        (dict(heads=4, n_positions=1024), 'longer than 512'),
        (dict(width=192), 'groups of 128'),
        (dict(width=96), 'groups of 128'),
    ],
)
def test_what_no_kernel_can_compute(changes, words):
    config = dict(layers=1, width=128, heads=2, mlp_width=8, n_positions=16) | changes
    build = lambda attention, platform: architecture.build(config | dict(attention=attention), 9, 0, platform)
    with pytest.raises(UserError, match=rf'^model.attention: .*{words}.*\. Use auto or xla\.$'):
        build('kernel', 'tpu')
    assert build('auto', 'tpu').attention == 'xla'


def test_the_kernel_is_for_a_tpu():
    config = dict(layers=1, width=128, heads=2, mlp_width=8, n_positions=16)
    chosen = lambda attention, platform: (
        architecture.build(config | dict(attention=attention), 9, 0, platform).attention
    )
    assert [chosen('auto', platform) for platform in ('tpu', 'cpu')] == ['auto', 'xla']
    assert [chosen('xla', 'tpu'), chosen('kernel', 'tpu')] == ['xla', 'kernel']
    with pytest.raises(UserError, match='none for a METAL'):
        chosen('kernel', 'METAL')


@pytest.mark.parametrize(('strategy', 'shape', 'words'), [('tp', (1, 1, 2), '1 heads'), ('dp', (4, 1, 1), '2 rows')])
def test_what_does_not_fit_the_mesh(strategy, shape, words):
    partitioner = Partitioner(strategy, shape, jax.devices()[: np.prod(shape)])
    hidden = lambda attention: partitioner.jit(
        lambda params: models.decoder(SIZES, attention=attention, platform='tpu').apply(params, TOKENS).hidden
    )(PARAMS)
    with pytest.raises(UserError, match=words):
        hidden('kernel')
    partitioner.jit(models.decoder(SIZES, attention='kernel').init)(KEY, TOKENS)  # its rows need not fit
    np.testing.assert_allclose(hidden('auto'), models.decoder(SIZES).apply(PARAMS, TOKENS).hidden, rtol=1e-4, atol=1e-5)
