"""Kernels are used whole, in the type of the computation, wherever their parts are kept."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from gpt1_jax.model.weights import for_use
from gpt1_jax.training.partitioning import Partitioner

ROLES = ('embed', 'mlp')
KERNEL = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
BOXED = {'kernel': nn.LogicallyPartitioned(jax.ShapeDtypeStruct(KERNEL.shape, np.float32), ROLES)}


@pytest.mark.parametrize(
    ('mesh', 'parts', 'used'),
    [
        (('dp', (8, 1, 1)), P('data'), P()),
        (('tp', (2, 1, 4)), P('data', 'tensor'), P(None, 'tensor')),
        (('fsdp+tp', (2, 2, 2)), P('fsdp', 'tensor'), P(None, 'tensor')),
    ],
)
def test_parts_are_cast_and_then_gathered(mesh, parts, used):
    partitioner = Partitioner(*mesh).spread(BOXED)
    shardings = partitioner.tree_shardings(BOXED)['kernel'], NamedSharding(partitioner.mesh, used)
    assert shardings[0].is_equivalent_to(NamedSharding(partitioner.mesh, parts), 2)
    use = lambda kernel: for_use(kernel, ROLES, jnp.bfloat16)
    lowered = partitioner.jit(use, in_shardings=shardings[0]).lower(KERNEL)
    # A CPU's program gathers float32 in any case, but a cast comes first, and the parts' type is fixed after it.
    assert len(re.findall(r'sharding_constraint.*tensor<16x24xbf16>', lowered.as_text())) == 2
    assert 'all-gather' in lowered.compile().as_text()

    kernel = jax.device_put(KERNEL, shardings[0])
    result = partitioner.jit(use)(kernel)
    assert result.sharding.is_equivalent_to(shardings[1], 2) and result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(result, KERNEL.astype(jnp.bfloat16))
    gradient = partitioner.jit(jax.grad(lambda kernel: jnp.sum(use(kernel).astype(jnp.float32) ** 2)))(kernel)
    np.testing.assert_allclose(gradient, 2 * KERNEL.astype(jnp.bfloat16).astype(np.float32), rtol=1e-2)


def test_what_is_whole_is_only_cast():
    for partitioner in (Partitioner('dp'), Partitioner('dp', (1, 1, 1), jax.devices()[:1])):
        use = partitioner.jit(lambda kernel: for_use(kernel, ROLES, jnp.bfloat16))
        text = use.lower(KERNEL).compile().as_text()
        assert 'all-' not in text and '-slice' not in text
    assert for_use(KERNEL, ROLES, jnp.float32).dtype == np.float32  # without a mesh too
