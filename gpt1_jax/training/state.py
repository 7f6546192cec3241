"""The state of a training run, created sharded."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from gpt1_jax.training.partitioning import Partitioner


class TrainState(flax.struct.PyTreeNode):
    """Everything that an update reads and writes.

    step: int32 [], steps taken (the position in the data); skipped: int32 [], non-finite steps in a row;
    params, opt_state: trees; key: uint32 key data of the run's dropout, constant (each step folds its number in).
    """

    step: jax.Array
    skipped: jax.Array
    params: dict
    opt_state: optax.OptState
    key: jax.Array

    def items(self) -> dict:
        """The state as the separate items of a checkpoint, so that parameters can be restored alone."""
        return {'params': self.params, 'opt_state': self.opt_state,
                'run': {'step': self.step, 'skipped': self.skipped, 'key': self.key}}

    @classmethod
    def from_items(cls, items: dict) -> 'TrainState':
        return cls(params=items['params'], opt_state=items['opt_state'], **items['run'])


def params_initialiser(model, head=None):
    """key -> boxed parameters {'decoder': ..., 'head': ...}, the latter where there is a head."""

    def init_params(key):
        decoder_key, head_key = jax.random.split(key)
        params = {'decoder': model.init(decoder_key, jnp.zeros((1, 1), jnp.int32))['params']}
        if head is not None:
            params['head'] = head.init(head_key, jnp.zeros((1, 1, model.width)))['params']
        return params

    return init_params


def abstract_tree(boxed, partitioner: Partitioner):
    """Boxed ShapeDtypeStructs -> plain ones with shardings. Call it outside `Partitioner.activate`."""
    return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                        nn.unbox(boxed), partitioner.tree_shardings(boxed))


def abstract_state(init_params, optimizer: optax.GradientTransformation, partitioner: Partitioner) -> TrainState:
    """The state's shapes, types and shardings (ShapeDtypeStructs); `init_params(key)` gives boxed parameters.
    Call it outside `Partitioner.activate`."""
    return abstract_tree(jax.eval_shape(lambda: _create(init_params, optimizer, 0)), partitioner)


def create_state(init_params, optimizer: optax.GradientTransformation, abstract: TrainState, seed: int) -> TrainState:
    """A new state on the devices of `abstract`, a function of the seed whatever the mesh."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(lambda: nn.unbox(_create(init_params, optimizer, seed)), out_shardings=shardings)()


def _create(init_params, optimizer, seed):
    init_key, dropout_key = jax.random.split(jax.random.key(seed))
    params = init_params(init_key)
    return TrainState(step=jnp.zeros((), jnp.int32), skipped=jnp.zeros((), jnp.int32), params=params,
                      opt_state=optimizer.init(params), key=jax.random.key_data(dropout_key))
