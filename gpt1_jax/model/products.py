"""Matrix products, written so that XLA is fast at them on a CPU too.

There, a product of bfloat16 is fast only if its result is float32 and if it sums over rows of the one operand and rows
or columns of the other; columns of both, as a kernel's gradient needs, are fast only in float32.
"""

import functools

import jax
import jax.numpy as jnp


def product(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """`einsum` of arrays of one dtype, in that dtype, summed in float32."""
    plain = functools.partial(jnp.einsum, subscripts)
    # Only on a CPU: others sum in float32 anyway, and devices would exchange parts of a sum in float32 too.
    rounded = lambda x, y: plain(x, y, preferred_element_type=jnp.float32).astype(x.dtype)
    return jax.lax.platform_dependent(x, y, cpu=rounded, default=plain)


def outer_products(x: jax.Array, y: jax.Array) -> jax.Array:
    """The sum of the outer products of all rows of `x` [B, T, K] with those of `y` [B, T, N]: float32 [K, N]."""
    if x.dtype != jnp.float32:
        # A sum over two axes makes XLA transpose `x` before.
        return jnp.einsum('btk,btn->kn', x, y, preferred_element_type=jnp.float32)
    plain = lambda x, y: jnp.dot(x.reshape(-1, x.shape[-1]).T, y.reshape(-1, y.shape[-1]))
    if x.shape[-1] <= y.shape[-1]:
        return plain(x, y)
    # On a CPU it is faster to transpose the narrower of the two, and the result, than the wider one.
    return jax.lax.platform_dependent(x, y, cpu=lambda x, y: plain(y, x).T, default=plain)


@jax.custom_vjp
def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """`x` [B, T, K] times `kernel` [K, N], of the same dtype, plus `bias` [N]: [B, T, N], in that dtype."""
    return product('btk,kn->btn', x, kernel) + bias.astype(x.dtype)[None, None]


def _forward(x, kernel, bias):
    return affine(x, kernel, bias), (x, kernel, bias)


def _backward(residuals, d_out):
    x, kernel, bias = residuals
    d_x = product('btn,kn->btk', d_out, kernel)
    d_kernel = outer_products(x, d_out) if x.dtype == jnp.float32 else product('btk,btn->kn', x, d_out)
    return d_x, d_kernel, jnp.sum(d_out, axis=(0, 1), dtype=jnp.float32).astype(bias.dtype)


affine.defvjp(_forward, _backward)
