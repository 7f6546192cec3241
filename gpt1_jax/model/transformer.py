"""The decoder of GPT-1 (Radford et al., 2018, sections 3.1 and 4.1; details from the release)."""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gpt1_jax.model import mesh, norm_triton
from gpt1_jax.model.attention import SelfAttention, Visible
from gpt1_jax.model.dropout import dropout
from gpt1_jax.model.feed_forward import FeedForward
from gpt1_jax.model.flops import training_flops_per_token
from gpt1_jax.model.weights import copies, whole

_EPSILON = 1e-5  # of a layer norm
_DROPOUTS = 'attention', 'norm_1', 'norm_2'  # of a block: of the weights, and of the branches before the norms


class Cache(NamedTuple):
    """Keys and values of the tokens read so far, the first lengths[b] of row b.

    Attributes:
      keys: one array per layer, [B, H, K, D] with room for K tokens.
      values: likewise.
      lengths: int32 [B].
    """

    keys: tuple
    values: tuple
    lengths: jax.Array


class Output(NamedTuple):
    """The output of a model.

    Attributes:
      hidden: [B, T, width].
      embedding: [rows, width], the rows that score the next token (tied softmax; in training with the same dropout as
        the table that was read, and, on several devices, `weights.copies` [shards, rows, width]).
      cache: the updated cache, or None.
    """

    hidden: jax.Array
    embedding: jax.Array
    cache: tuple | None = None


class Block(nn.Module):
    """One post-layer-norm layer: n = LN1(x + attention(x)); h = LN2(n + mlp(n))."""

    heads: int
    mlp_width: int
    attention_dropout: float
    residual_dropout: float
    init_std: float
    dtype: jnp.dtype
    attention: str
    platform: str
    train: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, cache: tuple | None, keys: jax.Array | None, visible: Visible
    ) -> tuple[jax.Array, tuple | None]:
        """`x` [B, T, width] -> ([B, T, width], cache). keys: one for each of _DROPOUTS; None for no dropout."""
        fused = self._has_norm_kernel(x, cache)
        keys = {} if keys is None else dict(zip(_DROPOUTS, keys))

        def join(name, x, branch, uses):
            """The norm of x + dropout(branch), `uses` times."""
            key = keys.get(name) if self.residual_dropout else None
            if fused:
                settings = norm_triton.Settings(self.residual_dropout if key is not None else 0.0, _EPSILON, uses)
                return norm_triton.Norm(settings, name=name)(x, *branch, key)
            norm = nn.LayerNorm(
                epsilon=_EPSILON,
                name=name,
                dtype=self.dtype,
                use_fast_variance=False,
                scale_init=nn.with_logical_partitioning(nn.initializers.ones, ('norm',)),
                bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ('norm',)),
            )
            return (norm(x + dropout(branch, key, self.residual_dropout)),) * uses

        settings = self.heads, self.attention_dropout, self.init_std, self.dtype, self.attention, self.platform
        key = keys.get('attention') if self.attention_dropout else None
        attended, cache = SelfAttention(*settings, fused, name='attention')(x, visible, key, cache)
        read, n = join('norm_1', x, attended, 2)
        mlp = FeedForward(self.mlp_width, self.init_std, self.dtype, fused, name='mlp')
        (h,) = join('norm_2', n, mlp(read), 1)
        return nn.with_logical_constraint(h, ('batch', None, None)), cache

    def _has_norm_kernel(self, x, cache):
        if not self.train or self.platform != 'gpu' or self.attention == 'xla' or self.is_initializing():
            return False
        return cache is None and not norm_triton.obstacle(x.shape[0], x.shape[-1])


class Decoder(nn.Module):
    """One table of token and position rows, `layers` blocks, no final norm (the release).

    The table's rows are: tokens [0, vocab_size), then `n_special` special tokens (start, delimiter, extract; added
    for fine-tuning), then one row per position. The parameters of all layers are stacked on a leading axis whether or
    not `scan` is set, so that checkpoints do not depend on it.

    Attributes:
      scan: compile one layer and loop (short compile) or unroll the layers (XLA may overlap them).
      remat: recompute a layer's activations in the backward pass instead of keeping them.
      embedding_dropout: 'table' drops elements of the table, once per forward pass, for look-up and softmax alike
        (release); 'sum' drops from the sum of token and position row (the Hugging Face port).
      init_std: standard deviation of initial kernels and table, see sizes.init_std.
      softmax_rows: 'all' lets special and position rows compete in the softmax (release); 'tokens' leaves
        position rows out (the port).
      attention: 'xla', 'kernel', or 'auto' (the kernel unless it cannot serve the rows at hand); unless
        'xla', layer norms are kernels too in training on a GPU.
      platform: of the devices, which have a kernel of their own.
    """

    vocab_size: int
    n_special: int
    n_positions: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    dropout: float = 0.1
    attention_dropout: float = 0.1
    residual_dropout: float = 0.1
    embedding_dropout: str = 'table'
    softmax_rows: str = 'all'
    init_std: float = 0.02
    scan: bool = True
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    attention: str = 'xla'
    platform: str = 'cpu'

    SIZES = ('layers', 'width', 'heads', 'mlp_width', 'n_positions')
    CANNOT = ()

    @staticmethod
    def check_sizes(sizes: Mapping[str, int]) -> None:
        """Raises ValueError if the heads do not divide the width."""
        if sizes['heads'] < 1 or sizes['width'] % sizes['heads']:
            raise ValueError(f'width={sizes["width"]} is not a multiple of heads={sizes["heads"]}')

    def flops_per_token(self, lm_head: bool = True) -> float:
        """See `flops.training_flops_per_token`. lm_head: whether it is computed."""
        per_layer = 4 * self.width**2 + 2 * self.width * self.mlp_width
        softmax = lm_head * (self.vocab_size + self.n_special + self.n_positions) * self.width
        return training_flops_per_token(self.layers * per_layer + softmax, self.layers, self.width, self.n_positions)

    def transfer(self, fresh: dict, source: dict, source_special: int, n_layers: int) -> dict:
        """The parameters `fresh`, with those that are transferred taken from `source` (release, `n_transfer`).

        These are token and position rows, special rows if both have them, and the first `n_layers` layers. The source
        is a model of the same sizes with `source_special` special rows.
        """
        vocab_size, n_special = self.vocab_size, self.n_special
        tokens, positions = source['table'][:vocab_size], source['table'][vocab_size + source_special :]
        special = source['table'] if source_special and n_special else fresh['table']
        table = jnp.concatenate([tokens, special[vocab_size : vocab_size + n_special], positions])
        rest = lambda new: [new[n_layers:]] if n_layers < len(new) else []
        fill = lambda new, old: jnp.concatenate([old[:n_layers], *rest(new)])
        blocks = {'blocks': jax.tree.map(fill, fresh['blocks'], source['blocks'])} if self.layers else {}
        return {'table': table} | blocks

    def empty_cache(self, batch: int, length: int) -> Cache:
        """For `batch` rows of at most `length` tokens."""
        shape = batch, self.heads, length, self.width // self.heads
        zeros = lambda: tuple(jnp.zeros(shape, self.dtype) for _ in range(self.layers))
        return Cache(zeros(), zeros(), jnp.zeros((batch,), jnp.int32))

    @staticmethod
    def cache_shardings(sharding: Callable[..., Any]) -> Cache:
        """The shardings of a cache's arrays. sharding: gives that of an array, from the roles of its first axes
        (`Partitioner.sharding`)."""
        heads = sharding('batch', 'heads')
        return Cache(heads, heads, sharding('batch'))

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
        """Hidden states of every position.

        Args:
          tokens: int [B, T].
          positions: int [B, T], within each sequence; None counts from 0 (from the cache's lengths, if there is one).
          segment_ids: int [B, T]; tokens see only their own segment. None: each row is one sequence.
          context_ids: int [B, T]; an earlier segment of the row that tokens see as well. None: there is none.
          train: apply dropout (needs the rng stream 'dropout').
          cache: from `empty_cache`; row b continues its lengths[b] tokens. The layers' parameters may then be a tuple
            of one tree per layer: slices of stacked ones would be copied in each call.
          lengths: int [B]; only the first lengths[b] tokens of row b belong to the cache that is returned, what comes
            after them is padding. None: all.
        """
        batch, length = tokens.shape
        n_rows = self.vocab_size + self.n_special
        normal = nn.with_logical_partitioning(nn.initializers.normal(self.init_std), ('table_rows', 'table_embed'))
        table = self.param('table', normal, (n_rows + self.n_positions, self.width))
        order = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
        if cache is not None:
            order += cache.lengths[:, None]
        if positions is None:
            positions = order[:1] if cache is None else order  # looked up once for all rows
        key, block_keys = self._dropout_keys() if train else (None, None)
        places = tokens, n_rows + positions
        x, table = look_up(table, places, key, self.dropout, self.embedding_dropout, self.dtype, train)

        arguments = (
            self.heads,
            self.mlp_width,
            self.attention_dropout,
            self.residual_dropout,
            self.init_std,
            self.dtype,
            self.attention,
            self.platform,
            train,
        )
        keys, values = [], []
        # Without layers there are no 'blocks' among the parameters: a checkpoint cannot hold empty arrays.
        if self.layers and cache is None:
            block = nn.remat(Block, prevent_cse=not self.scan) if self.remat and train else Block
            stack = nn.scan(
                block,
                variable_axes={'params': 0},
                split_rngs={'params': True},
                in_axes=(0, 0, nn.broadcast),
                length=self.layers,
                unroll=1 if self.scan or self.is_initializing() else self.layers,
                check_constancy_invariants=False,  # would trace the block twice; nothing is shared by the layers
                metadata_params={nn.PARTITION_NAME: 'layers'},
            )
            x, _ = stack(*arguments, name='blocks')(
                x, None, block_keys, Visible(order, order, segment_ids, context_ids)
            )
        elif self.layers:
            # Layer by layer, each with arrays of its own: a scan would copy the cache at every call.
            visible = Visible(order, jnp.arange(cache.keys[0].shape[2], dtype=jnp.int32)[None])
            blocks, block = self.get_variable('params', 'blocks'), Block(*arguments, parent=None)
            for i in range(self.layers):
                layer = blocks[i] if isinstance(blocks, tuple) else jax.tree.map(lambda leaf: leaf[i], blocks)
                x, (key, value, _) = block.apply(
                    {'params': layer}, x, (cache.keys[i], cache.values[i], cache.lengths), None, visible
                )
                keys.append(key)
                values.append(value)
        if cache is not None:
            cache = Cache(tuple(keys), tuple(values), cache.lengths + (length if lengths is None else lengths))
        return Output(x, table if self.softmax_rows == 'all' else table[..., :n_rows, :], cache)

    def _dropout_keys(self):
        """(key of the table, keys [layers, len(_DROPOUTS)] of the blocks), drawn at once: each draw is a loop of small
        kernels on a CPU."""
        if not (self.dropout or self.attention_dropout or self.residual_dropout):
            return None, None
        keys = jax.random.split(self.make_rng('dropout'), 1 + self.layers * len(_DROPOUTS))
        return keys[0], keys[1:].reshape(self.layers, len(_DROPOUTS))


def look_up(
    table: jax.Array,
    places: tuple[jax.Array, ...],
    key: jax.Array | None,
    rate: float,
    dropped: str,
    dtype: jnp.dtype,
    train: bool,
) -> tuple[jax.Array, jax.Array]:
    """The sum of rows of the table [rows, width] at each of `places`, int [B or 1, T], and the table for the softmax.

    key: for dropout, None for none. dropped: what it drops from, see `Decoder.embedding_dropout`. dtype: of the result.
    train: the gradient is wanted; on several devices the table for the softmax is then `weights.copies`.
    """
    shards, width = mesh.shards('batch'), table.shape[1]
    drop = lambda rows, index=None: dropout(rows, key, rate, index=index) if dropped == 'table' else rows

    def read(place):
        column = jax.lax.broadcasted_iota(jnp.uint32, (*place.shape, width), 2)
        return drop(table[place], place[..., None].astype(jnp.uint32) * jnp.uint32(width) + column)

    # Summed in float32, because bfloat16 loses gradients in the sum over a frequent token's thousand uses.
    if shards == 1:
        x = functools.reduce(operator.add, map(read, places))
        table = whole(drop(table), dtype)
    elif train:
        of_shard = lambda place: jnp.broadcast_to(place, (max(shards, place.shape[0]), place.shape[1]))
        places = tuple(of_shard(place).reshape(shards, -1, place.shape[1]) for place in places)
        x, table = _read(copies(drop(table), dtype), places, dtype)
        x = x.reshape(-1, *x.shape[2:])
    else:
        table = whole(drop(table), dtype)
        x = sum(table[place].astype(jnp.float32) for place in places)
    x = nn.with_logical_constraint(x.astype(dtype), ('batch', None, None))
    return dropout(x, key, rate) if dropped == 'sum' else x, table


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _read(tables, places, dtype):
    """(rows, tables). rows: float32 [shards, N, T, width], the rows of each shard's table [shards, rows, width] at its
    places [shards, N or 1, T], rounded to `dtype`, summed over the places. tables: for other uses; the backward pass
    adds the gradient of the rows to theirs, in place."""
    read = jax.vmap(lambda table, place: table[place].astype(jnp.float32))
    return sum(read(tables.astype(dtype), place) for place in places), tables


def _read_backward(dtype, places, gradients):
    to_rows, to_tables = gradients
    for place in places:
        to_read = to_rows if place.shape == to_rows.shape[:3] else to_rows.sum(axis=1, keepdims=True)
        to_tables = jax.vmap(lambda table, place, row: table.at[place].add(row))(to_tables, place, to_read)
    return to_tables, tuple(np.zeros(place.shape, jax.dtypes.float0) for place in places)


_read.defvjp(lambda tables, places, dtype: (_read(tables, places, dtype), places), _read_backward)
