"""The averages of GLUE and of table 5, on the paper's own figures."""

import numpy as np
import pytest

from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.evaluation import metrics, paper

# The entry "OpenAI GPT" on gluebenchmark.com as the paper reports it: both metrics where a task has two; and CoLA's
# accuracy, which is not GLUE's but measured here too.
ENTRY = {
    'cola': {'matthews': 45.4, 'accuracy': 80.0},
    'sst2': {'accuracy': 91.3},
    'mrpc': {'f1': 82.3, 'accuracy': 75.7},
    'stsb': {'pearson': 82.0, 'spearman': 80.0},
    'qqp': {'f1': 70.3, 'accuracy': 88.5},
    'mnli': {'accuracy': 82.1, 'mismatched_accuracy': 81.4},
    'qnli': {'accuracy': 88.1},
    'rte': {'accuracy': 56.0},
    'wnli': {'accuracy': 53.4},
}


def test_the_rule_gives_the_papers_average():
    """From all the metrics that a run has."""
    for name, values in ENTRY.items():
        dataset = REGISTRY[name]
        labels = np.arange(40, dtype=np.int32) % len(dataset.labels or range(6))
        given = metrics.score(dataset.metrics, dataset.loss, labels, np.eye(6)[labels][:, : dataset.classes])
        assert {metric for metric, *_ in given} == {*values} - {'mismatched_accuracy'}
    assert paper.glue_average(ENTRY) == pytest.approx(paper.GLUE_AVERAGE[0], abs=0.05)


@pytest.mark.parametrize('task', ENTRY)
def test_no_average_of_fewer_tasks(task):
    assert paper.glue_average({name: values for name, values in ENTRY.items() if name != task}) is None
    assert paper.glue_average(ENTRY | {task: {}}) is None


def test_no_average_of_one_half_of_mnli():
    assert paper.glue_average(ENTRY | {'mnli': {'accuracy': 82.1}}) is None


def test_scores_are_those_of_the_tables():
    for name, values in ENTRY.items():
        assert next(iter(REGISTRY[name].paper.values()))[0] == next(iter(values.values()))


def test_the_averages_of_table_5():
    """As printed for all eight sets, which the rows themselves give to about a decimal (of the full row 74.65)."""
    assert {row: paper.table_5_average(row, of) for row, of in paper.TABLE_5.items()} == paper.TABLE_5_AVERAGE
    assert {row: sum(of.values()) / 8 for row, of in paper.TABLE_5.items()} == {
        'full': pytest.approx(74.65),
        'no_pretraining': pytest.approx(59.925),
        'no_auxiliary': pytest.approx(75.025),
        'lstm': pytest.approx(69.1625),
    }
    for row, printed in paper.TABLE_5_AVERAGE.items():
        assert sum(paper.TABLE_5[row].values()) / 8 == pytest.approx(printed, abs=0.07)
    full, lstm, scratch = (paper.TABLE_5_AVERAGE[row] for row in ('full', 'lstm', 'no_pretraining'))
    assert full - scratch == pytest.approx(14.8, abs=0.01) and full - lstm == pytest.approx(5.6, abs=0.01)  # its words
    assert paper.table_5_average('lstm', ['cola', 'rte']) == pytest.approx((30.3 + 54.6) / 2)
    assert paper.table_5_average('lstm', ['cola', 'wnli']) is paper.table_5_average('lstm', []) is None
    assert paper.table_5_average('mine', ['cola']) is None


def test_only_sets_that_every_row_has_are_averaged():
    rows = {'full': {'cola': 0.2, 'rte': 0.6, 'sst2': 1.0}, 'lstm': {'sst2': 0.5, 'cola': 0.1}}
    assert paper.in_every_row(rows) == ['cola', 'sst2']
    assert paper.in_every_row({'full': {'cola': 1.0}, 'lstm': {}}) == []
