"""The state of a training run, created sharded."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gpt1_jax.model.classifier import Classifier
from gpt1_jax.training.partitioning import Partitioner, unbox


class TrainState(flax.struct.PyTreeNode):
    """Everything that an update reads and writes.

    Attributes:
      step: int32 [], steps taken, which is the position in the data.
      skipped: int32 [], non-finite steps in a row.
      params: tree of float32 arrays.
      opt_state: of the optimizer.
      key: uint32 key data for dropout, constant (each step folds its number in).
    """

    step: jax.Array
    skipped: jax.Array
    params: dict
    opt_state: optax.OptState
    key: jax.Array

    def items(self) -> dict:
        """The state as separate items of a checkpoint, so that parameters can be restored alone."""
        return {
            'params': self.params,
            'opt_state': self.opt_state,
            'run': {'step': self.step, 'skipped': self.skipped, 'key': self.key},
        }

    @classmethod
    def from_items(cls, items: dict) -> 'TrainState':
        """The inverse of `items`."""
        return cls(params=items['params'], opt_state=items['opt_state'], **items['run'])


def abstract_params(classifier: Classifier, partitioner: Partitioner) -> dict:
    """Shapes, types and shardings of a model's parameters (ShapeDtypeStructs)."""
    return _abstract(jax.eval_shape(classifier.init, jax.random.key(0)), partitioner)


def abstract_state(
    classifier: Classifier, optimizer: optax.GradientTransformation, partitioner: Partitioner
) -> TrainState:
    """Shapes, types and shardings of a training state (ShapeDtypeStructs)."""
    return _abstract(jax.eval_shape(lambda: _create(classifier, optimizer, 0)), partitioner)


def _abstract(boxed, partitioner):
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        unbox(boxed),
        partitioner.tree_shardings(boxed),
    )


def create_state(
    classifier: Classifier, optimizer: optax.GradientTransformation, partitioner: Partitioner, seed: int
) -> TrainState:
    """A new state, sharded; it depends on the seed, not on the mesh."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(classifier, optimizer, partitioner))
    return partitioner.jit(lambda: unbox(_create(classifier, optimizer, seed)), out_shardings=shardings)()


def _create(classifier, optimizer, seed):
    init_key, dropout_key = jax.random.split(jax.random.key(seed))
    params = classifier.init(init_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        key=jax.random.key_data(dropout_key),
    )
