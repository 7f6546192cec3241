"""The hashed dropout mask behaves as independent coin flips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gpt1_jax.model.dropout import dropout, keep_mask


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
def test_rate(rate):
    kept = np.asarray(keep_mask(jax.random.key(0), (1000, 1000), rate))
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / kept.size)


def test_neighbours_rows_and_keys_are_independent():
    masks = [np.asarray(keep_mask(jax.random.key(seed), (64, 4096), 0.3)).astype(int) for seed in range(4)]
    mask = masks[0]
    pairs = [(mask[:, :-1], mask[:, 1:]), (mask[:-1], mask[1:]), (mask[:, :-64], mask[:, 64:]), (mask[0], mask[32])]
    pairs += [(masks[i], masks[j]) for i in range(4) for j in range(i)]
    for a, b in pairs:
        table = np.histogram2d(a.ravel(), b.ravel(), bins=2)[0]
        assert stats.chi2_contingency(table, correction=False).pvalue > 1e-5


def test_runs_of_eight_have_the_binomial_distribution():
    mask = np.asarray(keep_mask(jax.random.key(7), (2**20,), 0.5)).reshape(-1, 8)
    words = np.bincount(np.packbits(mask, axis=1).ravel(), minlength=256)
    assert stats.chisquare(words).pvalue > 1e-5


def test_values():
    x = jnp.arange(1.0, 10001.0)
    y = np.asarray(dropout(x, jax.random.key(0), 0.25))
    np.testing.assert_allclose(y[y != 0], np.asarray(x)[y != 0] / 0.75, rtol=1e-6)
    assert dropout(x, None, 0.25) is x
    small = dropout(x.astype(jnp.bfloat16), jax.random.key(0), 0.1)  # 0.9 is no bfloat16 number
    kept = np.asarray(small) != 0
    scale = np.asarray(small, np.float64)[kept] / np.asarray(x.astype(jnp.bfloat16), np.float64)[kept]
    assert abs(scale.mean() * 0.9 - 1) < 2e-4
    shared = np.asarray(dropout(jnp.ones((4, 5, 100)), jax.random.key(0), 0.5, broadcast_axes=(1,)))
    np.testing.assert_array_equal(shared, np.broadcast_to(shared[:, :1], shared.shape))
    assert len(np.unique(shared[:, 0], axis=0)) == 4
