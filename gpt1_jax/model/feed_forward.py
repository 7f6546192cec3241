"""The feed-forward sub-layer, and the affine map that it is made of."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gpt1_jax.model.products import affine
from gpt1_jax.model.weights import for_use


class Dense(nn.Module):
    """`affine` with a kernel [K, features], of the roles given, and a bias.

    leave_bias: return (the product, the bias), for a kernel that adds it.
    """

    features: int
    roles: tuple[str, str]
    init_std: float
    dtype: jnp.dtype
    leave_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array | tuple[jax.Array, jax.Array]:
        normal, zeros = nn.initializers.normal(self.init_std), nn.initializers.zeros
        bias_role = 'norm' if self.roles[1] == 'embed' else self.roles[1]  # a bias keeps all of its 'embed' axis
        kernel = self.param('kernel', nn.with_logical_partitioning(normal, self.roles), (x.shape[-1], self.features))
        bias = self.param('bias', nn.with_logical_partitioning(zeros, (bias_role,)), (self.features,))
        kernel = for_use(kernel, self.roles, self.dtype)
        return (x @ kernel, bias) if self.leave_bias else affine(x, kernel, bias)


class FeedForward(nn.Module):
    """width -> mlp_width -> width with the tanh form of GELU.

    fused: for a GPU whose kernel adds the last bias: return (output, bias).
    """

    mlp_width: int
    init_std: float
    dtype: jnp.dtype
    fused: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array | tuple[jax.Array, jax.Array]:
        settings = self.init_std, self.dtype
        h = gelu(Dense(self.mlp_width, ('embed', 'mlp'), *settings, name='in')(x))
        h = nn.with_logical_constraint(h, ('batch', None, 'mlp'))
        return Dense(x.shape[-1], ('mlp', 'embed'), *settings, self.fused, name='out')(h)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """The tanh form of GELU; keeps nothing but `x` for the backward pass."""
    return _gelu(x)


def _gelu(x):
    plain = lambda x: jax.nn.gelu(x, approximate=True)
    # On a CPU XLA rounds the result of each operation in it to bfloat16, which takes longer than the operations.
    rounded_once = lambda x: plain(x.astype(jnp.float32)).astype(x.dtype)
    return jax.lax.platform_dependent(x, cpu=rounded_once, default=plain)


def _backward(x, gradient):
    # Without the barrier XLA would keep what the forward pass computes, which takes longer than to compute it again.
    return jax.vjp(_gelu, jax.lax.optimization_barrier(x))[1](gradient)


gelu.defvjp(lambda x: (_gelu(x), x), _backward)
