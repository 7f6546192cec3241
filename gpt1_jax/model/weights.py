"""Kernels and tables on their way from where they are kept to where they are used."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def for_use(kernel: jax.Array, roles: tuple[str | None, ...], dtype: jnp.dtype) -> jax.Array:
    """`kernel` in the type of the computation, with all of its 'embed' axis on every device.

    It is cast while each device has its part, and gathered after that: so half as much is moved and kept, and XLA sums
    the gradient over the devices in parts too.

    roles: of its axes.
    """
    kernel = nn.with_logical_constraint(kernel.astype(dtype), roles)
    return nn.with_logical_constraint(kernel, tuple(None if role == 'embed' else role for role in roles))


@jax.custom_vjp
def whole(table: jax.Array) -> jax.Array:
    """`table` [rows, width] with all of its columns on every device; of its gradient each gets the columns it keeps."""
    return nn.with_logical_constraint(nn.with_logical_constraint(table, (None, 'table_embed')), (None, None))


# The derivative of the constraints would bring the whole gradient to every device.
whole.defvjp(
    lambda table: (whole(table), None),
    lambda _, gradient: (nn.with_logical_constraint(gradient, (None, 'table_embed')),),
)
