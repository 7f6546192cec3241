"""The average of GLUE's nine tasks, on the figures of the paper's own entry."""

import pytest

from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.evaluation import paper

# The entry "OpenAI GPT" on gluebenchmark.com as the paper reports it: both metrics where a task has two.
ENTRY = {
    'cola': [45.4],
    'sst2': [91.3],
    'mrpc': [82.3, 75.7],
    'stsb': [82.0, 80.0],
    'qqp': [70.3, 88.5],
    'mnli': [82.1, 81.4],
    'qnli': [88.1],
    'rte': [56.0],
    'wnli': [53.4],
}


def test_the_rule_gives_the_papers_average():
    assert paper.glue_average(ENTRY) == pytest.approx(paper.GLUE_AVERAGE[0], abs=0.05)


@pytest.mark.parametrize('task', ENTRY)
def test_no_average_of_fewer_tasks(task):
    assert paper.glue_average({name: values for name, values in ENTRY.items() if name != task}) is None
    assert paper.glue_average(ENTRY | {task: []}) is None


def test_scores_are_those_of_the_tables():
    for name, values in ENTRY.items():
        assert next(iter(REGISTRY[name].paper.values()))[0] == values[0]
