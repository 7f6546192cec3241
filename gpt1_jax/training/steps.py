"""Jitted steps: one donated update for pre-training and fine-tuning, and their evaluations.

A task gives a pure `loss_fn(params, batch, key) -> (loss, metrics)` over one micro-batch, whose weights are already
those of the whole batch: losses, gradients and metrics of micro-batches simply add up.
"""

import jax
import jax.numpy as jnp
import optax

from gpt1_jax.training import losses
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import TrainState


def pretrain_loss_fn(model, groups: int, batch_size: int):
    """L1 (equation 1): the mean next-token loss. A micro-batch holds `tokens`, unsigned [b, T + 1], b of the whole
    batch's `batch_size` rows."""

    def loss_fn(params, batch, key):
        tokens = batch['tokens'].astype(jnp.int32)
        output = model.apply({'params': params['decoder']}, tokens[:, :-1], train=True, rngs={'dropout': key})
        targets = tokens[:, 1:]
        weights = jnp.full(targets.shape, 1.0 / (batch_size * targets.shape[1]), jnp.float32)
        loss = losses.lm_loss(output.hidden, output.embedding, targets, weights, groups=groups)
        return loss, {'loss': loss}

    return loss_fn


def finetune_loss_fn(model, head, loss_kind: str, lm_coefficient: float):
    """L3 = L2 + lambda * L1 (equation 5) on a packed batch (`data.packing`), leaves [G, ...]."""

    def loss_fn(params, batch, key):
        decoder_key, head_key = jax.random.split(key)
        logits, lm = _finetune_forward(model, head, params, batch, decoder_key, head_key, with_lm=lm_coefficient != 0)
        labels, weights = batch['labels'].reshape(-1), batch['example_weights'].reshape(-1)
        task = losses.TASK_LOSSES[loss_kind](logits, labels, weights)
        loss = losses.finetune_loss(task, lm, lm_coefficient)
        return loss, {'loss': loss, 'task_loss': task, 'lm_loss': lm}

    return loss_fn


def _finetune_forward(model, head, params, batch, decoder_key=None, head_key=None, with_lm=True):
    train = decoder_key is not None
    groups, rows, length = batch['tokens'].shape
    flat = lambda x: None if x is None else x.reshape(groups * rows, length)
    rngs = lambda key: {'dropout': key} if train else {}
    output = model.apply({'params': params['decoder']}, flat(batch['tokens']), flat(batch['positions']),
                         flat(batch['segment_ids']), flat(batch.get('context_ids')), train=train,
                         rngs=rngs(decoder_key))
    extract = batch['extract'].reshape(groups, -1, 1)  # look-ups stay inside a group, so inside a shard
    states = jnp.take_along_axis(output.hidden.reshape(groups, rows * length, -1), extract, axis=1)
    states = states.reshape(-1, batch['extract'].shape[2], states.shape[-1])
    logits = head.apply({'params': params['head']}, states, train=train, rngs=rngs(head_key))
    lm = jnp.zeros((), jnp.float32)
    if with_lm:
        lm = losses.lm_loss(output.hidden, output.embedding, flat(batch['lm_targets']), flat(batch['lm_weights']),
                            groups=groups)
    return logits, lm


def train_step(loss_fn, optimizer: optax.GradientTransformationExtraArgs, learning_rate):
    """The whole update as one function (state, batch) -> (state, metrics), to be jitted with `jit_train_step`.

    `batch` leaves are [micro-batches, ...]; their gradients are added in float32 by a scan (XLA adds those of the
    data-parallel groups in the compute dtype). A step whose loss or gradient is not finite changes nothing but `step`
    and `skipped`: the schedule goes on with the data, the optimizer's own count of updates does not.
    """

    def step(state: TrainState, batch):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

        def micro_step(index, micro_batch):
            (_, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
                state.params, micro_batch, jax.random.fold_in(key, index))
            return gradient, metrics

        n_micro = jax.tree.leaves(batch)[0].shape[0]
        shapes = jax.eval_shape(micro_step, 0, jax.tree.map(lambda x: x[0], batch))
        (gradient, metrics), _ = jax.lax.scan(
            lambda total, inputs: (jax.tree.map(jnp.add, total, micro_step(*inputs)), None),
            jax.tree.map(jnp.zeros_like, shapes), (jnp.arange(n_micro), batch))

        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params, step=state.step)
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        skipped = jnp.where(finite, 0, state.skipped + 1)
        new_state = state.replace(
            step=state.step + 1, skipped=skipped, params=keep(optax.apply_updates(state.params, updates), state.params),
            opt_state=keep(opt_state, state.opt_state))
        rate = learning_rate(state.step)
        return new_state, metrics | {'grad_norm': norm, 'learning_rate': rate, 'skipped': skipped}

    return step


def nll_step(model, groups: int):
    """(params, batch) -> nats that the targets of each row cost, [rows]; batch: tokens [rows, T + 1], weights [rows, T]
    of the targets. Only token rows compete for the next token: a perplexity is over the vocabulary, not over special
    and position rows."""

    def step(params, batch):
        tokens = batch['tokens'].astype(jnp.int32)
        output = model.apply({'params': params['decoder']}, tokens[:, :-1])
        nll = losses.token_nll(output.hidden, output.embedding[:model.vocab_size], tokens[:, 1:], groups=groups)
        return jnp.sum(nll * batch['weights'], axis=1)

    return step


def predict_step(model, head):
    """(params, packed batch [G, ...]) -> {'logits': [examples, classes or choices], 'ids': [examples]}; the id of an
    example that only pads is -1."""

    def step(params, batch):
        logits, _ = _finetune_forward(model, head, params, batch, with_lm=False)
        return {'logits': logits, 'ids': batch['example_ids'].reshape(-1)}

    return step


def jit_train_step(step, abstract: TrainState, partitioner: Partitioner):
    """`step` jitted: the state sharded as `abstract` and donated, the batch over the data-like axes, metrics
    replicated."""
    state = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(step, in_shardings=(state, partitioner.batch_sharding(axis=1)),
                   out_shardings=(state, partitioner.replicated()), donate_argnums=0)


def jit_eval_step(step, abstract_params, partitioner: Partitioner):
    """`step` jitted: parameters as `abstract_params`, the batch over the data-like axes, the result replicated."""
    params = jax.tree.map(lambda leaf: leaf.sharding, abstract_params)
    return jax.jit(step, in_shardings=(params, partitioner.batch_sharding()), out_shardings=partitioner.replicated())
