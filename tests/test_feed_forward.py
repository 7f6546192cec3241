"""GELU that keeps only its input; the sub-layer itself is compared with other programs' in test_golden.py."""

import jax
import jax.numpy as jnp
import numpy as np

from gpt1_jax.model.feed_forward import gelu

RNG = np.random.default_rng(0)
X, GRADIENT = (jnp.asarray(RNG.normal(size=(2, 5, 7)), jnp.float32) for _ in range(2))


def test_gelu():
    """In float64 by its formula (Hendrycks and Gimpel, 2016), and its derivative by differences."""
    exact = lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    x = np.float64(X)
    out, back = jax.vjp(gelu, X)
    np.testing.assert_allclose(out, exact(x), rtol=1e-5, atol=1e-6)
    expected = GRADIENT * (exact(x + 1e-6) - exact(x - 1e-6)) / 2e-6
    np.testing.assert_allclose(back(GRADIENT)[0], expected, rtol=1e-5, atol=1e-6)


def test_it_keeps_only_its_input():
    assert [array.shape for array in jax.tree.leaves(jax.vjp(gelu, X)[1])] == [X.shape]
