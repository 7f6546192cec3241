"""GELU that keeps only its input; the sub-layer itself is compared with other programs' in test_golden.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt1_jax.model.feed_forward import gelu

RNG = np.random.default_rng(0)
X, GRADIENT = (jnp.asarray(RNG.normal(size=(2, 5, 7)), jnp.float32) for _ in range(2))


@pytest.mark.parametrize('dtype, error', [(jnp.float32, 1e-6), (jnp.bfloat16, 2.0**-8)])  # half of its last bit
def test_gelu(dtype, error):
    """In float64 by its formula (Hendrycks and Gimpel, 2016), and its derivative by differences; rounded only once."""
    exact = lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    given, gradient = X.astype(dtype), GRADIENT.astype(dtype)
    x = np.float64(given)
    out, back = jax.vjp(jax.jit(gelu), given)
    np.testing.assert_allclose(np.float64(out), exact(x), rtol=1.01 * error, atol=1e-6)
    expected = np.float64(gradient) * (exact(x + 1e-6) - exact(x - 1e-6)) / 2e-6
    np.testing.assert_allclose(np.float64(back(gradient)[0]), expected, rtol=1.01 * error, atol=1e-6)


@pytest.mark.parametrize(('platform', 'in_float32'), [('cpu', True), ('tpu', False), ('cuda', False)])
def test_only_a_cpu_computes_bfloat16_in_float32(platform, in_float32):
    text = jax.jit(gelu).trace(X.astype(jnp.bfloat16)).lower(lowering_platforms=(platform,)).as_text()
    assert ('xf32>' in text) == in_float32 and 'xbf16>' in text


def test_it_keeps_only_its_input():
    assert [array.shape for array in jax.tree.leaves(jax.vjp(gelu, X)[1])] == [X.shape]
