"""Which evaluation of a run is best, and which checkpoints are kept."""

import numpy as np
import pytest

from configs import pretrain
from gpt1_jax.training.job import Evaluator, Job


@pytest.mark.parametrize('mode', ['min', 'max'])
def test_what_is_not_finite_is_never_the_best(mode):
    sign = 1 if mode == 'min' else -1
    values = [np.nan, 3.0, -np.inf, 2.0, np.nan, 2.0, 4.0]
    evaluations = [{'step': step, 'rank': sign * value} for step, value in enumerate(values)]
    ranking = Evaluator(None, 1, ranks_by='rank', mode=mode, patience=3)
    assert [evaluation['step'] for evaluation in ranking.by_rank(evaluations)] == [3, 5, 1, 6, 0, 2, 4]
    assert ranking.is_out_of_patience(evaluations) and not ranking.is_out_of_patience(evaluations[:-1])


def test_log_spaced_steps_are_those_nearest_to_powers_of_ten():
    config = pretrain.get_config('tiny')
    config.checkpoint.keep_log = 5
    job = Job(config, None, None, None, 10**5, ())
    expected = {round(10 ** (i / 5)) for i in range(26)}
    assert {step for step in range(1, 10**5 + 1) if job.is_kept(step)} == expected
