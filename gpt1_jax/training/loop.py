"""The training loop that pre-training and fine-tuning share."""

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence

import jax
import ml_collections
from absl import logging
from etils import epath

from gpt1_jax.data.prefetch import prefetch
from gpt1_jax.errors import STOPPED_EXIT_STATUS, DivergedError
from gpt1_jax.progress import Progress
from gpt1_jax.training.checkpoint import Checkpointer
from gpt1_jax.training.metric_writer import MetricWriter
from gpt1_jax.training.partitioning import is_writer
from gpt1_jax.training.preemption import PreemptionGuard
from gpt1_jax.training.program import Program
from gpt1_jax.training.state import TrainState
from gpt1_jax.training.throughput import Throughput, mfu, peak_flops


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """An evaluation during a run and after its last step.

    Attributes:
      evaluate: params -> {name: value}.
      every: steps between evaluations; 0: only after the last step.
      ranks_by: the metric that ranks the run's checkpoints, for exactly one evaluator of a run; the state is saved
        with each of its evaluations.
      mode: 'min' or 'max', which value of `ranks_by` is best.
      patience: evaluations in a row without a new best value that end the run; 0: it goes to its last step.
    """

    evaluate: Callable
    every: int
    ranks_by: str | None = None
    mode: str = 'min'
    patience: int = 0

    def best(self, evaluations: Sequence[dict]) -> dict:
        """Of the evaluations that have `ranks_by`, the first of the best ones."""
        ranked = [evaluation for evaluation in evaluations if self.ranks_by in evaluation]
        return (min if self.mode == 'min' else max)(ranked, key=lambda evaluation: evaluation[self.ranks_by])

    def is_out_of_patience(self, evaluations: Sequence[dict]) -> bool:
        """Whether the last `patience` of its evaluations brought no new best value."""
        ranked = [evaluation for evaluation in evaluations if self.ranks_by in evaluation]
        if not 0 < self.patience < len(ranked):
            return False
        return self.best(ranked) not in ranked[-self.patience :]


@dataclasses.dataclass(frozen=True)
class Job:
    """The input of `fit`.

    Attributes:
      batches: has `batch_at(step)`, the local shards of the batch; `count_tokens(batch)`; and `describe(step)`.
      total_steps: updates in the whole run, the most if the ranking evaluator's patience may end it earlier.
      evaluators: exactly one of them ranks.
      load: new params -> params with those of another model put in; None: from scratch.
    """

    config: ml_collections.ConfigDict
    workdir: epath.Path
    program: Program
    batches: object
    total_steps: int
    evaluators: Sequence[Evaluator]
    load: Callable | None = None

    @property
    def ranking(self) -> Evaluator:
        """The evaluator that ranks checkpoints."""
        (ranking,) = (evaluator for evaluator in self.evaluators if evaluator.ranks_by)
        return ranking

    def is_kept(self, step: int) -> bool:
        """Whether the checkpoint of a step is kept for good: each that `checkpoint.keep_every` divides, and those
        nearest to 10^(i / `checkpoint.keep_log`) for whole i; 0 means none."""
        every, log = self.config.checkpoint.keep_every, self.config.checkpoint.keep_log
        if every and step % every == 0:
            return True
        i = math.floor(log * math.log10(step))
        return log > 0 and step in (round(10 ** (i / log)), round(10 ** ((i + 1) / log)))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of `fit`: the state after the last step, {'step', name: value, ...} of all evaluations, and the best
    of these."""

    state: TrainState
    evaluations: list[dict]
    best: dict


def fit(job: Job) -> Outcome:
    """Trains to the last step or out of patience, from the newest intact checkpoint of the workdir if there is one.

    Saves and exits with STOPPED_EXIT_STATUS when the process is told to stop. Raises DivergedError when the loss was
    not finite for `optimizer.max_skipped` steps in a row.
    """
    checkpointer = Checkpointer(
        job.workdir / 'checkpoints',
        keep_latest=job.config.checkpoint.keep_latest,
        keep_best=job.config.checkpoint.keep_best,
        keep=job.is_kept,
        best_metric=job.ranking.ranks_by,
        best_mode=job.ranking.mode,
    )
    guard = PreemptionGuard()
    try:
        return _fit(job, checkpointer, guard)
    finally:
        guard.close()
        checkpointer.close()


def best_params(job: Job, outcome: Outcome) -> dict:
    """The parameters of the best evaluation; call it in every process."""
    if outcome.best['step'] == int(outcome.state.step):
        return outcome.state.params
    checkpointer = Checkpointer(job.workdir / 'checkpoints')
    return checkpointer.restore(outcome.best['step'], {'params': job.program.abstract.params})[1]['params']


def _fit(job, checkpointer, guard):
    log, program = job.config.log, job.program
    state, evaluations = _initialise(job, checkpointer)
    start = int(state.step)
    writer = MetricWriter(job.workdir, use_wandb=log.wandb, config=job.config.to_dict())
    writer.truncate_after(start)
    progress = Progress(job.total_steps, start, job.config.task, show=is_writer())
    throughput = Throughput()
    model, devices = program.classifier.model, program.partitioner.mesh.devices
    peak = peak_flops(devices.flat[0].device_kind, model.dtype)
    pending, speed = None, {'tokens_per_second': None, 'mfu': None}

    def report():
        """Reads the metrics of the previous step, now that the next one is dispatched."""
        nonlocal pending
        if pending is None:
            return
        step, tokens, metrics = pending
        pending = None
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        throughput.step(tokens)
        if metrics['skipped'] or step % log.every == 0 or step == job.total_steps:
            rate = throughput.read()
            utilisation = mfu(rate, model.flops_per_token(), peak, devices.size)
            speed.update(tokens_per_second=rate, mfu=utilisation)
            writer.write(step, metrics | {name: value for name, value in speed.items() if value is not None})
        progress.update(step, loss=metrics['loss'], **speed)
        if metrics['skipped'] >= job.config.optimizer.max_skipped:
            raise DivergedError(
                f'{job.workdir}: The loss or its gradient was not finite for {int(metrics["skipped"])} steps in a row, '
                f'up to step {step} ({job.batches.describe(step - 1)}). Lower optimizer.learning_rate or check these '
                'data; the earlier checkpoints are kept.'
            )

    end = start if job.ranking.is_out_of_patience(evaluations) else job.total_steps
    try:
        for index, batch in zip(range(start, end), prefetch(job.batches, start, end)):
            state, metrics = program.train_step(state, program.partitioner.put_batch(batch))
            report()
            step, last = index + 1, index + 1 == job.total_steps
            pending = step, job.batches.count_tokens(batch), metrics
            stop = guard.should_stop(step)
            due = lambda every: last or (every and step % every == 0)
            evaluation, ranked = {}, False
            for evaluator in (job.ranking, *(other for other in job.evaluators if other is not job.ranking)):
                if due(evaluator.every):  # even before a stop: the resumed run would skip it
                    report()
                    with throughput.pause():
                        evaluation |= evaluator.evaluate(state.params)
                    if evaluator is job.ranking:
                        ranked = True
                        last = last or evaluator.is_out_of_patience([*evaluations, evaluation])
            if evaluation:
                writer.write(step, evaluation)
                evaluations.append({'step': step} | evaluation)
            if ranked or stop or due(job.config.checkpoint.every) or job.is_kept(step):
                report()
                with throughput.pause():
                    checkpointer.save(step, state.items(), {'evaluations': evaluations}, evaluation)
            if last:
                break
            if stop:
                checkpointer.wait()
                logging.info('Stopped at step %d. Run the same command again to resume.', step)
                sys.exit(STOPPED_EXIT_STATUS)
    finally:
        progress.close()
        writer.close()
    checkpointer.wait()
    return Outcome(state, evaluations, job.ranking.best(evaluations))


def _initialise(job, checkpointer):
    """(state, evaluations so far): resumed, or with another model's parameters, or from scratch."""
    restored = checkpointer.restore_latest(job.program.abstract.items())
    if restored is not None:
        step, items, meta = restored
        logging.info('resuming %s at step %d of %d', job.workdir, step, job.total_steps)
        return TrainState.from_items(items), meta['evaluations']
    state = job.program.create_state(job.config.seed)
    if job.load is not None:
        state = state.replace(params=job.load(state.params))
    return state, []
