"""The hashed dropout mask behaves as independent coin flips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import fft, linalg, stats

from gpt1_jax.model.dropout import dropout, keep, keep_mask, threshold
from helpers import assert_rows_are_uncorrelated, largest_of_normals


def standardised(mask, rate):
    return ((np.asarray(mask) - (1 - rate)) / np.sqrt(rate * (1 - rate))).astype(np.float32)


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
def test_rate(rate):
    kept = np.asarray(keep_mask(jax.random.key(0), (1000, 1000), rate))
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / kept.size)


def test_the_largest_rates_leave_a_hash_that_is_kept():
    """Rates below 1 that round to 2**32 would wrap to 0, which drops nothing."""
    assert [threshold(rate) for rate in (0.0, 0.25, 1 - 2**-31, 1 - 2**-40)] == [0, 2**30, 2**32 - 2, 2**32 - 1]


def lag_scores(x):
    """z of the correlation of x[i] with x[i + lag], for every lag up to half of the (circular) array."""
    return fft.irfft(np.abs(fft.rfft(x)) ** 2)[1 : x.size // 2] / np.sqrt(x.size)


def walsh(x):
    """The Walsh-Hadamard transform of 2**24 elements, 8 bits of the index at a time."""
    for _ in range(3):
        x = (linalg.hadamard(256, np.float32) @ x.reshape(256, -1)).T
    return x.ravel()


def xor_lag_scores(x):
    """z of the correlation of x[i] with x[i ^ lag], for every lag: `lag_scores` with the other transform."""
    spectrum = walsh(x) ** 2 / x.size - 1  # less what lag 0 gives, for precision
    return walsh(spectrum)[1:] / np.sqrt(2 * x.size)  # each pair is there twice


@pytest.mark.slow
@pytest.mark.parametrize('rate', [0.1, 0.5])
@pytest.mark.parametrize(('scores', 'size'), [(lag_scores, 2**23), (xor_lag_scores, 2**24)])
def test_no_lag_is_correlated(scores, size, rate):
    """At no lag more than noise is; Threefry's mask passes the same test."""
    masks = [keep_mask(key, (size,), rate) for key in jax.random.split(jax.random.key(1))]
    for mask in (jax.random.bernoulli(jax.random.key(2), 1 - rate, (size,)), *masks):
        z = scores(standardised(mask, rate))
        assert abs(z.std() - 1) < 0.01
        assert np.abs(z).max() < largest_of_normals(z.size)


def test_high_bits_of_the_index_and_each_seed_make_another_mask():
    index = jnp.arange(2**18, dtype=jnp.uint32)
    seeds, *others = jax.random.bits(jax.random.key(3), (9, 2), jnp.uint32)
    masks = [keep(index ^ jnp.uint32(change), seeds, 0.5) for change in (0, *(2**bit for bit in range(18, 32)))]
    masks += [keep(index, (seeds[0], other[1]), 0.5) for other in others]
    masks += [keep(index, (other[0], seeds[1]), 0.5) for other in others]
    assert_rows_are_uncorrelated(np.stack(masks))


def test_a_mask_is_the_hash_of_the_global_index():
    first, second = np.asarray(jax.random.key_data(jax.random.key(3)))
    x = np.arange(6 * 50 * 70, dtype=np.uint32)
    for word, shift, factor in ((first, 17, 0xED5AD4BB), (second, 11, 0xAC4C1B51), (first, 15, 0x31848BAB)):
        x = x ^ word
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    expected = (x >= 0.3 * 2**32).reshape(6, 50, 70)
    np.testing.assert_array_equal(keep_mask(jax.random.key(3), (6, 50, 70), 0.3), expected)


def test_rows_and_keys_are_independent():
    keys = jax.random.split(jax.random.key(4), 4)
    assert_rows_are_uncorrelated(np.concatenate([keep_mask(key, (64, 4096), 0.3) for key in keys]))


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


def test_elements_of_a_larger_array_are_dropped_as_there():
    whole, places = (
        np.random.default_rng(0).normal(size=(50, 24)).astype(np.float32),
        np.array([[3, 49, 3], [0, 7, 12]]),
    )
    index = jnp.asarray(places[..., None] * 24 + np.arange(24), jnp.uint32)
    part = dropout(jnp.asarray(whole[places]), jax.random.key(5), 0.3, index=index)
    np.testing.assert_array_equal(part, np.asarray(dropout(jnp.asarray(whole), jax.random.key(5), 0.3))[places])
