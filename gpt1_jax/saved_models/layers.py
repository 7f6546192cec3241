"""Transfer of another model's parameters, by layers (Radford et al. 2018, section 5; release, `n_transfer`)."""

from collections.abc import Callable

import flax.linen as nn
import jax

from gpt1_jax.errors import UserError
from gpt1_jax.model.classifier import Classifier
from gpt1_jax.saved_models.parameters import SavedModel
from gpt1_jax.training.program import Program
from gpt1_jax.training.state import abstract_params


def number(n_transfer: int | None, model: nn.Module) -> int:
    """The number of layers to transfer that `config.n_transfer` means; None means all. Raises UserError."""
    if n_transfer is None:
        return model.layers
    if not -1 <= n_transfer <= model.layers:
        raise UserError(
            f'n_transfer: {n_transfer} layers cannot be transferred. It must be from -1 (nothing) to {model.layers} '
            '(all layers).'
        )
    return n_transfer


def loader(saved: SavedModel, program: Program, n_layers: int) -> Callable | None:
    """A function new params -> params with the saved model's table and first `n_layers` layers; the head stays new.

    n_layers: -1 for no transfer, which gives None.
    """
    if n_layers < 0:
        return None
    model, partitioner = program.classifier.model, program.partitioner
    theirs = abstract_params(Classifier(model.clone(n_special=saved.n_special), saved.head), partitioner)
    take_over = partitioner.jit(
        lambda fresh, source: model.transfer(fresh, source, saved.n_special, n_layers),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, program.abstract.params['decoder']),
    )

    return lambda params: params | {'decoder': take_over(params['decoder'], saved.read(theirs)['decoder'])}
