"""Transfer of another model's parameters, by layers (Radford et al. 2018, section 5; release, `n_transfer`)."""

from collections.abc import Callable

import jax

from gpt1_jax.errors import UserError
from gpt1_jax.model.architecture import KINDS, Architecture
from gpt1_jax.model.classifier import Classifier
from gpt1_jax.saved_models.parameters import SavedModel
from gpt1_jax.training.program import Program
from gpt1_jax.training.state import abstract_params


def number(n_transfer: int | None, saved: SavedModel) -> int:
    """The number of layers that `config.n_transfer` transfers; None means all. Raises UserError if it is impossible."""
    layers = saved.architecture.sizes['layers']
    if n_transfer is None:
        return layers
    if not -1 <= n_transfer <= layers:
        raise UserError(
            f'n_transfer: {n_transfer} layers cannot be transferred from {saved.directory}. It must be from -1 '
            f'(nothing) to {layers} (all layers).'
        )
    return n_transfer


def architecture(saved: SavedModel, n_layers: int, rest: str) -> Architecture:
    """The architecture of the model that takes over `n_layers` layers, -1 for nothing.

    rest: what stands in for the layers that are not transferred: 'fresh' ones, as many as are missing (the release), or
    none ('absent'). Raises UserError if a model of that kind cannot have so few layers.
    """
    kind, sizes = saved.architecture.kind, saved.architecture.sizes
    if rest == 'fresh':
        return saved.architecture
    if n_layers < 0:
        raise UserError(
            'n_transfer: With -1 nothing is transferred, and rest=absent leaves nothing in its place. Set '
            '--config.rest=fresh to start from scratch.'
        )
    sizes = {**sizes, 'layers': n_layers}
    try:
        KINDS[kind].check_sizes(sizes)
    except ValueError as error:
        raise UserError(
            f'n_transfer: A model of kind {kind} cannot have {n_layers} layers ({error}). Transfer more, or set '
            '--config.rest=fresh.'
        ) from error
    return Architecture(kind, sizes)


def loader(saved: SavedModel, program: Program, n_layers: int) -> Callable | None:
    """A function new params -> params with the saved model's table and first `n_layers` layers; the head stays new.

    n_layers: -1 for no transfer, which gives None.
    """
    if n_layers < 0:
        return None
    model, partitioner = program.classifier.model, program.partitioner
    same_sizes = model.clone(n_special=saved.n_special, **saved.architecture.sizes)
    source = Classifier(same_sizes, saved.head)
    boxed = jax.eval_shape(source.init, jax.random.key(0))
    theirs = abstract_params(source, partitioner.spread(boxed))
    take_over = partitioner.jit(
        lambda fresh, source: model.transfer(fresh, source, saved.n_special, n_layers),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, program.abstract.params['decoder']),
    )

    return lambda params: params | {'decoder': take_over(params['decoder'], saved.read(theirs)['decoder'])}
