import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from loralab import registry
from loralab.evaluation.intervals import (
    Interval,
    confusion_intervals,
    ratio_intervals,
    wilson,
)

SKLEARN = {
    "accuracy": accuracy_score,
    "macro-f1": lambda true, said: f1_score(true, said, average="macro"),
    "mcc": matthews_corrcoef,
}


def metric(name):
    return registry.get("metric", name).target


def confusion_of(true, said, classes):
    found = np.zeros((classes, classes))
    np.add.at(found, (true, said), 1)
    return found


def labels(rng, n, classes, right=0.6):
    true = rng.integers(classes, size=n)
    return true, np.where(rng.random(n) < right, true, rng.integers(classes, size=n))


def test_every_metric_is_held_against_scikit_learn():
    assert set(SKLEARN) == set(registry.names("metric"))


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("name", sorted(SKLEARN))
@pytest.mark.parametrize("classes", [2, 3, 20])
def test_metrics_equal_scikit_learn(name, classes):
    rng = np.random.default_rng(classes)
    for n in (1, 2, 7, 300):  # few rows: classes that are never true or never said
        for right in (0.0, 0.5, 1.0):
            true, said = labels(rng, n, classes, right)
            ours = metric(name)(confusion_of(true, said, classes))
            assert ours == pytest.approx(SKLEARN[name](true, said), abs=1e-12)


@pytest.mark.parametrize("name", sorted(SKLEARN))
def test_metrics_of_many_matrices_are_those_of_each(name):
    rng = np.random.default_rng(0)
    many = rng.integers(0, 9, size=(4, 5, 3, 3)).astype(float)
    each = [[float(metric(name)(one)) for one in row] for row in many]
    np.testing.assert_allclose(metric(name)(many), each, rtol=1e-12)


@pytest.mark.parametrize("name", sorted(SKLEARN))
def test_bootstrap_over_cells_agrees_with_one_over_examples(name):
    rng = np.random.default_rng(1)
    n, draws = 150, 1500
    true, first = labels(rng, n, 3, 0.7)
    second = np.where(rng.random(n) < 0.5, first, rng.integers(3, size=n))
    ours = confusion_intervals(
        true, (first, second), metric(name), 3, 0.9, 20_000, seed=0
    )
    picked = rng.integers(n, size=(draws, n))
    one, two = (
        np.array(
            [metric(name)(confusion_of(true[i], said[i], 3)) for i in picked],
        )
        for said in (first, second)
    )
    for interval, plain in zip(ours, (one, two, one - two), strict=True):
        low, high = np.percentile(plain, [5, 95])
        # five times the error of a percentile of 1,500 draws, and a step of accuracy
        error = 0.2 * plain.std() + 1 / n
        assert interval.low == pytest.approx(low, abs=error)
        assert interval.high == pytest.approx(high, abs=error)
    values = [SKLEARN[name](true, said) for said in (first, second)]
    expected = [*values, values[0] - values[1]]
    assert [x.value for x in ours] == pytest.approx(expected, abs=1e-12)


def test_pairing_narrows_the_interval_of_the_difference():
    rng = np.random.default_rng(2)
    true, first = labels(rng, 400, 2, 0.6)
    nearly = np.where(rng.random(400) < 0.98, first, true)
    settings = (metric("accuracy"), 2, 0.95, 2000, 0)
    paired = confusion_intervals(true, (nearly, first), *settings)[-1]
    alone = confusion_intervals(true, (first,), *settings)[0]
    assert paired.high - paired.low < (alone.high - alone.low) / 2


@pytest.mark.parametrize("name", sorted(SKLEARN))
def test_identical_arms_differ_by_exactly_nothing(name):
    true, said = labels(np.random.default_rng(3), 60, 4)
    found = confusion_intervals(true, (said, said), metric(name), 4, 0.95, 500, 0)
    assert found[0] == found[1]
    assert found[2] == Interval(0.0, 0.0, 0.0)
    assert not found[2].excludes_zero


def test_identical_losses_differ_by_exactly_nothing():
    rng = np.random.default_rng(4)
    weights = rng.integers(1, 30, 50).astype(float)
    sums = weights * rng.random(50)
    found = ratio_intervals((sums, sums), weights, 0.95, 500, 0)
    assert found[2] == Interval(0.0, 0.0, 0.0)


def test_a_difference_is_the_first_minus_the_second():
    true, weights = np.array([0, 1] * 30), np.full(60, 2.0)
    accuracy = metric("accuracy")
    found = confusion_intervals(true, (true, 1 - true), accuracy, 2, 0.95, 200, 0)
    assert found[2] == Interval(1.0, 1.0, 1.0)
    assert found[2].excludes_zero
    found = ratio_intervals((weights, 3 * weights), weights, 0.95, 200, 0)
    assert found == [Interval(x, x, x) for x in (1.0, 3.0, -2.0)]
    assert found[2].excludes_zero


def test_intervals_are_a_function_of_the_seed():
    rng = np.random.default_rng(5)
    weights, sums = rng.integers(1, 9, 40).astype(float), (rng.random(40),)
    first, again, other = (
        ratio_intervals(sums, weights, 0.95, 300, seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_more_confidence_is_a_wider_interval():
    rng = np.random.default_rng(6)
    weights, sums = rng.integers(1, 9, 40).astype(float), (rng.random(40),)
    narrow, wide = (ratio_intervals(sums, weights, c, 999, 0)[0] for c in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_a_ratio_is_weighted_by_tokens_and_agrees_with_a_plain_bootstrap():
    rng = np.random.default_rng(7)
    weights = rng.integers(1, 100, 120).astype(float)
    sums = weights * (1 + rng.random(120))
    (found,) = ratio_intervals((sums,), weights, 0.9, 10_050, 0)
    assert found.value == pytest.approx(sums.sum() / weights.sum(), rel=1e-12)
    picked = rng.integers(120, size=(20_000, 120))
    plain = sums[picked].sum(1) / weights[picked].sum(1)
    low, high = np.percentile(plain, [5, 95])
    assert found.low == pytest.approx(low, abs=0.1 * plain.std())
    assert found.high == pytest.approx(high, abs=0.1 * plain.std())


def test_the_interval_of_cross_entropy_covers_about_as_often_as_it_says():
    rng = np.random.default_rng(8)
    trials, n = 400, 150
    covered = 0
    for trial in range(trials):
        weights = rng.integers(5, 60, n).astype(float)
        level = rng.gamma(2.0, 1.0, n)  # of an example; the mean is 2
        (found,) = ratio_intervals((weights * level,), weights, 0.9, 300, trial)
        covered += found.low <= 2.0 <= found.high
    # a true coverage between 0.86 and 0.92 fails in one of a thousand runs
    assert binom.ppf(5e-4, trials, 0.86) <= covered <= binom.ppf(1 - 5e-4, trials, 0.92)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_the_published_interval(right, n, low, high):
    # Newcombe 1998, table I, method 3
    found = wilson(right, n, 0.95)
    assert found.value == right / n
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.98])
def test_wilson_covers_about_as_often_as_it_says(share):
    n = 100
    intervals = [wilson(k, n, 0.95) for k in range(n + 1)]
    chance = binom.pmf(np.arange(n + 1), n, share)
    inside = [x.low <= share <= x.high for x in intervals]
    assert 0.93 < chance[inside].sum() < 0.98
