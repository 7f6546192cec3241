"""The training loop that pre-training and fine-tuning share."""

import contextlib
import dataclasses
import functools
import itertools
import math
import sys
from collections.abc import Callable, Sequence

import jax
import ml_collections
import optax
from absl import logging
from etils import epath

from gpt1_jax import lock, progress
from gpt1_jax.data.prefetch import prefetch
from gpt1_jax.errors import STOPPED_EXIT_STATUS, DivergedError, Stopped
from gpt1_jax.files import check_renaming
from gpt1_jax.processes import release_freed_memory
from gpt1_jax.progress import Progress, waiting
from gpt1_jax.training import divergence
from gpt1_jax.training.checkpoint import Checkpointer
from gpt1_jax.training.clock import Clock
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
      evaluate: (params, should_stop) -> {name: value}. Between two batches, the same in every process, it may call
        should_stop(); if that is true, it raises Stopped.
      every: steps between evaluations; 0: only after the last step.
      ranks_by: the metric that ranks the run's checkpoints, for exactly one evaluator of a run; the state is saved
        with each of its evaluations, except where it is not to be kept and one was saved a few seconds before.
      mode: 'min' or 'max', which value of `ranks_by` is best.
      patience: evaluations in a row without a new best value that end the run; 0: it goes to its last step.
    """

    evaluate: Callable
    every: int
    ranks_by: str | None = None
    mode: str = 'min'
    patience: int = 0

    def best(self, evaluations: Sequence[dict]) -> dict:
        """The first of the best evaluations that have `ranks_by`."""
        return self.by_rank(evaluations)[0]

    def by_rank(self, evaluations: Sequence[dict]) -> list[dict]:
        """The evaluations that have `ranks_by`: the best first, among equals the earlier first, and last those whose
        value is not finite."""
        sign = 1 if self.mode == 'min' else -1
        rank = lambda value: sign * value if math.isfinite(value) else math.inf
        ranked = [evaluation for evaluation in evaluations if self.ranks_by in evaluation]
        return sorted(ranked, key=lambda evaluation: rank(evaluation[self.ranks_by]))

    def is_out_of_patience(self, evaluations: Sequence[dict]) -> bool:
        """Whether the last `patience` ranking evaluations brought no new best value."""
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

    def is_scheduled(self, step: int) -> bool:
        """Whether the config alone says that a step is saved, wherever the run is stopped and however fast it is."""
        periods = [every for every in (self.config.checkpoint.every, self.ranking.every) if every]
        return not periods or self.is_kept(step) or any(step % every == 0 for every in periods)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of `fit`: the state after the last step, all evaluations as {'step', name: value, ...}, the best of
    these, and the rollbacks (see `divergence.go_back`)."""

    state: TrainState
    evaluations: list[dict]
    best: dict
    rollbacks: list[dict]

    def facts(self) -> dict:
        """Facts for `results.json`: `skipped_steps`, the number of steps that changed nothing because they were not
        finite, and `rollbacks`."""
        skipped = int(self.state.step) - int(optax.tree.get(self.state.opt_state, 'count'))
        return {'skipped_steps': skipped, 'rollbacks': self.rollbacks}


def fit(job: Job) -> Outcome:
    """Trains to the last step, or until patience runs out, from the newest intact checkpoint of the workdir if there is
    one.

    Saves and exits with STOPPED_EXIT_STATUS when the process is told to stop. If the loss diverges (see divergence.py),
    goes back to a checkpoint if the config says so, else raises DivergedError.
    """
    job.program.check_room()
    if is_writer():
        check_renaming(job.workdir)
    checkpointer = Checkpointer(
        job.workdir / 'checkpoints',
        keep_latest=job.config.checkpoint.keep_latest,
        keep_best=job.config.checkpoint.keep_best,
        # Where a run goes back to must not depend on where it was stopped.
        counts=job.is_scheduled if job.config.optimizer.on_divergence == 'rollback' else None,
        keep=job.is_kept,
        best_metric=job.ranking.ranks_by,
        best_mode=job.ranking.mode,
    )
    guard = PreemptionGuard(job.workdir / 'checkpoints')
    diverged = None
    try:
        while True:
            try:
                return _fit(job, checkpointer, guard, diverged)
            except divergence.Diverged as error:
                diverged = error.with_traceback(None)  # the traceback holds the state, for which there is room once
    finally:
        guard.close()
        checkpointer.close()


def best_params(job: Job, outcome: Outcome) -> tuple[dict, dict]:
    """(parameters, evaluation) of the best evaluation; if its checkpoint is damaged, of the next best, after a warning.
    Call it in every process."""
    last = int(outcome.state.step)
    ranked = {evaluation['step']: evaluation for evaluation in job.ranking.by_rank(outcome.evaluations)}
    before = list(itertools.takewhile(lambda step: step != last, ranked))  # better than the last, which is in memory
    checkpointer = Checkpointer(job.workdir / 'checkpoints')
    there = checkpointer.steps()
    kept = [step for step in before if step == before[0] or step in there]
    for step, items, _ in checkpointer.restore_each(kept, {'params': job.program.abstract.params}):
        return items['params'], ranked[step]
    return outcome.state.params, ranked[last]


def _fit(job, checkpointer, guard, diverged):
    """One attempt of `fit`. diverged: why the run goes back; None at first."""
    log, program, optimizer = job.config.log, job.program, job.config.optimizer
    compiled = _start_compiling(job, checkpointer) if diverged is None else lambda: None
    state, start, meta = _initialise(job, checkpointer, diverged)
    evaluations, rollbacks = meta['evaluations'], meta.get('rollbacks', [])
    trend, may_go_back = divergence.Trend(*meta.get('trend', ())), optimizer.on_divergence == 'rollback'
    if diverged:
        rollbacks, trend = divergence.go_back(diverged, start, rollbacks), trend._replace(bad=0)
        first, end = rollbacks[-1]['batches']
        logging.warning('%s It goes on from step %d without batches %d to %d.', diverged, start, first, end - 1)
    batches = divergence.Remaining(job.batches, rollbacks)
    writer = MetricWriter(job.workdir, use_wandb=log.wandb, config=job.config.to_dict())
    writer.truncate_after(start, unevaluated=meta.get('unevaluated', False))
    bar = Progress(job.total_steps, start, job.config.task, show=is_writer())
    throughput, clock = Throughput(), Clock(job.config.checkpoint.every_minutes, start)
    devices = program.partitioner.mesh.devices
    peak = peak_flops(devices.flat[0].device_kind, program.classifier.model.dtype)
    pending, speed = None, {'tokens_per_second': None, 'mfu': None}
    have_evaluated = []  # and compiled what they need

    def report():
        """Reads the metrics of the previous step, now that the next one is dispatched."""
        nonlocal pending, trend
        if pending is None:
            return
        step, tokens, metrics = pending
        pending = None
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        throughput.step(tokens)
        if metrics['skipped'] or step % log.every == 0 or step == job.total_steps:
            rate = throughput.read()
            utilisation = mfu(rate, program.flops_per_token, peak, devices.size)
            speed.update(tokens_per_second=rate, mfu=utilisation)
            writer.write(step, metrics | {name: value for name, value in speed.items() if value is not None})
        bar.update(step, loss=metrics['loss'], **speed)
        if may_go_back:
            trend = trend.observe(metrics['loss'], not metrics['skipped'])
        bad = trend.bad if may_go_back else int(metrics['skipped'])
        if bad >= optimizer.max_skipped:
            what = 'loss was not finite or a spike' if may_go_back else 'loss or its gradient was not finite'
            message = (
                f'{job.workdir}: The {what} for {bad} steps in a row, up to step {step} ({batches.describe(step - 1)}).'
            )
            if may_go_back:
                raise divergence.Diverged(message, step, bad, rollbacks)
            raise DivergedError(
                f'{message} Lower optimizer.learning_rate, check these data, or set optimizer.on_divergence=rollback; '
                'the earlier checkpoints are kept.'
            )

    def is_spared(step):
        """Whether a step that was ranked is not saved: it is not to be kept, and little would be lost."""
        best = job.ranking.by_rank(evaluations)[: job.config.checkpoint.keep_best]
        # Where a run goes back to must not depend on the time.
        return not may_go_back and step not in [one['step'] for one in best] and clock.is_recent()

    def end_step(step, again=False):
        """Does what is due after a step; returns whether the run ends there. again: whether the step was saved before
        without its evaluation, because that was told to stop."""
        stop, last = guard.should_stop(step), step == job.total_steps
        due = lambda every: last or (every and step % every == 0)
        evaluation, ranked, unevaluated = {}, False, False
        try:
            for evaluator in (job.ranking, *(other for other in job.evaluators if other is not job.ranking)):
                if due(evaluator.every):
                    report()
                    if stop:
                        raise Stopped
                    with throughput.pause():
                        evaluation |= evaluator.evaluate(state.params, functools.partial(guard.should_stop, step))
                        if evaluator not in have_evaluated:
                            release_freed_memory()
                            have_evaluated.append(evaluator)
                    if evaluator is job.ranking:
                        ranked = True
                        last = last or evaluator.is_out_of_patience([*evaluations, evaluation])
        except Stopped:  # the resumed run does it, all of it
            evaluation, ranked, unevaluated, stop, last = {}, False, True, True, False
        if evaluation:
            writer.write(step, evaluation)
            evaluations.append({'step': step} | evaluation)
        by_clock = clock.is_due(step)
        if (
            (ranked and not is_spared(step))
            or stop
            or by_clock
            or due(job.config.checkpoint.every)
            or job.is_kept(step)
        ):
            report()
            lock.check(job.workdir)  # else a folder that was removed would be made anew, with this checkpoint alone
            more = {'rollbacks': rollbacks, 'trend': may_go_back and list(trend), 'unevaluated': unevaluated}
            meta = {'evaluations': evaluations} | {name: value for name, value in more.items() if value}
            with throughput.pause():
                writer.flush()
                if again:
                    checkpointer.describe(step, meta, evaluation)
                else:
                    checkpointer.save(step, state.items(), meta, evaluation)
            clock.restart(step)
        if stop and not last:
            checkpointer.wait()
            if not progress.quiet:
                logging.info('Stopped at step %d. Run the same command again to resume.', step)
            sys.exit(STOPPED_EXIT_STATUS)
        return last

    try:
        ended = job.ranking.is_out_of_patience(evaluations)
        if meta.get('unevaluated'):
            ended = end_step(start, again=True)
        end = start if ended else job.total_steps
        for index, batch in zip(range(start, end), prefetch(batches, start, end)):
            with waiting('compiling the step', show=is_writer()) if index == start else contextlib.nullcontext():
                compiled()
                state, metrics = program.train_step(state, program.partitioner.put_batch(batch))
            report()
            pending = index + 1, batches.count_tokens(batch), metrics
            if jax.process_count() == 1 and metrics['loss'].is_ready():  # as on a CPU, which computes it in the call
                report()
            if index == start:  # compiling it has left holes in the heap
                release_freed_memory()
            if end_step(index + 1):
                break
    finally:
        bar.close()
        writer.close()
    with waiting('writing the last checkpoint', show=is_writer()):
        checkpointer.wait()
    return Outcome(state, evaluations, job.ranking.best(evaluations), rollbacks)


def _start_compiling(job, checkpointer):
    """Compiles the step beside other work, and returns a function that waits for it. Several processes do not: they
    must do the same things in the same order."""
    start = max(checkpointer.steps(), default=0)
    if jax.process_count() > 1 or start == job.total_steps:
        return lambda: None
    return job.program.start_compiling(job.batches.batch_at(start))


def _initialise(job, checkpointer, diverged):
    """(state, its step, meta of the checkpoint): resumed, or with another model's parameters, or from scratch; the
    device may still be at work on it. diverged: then from the newest scheduled checkpoint before the bad steps, if
    there is one; later ones are deleted."""
    steps = None
    if diverged:
        checkpointer.wait()
        there = [step for step in checkpointer.steps() if job.is_scheduled(step)]
        steps = [step for step in there if step <= diverged.step - diverged.bad] or there[:1]
    with waiting('reading the checkpoint', show=is_writer()):
        restored = checkpointer.restore_latest(job.program.abstract.items(), steps)
    if diverged:
        checkpointer.delete_after(restored[0] if restored else 0)
    if restored is not None:
        step, items, meta = restored
        logging.info('resuming %s at step %d of %d', job.workdir, step, job.total_steps)
        return TrainState.from_items(items), step, meta
    state = job.program.create_state(job.config.seed)
    if job.load is not None:
        state = state.replace(params=job.load(state.params))
    return state, 0, {'evaluations': []}
