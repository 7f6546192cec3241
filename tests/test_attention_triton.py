"""The GPU's attention kernels, run by Triton's interpreter, against `attend`; and compiled for a GPU."""

import functools
import importlib.util
import types

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import mlir

import triton_on_host
from gpt1_jax.errors import UserError
from gpt1_jax.model import attention, dropout, triton_calls
from gpt1_jax.model.architecture import build
from gpt1_jax.model.attention_kernels import Settings
from gpt1_jax.model.sizes import SIZES
from gpt1_jax.model.transformer import Decoder
from gpt1_jax.training.partitioning import Partitioner

ROWS, LENGTH, HEADS, HEAD_DIM = 4, 40, 2, 16  # blocks of 32 and 64 tokens do not divide the rows
RNG = np.random.default_rng(0)
SEGMENTS = np.sort(RNG.integers(0, 5, (ROWS, LENGTH)), axis=1)[:, ::-1].astype(np.int32)
CONTEXTS = np.where(SEGMENTS > 1, SEGMENTS.max(axis=1, keepdims=True), SEGMENTS).astype(np.int32)
IDS = {'whole rows': (None, None), 'segments': (SEGMENTS, None), 'contexts': (SEGMENTS, CONTEXTS)}


@pytest.fixture(scope='module')
def kernels():
    with triton_on_host.patched():
        yield attention.KERNELS['gpu']


def arrays(dtype):
    qkv = jnp.asarray(RNG.normal(size=(3, ROWS, LENGTH, HEADS * HEAD_DIM)), dtype)
    bias = jnp.asarray(RNG.normal(size=(3, HEADS * HEAD_DIM)), jnp.float32)
    return qkv, bias, jnp.asarray(RNG.normal(size=qkv.shape[1:]), dtype)


def by_kernel(qkv, bias, ids, dropout_key, rate):
    return attention.attend_in_kernel(qkv, bias, attention.Visible(None, None, *ids), HEADS, rate, dropout_key, 'gpu')


def by_xla(qkv, bias, ids, dropout_key, rate):
    qkv = (qkv + bias.astype(qkv.dtype)[:, None, None]).reshape(3, ROWS, LENGTH, HEADS, HEAD_DIM)
    order = jnp.arange(LENGTH)[None]
    visible = attention.Visible(order, order, *ids)
    return attention.attend(*qkv, visible, rate, dropout_key).reshape(ROWS, LENGTH, -1)


def results(function, qkv, bias, *rest, gradient):
    """Output, gradients of queries, keys and values, and of the bias."""
    out, back = jax.vjp(lambda qkv, bias: function(qkv, bias, *rest), qkv, bias)
    to_qkv, to_bias = back(gradient)
    return out, *to_qkv, to_bias


@pytest.mark.parametrize(
    ('case', 'rate'),
    [('whole rows', 0.0), ('whole rows', 0.1), ('segments', 0.6), ('contexts', 0.0), ('contexts', 0.1)],
)
def test_outputs_and_gradients(kernels, case, rate):
    """A mask that differs in one bit would give errors of 0.01."""
    *inputs, gradient = arrays(jnp.float32)
    rest = IDS[case], jax.random.key(3) if rate else None, rate
    ours = jax.jit(lambda: results(by_kernel, *inputs, *rest, gradient=gradient))()
    for a, b in zip(ours, results(by_xla, *inputs, *rest, gradient=gradient)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_half_precision(kernels):
    """float16 for bfloat16, with which the interpreter cannot multiply: blocks of 64, and rounded operands."""
    *inputs, gradient = arrays(jnp.float16)
    rest = IDS['contexts'], jax.random.key(4), 0.1
    exact = [x.astype(jnp.float32) for x in (*inputs, gradient)]
    expected = results(by_xla, *exact[:2], *rest, gradient=exact[2])
    for a, b in zip(results(by_kernel, *inputs, *rest, gradient=gradient), expected):
        a, b = np.float32(a), np.float32(b)
        assert np.linalg.norm(a - b) < 2e-3 * np.linalg.norm(b)


def test_log_sums(kernels):
    qkv, _, _ = arrays(jnp.float32)
    settings = Settings(HEADS, HEAD_DIM, 0.1)
    scalars = jnp.arange(4, dtype=jnp.uint32)
    bias = jnp.zeros((3, HEADS * HEAD_DIM))
    _, (*_, log_sums) = kernels._forward(scalars, [jnp.asarray(SEGMENTS)], jnp.moveaxis(qkv, 0, 2), bias, settings)
    query, key, _ = np.float64(qkv).reshape(3, ROWS, LENGTH, HEADS, HEAD_DIM)
    for row, head, place in np.ndindex(ROWS, HEADS, LENGTH):
        seen = np.flatnonzero(SEGMENTS[row, : place + 1] == SEGMENTS[row, place])
        scores = key[row, seen, head] @ query[row, place, head] / np.sqrt(HEAD_DIM)
        assert abs(log_sums[row, head, place] - np.log(np.sum(np.exp(scores)))) < 1e-5


@pytest.mark.parametrize(('row', 'head', 'rate'), [(0, 0, 0.1), (3, 10, 0.5), (2**21, 5, 0.9)])
def test_masks_to_the_bit(kernels, row, head, rate):
    """On a device that begins at (row, head) of 12 heads, the last beyond 2**32 elements. Where all scores are equal,
    values of 0 and a single 1 read the probabilities of the forward pass, and such gradients those of the backward."""
    seeds, ones = dropout.seeds(jax.random.key(5)), jnp.tile(jnp.eye(16), 2)[None]
    scalars = jnp.stack([*seeds, jnp.uint32(row), jnp.uint32(head)])
    qkv = jnp.stack([jnp.zeros_like(ones), jnp.zeros_like(ones), ones], axis=2)
    bias = jnp.zeros((3, 32))
    out, back = jax.vjp(lambda qkv: kernels._attend(scalars, [], qkv, bias, Settings(12, 16, rate)), qkv)
    first = (row * 12 + head) * 16 * 16
    index = jnp.uint32((first + np.arange(2 * 16 * 16)) % 2**32)
    expected = np.tril(dropout.keep(index, seeds, rate).reshape(2, 16, 16))
    by_head = lambda x: np.asarray(x).reshape(16, 2, 16).swapaxes(0, 1)
    np.testing.assert_array_equal(by_head(out) != 0, expected)
    np.testing.assert_array_equal(by_head(back(ones)[0][0, :, 2]).swapaxes(1, 2) != 0, expected)


@pytest.mark.parametrize('shape', [(4, 1, 1), (1, 2, 2)])
def test_any_mesh_drops_the_same_elements(kernels, shape):
    *inputs, gradient = arrays(jnp.float32)
    rest = IDS['segments'], jax.random.key(6), 0.1
    partitioner = Partitioner('fsdp+tp', shape, jax.devices()[: np.prod(shape)])
    ours = partitioner.jit(lambda: results(by_kernel, *inputs, *rest, gradient=gradient))()
    for a, b in zip(ours, results(by_xla, *inputs, *rest, gradient=gradient)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_widths_of_heads(kernels):
    assert [kernels.obstacle(512, 12, head_dim) is None for head_dim in (8, 16, 48, 64, 128, 256)] == [
        *(False, True, False, True, True, False)
    ]


def test_in_a_model(kernels):
    """Under the loop over layers, and recomputed in the backward pass."""
    sizes = dict(vocab_size=20, n_special=0, n_positions=24, width=32, layers=2, heads=2, mlp_width=16)
    model = Decoder(**sizes, remat=True, platform='gpu')
    tokens = jnp.asarray(RNG.integers(0, 20, (2, 24)))
    params = jax.jit(model.init)(jax.random.key(0), tokens)['params']

    @functools.partial(jax.jit, static_argnums=1)
    def gradients(params, attention):
        read = lambda p: model.clone(attention=attention).apply(
            {'params': p}, tokens, segment_ids=tokens // 10, train=True, rngs={'dropout': jax.random.key(1)}
        )
        return jax.grad(lambda p: jnp.sum(read(p).hidden ** 3))(params)

    ours, expected = (jax.tree.leaves(gradients(params, attention)) for attention in ('kernel', 'xla'))
    for a, b in zip(ours, expected):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_it_is_optional(monkeypatch):
    """Without its packages there is no kernel, and who insists on one reads what to install."""
    monkeypatch.setattr(triton_calls, 'jax_triton', None)
    config = dict(SIZES['tiny'].sizes)
    assert build(config | {'attention': 'auto'}, 20, 0, 'gpu').attention == 'xla'
    with pytest.raises(UserError, match=r'model\.attention: .*\[triton\]'):
        build(config | {'attention': 'kernel'}, 20, 0, 'gpu')


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('triton') is None, reason='Triton is not installed')
def test_they_compile_for_a_gpu(tmp_path):
    """The interpreter takes more than the compiler does. For an H100, with products on its tensor cores (float32 is
    multiplied exactly, without them) and all numbers of a block in registers."""
    of = {'scalars': '*u32', 'ids': '*i32'} | dict.fromkeys(('log_sums', 'slopes', 'to_bias'), '*fp32')
    options, kernels = {'num_warps': 4, 'num_stages': 3}, []
    for dtype, block in (('bf16', 64), ('fp32', 32)):
        sizes = 64, 512, 512 // block, block, block // 2, 12, 12, 64, 2, 2**28, 0.9375
        for name in ('forward', 'to_queries', 'to_keys'):
            kernel = 'gpt1_jax.model.attention_triton', f'_{name}_kernel', sizes, of | {'': '*' + dtype}, options
            kernels.append(kernel)
    found = triton_on_host.compile_kernels(tmp_path, kernels)
    assert found == [(True, True)] * 3 + [(False, True)] * 3


def test_a_kernel_can_be_part_of_a_cuda_graph(monkeypatch):
    """XLA takes in calls of the newer interface only, and jax-triton 0.3 makes others."""

    def older(backend, context, *arrays, name):
        call = jax.ffi.ffi_lowering('triton_kernel_call', api_version=2, backend_config=b'the kernel')
        return call(context, *arrays)

    library = types.SimpleNamespace(get_cuda_backend=None, triton_kernel_call_lowering=older)
    monkeypatch.setattr(triton_calls, 'jax_triton', types.SimpleNamespace(triton_lib=library))
    primitive = jax.extend.core.Primitive('kernel_call')
    primitive.def_abstract_eval(lambda array, name: array)
    mlir.register_lowering(primitive, triton_calls._lower, platform='cuda')
    traced = jax.jit(lambda array: primitive.bind(array, name='a name')).trace(jnp.zeros(3))
    text = traced.lower(lowering_platforms=('cuda',)).as_text()
    assert 'stablehlo.custom_call @triton_kernel_call_ffi(' in text and 'api_version = 4' in text
    assert 'backend_config = {name = "a name", opaque = "the kernel"}' in text
