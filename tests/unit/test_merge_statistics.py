"""Differences of merge methods, paired over orders, tasks and rows."""

from __future__ import annotations

import numpy as np
import pytest

from loralab.evaluation.statistics.merges import (
    COVERS,
    paired_difference,
    stratified,
)

RNG = np.random.default_rng(0)


def test_stratified_values_have_the_means_that_they_stand_for():
    values = [RNG.normal(size=(4, n)) + n for n in (5, 20, 9)]
    y = stratified(values)
    assert y.mean() == pytest.approx(np.mean([v.mean() for v in values]))
    of_order = np.mean([v.mean(1) for v in values], axis=0)
    np.testing.assert_allclose(y.mean(1), of_order)


def test_without_orders_it_is_the_stratified_standard_error():
    first = [RNG.normal(size=(1, 30)) + shift for shift in (0.0, 5.0)]
    second = [np.zeros((1, 30))] * 2
    found = paired_difference(first, second)
    half = (found.interval.high - found.interval.low) / 2
    error = (sum(v.var(ddof=1) / 30 for v in first) / 4) ** 0.5
    assert half == pytest.approx(2.0017 * error, rel=1e-3)  # t(58)
    assert found.interval.value == pytest.approx(np.mean([v.mean() for v in first]))
    assert found.covers == "rows"


@pytest.mark.parametrize(
    ("orders", "every", "covers"),
    [
        (1, False, "rows"),
        (2, False, "rows"),
        (3, False, "orders and rows"),
        (6, True, "rows"),
    ],
)
def test_it_says_what_it_covers(orders, every, covers):
    first = [RNG.normal(size=(orders, 12)) for _ in range(3)]
    second = [RNG.normal(size=(1, 12)) for _ in range(3)]
    found = paired_difference(first, second, every_order=every)
    assert found.covers == covers
    assert found.covers in COVERS
    assert (found.orders, found.rows) == (orders, 36)


def test_the_second_minus_the_first_is_the_negative():
    first = [RNG.normal(size=(4, 10)) for _ in range(3)]
    second = [RNG.normal(size=(4, 10)) for _ in range(3)]
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert there.interval.low == pytest.approx(-back.interval.high)
    assert there.p_value == pytest.approx(back.p_value)
    same = paired_difference(first, first)
    assert (same.interval.value, same.p_value) == (0.0, 1.0)


def test_it_covers_what_it_claims_where_orders_and_tasks_interact():
    """Tasks of very different means and sizes; order × task effects are large."""
    rng = np.random.default_rng(1)
    means, sizes, repetitions = (-2.0, 0.0, 4.0), (20, 40, 80), 200
    truth, hit = np.mean(means), 0
    for _ in range(repetitions):
        effect_OT = rng.normal(0, 0.3, size=(5, 3))
        tasks = [
            mean + effect_OT[:, [i]] + rng.normal(size=(1, n)) + rng.normal(size=(5, n))
            for i, (mean, n) in enumerate(zip(means, sizes, strict=True))
        ]
        zero = [np.zeros((1, v.shape[1])) for v in tasks]
        interval = paired_difference(tasks, zero).interval
        hit += interval.low <= truth <= interval.high
    assert 0.91 <= hit / repetitions <= 0.99


def test_what_cannot_be_compared_is_refused():
    one = [np.zeros((1, 4))]
    with pytest.raises(ValueError, match="the same rows"):
        paired_difference(one, [np.zeros((1, 5))])
    with pytest.raises(ValueError, match="the same rows"):
        paired_difference(one, [*one, *one])
    with pytest.raises(ValueError, match="not finite"):
        paired_difference([np.full((1, 4), np.nan)], one)
    with pytest.raises(ValueError, match="two rows"):
        paired_difference([np.zeros((1, 1))], [np.zeros((1, 1))])
