"""Steps as pure functions: one update for pre-training and fine-tuning, and their evaluations.

The arrays of a batch are [micro-batches, shards, ...]. Weights are relative to the whole batch, so losses, gradients
and metrics of micro-batches simply add up. A `loss_fn(params, micro-batch, key) -> (loss, metrics)` sees one
micro-batch, arrays [shards, ...].
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gpt1_jax.model.classifier import Classifier
from gpt1_jax.model.transformer import Output
from gpt1_jax.training import losses
from gpt1_jax.training.optimizer import Rate
from gpt1_jax.training.state import TrainState


def pretrain_loss_fn(classifier: Classifier, lm_loss: Callable = losses.lm_loss) -> Callable:
    """L1 (equation 1): the weighted sum of next-token losses.

    A batch holds `tokens`, unsigned [..., T + 1], and `weights`, float32 [..., T]. lm_loss: computes `losses.lm_loss`.
    """

    def loss_fn(params, batch, key):
        tokens = batch['tokens'].astype(jnp.int32)
        output = _read(classifier, params, tokens[..., :-1], key=key)
        loss = lm_loss(output.hidden, output.embedding, tokens[..., 1:], batch['weights'])
        return loss, {'loss': loss}

    return loss_fn


def finetune_loss_fn(
    classifier: Classifier, loss_kind: str, lm_coefficient: float, lm_loss: Callable = losses.lm_loss
) -> Callable:
    """L3 = L2 + lambda * L1 (equation 5) on packed batches (`data.labelled.packing`). lm_loss: see above."""

    def loss_fn(params, batch, key):
        model_key, head_key = jax.random.split(key)
        output = _read_packed(classifier, params, batch, model_key)
        logits = _classify(classifier, params, batch, output, head_key)
        labels, weights = batch['labels'].reshape(-1), batch['example_weights'].reshape(-1)
        task = losses.TASK_LOSSES[loss_kind](logits, labels, weights)
        lm = jnp.zeros((), jnp.float32)
        if lm_coefficient:
            lm = lm_loss(output.hidden, output.embedding, batch['lm_targets'], batch['lm_weights'])
        loss = losses.finetune_loss(task, lm, lm_coefficient)
        return loss, {'loss': loss, 'task_loss': task, 'lm_loss': lm}

    return loss_fn


def _read(classifier, params, *inputs, key=None) -> Output:
    """The model's output on inputs [shards, N, T], with hidden [shards, N, T, width]."""
    shape = inputs[0].shape
    flat = (None if x is None else x.reshape(-1, shape[-1]) for x in inputs)
    output = classifier.read(params, *flat, key=key)
    return output._replace(hidden=output.hidden.reshape(*shape, -1))


def _read_packed(classifier, params, batch, key=None):
    inputs = batch['tokens'], batch['positions'], batch['segment_ids'], batch.get('context_ids')
    return _read(classifier, params, *inputs, key=key)


def _classify(classifier, params, batch, output, key=None):
    """Logits [examples, ...] from the states at <extract>, which are looked up within each shard."""
    shards, _, _, width = output.hidden.shape
    states = jnp.take_along_axis(
        output.hidden.reshape(shards, -1, width), batch['extract'].reshape(shards, -1, 1), axis=1
    )
    return classifier.classify(params, states.reshape(-1, batch['extract'].shape[-1], width), key)


def train_step(loss_fn: Callable, optimizer: optax.GradientTransformationExtraArgs, learning_rate: Rate) -> Callable:
    """The whole update as one function (state, batch, numbers) -> (state, metrics). numbers: of the learning rate, by
    default those of `learning_rate`.

    A scan adds the gradients of micro-batches in float32 (XLA adds those of shards in the compute dtype). If the loss
    or a gradient is not finite, only `step` and `skipped` change: the schedule follows the data, and the optimizer
    counts no update.
    """

    def step(state: TrainState, batch, numbers=None):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

        @functools.partial(jax.jit, inline=True)  # traced once, though it is called twice
        def micro_step(params, key, index, micro_batch):
            (_, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
                params, micro_batch, jax.random.fold_in(key, index)
            )
            return gradient, metrics

        indices = jnp.arange(jax.tree.leaves(batch)[0].shape[0])
        one = jax.tree.map(lambda x: x[0], (indices, batch))
        (gradient, metrics), _ = jax.lax.scan(
            lambda total, inputs: (jax.tree.map(jnp.add, total, micro_step(state.params, key, *inputs)), None),
            jax.tree.map(jnp.zeros_like, jax.eval_shape(micro_step, state.params, key, *one)),
            (indices, batch),
        )

        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params, step=state.step, numbers=numbers)
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        skipped = jnp.where(finite, 0, state.skipped + 1)
        new_state = state.replace(
            step=state.step + 1,
            skipped=skipped,
            params=keep(optax.apply_updates(state.params, updates), state.params),
            opt_state=keep(opt_state, state.opt_state),
        )
        rate = learning_rate(state.step, numbers)
        return new_state, metrics | {'grad_norm': norm, 'learning_rate': rate, 'skipped': skipped}

    return step


def nll_step(classifier: Classifier) -> Callable:
    """(params, batch) -> negative log-likelihood of each row in nats, [micro-batches, shards, rows].

    The batch is that of `pretrain_loss_fn`. Only tokens compete for the next token: a perplexity is over the
    vocabulary, not over special and position rows.
    """

    def step(params, batch):
        tokens = batch['tokens'].astype(jnp.int32)
        output = _read(classifier, params, tokens[..., :-1])
        nll = losses.token_nll(output.hidden, output.embedding[: classifier.model.vocab_size], tokens[..., 1:])
        return jnp.sum(nll * batch['weights'], axis=-1)

    return _each_micro_batch(step)


def predict_step(classifier: Classifier) -> Callable:
    """(params, packed batch) -> {'logits': [micro-batches, examples, classes or choices], 'ids': [micro-batches,
    examples]}; padding has the id -1."""

    def step(params, batch):
        logits = _classify(classifier, params, batch, _read_packed(classifier, params, batch))
        return {'logits': logits, 'ids': batch['example_ids'].reshape(-1)}

    return _each_micro_batch(step)


def _each_micro_batch(step):
    return lambda params, batch: jax.lax.map(lambda micro_batch: step(params, micro_batch), batch)
