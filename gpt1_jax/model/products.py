"""Products with a layer's kernel, written so that XLA is fast at them on a CPU too.

There, a product of bfloat16 is fast only if its result is float32 and if it sums over rows of the one operand and rows
or columns of the other; columns of both, as a kernel's gradient needs, are fast only in float32.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """`x` [B, T, K] times `kernel` [K, N] plus `bias` [N]: [B, T, N] in the dtype of `x`. Sums are in float32."""
    product = jnp.dot(x, kernel, preferred_element_type=jnp.float32)
    return product.astype(x.dtype) + bias.astype(x.dtype)[None, None]


def _forward(x, kernel, bias):
    return affine(x, kernel, bias), (x, kernel, bias)


def _backward(residuals, d_out):
    x, kernel, bias = residuals
    d_x = jnp.einsum('btn,kn->btk', d_out, kernel, preferred_element_type=jnp.float32)
    d_bias = jnp.sum(d_out, axis=(0, 1), dtype=jnp.float32)
    return d_x.astype(x.dtype), outer_products(x, d_out).astype(kernel.dtype), d_bias.astype(bias.dtype)


affine.defvjp(_forward, _backward)


def outer_products(x: jax.Array, y: jax.Array) -> jax.Array:
    """The sum of the outer products of all rows of `x` [B, T, K] with those of `y` [B, T, N]: float32 [K, N]."""
    if x.dtype == jnp.float32:
        return jnp.dot(x.reshape(-1, x.shape[-1]).T, y.reshape(-1, y.shape[-1]))
    # A sum over two axes makes XLA transpose `x` before.
    return jnp.einsum('btk,btn->kn', x, y, preferred_element_type=jnp.float32)
