"""The loss's kernels, interpreted, against float64 and against the loss that they replace."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from gpt1_jax.training import loss_kernels, losses
from gpt1_jax.training.loss_kernels import Blocks
from gpt1_jax.training.partitioning import Partitioner

BLOCKS = Blocks(128, 32)


def case(shape, rows, width, dtype=jnp.float32, scale=1.0):
    """(hidden, embedding, targets, weights); a third of the weights are 0, and every row is a target if it can."""
    rng = np.random.default_rng(0)
    hidden, embedding = rng.normal(size=(*shape, width)), scale * rng.normal(size=(rows, width))
    targets = rng.permutation(np.arange(np.prod(shape)) % rows).reshape(shape)
    weights = rng.uniform(size=shape) * (rng.uniform(size=shape) < 0.67)
    return (
        jnp.asarray(hidden, dtype),
        jnp.asarray(embedding, dtype),
        jnp.asarray(targets, jnp.int32),
        jnp.asarray(weights, jnp.float32),
    )


def expected(hidden, embedding, targets, weights, factor):
    """Loss, and gradients of hidden, embedding and weights, in float64; written out."""
    hidden, embedding, weights = (np.asarray(x, np.float64) for x in (hidden, embedding, weights))
    targets = np.asarray(targets)
    logits = hidden @ embedding.T
    nll = special.logsumexp(logits, axis=-1) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    d_logits = special.softmax(logits, axis=-1) - np.eye(len(embedding))[targets]
    d_logits *= factor * weights[..., None]
    d_embedding = d_logits.reshape(-1, len(embedding)).T @ hidden.reshape(-1, hidden.shape[-1])
    return factor * np.sum(nll * weights), (d_logits @ embedding, d_embedding, factor * nll)


def computed(arguments, factor=1.0, loss=loss_kernels.lm_loss, jit=jax.jit, **options):
    options = options or dict(blocks=BLOCKS, interpret=True)
    function = lambda hidden, embedding, weights, targets: factor * loss(hidden, embedding, targets, weights, **options)
    hidden, embedding, targets, weights = arguments
    return jit(jax.value_and_grad(function, argnums=(0, 1, 2)))(hidden, embedding, weights, targets)


def assert_close(actual, right, tolerance):
    """Relative to the largest entry of each array."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), e, rtol=0, atol=tolerance * np.abs(e).max())


@pytest.mark.parametrize(
    ('shape', 'rows', 'width'),
    [
        ((1, 2, 64), 64, 16),  # whole blocks
        ((1, 3, 50), 70, 16),  # 150 tokens and 70 entries: the last blocks are not full
        ((2, 1, 130), 97, 24),  # shards in one device
        ((1, 1, 5), 3, 8),  # less than one block of each
    ],
)
def test_loss_and_gradients_equal_float64(shape, rows, width):
    arguments = case(shape, rows, width)
    assert_close(computed(arguments, factor=-3.0), expected(*arguments, factor=-3.0), 3e-6)


@pytest.fixture(params=[2**30, 0], ids=['kept', 'again'])
def kept(request, monkeypatch):
    """Whether powers are kept for the backward pass, in bfloat16, or computed again."""
    monkeypatch.setattr(loss_kernels, '_KEPT', request.param)
    return bool(request.param)


def test_in_bfloat16_it_is_as_exact_as_the_loss_that_it_replaces(kept):
    arguments = case((1, 2, 100), 300, 32, jnp.bfloat16)
    right = expected(*arguments, factor=1.0)
    actual, plain = computed(arguments), computed(arguments, loss=losses.lm_loss, chunk_tokens=64)
    assert [leaf.dtype for leaf in jax.tree.leaves(actual)] == [leaf.dtype for leaf in jax.tree.leaves(plain)]
    for a, p, e in zip(jax.tree.leaves(actual), jax.tree.leaves(plain), jax.tree.leaves(right), strict=True):
        error = lambda x, e=e: np.sqrt(np.mean((np.asarray(x, np.float64) - e) ** 2))
        assert error(a) < 1.1 * error(p) + 1e-6 * np.abs(e).max()


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_what_is_not_finite_is_seen_in_the_table_s_gradient(kept, value):
    """By it a step is skipped. Packed, a power that is NaN becomes a number."""
    hidden, embedding, *others = case((1, 2, 64), 64, 16, jnp.bfloat16)
    loss, (_, to_table, _) = computed((hidden, embedding.at[3, 5].set(value), *others))
    assert not np.isfinite(loss) and not np.isfinite(to_table.astype(np.float32)).all()


def test_powers_are_packed_to_eleven_significant_bits():
    rng = np.random.default_rng(0)
    powers = np.concatenate([2.0 ** -rng.uniform(0, 62, 10_000), 2.0 ** -np.arange(64), 1 - 2.0 ** -np.arange(1, 25)])
    unpacked = np.asarray(loss_kernels._unpack(loss_kernels._pack(jnp.asarray(powers, jnp.float32))), np.float64)
    assert (np.abs(unpacked / powers - 1) <= 2.0**-11).all()
    exact = np.log2(powers) % 1 == 0
    assert exact.sum() >= 64 and (unpacked[exact] == powers[exact]).all()
    least = loss_kernels._unpack(loss_kernels._pack(jnp.array([0.0, 1e-38, 1e-20])))
    assert (least == 2.0**-63).all()


def test_tokens_that_are_nearly_certain_have_exact_gradients():
    """There the mean row must cancel against the target's, though probabilities are rounded to bfloat16."""
    shape, rows, width = (1, 1, 128), 64, 32
    _, embedding, targets, weights = case(shape, rows, width, jnp.bfloat16)
    hidden = (8 / width * np.asarray(embedding, np.float32))[targets]  # the target's logit is about 8
    hidden *= np.linspace(0.5, 2.5, 128)[:, None]
    arguments = jnp.asarray(hidden, jnp.bfloat16), embedding, targets, jnp.ones(shape, jnp.float32)
    d_hidden = np.asarray(computed(arguments)[1][0], np.float64)
    right = expected(*arguments, factor=1.0)[1][0]
    size = np.linalg.norm(right, axis=-1)
    assert size.min() < 1e-2 * size.max()
    assert (np.linalg.norm(d_hidden - right, axis=-1) < 0.01 * size + 2e-6).all()  # what float32 sums leave


def test_logits_that_are_large_do_not_overflow():
    arguments = case((1, 1, 128), 97, 16, scale=200.0)
    actual = computed(arguments)
    assert_close(actual, expected(*arguments, factor=1.0), 1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(actual))


@pytest.fixture
def calls(monkeypatch):
    """The options of the calls of kernels."""
    options, plain = [], loss_kernels.pl.pallas_call
    monkeypatch.setattr(loss_kernels.pl, 'pallas_call', lambda *x, **named: options.append(named) or plain(*x, **named))
    return options


@pytest.mark.parametrize(
    ('mesh', 'kernels'), [(('dp', (8, 1, 1)), 2), (('fsdp', (2, 4, 1)), 2), (('tp', (2, 1, 4)), 0)]
)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_it_is_the_same_on_a_mesh(mesh, kernels, dtype, calls):
    """Where the vocabulary is divided it is the loss that it replaces."""
    partitioner = Partitioner(*mesh)
    arguments = case((partitioner.placement.shards, 1, 30), 70, 16, dtype)
    actual = computed(arguments, jit=functools.partial(partitioner.jit, out_shardings=partitioner.sharding()))
    assert len(calls) == kernels
    assert_close(actual, expected(*arguments, factor=1.0), 3e-6 if dtype == jnp.float32 else 0.01)


@pytest.mark.parametrize('itemsize', [2, 4])
def test_the_cost_that_is_declared(itemsize, kept, calls):
    """Every block that a program of the grid needs and the one before did not is read; every result is written once."""
    tokens, rows, width = 4 * 128, 320, 16
    jax.eval_shape(
        lambda *x: computed(x, jit=lambda f: f),
        *case((1, 4, 128), rows, width, jnp.bfloat16 if itemsize == 2 else jnp.float32),
    )
    states, table = (options['cost_estimate'] for options in calls)
    logits, kept = tokens * rows, kept and itemsize == 2
    assert states.transcendentals == logits and table.transcendentals == (10 * tokens if kept else logits)
    for cost, products in ((states, 2), (table, 1 if kept else 2)):
        of_products = products * 2 * logits * width
        assert of_products < cost.flops <= of_products + 12 * logits
    powers = 2 * logits + 4 * 10 * tokens if kept else 0  # and the largest logit of each token in 10 blocks of entries
    # 4 blocks of tokens read the table; float32 means and normalisers.
    written = 4 * tokens * (width + 1) + powers
    assert states.bytes_accessed == tokens * width * itemsize + 4 * rows * width * itemsize + written
    # 10 blocks of entries read the states, targets, weights and normalisers.
    read = (powers or rows * width * itemsize) + 10 * tokens * (width * itemsize + 3 * 4)
    assert table.bytes_accessed == read + 4 * rows * width


def test_blocks_fit_the_vector_memory():
    assert Blocks.of(768) == (2048, 1024)
    for width in (64, 768, 1024, 4096):
        tokens, entries = Blocks.of(width)
        assert tokens % 128 == entries % 128 == 0
        # States, their mean and its sum; two of what is read and written, while the next is on its way.
        assert 4 * width * (2 * tokens + 2 * tokens + tokens + 2 * entries) < loss_kernels._MEMORY
        # In bfloat16, also the powers.
        states, sums = 2 * width * (2 * tokens + 2 * entries), 4 * width * (2 * tokens + tokens)
        assert states + sums + 2 * 2 * tokens * entries < loss_kernels._MEMORY
