"""Spreads by hand, resamples against metrics one at a time, intervals against scipy."""

import tracemalloc

import numpy as np
import pytest
import scipy.stats

from gpt1_jax.evaluation.metrics import METRICS
from gpt1_jax.report import statistics
from gpt1_jax.report.statistics import Difference


def labels_and_predictions(metric, n, k, seed=0):
    """[n] and [k, n] that are related."""
    rng = np.random.default_rng(seed)
    if metric in ('pearson', 'spearman'):
        labels = rng.integers(0, 11, n) / 2  # with ties, as STS-B has
        return labels, np.round(labels + rng.normal(size=(k, n)), 1)
    labels = rng.integers(0, 2 if metric == 'f1' else 3, n)
    return labels, np.where(rng.random((k, n)) < 0.7, labels, rng.permuted(np.tile(labels, (k, 1)), axis=1))


def test_spread_by_hand():
    assert statistics.spread([0.7]) == statistics.Spread(0.7, 0.7, 0.7, 1)
    assert statistics.spread([0.4, 0.1, 0.3, 0.9]) == statistics.Spread(0.35, 0.1, 0.9, 4)


@pytest.mark.parametrize('metric', METRICS)
def test_resamples_are_the_metric_of_drawn_examples(metric):
    labels, predicted = labels_and_predictions(metric, 50, 2)
    values = statistics.on_resamples(metric, labels, predicted, 30)
    rng = np.random.default_rng(0)
    drawn = [rng.integers(50, size=50) for _ in range(30)]
    expected = [[METRICS[metric](labels[rows], one[rows]) for rows in drawn] for one in predicted]
    np.testing.assert_allclose(values, expected, atol=1e-9)
    assert np.ptp(values) > 0.05


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.filterwarnings('ignore:A single label')
def test_a_constant_side_is_0_as_in_metrics(metric):
    labels = np.zeros(9)
    expected = METRICS[metric](labels, labels)
    assert (statistics.on_resamples(metric, labels, np.zeros((1, 9)), 3) == expected).all()


def test_many_examples_come_in_parts(monkeypatch):
    labels, predicted = labels_and_predictions('matthews', 70, 3)
    whole = statistics.on_resamples('matthews', labels, predicted)
    monkeypatch.setattr(statistics, '_AT_ONCE', 7000)
    np.testing.assert_allclose(statistics.on_resamples('matthews', labels, predicted), whole)
    assert whole.shape == (3, statistics.RESAMPLES)


@pytest.mark.parametrize('metric', ['accuracy', 'pearson'])
def test_the_standard_error_is_that_of_scipy(metric):
    labels, (predicted,) = labels_and_predictions(metric, 200, 1)
    scipys = scipy.stats.bootstrap(
        (labels, predicted), METRICS[metric], paired=True, vectorized=False, n_resamples=2000, rng=1
    )
    assert statistics.standard_error(metric, labels, predicted) == pytest.approx(scipys.standard_error, rel=0.1)
    if metric == 'accuracy':
        share = np.mean(labels == predicted)
        formula = statistics.accuracy_error(share, 200)
        assert formula == pytest.approx(np.sqrt(share * (1 - share) / 200))
        assert statistics.standard_error(metric, labels, predicted) == pytest.approx(formula, rel=0.1)


def test_the_interval_of_a_difference_is_that_of_scipy():
    labels, predicted = labels_and_predictions('accuracy', 300, 2)
    found = statistics.difference(['accuracy'], labels, predicted[:1], predicted[1:])
    right = (predicted == labels).astype(float)
    scipys = scipy.stats.bootstrap(
        (right[0] - right[1],), np.mean, method='percentile', n_resamples=5000, rng=1
    ).confidence_interval
    assert found.value == pytest.approx(right[0].mean() - right[1].mean())
    np.testing.assert_allclose(found.interval(seeds=False), scipys, atol=0.01)
    assert found.interval(seeds=True) == found.interval(seeds=False)  # of one seed


def test_pairing_takes_out_what_both_rows_share():
    labels, (first,) = labels_and_predictions('accuracy', 300, 1)
    second = first.copy()
    second[:6] = (labels[:6] + 1) % 3  # all but 6 examples are answered alike
    low, high = statistics.difference(['accuracy'], labels, first[None], second[None]).interval(seeds=False)
    assert high - low < 0.04  # the error of one row alone is 0.026, so unpaired it would be 0.15


def test_the_seeds_are_resampled_too():
    """Rows of three seeds, each right on the first so many of 100 examples."""
    labels = np.ones(100, int)
    right = lambda counts: np.stack([np.arange(100) < count for count in counts]).astype(int)
    found = statistics.difference(['accuracy'], labels, right([48, 60, 70]), right([12, 50, 90]))
    assert found.value == pytest.approx(0.1) and found.seeds == 3 and found.medians == pytest.approx((0.6, 0.5))
    assert found.examples.min() > 0  # no resample of the examples turns the medians round
    drawn = np.random.default_rng(0).integers(100, size=100)  # the first resample
    assert found.examples[0] == pytest.approx(np.mean(drawn < 60) - np.mean(drawn < 50))
    # Of the 27 draws of three seeds, 7 have the median at the first, 13 at the second, 7 at the third: 36, 10 and -20.
    for value, share in ((0.36, 7 / 27), (0.1, 13 / 27), (-0.2, 7 / 27)):
        near = np.abs(found.both - value) < 0.15
        assert near.mean() == pytest.approx(share, abs=0.08)
    assert not found.significant
    paired = statistics.difference(['accuracy'], labels, right([10, 50, 90]), right([5, 45, 85]))
    assert np.std(paired.both) < 0.05  # a seed is drawn for both rows; else the medians would be far apart
    assert statistics.difference(['accuracy'], labels, right([90] * 3), right([10] * 3)).significant


def test_an_interval_has_95_per_cent():
    values = np.linspace(0, 1, 1001)
    found = Difference((0.7, 0.2), values, 2 * values, 3)
    assert found.interval(seeds=False) == pytest.approx((0.025, 0.975))
    assert found.interval(seeds=True) == pytest.approx((0.05, 1.95))


def test_a_difference_of_two_metrics_is_that_of_their_means():
    labels, predicted = labels_and_predictions('f1', 80, 2)
    both = statistics.difference(['f1', 'accuracy'], labels, predicted[:1], predicted[1:])
    single = [statistics.difference([name], labels, predicted[:1], predicted[1:]) for name in ('f1', 'accuracy')]
    assert both.value == pytest.approx(np.mean([one.value for one in single]))
    np.testing.assert_allclose(both.examples, np.mean([one.examples for one in single], axis=0))


def test_the_mean_of_differences_is_of_independent_sets():
    labels, predicted = labels_and_predictions('accuracy', 400, 2)
    one = statistics.difference(['accuracy'], labels, predicted[:1], predicted[1:])
    mean = statistics.mean_difference([one, one, one, one])
    assert mean.value == pytest.approx(one.value) and mean.seeds == 1 and mean.medians == pytest.approx(one.medians)
    assert np.std(mean.examples) == pytest.approx(np.std(one.examples) / 2, rel=0.15)  # of four sets
    assert isinstance(mean, Difference)


def test_many_labels_take_little_memory():
    rng = np.random.default_rng(0)
    labels = rng.integers(100, size=400)
    predicted = np.where(rng.random((2, 400)) < 0.5, labels, rng.integers(100, size=400))
    tracemalloc.start()
    values = statistics.on_resamples('matthews', labels, predicted)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20e6  # tables of all pairs of labels would take 160 MB
    rows = np.random.default_rng(0).integers(400, size=400)
    assert values[1, 0] == pytest.approx(METRICS['matthews'](labels[rows], predicted[1, rows]))
