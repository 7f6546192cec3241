"""The LSTM that GPT-1 is compared with (Radford et al., 2018, section 5 and Table 5): one layer of 2,048 units.

The paper says no more. The gates are those of Hochreiter & Schmidhuber (1997) with the forget gate of Gers et al.
(2000) and no peepholes; its bias begins at 1 (Jozefowicz et al., 2015), the others at 0. All else is as in the
transformer: the table and its dropout, the initial values, the tied softmax, behind a projection units -> width.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gpt1_jax.model.dropout import dropout
from gpt1_jax.model.flops import training_flops_per_token
from gpt1_jax.model.transformer import Output, look_up
from gpt1_jax.model.weights import for_use


class Cache(NamedTuple):
    """The state after the tokens read so far, the first lengths[b] of row b.

    Attributes:
      hidden: [B, units].
      cell: float32 [B, units].
      lengths: int32 [B].
    """

    hidden: jax.Array
    cell: jax.Array
    lengths: jax.Array


class LSTM(nn.Module):
    """A table of token rows [0, vocab_size) and `n_special` special rows, one LSTM layer, a projection to the width.

    Attributes: see `Decoder`; there are no position rows, `n_positions` is the length of the windows it is trained on.
      residual_dropout: of the layer's output, before the projection.
    """

    vocab_size: int
    n_special: int
    n_positions: int
    width: int
    layers: int
    units: int
    dropout: float = 0.1
    residual_dropout: float = 0.1
    embedding_dropout: str = 'table'
    init_std: float = 0.02
    dtype: jnp.dtype = jnp.float32

    SIZES = ('layers', 'width', 'units', 'n_positions')
    CANNOT = ('share_context', 'convert')

    @staticmethod
    def check_sizes(sizes: Mapping[str, int]) -> None:
        """Raises ValueError for a number of layers other than 1, or no units."""
        if sizes['layers'] != 1:
            raise ValueError(f'layers={sizes["layers"]}, but an LSTM has layers=1')
        if sizes['units'] < 1:
            raise ValueError(f'units={sizes["units"]} is not positive')

    def flops_per_token(self, lm_head: bool = True) -> float:
        """See `flops.training_flops_per_token`. lm_head: whether it is computed."""
        layer = 4 * self.units * (self.width + self.units) + self.units * self.width
        softmax = lm_head * (self.vocab_size + self.n_special) * self.width
        return training_flops_per_token(layer + softmax, 0, 0, 0)

    def transfer(self, fresh: dict, source: dict, source_special: int, n_layers: int) -> dict:
        """See `Decoder.transfer`; the one layer includes its projection."""
        special = source['table'] if source_special and self.n_special else fresh['table']
        table = jnp.concatenate([source['table'][: self.vocab_size], special[self.vocab_size :]])
        return (source if n_layers else fresh) | {'table': table}

    def empty_cache(self, batch: int, length: int) -> Cache:
        """See `Decoder.empty_cache`; `length` does not matter."""
        del length
        zeros = jnp.zeros((batch, self.units), jnp.float32)
        return Cache(zeros.astype(self.dtype), zeros, jnp.zeros((batch,), jnp.int32))

    @staticmethod
    def cache_shardings(sharding: Callable[..., Any]) -> Cache:
        """See `Decoder.cache_shardings`."""
        units = sharding('batch', 'mlp')
        return Cache(units, units, sharding('batch'))

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        context_ids: jax.Array | None = None,
        *,
        train: bool = False,
        cache: Cache | None = None,
        lengths: jax.Array | None = None,
    ) -> Output:
        """See `Decoder.__call__`. The state is zero at the start of a row and wherever the segment changes.

        positions: not used. context_ids: must be None.
        """
        if context_ids is not None:
            raise ValueError('an LSTM cannot share a context')
        normal, zeros = nn.initializers.normal(self.init_std), nn.initializers.zeros
        param = lambda name, init, shape, axes: self.param(name, nn.with_logical_partitioning(init, axes), shape)
        key = lambda rate: self.make_rng('dropout') if train and rate else None
        n_rows = self.vocab_size + self.n_special
        table = param('table', normal, (n_rows, self.width), ('table_rows', 'table_embed'))
        x, table = look_up(table, (tokens,), key(self.dropout), self.dropout, self.embedding_dropout, self.dtype, train)

        in_kernel = param('in_kernel', normal, (self.width, 4, self.units), ('embed', None, 'mlp'))
        bias = param('bias', _gate_biases, (4, self.units), (None, 'mlp'))
        recurrent_kernel = param('recurrent_kernel', normal, (self.units, 4, self.units), ('embed', None, 'mlp'))
        out_kernel = param('out_kernel', normal, (self.units, self.width), ('mlp', 'embed'))
        out_bias = param('out_bias', zeros, (self.width,), ('norm',))
        in_kernel = for_use(in_kernel, ('embed', None, 'mlp'), self.dtype)
        out_kernel = for_use(out_kernel, ('mlp', 'embed'), self.dtype)

        inputs = jnp.einsum('btw,wgu->tbgu', x, in_kernel) + bias.astype(self.dtype)[None, None]
        inputs = nn.with_logical_constraint(inputs, (None, 'batch', None, 'mlp'))
        # Gathered once, not in every time step.
        recurrent_kernel = nn.with_logical_constraint(recurrent_kernel, (None, None, 'mlp'))
        starts = jnp.zeros(tokens.shape, bool) if segment_ids is None else segment_ids != jnp.roll(segment_ids, 1, 1)
        starts = starts.T
        if cache is None:
            hidden = recur(inputs, recurrent_kernel, starts.at[0].set(True))
        else:
            hidden, cells, _ = _forward(inputs, recurrent_kernel, starts, cache.hidden, cache.cell)
            lengths = jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32) if lengths is None else lengths
            cache = Cache(_at(hidden, lengths, cache.hidden), _at(cells, lengths, cache.cell), cache.lengths + lengths)
        hidden = dropout(hidden, key(self.residual_dropout), self.residual_dropout, index=_batch_first(hidden.shape))
        out = jnp.einsum('tbu,uw->btw', hidden, out_kernel) + out_bias.astype(self.dtype)[None, None]
        return Output(nn.with_logical_constraint(out, ('batch', None, None)), table, cache)


def _gate_biases(key, shape, dtype=jnp.float32):
    del key
    return jnp.zeros(shape, dtype).at[1].set(1.0)


def _batch_first(shape):
    """uint32 [T, B, U]: where each element stands in an array [B, T, U]. The dropout mask then does not depend on the
    number of rows: on some meshes, empty ones are added at the end."""
    t, b, u = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(3))
    return (b * jnp.uint32(shape[0]) + t) * jnp.uint32(shape[2]) + u


def _at(states, lengths, initial):
    """The states [B, U] after lengths[b] of the tokens: of `states` [T, B, U], or `initial` after none."""
    index = jnp.maximum(lengths - 1, 0)[None, :, None]
    return jnp.where(lengths[:, None] > 0, jnp.take_along_axis(states, index, axis=0)[0], initial)


@jax.custom_vjp
def recur(inputs: jax.Array, kernel: jax.Array, starts: jax.Array) -> jax.Array:
    """The layer's output [T, B, U] from zero states.

    The gradient of the kernel is one product over all time steps, after the backward loop: in the loop it would be
    read and written at every step, and summed over the devices.

    Args:
      inputs: [T, B, 4, U], what the gates i, f, g, o get from the input, biases included; its dtype is that of the
        computation.
      kernel: float32 [U, 4, U], from the state to the gates.
      starts: bool [T, B], where the state before is zero.
    """
    return _recur_forward(inputs, kernel, starts)[0]


def _recur_forward(inputs, kernel, starts):
    zeros = jnp.zeros((inputs.shape[1], inputs.shape[3]), jnp.float32)
    hidden, cells, gates = _forward(inputs, kernel, starts, zeros.astype(inputs.dtype), zeros)
    return hidden, (hidden, cells, gates, kernel, starts)


def _forward(inputs, kernel, starts, hidden, cell):
    """hidden [T, B, U], cells float32 [T, B, U], gates [T, B, 4, U] after each time step, from the states [B, U]."""
    kernel = kernel.astype(inputs.dtype)

    def step(state, now):
        gate_inputs, start = now
        h, c = (jnp.where(start[:, None], 0, x) for x in state)
        summed = gate_inputs + jnp.einsum('bu,ugv->bgv', h, kernel, preferred_element_type=jnp.float32)
        i, f, g, o = (
            jax.nn.sigmoid(summed[:, 0]),
            jax.nn.sigmoid(summed[:, 1]),
            jnp.tanh(summed[:, 2]),
            jax.nn.sigmoid(summed[:, 3]),
        )
        c = f * c + i * g
        h = (o * jnp.tanh(c)).astype(h.dtype)
        gates = jnp.stack([i, f, g, o], axis=1).astype(inputs.dtype)
        return (h, c), (h, c, gates)

    return jax.lax.scan(step, (hidden, cell), (inputs, starts))[1]


def _recur_backward(residuals, d_hidden):
    hidden, cells, gates, kernel, starts = residuals
    transposed = kernel.astype(hidden.dtype).transpose(1, 2, 0)  # here, because XLA would do it in every time step
    before = lambda x: jnp.where(starts[..., None], 0, jnp.roll(x, 1, axis=0))  # the first step is a start

    def step(state, now):
        d_h_next, d_c_next = state
        d_h, gate, c, c_before, start = now
        i, f, g, o = (gate[:, k].astype(jnp.float32) for k in range(4))
        d_h = d_h + d_h_next
        tanh_c = jnp.tanh(c)
        d_c = d_c_next + d_h * o * (1 - tanh_c**2)
        d_sums = jnp.stack(
            [d_c * g * i * (1 - i), d_c * c_before * f * (1 - f), d_c * i * (1 - g**2), d_h * tanh_c * o * (1 - o)],
            axis=1,
        ).astype(hidden.dtype)
        d_h_before = jnp.einsum('bgv,gvu->bu', d_sums, transposed, preferred_element_type=jnp.float32)
        zero = lambda x: jnp.where(start[:, None], 0, x)
        return (zero(d_h_before), zero(d_c * f)), d_sums

    zeros = jnp.zeros_like(cells[0])
    _, d_sums = jax.lax.scan(step, (zeros, zeros), (d_hidden, gates, cells, before(cells), starts), reverse=True)
    d_kernel = jnp.einsum('tbu,tbgv->ugv', before(hidden), d_sums, preferred_element_type=jnp.float32)
    return d_sums, d_kernel, None


recur.defvjp(_recur_forward, _recur_backward)
