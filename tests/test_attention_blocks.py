"""Attention in blocks against plain attention, and its gradients against those of plain attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt1_jax.model import attention, attention_blocks

LENGTHS = [3, 4, 8, 13]  # less than a block, one, several, and a shorter last one
TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 2e-2}  # relative to the largest element


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(attention_blocks, 'BLOCK', 4)


def inputs(length, dtype):
    rng = np.random.default_rng(length)
    return [jnp.asarray(rng.normal(size=(2, length, 3, 8)), dtype) for _ in range(4)]


def visible(length, packed):
    """Of whole rows, or of rows with segments, a context that later segments see, and padding."""
    order = jnp.broadcast_to(jnp.arange(length), (2, length))
    if not packed:
        return attention.Visible(order, order)
    segments = jnp.where(order < length - 1, 1 + order // 4, 0)
    return attention.Visible(order, order, segments, jnp.where(segments > 0, 1, 0))


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('rate', [0.0, 0.4])
@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('length', LENGTHS)
def test_blocks_are_plain_attention(length, packed, rate, dtype):
    *qkv, d_out = inputs(length, dtype)
    seen, key = visible(length, packed), jax.random.key(1)
    blocks = lambda *qkv: attention_blocks.attend(*qkv, seen.mask(), rate, key)
    out, backward = jax.vjp(jax.jit(blocks), *qkv)
    # The reference in float32, with the same mask of dropout.
    f32 = lambda *arrays: [a.astype(jnp.float32) for a in arrays]
    expected, plain_backward = jax.vjp(lambda *qkv: attention.attend(*qkv, seen, rate, key), *f32(*qkv))
    pairs = zip((out, *backward(d_out)), (expected, *plain_backward(*f32(d_out))), strict=True)
    for ours, theirs in pairs:
        assert ours.dtype == dtype
        np.testing.assert_allclose(np.float32(ours), theirs, rtol=0, atol=TOLERANCE[dtype] * np.abs(theirs).max())


def test_without_a_key_nothing_is_dropped():
    *qkv, _ = inputs(13, jnp.float32)
    seen = visible(13, packed=False)
    out = attention_blocks.attend(*qkv, seen.mask(), 0.4, None)
    np.testing.assert_allclose(out, attention.attend(*qkv, seen), rtol=0, atol=1e-6)


def test_later_blocks_are_skipped():
    """Not only masked: a weight of zero times what is not a number is not a number."""
    query, key, value, _ = inputs(13, jnp.float32)
    out = attention_blocks.attend(query, key, value.at[:, 8:].set(jnp.nan), visible(13, False).mask(), 0.0, None)
    assert np.isfinite(out[:, :8]).all() and np.isnan(out[:, 8:]).all()
