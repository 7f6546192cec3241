"""Kernels on their way from where they are kept to where they are used."""

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
