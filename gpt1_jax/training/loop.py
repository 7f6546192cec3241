"""The training loop that pre-training and fine-tuning share."""

import contextlib
import dataclasses
import functools
import itertools
import sys

import jax
import optax
from absl import logging

from gpt1_jax import lock, progress
from gpt1_jax.data.prefetch import prefetch
from gpt1_jax.errors import STOPPED_EXIT_STATUS, Stopped
from gpt1_jax.files import check_renaming
from gpt1_jax.processes import release_freed_memory
from gpt1_jax.progress import Progress, waiting
from gpt1_jax.training import divergence
from gpt1_jax.training.checkpoint import Checkpointer
from gpt1_jax.training.clock import Clock
from gpt1_jax.training.job import Job
from gpt1_jax.training.metric_writer import MetricWriter
from gpt1_jax.training.partitioning import is_writer
from gpt1_jax.training.preemption import PreemptionGuard
from gpt1_jax.training.state import TrainState
from gpt1_jax.training.throughput import Throughput, mfu, peak_flops


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
                return _Attempt(job, checkpointer, guard, diverged).run()
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


class _Attempt:
    """One attempt of `fit`. diverged: why the run goes back; None at first."""

    def __init__(self, job, checkpointer, guard, diverged):
        config, program = job.config, job.program
        self.job, self.checkpointer, self.guard = job, checkpointer, guard
        self.may_go_back = config.optimizer.on_divergence == 'rollback'
        self.compiled = _start_compiling(job, checkpointer) if diverged is None else lambda: None
        self.state, start, meta = _initialise(job, checkpointer, diverged)
        self.start, self.evaluations, self.unevaluated = start, meta['evaluations'], meta.get('unevaluated', False)
        rollbacks, self.trend = meta.get('rollbacks', []), divergence.Trend(*meta.get('trend', ()))
        if diverged:
            rollbacks, self.trend = divergence.go_back(diverged, start, rollbacks), self.trend._replace(bad=0)
            first, end = rollbacks[-1]['batches']
            logging.warning('%s It goes on from step %d without batches %d to %d.', diverged, start, first, end - 1)
        self.batches = divergence.Remaining(job.batches, rollbacks)
        self.writer = MetricWriter(job.workdir, use_wandb=config.log.wandb, config=config.to_dict())
        self.writer.truncate_after(start, unevaluated=self.unevaluated)
        self.bar = Progress(job.total_steps, start, config.task, show=is_writer())
        self.throughput, self.clock = Throughput(), Clock(config.checkpoint.every_minutes, start)
        self.peak = peak_flops(program.partitioner.mesh.devices.flat[0].device_kind, program.classifier.model.dtype)
        self.pending, self.speed = None, {'tokens_per_second': None, 'mfu': None}
        self.have_evaluated = []  # and compiled what they need

    def run(self):
        """Goes to the end of the run; raises Diverged if it is to go back."""
        start = self.start
        try:
            ended = self.job.ranking.is_out_of_patience(self.evaluations)
            if self.unevaluated:
                ended = self.end_step(start)
            end = start if ended else self.job.total_steps
            for index, batch in zip(range(start, end), prefetch(self.batches, start, end)):
                self.take_step(index, batch)
                if self.end_step(index + 1):
                    break
        finally:
            self.bar.close()
            self.writer.close()
        with waiting('writing the last checkpoint', show=is_writer()):
            self.checkpointer.wait()
        return Outcome(self.state, self.evaluations, self.job.ranking.best(self.evaluations), self.batches.rollbacks)

    def take_step(self, index, batch):
        """Dispatches an update, and only then reads the metrics of the one before: the device should never wait."""
        program, first = self.job.program, index == self.start
        with waiting('compiling the step', show=is_writer()) if first else contextlib.nullcontext():
            self.compiled()
            self.state, metrics = program.train_step(self.state, program.partitioner.put_batch(batch))
        self.report()
        self.pending = index + 1, self.batches.count_tokens(batch), metrics
        if jax.process_count() == 1 and metrics['loss'].is_ready():  # as on a CPU, which computes it in the call
            self.report()
        if first:  # compiling it has left holes in the heap
            release_freed_memory()

    def report(self):
        """Reads the metrics of the pending step, if there is one; raises an error if the loss has diverged."""
        if self.pending is None:
            return
        (step, tokens, metrics), self.pending = self.pending, None
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.throughput.step(tokens)
        if metrics['skipped'] or step % self.job.config.log.every == 0 or step == self.job.total_steps:
            rate, program = self.throughput.read(), self.job.program
            utilisation = mfu(rate, program.flops_per_token, self.peak, program.partitioner.mesh.size)
            self.speed = {'tokens_per_second': rate, 'mfu': utilisation}
            self.writer.write(step, metrics | {name: value for name, value in self.speed.items() if value is not None})
        self.bar.update(step, loss=metrics['loss'], **self.speed)
        if self.may_go_back:
            self.trend = self.trend.observe(metrics['loss'], not metrics['skipped'])
        bad = self.trend.bad if self.may_go_back else int(metrics['skipped'])
        if bad >= self.job.config.optimizer.max_skipped:
            raise divergence.verdict(self.job.workdir, step, bad, self.batches, self.may_go_back)

    def end_step(self, step):
        """Does what is due after a step; returns whether the run ends there."""
        stop, evaluation, unevaluated = self.guard.should_stop(step), {}, False
        try:
            evaluation, last = self.evaluate(step, stop)
        except Stopped:  # the resumed run does it, all of it
            stop, last, unevaluated = True, False, True
        if evaluation:
            self.writer.write(step, evaluation)
            self.evaluations.append({'step': step} | evaluation)
        if self.must_save(step, stop, last):
            self.save(step, evaluation, unevaluated)
        if stop and not last:
            self.checkpointer.wait()
            if not progress.quiet:
                logging.info('Stopped at step %d. Run the same command again to resume.', step)
            sys.exit(STOPPED_EXIT_STATUS)
        return last

    def evaluate(self, step, stop):
        """(what the evaluators give that are due after a step, whether the run ends there). Raises Stopped if one is
        due and the process was told to stop."""
        ranking, evaluation, last = self.job.ranking, {}, step == self.job.total_steps
        for evaluator in (ranking, *(other for other in self.job.evaluators if other is not ranking)):
            if not _is_due(evaluator.every, step, last):
                continue
            self.report()
            if stop:
                raise Stopped
            with self.throughput.pause():
                evaluation |= evaluator.evaluate(self.state.params, functools.partial(self.guard.should_stop, step))
                if evaluator not in self.have_evaluated:
                    release_freed_memory()
                    self.have_evaluated.append(evaluator)
            if evaluator is ranking:
                last = last or ranking.is_out_of_patience([*self.evaluations, evaluation])
        return evaluation, last

    def must_save(self, step, stop, last):
        """Whether to save after a step. A step that is only to be ranked is spared if it is not among the best and
        little would be lost; but where a run goes back to must not depend on the time."""
        every, by_clock = self.job.config.checkpoint.every, self.clock.is_due(step)
        if stop or by_clock or _is_due(every, step, last) or self.job.is_kept(step):
            return True
        if not _is_due(self.job.ranking.every, step, last):
            return False
        best = self.job.ranking.by_rank(self.evaluations)[: self.job.config.checkpoint.keep_best]
        return self.may_go_back or step in [one['step'] for one in best] or not self.clock.is_recent()

    def save(self, step, evaluation, unevaluated):
        """Saves the state. unevaluated: whether its evaluation is left to the resumed run."""
        self.report()
        lock.check(self.job.workdir)  # else a folder that was removed would be made anew, with this checkpoint alone
        trend = list(self.trend) if self.may_go_back else []
        more = {'rollbacks': self.batches.rollbacks, 'trend': trend, 'unevaluated': unevaluated}
        meta = {'evaluations': self.evaluations} | {name: value for name, value in more.items() if value}
        with self.throughput.pause():
            self.writer.flush()
            if step == self.start:  # the state was saved before that evaluation
                self.checkpointer.describe(step, meta, evaluation)
            else:
                self.checkpointer.save(step, self.state.items(), meta, evaluation)
        self.clock.restart(step)


def _is_due(every, step, last):
    """Whether to do after a step what is done after every so many and after the last. every: 0: only after that."""
    return last or (every and step % every == 0)


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
