"""What a training run is to do: its steps, its evaluations, and which of its checkpoints are kept."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import ml_collections
from etils import epath

from gpt1_jax.training.program import Program


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
        return 0 < self.patience < len(ranked) and self.best(ranked) not in ranked[-self.patience :]


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run is to do.

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
