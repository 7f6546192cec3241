"""The GPU's kernel of the language model's loss, run by Triton's interpreter, against `losses.lm_loss`."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import triton_on_host
from gpt1_jax.training import loss_triton, losses
from gpt1_jax.training.partitioning import Partitioner

RNG = np.random.default_rng(0)
SHARDS, ROWS, LENGTH, WIDTH, ENTRIES = 2, 3, 8, 16, 100


@pytest.fixture(scope='module', autouse=True)
def kernels():
    with triton_on_host.patched():
        yield


def arguments(shards=SHARDS):
    shape = shards, ROWS, LENGTH
    hidden = jnp.asarray(RNG.normal(size=(*shape, WIDTH)), jnp.float32)
    table = jnp.asarray(RNG.normal(size=(ENTRIES, WIDTH)), jnp.float32)
    targets = jnp.asarray(RNG.integers(0, ENTRIES, shape), jnp.uint16)
    return hidden, table, targets, jnp.asarray(RNG.uniform(size=shape), jnp.float32)


def computed(loss, hidden, table, targets, weights, **options):
    return jax.value_and_grad(lambda h, e: 3 * loss(h, e, targets, weights, **options), argnums=(0, 1))(hidden, table)


@pytest.mark.parametrize('block', [32, 128])
def test_loss_and_gradients(monkeypatch, block):
    """Of more entries than a program reads at a time, and of fewer."""
    monkeypatch.setattr(loss_triton, '_BLOCK', block)
    inputs = arguments()
    ours, expected = (jax.tree.leaves(computed(each.lm_loss, *inputs)) for each in (loss_triton, losses))
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_large_logits(monkeypatch):
    """Logits of 10,000 apart, the largest first, last, or in the middle: no infinity, and the loss of a certain token
    is 0."""
    monkeypatch.setattr(loss_triton, '_BLOCK', 32)
    logits = jnp.asarray(RNG.permuted(np.linspace(-2e4, 1e4, 3 * ENTRIES).reshape(3, ENTRIES), axis=1), jnp.float32)
    logits = logits.at[0, 0].set(3e4).at[1, -1].set(3e4).at[2, 50].set(3e4)
    targets, weights = jnp.asarray([0, 1, 50]), jnp.ones(3)
    ours, expected = (each.gradient(logits, targets, weights, jnp.float32) for each in (loss_triton, losses))
    np.testing.assert_allclose(ours[1], expected[1], rtol=1e-6)
    np.testing.assert_allclose(ours[0], expected[0], atol=1e-6)
    assert float(ours[1][0]) == float(ours[1][2]) == 0


@pytest.mark.parametrize(('strategy', 'shape'), [('dp', (2, 1, 1)), ('fsdp+tp', (1, 2, 2))])
def test_on_a_mesh(monkeypatch, strategy, shape):
    """The rows divided among devices; with a divided vocabulary XLA computes it."""
    inputs = arguments(2)
    partitioner = Partitioner(strategy, shape, jax.devices()[: np.prod(shape)])
    ours = partitioner.jit(lambda: computed(loss_triton.lm_loss, *inputs))()
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(computed(losses.lm_loss, *inputs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('triton') is None, reason='Triton is not installed')
def test_it_compiles_for_a_gpu(tmp_path):
    types = {'targets': '*i32', 'd_logits': '*bf16', '': '*fp32'}
    sizes, options = (40512, loss_triton._BLOCK), {'num_warps': loss_triton._WARPS}
    found = triton_on_host.compile_kernels(
        tmp_path, [['gpt1_jax.training.loss_triton', '_kernel', sizes, types, options]]
    )
    assert found == [(False, True)]
