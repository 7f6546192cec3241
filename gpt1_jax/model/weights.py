"""Kernels and tables on their way from where they are kept to where they are used."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from gpt1_jax.model import mesh

_TABLE = ('table_rows', 'table_embed')  # roles of its axes


def for_use(kernel: jax.Array, roles: tuple[str | None, ...], dtype: jnp.dtype) -> jax.Array:
    """`kernel` in the type of the computation, with all of its 'embed' axis on every device.

    Each device casts its part before the parts are gathered: so half as much is moved and kept, and XLA also leaves the
    sum of the gradient over the devices in parts.

    roles: of its axes.
    """
    kernel = nn.with_logical_constraint(kernel.astype(dtype), roles)
    return nn.with_logical_constraint(kernel, tuple(None if role == 'embed' else role for role in roles))


def whole(table: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`table` [rows, width] in `dtype`, all of it on every device."""
    return nn.with_logical_constraint(nn.with_logical_constraint(table.astype(dtype), _TABLE), (None, None))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def copies(table: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """A copy of `table` [rows, width] for each shard of the batch, rounded to `dtype`: [shards, rows, width].

    The gradients of all uses of a copy are first added in its shard, then over the shards, once; of that sum each
    device gets the part that it keeps. Copies have the type of the table, so that these sums have it too.
    """
    each = jnp.broadcast_to(whole(table, dtype).astype(table.dtype), (mesh.shards('batch'), *table.shape))
    return nn.with_logical_constraint(each, ('batch', None, None))


copies.defvjp(
    lambda table, dtype: (copies(table, dtype), None),
    lambda dtype, _, gradient: (nn.with_logical_constraint(gradient.sum(axis=0), _TABLE),),
)
