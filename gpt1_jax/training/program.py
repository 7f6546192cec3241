"""A run's model, steps and shapes from its config alone, without data, weights or an accelerator.

Training, evaluation and benchmarks get what they compute from here; it can also be compiled for absent devices.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from gpt1_jax import stopping
from gpt1_jax.data.tokenizers import N_SPECIAL
from gpt1_jax.model import architecture, triton_calls
from gpt1_jax.model.classifier import Classifier, ClassifierHead
from gpt1_jax.training import loss_kernels, loss_triton, losses, room, steps
from gpt1_jax.training.optimizer import make_optimizer
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import TrainState, abstract_state, create_state

_COMPILER_OPTIONS = {
    'gpu': {
        # Only cuBLAS multiplies: it also adds biases and residuals and computes GELU, and XLA's products are no faster.
        'xla_gpu_enable_triton_gemm': False,
        # A kernel that reads a slice in place cannot be part of a CUDA graph.
        'xla_gpu_enable_dynamic_slice_fusion': False,
    }
}


@dataclasses.dataclass(frozen=True)
class Program:
    """The computations of a training run.

    Attributes:
      classifier: the model, with a head in fine-tuning.
      partitioner: the run's, after `Partitioner.spread`.
      abstract: shapes, types and shardings of the state.
      loss_fn: (params, micro-batch, key) -> (loss, metrics), not jitted.
      train_step: (state, batch) -> (state, metrics), jitted; the state is donated. Runs that differ only in the peak of
        the learning rate, its warm-up or the number of steps compile it once.
      flops_per_token: of `train_step`; see flops.training_flops_per_token.
    """

    classifier: Classifier
    partitioner: Partitioner
    optimizer: optax.GradientTransformation
    abstract: TrainState
    loss_fn: Callable
    train_step: Callable
    flops_per_token: float

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract.params))

    def check_room(self) -> None:
        """Raises UserError if a device has no room for its part of the state and of the gradients."""
        gradients = jax.tree.map(lambda leaf: leaf.update(dtype=self.classifier.model.dtype), self.abstract.params)
        room.check_room('model', 'parameters, their moments and gradients', self.abstract, gradients)

    def start_compiling(self, batch: dict[str, np.ndarray]) -> Callable[[], None]:
        """Compiles `train_step` for batches like this one in another thread. Returns a function that waits for the end
        and raises what went wrong there."""
        error = None

        def compile_step():
            nonlocal error
            try:
                self.train_step.lower(self.abstract, self.partitioner.abstract_batch(batch)).compile()
            except Exception as caught:
                error = caught

        def wait():
            thread.join()
            if error is not None:
                raise error

        thread = threading.Thread(target=compile_step, name='compile')
        stopping.dispensable.append(thread)
        thread.start()
        return wait

    def create_state(self, seed: int) -> TrainState:
        """A new state on the devices."""
        return create_state(self.classifier, self.optimizer, self.partitioner, seed)


def pretraining(config: ConfigDict, vocab_size: int, total_steps: int, partitioner: Partitioner) -> Program:
    """The program of a pre-training config, of which it reads `model` and `optimizer`."""
    model = architecture.build(config.model, vocab_size, 0, partitioner.platform)
    classifier = Classifier(model)
    loss_fn = steps.pretrain_loss_fn(classifier, _lm_loss(partitioner))
    return _program(config, classifier, loss_fn, total_steps, partitioner)


def finetuning(
    config: ConfigDict,
    base: architecture.Architecture,
    vocab_size: int,
    head: ClassifierHead,
    loss_kind: str,
    total_steps: int,
    partitioner: Partitioner,
) -> Program:
    """The program of a fine-tuning config, of which it reads `model`, `optimizer` and `lm_coefficient`.

    Args:
      base: the architecture of the model to fine-tune.
      loss_kind: key of losses.TASK_LOSSES.
    """
    model_config = {**config.model, 'kind': base.kind, **base.sizes}
    classifier = Classifier(architecture.build(model_config, vocab_size, N_SPECIAL, partitioner.platform), head)
    loss_fn = steps.finetune_loss_fn(classifier, loss_kind, config.lm_coefficient, _lm_loss(partitioner))
    return _program(config, classifier, loss_fn, total_steps, partitioner, lm_head=bool(config.lm_coefficient))


def _lm_loss(partitioner):
    device = partitioner.mesh.devices.flat[0]
    if partitioner.platform == 'tpu' and device.device_kind not in loss_kernels.TOO_SMALL:
        return loss_kernels.lm_loss
    if partitioner.platform == 'gpu' and not triton_calls.obstacle():
        return loss_triton.lm_loss
    return losses.lm_loss


def _program(config, classifier, loss_fn, total_steps, partitioner, lm_head=True):
    optimizer, learning_rate = make_optimizer(config.optimizer, total_steps)
    partitioner = partitioner.spread(jax.eval_shape(classifier.init, jax.random.key(0)))
    abstract = abstract_state(classifier, optimizer, partitioner)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    replicated = partitioner.sharding()
    step = partitioner.jit(
        steps.train_step(loss_fn, optimizer, learning_rate),
        in_shardings=(shardings, partitioner.batch_sharding(), replicated),
        out_shardings=(shardings, replicated),
        donate_argnums=0,
        compiler_options=_COMPILER_OPTIONS.get(partitioner.platform),
    )
    train_step = _WithNumbers(step, learning_rate.numbers, replicated)
    flops_per_token = classifier.model.flops_per_token(lm_head)
    return Program(classifier, partitioner, optimizer, abstract, loss_fn, train_step, flops_per_token)


class _WithNumbers:
    """A jitted step, or what it is lowered or compiled to, with its last argument filled in: the numbers of the
    learning rate. As constants they would give each run a compiled program of its own."""

    def __init__(self, step, numbers, sharding):
        self._step, self._numbers, self._sharding = step, numbers, sharding

    def __call__(self, *arguments):
        return self._step(*arguments, self._placed)

    @functools.cached_property
    def _placed(self):  # not before it is called: the devices may be absent
        return jax.make_array_from_callback(self._numbers.shape, self._sharding, lambda index: self._numbers[index])

    def lower(self, *arguments):
        numbers = jax.ShapeDtypeStruct(self._numbers.shape, self._numbers.dtype, sharding=self._sharding)
        return _WithNumbers(self._step.lower(*arguments, numbers), self._numbers, self._sharding)

    def compile(self, *options):
        return _WithNumbers(self._step.compile(*options), self._numbers, self._sharding)

    def __getattr__(self, name):
        return getattr(self._step, name)


def text_evaluation(classifier: Classifier, abstract_params: dict, partitioner: Partitioner) -> Callable:
    """`steps.nll_step`, jitted. abstract_params: the parameters, or their shapes and shardings."""
    return _evaluation(steps.nll_step(classifier), abstract_params, partitioner)


def prediction(classifier: Classifier, abstract_params: dict, partitioner: Partitioner) -> Callable:
    """`steps.predict_step`, jitted. abstract_params: the parameters, or their shapes and shardings."""
    return _evaluation(steps.predict_step(classifier), abstract_params, partitioner)


def _evaluation(step, abstract_params, partitioner):
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params)
    return partitioner.jit(
        step, in_shardings=(shardings, partitioner.batch_sharding()), out_shardings=partitioner.sharding()
    )


def pretraining_batch(
    config: ConfigDict, model: nn.Module, partitioner: Partitioner
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of the batches that `PretrainingBatches` makes."""
    micro_batches, shards = config.optimizer.accumulation, partitioner.placement.shards
    rows = -(-config.data.batch_size // (micro_batches * shards))
    shape, dtype = (micro_batches, shards, rows), np.uint16 if model.vocab_size <= 2**16 else np.uint32
    arrays = {'tokens': ((*shape, model.n_positions + 1), dtype), 'weights': ((*shape, model.n_positions), np.float32)}
    sharding = partitioner.batch_sharding()
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)
        for name, (shape, dtype) in arrays.items()
    }
