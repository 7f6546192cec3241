"""Rows of scores against the files of their runs."""

import dataclasses

import numpy as np
import pytest
import scipy.special
from sklearn import metrics

import recorded
from gpt1_jax.report import rows, statistics
from gpt1_jax.report.blocks import Gap


@pytest.fixture(scope='module')
def by_name():
    """(label, data set) -> line"""
    return {(line.label, line.dataset): line for line in recorded.collected()[1]}


def labels_and_predictions(path):
    with np.load(recorded.everything() / path / 'dev.npz') as file:
        return file['labels'], file['logits']


def test_best_scores_are_those_of_the_best_checkpoints(by_name):
    found = rows.best_scores(by_name['finetune', 'race'])
    assert list(found) == [('dev', 'accuracy', ''), ('dev', 'accuracy', 'high'), ('dev', 'accuracy', 'middle')]
    expected = [
        recorded.value(f'finetune/race/seed{i}', split='dev', checkpoint='best', subset='high') for i in range(3)
    ]
    assert [score.value for score in found['dev', 'accuracy', 'high']] == expected
    assert list(rows.best_scores(by_name['finetune', 'race'], 'train')) == [('train', 'accuracy', '')]


def test_the_first_metric_is_the_median_and_of_mnli_the_mean(by_name):
    of = lambda split: [
        recorded.value(f'finetune/mnli/seed{i}', split=split, checkpoint='best', subset='') for i in range(3)
    ]
    found = rows.first_metric(by_name['finetune', 'mnli'])
    means = np.mean([of('dev'), of('dev_mismatched')], axis=0)
    assert [found.low, found.median, found.high] == pytest.approx(sorted(means)) and found.runs == 3
    race = [recorded.value(f'finetune/race/seed{i}', split='dev', checkpoint='best', subset='') for i in range(3)]
    assert rows.first_metric(by_name['finetune', 'race']) == statistics.spread(race)
    assert rows.first_metric(by_name['half', 'mrpc']) is None


def test_predictions_of_classes_and_scores(by_name):
    labels, logits = labels_and_predictions('finetune/mnli/seed1')
    found = rows.predictions(by_name['finetune', 'mnli'].runs[1])
    np.testing.assert_array_equal(found, [labels, logits.argmax(1)])
    labels, logits = labels_and_predictions('finetune/stsb/seed1')
    found = rows.predictions(by_name['finetune', 'stsb'].runs[1])
    np.testing.assert_allclose(found[1], scipy.special.softmax(logits, axis=1) @ np.arange(6), rtol=1e-5)


def test_predictions_of_a_squared_loss_are_the_outputs(by_name):
    run = by_name['finetune', 'stsb'].runs[0]
    outputs = np.linspace(0, 5, len(run.dev['labels']), dtype=np.float32)[:, None]
    run = dataclasses.replace(run, dev={'labels': run.dev['labels'], 'logits': outputs})
    np.testing.assert_array_equal(rows.predictions(run)[1], outputs[:, 0])


def test_the_score_of_one_answer_is_that_of_a_run_which_tells_it(by_name):
    """Runs of earlier versions do not."""
    line = by_name['finetune', 'mnli']
    first, *others = line.runs
    silent = dataclasses.replace(first, result=dataclasses.replace(first.result, facts={}))
    assert rows.constant(dataclasses.replace(line, runs=(silent, *others))) == others[0].facts['dev_constant']
    assert rows.constant(dataclasses.replace(line, runs=(silent,))) is None


def test_the_standard_error_of_an_accuracy_and_of_another_metric(by_name):
    line = by_name['finetune', 'cola']
    found = rows.best_scores(line)
    accuracy = np.median([score.value for score in found['dev', 'accuracy', '']])
    error = rows.standard_error(line, found['dev', 'accuracy', ''])
    assert error == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / recorded.DEV))
    matthews = found['dev', 'matthews', '']
    seed = int(np.argsort([score.value for score in matthews])[1])
    labels, logits = labels_and_predictions(f'finetune/cola/seed{seed}')
    rng, predicted = np.random.default_rng(5), logits.argmax(1)
    drawn = [rng.integers(len(labels), size=len(labels)) for _ in range(400)]
    expected = np.std([metrics.matthews_corrcoef(labels[i], predicted[i]) for i in drawn])
    assert rows.standard_error(line, matthews) == pytest.approx(expected, rel=0.15)


def test_two_rows_are_compared_over_the_seeds_of_both(by_name):
    full, other = by_name['ablation_table5: full', 'cola'], by_name['ablation_table5: lstm', 'cola']
    found = rows.compare(other, full)
    medians = [
        np.median([recorded.value(f'ablation_table5/cola/{row}/seed{i}', metric='matthews', checkpoint='best',
                                  split='dev') for i in range(3)])
        for row in ('lstm', 'full')
    ]  # fmt: skip
    assert found.value == pytest.approx(medians[0] - medians[1], abs=1e-6) and found.seeds == 3
    fewer = dataclasses.replace(other, runs=other.runs[1:])
    assert rows.compare(fewer, full).seeds == 2
    assert rows.compare(full, full).value == 0 and not rows.compare(full, full).significant


def test_why_rows_cannot_be_compared(by_name):
    full, other = by_name['ablation_table5: full', 'cola'], by_name['ablation_table5: lstm', 'cola']
    replace = dataclasses.replace
    change = lambda line, **dev: replace(line, runs=tuple(replace(run, dev=dev and run.dev | dev) for run in line.runs))
    assert rows.compare(replace(other, runs=other.runs[:1]), replace(full, runs=full.runs[1:])) == (
        'no seed is finished in both rows'
    )
    assert rows.compare(change(other), full) == 'predictions were not kept'
    assert rows.compare(change(other, labels=1 - full.runs[0].dev['labels']), full) == 'the dev sets differ'
    table, gap = rows.comparisons('', [(full, other), (full, change(other))])
    assert len(table.entries) == 1 and isinstance(gap, Gap) and 'predictions were not kept' in gap.text


def test_cells_say_difference_intervals_and_significance():
    values = np.linspace(-0.005, 0.025, 1001)
    found = statistics.Difference((0.5101, 0.5), values, values + 0.02, 3)
    minus = '\N{MINUS SIGN}'
    medians, interval = '51.0 less 50.0', f'{minus}0.4 to 2.4'
    assert rows.cells(found) == (medians, '+1.0*', interval, '1.6 to 4.4', '3')
    assert rows.cells(dataclasses.replace(found, seeds=2)) == (medians, '+1.0', interval, '1.6 to 4.4', '2')
    assert rows.cells(dataclasses.replace(found, seeds=1)) == (medians, '+1.0', interval, '', '1')
    found = statistics.Difference((0.5101, 0.5), values + 0.02, values, 3)
    assert rows.cells(found)[1] == '+1.0'


def test_of_mnli_the_splits_of_one_run_are_averaged_before_runs_are_compared(by_name):
    line = by_name['finetune', 'mnli']
    given = {'dev': [0.70, 0.75, 0.80], 'dev_mismatched': [0.80, 0.70, 0.75]}

    def changed(run, number):
        scores = [
            dataclasses.replace(one, value=given[one.split][number]) if one.split in given else one
            for one in run.result.scores
        ]
        return dataclasses.replace(run, result=dataclasses.replace(run.result, scores=scores))

    line = dataclasses.replace(line, runs=tuple(changed(run, number) for number, run in enumerate(line.runs)))
    found = rows.first_metric(line)
    assert [found.low, found.median, found.high] == pytest.approx([0.725, 0.75, 0.775])
