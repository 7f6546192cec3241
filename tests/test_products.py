"""Products and their gradients against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt1_jax.model.products import affine, outer_products, product

RNG = np.random.default_rng(0)
X, KERNEL, BIAS, D_OUT = (RNG.normal(size=shape) for shape in ((3, 8, 16), (16, 24), (24,), (3, 8, 24)))
TOLERANCE = {jnp.float32: 1e-6, jnp.bfloat16: 1e-2}  # relative to the largest element; bfloat16 has 8 bits


def close(ours, theirs, dtype):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(np.float64(ours), theirs, rtol=0, atol=TOLERANCE[dtype] * np.abs(theirs).max())


@pytest.mark.parametrize('dtype', TOLERANCE)
def test_affine_and_its_gradients(dtype):
    x, kernel, d_out = (jnp.asarray(a, dtype) for a in (X, KERNEL, D_OUT))
    exact_x, exact_kernel, exact_d = (np.float64(a) for a in (x, kernel, d_out))  # as rounded to the dtype
    out, backward = jax.vjp(jax.jit(affine), x, kernel, jnp.float32(BIAS))
    d_x, d_kernel, d_bias = backward(d_out)
    assert [a.dtype for a in (out, d_x, d_kernel, d_bias)] == [dtype, dtype, dtype, jnp.float32]
    close(out, exact_x @ exact_kernel + BIAS, dtype)
    close(d_x, exact_d @ exact_kernel.T, dtype)
    close(d_kernel, exact_x.reshape(-1, 16).T @ exact_d.reshape(-1, 24), dtype)
    close(d_bias, exact_d.sum(axis=(0, 1)), jnp.float32)


@pytest.mark.parametrize('dtype', TOLERANCE)
def test_outer_products_are_summed_in_float32(dtype):
    """In bfloat16, 256 + 1 is 256."""
    x = jnp.ones((2, 300, 1), dtype)
    total = jax.jit(outer_products)(x, x)
    assert total.dtype == jnp.float32 and total[0, 0] == 600
    ones = lambda *shape: jnp.ones(shape, dtype)
    _, backward = jax.vjp(affine, ones(2, 300, 1), ones(1, 1), jnp.ones(1))
    assert backward(x)[2][0] == 600


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('columns', [(3, 5), (5, 3)])
def test_outer_products_of_the_wider_with_the_narrower(dtype, columns):
    """On a CPU the narrower is transposed."""
    x, y = (jnp.asarray(RNG.normal(size=(2, 4, size)), dtype) for size in columns)
    expected = np.einsum('btk,btn->kn', np.float64(x), np.float64(y))
    close(jax.jit(outer_products)(x, y), expected, jnp.float32)


@pytest.mark.parametrize(('platform', 'in_float32'), [('cpu', True), ('tpu', False), ('cuda', False)])
def test_only_a_cpu_is_told_to_sum_in_float32(platform, in_float32):
    x, kernel = jnp.asarray(X, jnp.bfloat16), jnp.asarray(KERNEL, jnp.bfloat16)
    traced = jax.jit(lambda x, y: product('btk,kn->btn', x, y)).trace(x, kernel)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ('xf32>' in text) == in_float32 and 'tensor<3x8x24xbf16>' in text
