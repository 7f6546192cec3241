"""The GPU's kernels of the layer norm of a sum, run by Triton's interpreter, against the same by XLA."""

import importlib.util

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import triton_on_host
from gpt1_jax.model import dropout, mesh, norm_triton
from gpt1_jax.training.partitioning import Partitioner

RNG = np.random.default_rng(0)
ROWS, LENGTH, WIDTH = 4, 150, 96  # neither blocks of tokens nor powers of 2 divide them


@pytest.fixture(scope='module')
def kernels():
    with triton_on_host.patched():
        yield norm_triton


def arrays(dtype=jnp.float32, rows=ROWS):
    x, branch = (jnp.asarray(RNG.normal(size=(rows, LENGTH, WIDTH)) + 1, dtype) for _ in range(2))
    branch_bias, scale, bias = (jnp.asarray(RNG.normal(size=WIDTH), jnp.float32) for _ in range(3))
    return x, branch, branch_bias, scale, bias


def by_kernel(*inputs, rate, key, uses=1):
    return norm_triton.add_and_norm(*inputs, key, norm_triton.Settings(rate, 1e-5, uses))


def by_xla(x, branch, branch_bias, scale, bias, *, rate, key, uses=1):
    total = x + dropout.dropout(branch + branch_bias[None, None], key, rate)
    norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)
    return (norm.apply({'params': {'scale': scale, 'bias': bias}}, total),) * uses


def results(function, inputs, gradients, **options):
    out, back = jax.vjp(lambda *inputs: function(*inputs, **options), *inputs)
    return *out, *back(gradients)


@pytest.mark.parametrize(('rate', 'uses'), [(0.0, 1), (0.1, 2), (0.6, 1)])
def test_outputs_and_gradients(kernels, rate, uses):
    inputs, key = arrays(), jax.random.key(3) if rate else None
    gradients = tuple(arrays()[0] for _ in range(uses))
    ours = jax.jit(lambda: results(by_kernel, inputs, gradients, rate=rate, key=key, uses=uses))()
    for a, b in zip(ours, results(by_xla, inputs, gradients, rate=rate, key=key, uses=uses), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-4)


def test_half_precision(kernels):
    """Rounded once on the way, where XLA rounds the dropout and the sum."""
    inputs, key = arrays(jnp.bfloat16), jax.random.key(4)
    gradients = (arrays(jnp.bfloat16)[0],)
    exact = [x.astype(jnp.float32) for x in inputs]
    expected = results(by_xla, exact, (gradients[0].astype(jnp.float32),), rate=0.1, key=key)
    for a, b in zip(results(by_kernel, inputs, gradients, rate=0.1, key=key), expected):
        a, b = np.float32(a), np.float32(b)
        assert np.linalg.norm(a - b) < 4e-3 * np.linalg.norm(b)


@pytest.mark.parametrize('shape', [(4, 1, 1), (1, 2, 2)])
def test_any_mesh_drops_the_same_elements(kernels, shape):
    inputs, gradients = arrays(), arrays()[:1]
    options = {'rate': 0.1, 'key': jax.random.key(6)}
    partitioner = Partitioner('fsdp+tp', shape, jax.devices()[: np.prod(shape)])
    ours = partitioner.jit(lambda: results(by_kernel, inputs, gradients, **options))()
    for a, b in zip(ours, results(by_xla, inputs, gradients, **options)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-4)


def test_what_it_cannot_serve(kernels):
    assert norm_triton.obstacle(3, 768) is None
    assert '8192' in norm_triton.obstacle(3, 20000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, 'shards', lambda role: 2)
        assert '3 rows do not divide among 2 devices' in norm_triton.obstacle(3, 768)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('triton') is None, reason='Triton is not installed')
def test_they_compile_for_a_gpu(tmp_path):
    """Rows of the paper's width and of the widest, all numbers in registers."""
    of, kernels = {'scalars': '*u32'}, []
    of |= dict.fromkeys(('branch_bias', 'scale', 'bias', 'statistics', 'sums'), '*fp32')
    for width in (768, norm_triton._WIDEST):
        x = jax.ShapeDtypeStruct((64, 512, width), jnp.bfloat16)
        sizes, warps = norm_triton._sizes(x, norm_triton.Settings(0.1, 1e-5, 2))
        for name in ('_forward_kernel', '_backward_kernel'):
            kernels.append(['gpt1_jax.model.norm_triton', name, sizes, of | {'': '*bf16'}, {'num_warps': warps}])
    assert triton_on_host.compile_kernels(tmp_path, kernels) == [(False, True)] * 4
