"""The training loop that pre-training and fine-tuning share."""

import dataclasses
import sys
from collections.abc import Callable

import jax
import ml_collections
import optax
from absl import logging
from etils import epath

from gpt1_jax.data.prefetch import prefetch
from gpt1_jax.errors import STOPPED_EXIT_STATUS, UserError
from gpt1_jax.training import steps, telemetry
from gpt1_jax.training.checkpoint import Checkpointer
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.preemption import PreemptionGuard
from gpt1_jax.training.state import TrainState, create_state


@dataclasses.dataclass
class Job:
    """What a task gives to `fit`.

    Attributes:
      config, workdir: of the run.
      partitioner, abstract: mesh, and the state's shapes and shardings on it.
      init_params: key -> boxed parameters, from scratch.
      load: params -> params, replaces them by those of another run; None: from scratch.
      optimizer, learning_rate: of `make_optimizer`.
      loss_fn: (params, micro-batch, key) -> (loss, metrics).
      batches: has `batch_at(step)`, leaves [micro-batches, rows of the local groups, ...].
      total_steps: updates in the whole run.
      count_tokens: batch of this process -> real tokens in the global batch.
      flops_per_token: of forward and backward pass, see `telemetry.flops_per_token`.
      evaluate: params -> metrics; called every `eval_every` steps (0: never) and after the last; the state is
        saved with each.
      best_metric, best_mode: which of these metrics ranks checkpoints, and 'min' or 'max'.
      describe_batch: step -> text that names the batch, for an error message.
    """

    config: ml_collections.ConfigDict
    workdir: epath.Path
    partitioner: Partitioner
    abstract: TrainState
    init_params: Callable
    load: Callable | None
    optimizer: optax.GradientTransformation
    learning_rate: Callable
    loss_fn: Callable
    batches: object
    total_steps: int
    count_tokens: Callable
    flops_per_token: float
    evaluate: Callable
    eval_every: int
    best_metric: str
    best_mode: str
    describe_batch: Callable


@dataclasses.dataclass
class Outcome:
    """state: after the last step; evaluations: {'step', metrics...} of every evaluation; best: the best of these."""

    state: TrainState
    evaluations: list[dict]
    best: dict

    def results(self) -> dict:
        """The metrics after the last step, and as `best_...` those of the best evaluation."""
        return self.evaluations[-1] | {f'best_{name}': value for name, value in self.best.items()}


def fit(job: Job) -> Outcome:
    """Trains to the last step, from the newest whole checkpoint of the workdir if there is one.

    Exits with STOPPED_EXIT_STATUS, after saving, when the process is told to stop. Raises UserError when the loss
    was not finite for `optimizer.max_skipped` steps in a row.
    """
    log = job.config.log
    checkpointer = Checkpointer(
        job.workdir / 'checkpoints', keep_latest=job.config.checkpoint.keep_latest,
        keep_best=job.config.checkpoint.keep_best, best_metric=job.best_metric, best_mode=job.best_mode)
    guard = PreemptionGuard()
    try:
        with job.partitioner.activate():
            return _fit(job, checkpointer, guard, log)
    finally:
        guard.close()
        checkpointer.close()


def best_params(job: Job, outcome: Outcome):
    """The parameters of the best evaluation: of the last step, or read back. Call it in every process."""
    if outcome.best['step'] == int(outcome.state.step):
        return outcome.state.params
    checkpointer = Checkpointer(job.workdir / 'checkpoints')
    return checkpointer.restore(outcome.best['step'], {'params': job.abstract.params})[1]['params']


def _fit(job, checkpointer, guard, log):
    state, evaluations = _initialise(job, checkpointer)
    start = int(state.step)
    writer = telemetry.MetricWriter(job.workdir, use_wandb=log.wandb, config=job.config.to_dict())
    writer.truncate_after(start)
    train_step = steps.jit_train_step(
        steps.train_step(job.loss_fn, job.optimizer, job.learning_rate), job.abstract, job.partitioner)
    progress = telemetry.Progress(job.total_steps, start, job.config.task)
    throughput = telemetry.Throughput()
    peak = telemetry.peak_flops(jax.devices()[0].device_kind, job.config.model.dtype.replace('auto', 'bfloat16'))
    pending, speed = None, {'tokens_per_second': None, 'mfu': None}

    def report():
        """Reads the metrics of the step before, now that the next one is dispatched."""
        nonlocal pending
        if pending is None:
            return
        step, tokens, metrics = pending
        pending = None
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        throughput.step(tokens)
        if metrics['skipped'] or step % log.every == 0 or step == job.total_steps:
            rate = throughput.read()
            mfu = telemetry.mfu(rate, job.flops_per_token, peak, jax.device_count())
            speed.update(tokens_per_second=rate, mfu=mfu)
            writer.write(step, metrics | {name: value for name, value in speed.items() if value is not None})
        progress.update(step, metrics['loss'], speed['tokens_per_second'], speed['mfu'])
        if metrics['skipped'] >= job.config.optimizer.max_skipped:
            raise UserError(
                f'the loss or its gradient was not finite for {int(metrics["skipped"])} steps in a row, up to step '
                f'{step} ({job.describe_batch(step - 1)}): lower optimizer.learning_rate or look at these data; '
                f'{job.workdir} keeps the checkpoints before')

    try:
        for index, batch in zip(range(start, job.total_steps), prefetch(job.batches, start, job.total_steps)):
            state, metrics = train_step(state, job.partitioner.put_batch(batch, axis=1))
            report()
            step, last = index + 1, index + 1 == job.total_steps
            pending = step, job.count_tokens(batch), metrics
            stop = guard.should_stop(step)
            evaluation = None
            if last or (job.eval_every and step % job.eval_every == 0):  # also before a stop: it would be missed
                report()
                with throughput.pause():
                    evaluation = job.evaluate(state.params)
                writer.write(step, evaluation)
                evaluations.append({'step': step} | evaluation)
            every = job.config.checkpoint.every
            if last or stop or evaluation or (every and step % every == 0):
                report()
                with throughput.pause():
                    checkpointer.save(step, state.items(), {'evaluations': evaluations}, evaluation)
            if stop and not last:
                checkpointer.wait()
                logging.info('stopped at step %d, all saved: the same command goes on from there', step)
                sys.exit(STOPPED_EXIT_STATUS)
    finally:
        progress.close()
        writer.close()
    checkpointer.wait()
    sign = 1 if job.best_mode == 'min' else -1
    return Outcome(state, evaluations, min(evaluations, key=lambda e: sign * e[job.best_metric]))


def _initialise(job, checkpointer):
    """(state, evaluations so far): resume, else take over another run's parameters, else start from scratch."""
    restored = checkpointer.restore_latest(job.abstract.items())
    if restored is not None:
        step, items, meta = restored
        logging.info('resuming %s at step %d of %d', job.workdir, step, job.total_steps)
        return TrainState.from_items(items), meta['evaluations']
    state = create_state(job.init_params, job.optimizer, job.abstract, job.config.seed)
    if job.load is not None:
        state = state.replace(params=job.load(state.params))
    return state, []
