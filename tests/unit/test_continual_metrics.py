"""Metrics of a continual matrix, against matrices computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from loralab.evaluation.continual import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    normalised,
    order_std,
    orders,
    worst_task,
)
from loralab.evaluation.multitask import TaskScores

NAN = float("nan")
SEEN = np.array(
    [
        [0.9, NAN, NAN],
        [0.7, 0.8, NAN],
        [0.5, 0.6, 0.7],
    ]
)
"""Task 1 falls by 0.4, task 2 by 0.2, both since they were merged."""
RISES = np.array(
    [
        [0.5, 0.3, 0.2],
        [0.9, 0.6, 0.4],
        [0.6, 0.7, 0.8],
    ]
)
"""Task 1 is best in the middle; task 2 rises."""


def test_averages_and_the_worst() -> None:
    assert average_accuracy(SEEN) == pytest.approx(0.6)
    assert worst_task(SEEN) == 0.5
    assert normalised(SEEN, np.array([1.0, 0.75, 0.7])) == pytest.approx(2.3 / 3)


def test_the_two_conventions_of_backward_transfer() -> None:
    assert backward_transfer(SEEN, "mingle") == pytest.approx(-0.6 / 2)
    assert backward_transfer(SEEN, "fusion_bench") == pytest.approx(-0.6 / 3)
    assert backward_transfer(RISES, "mingle") == pytest.approx((0.1 + 0.1) / 2)


def test_forgetting_is_from_the_best_since_the_merge() -> None:
    assert forgetting(SEEN) == pytest.approx((0.4 + 0.2) / 2)
    # task 1: 0.9 at t = 2, then 0.6; task 2: 0.6, then 0.7: it is helped
    assert forgetting(RISES) == pytest.approx((0.3 - 0.1) / 2)


def test_forward_transfer_is_beyond_the_base() -> None:
    base = np.array([0.9, 0.25, 0.1])
    assert forward_transfer(RISES, base) == pytest.approx((0.05 + 0.3) / 2)


def test_a_cell_that_was_not_measured_is_no_number() -> None:
    ends = SEEN.copy()
    ends[1, 0] = NAN
    assert backward_transfer(ends, "mingle") == pytest.approx(-0.3)
    with pytest.raises(ValueError, match="forgetting needs cells"):
        forgetting(ends)
    with pytest.raises(ValueError, match="FWT needs cells"):
        forward_transfer(SEEN, np.zeros(3))
    with pytest.raises(ValueError, match="ACC needs cells"):
        average_accuracy(np.array([[0.5, NAN], [NAN, 0.5]]))


@pytest.mark.parametrize("wrong", [np.zeros((2, 3)), np.zeros(3), np.zeros((0, 0))])
def test_what_is_no_matrix_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match="the matrix must be"):
        average_accuracy(wrong)


def test_one_task_is_not_forgotten() -> None:
    one = np.array([[0.5]])
    assert average_accuracy(one) == 0.5
    for metric in (forgetting, lambda a: backward_transfer(a, "mingle")):
        with pytest.raises(ValueError, match="one task alone"):
            metric(one)


def test_all_orders_of_few_tasks_and_seeded_ones_of_many() -> None:
    assert len(set(orders(4))) == 24
    assert orders(2) == ((0, 1), (1, 0))
    ten = orders(10)
    assert len(set(ten)) == 10
    assert all(sorted(order) == list(range(10)) for order in ten)
    assert orders(10) == ten
    assert ten[1:] == orders(10, 9, seed=43)
    assert len(set(orders(5, count=60))) == 60  # of 120: some are drawn twice
    assert len(set(orders(5, count=121))) == 120


def test_spread_over_orders() -> None:
    assert order_std([0.5, 0.7]) == pytest.approx(0.02**0.5)
    with pytest.raises(ValueError, match="at least two"):
        order_std([0.5])


def test_the_error_of_an_accuracy_is_its_spread_over_samples() -> None:
    random = np.random.default_rng(0)

    def sample() -> TaskScores:
        labels = random.choice([1.0, 30.0], 200)
        right = random.binomial(labels.astype(int), 0.2 + 0.7 * (labels > 1)) / labels
        return TaskScores(right, labels, labels, of=10**9)

    drawn = [sample() for _ in range(400)]
    spread = np.std([said.accuracy for said in drawn], ddof=1)
    errors = [said.subsample_error for said in drawn]
    assert np.mean(errors) == pytest.approx(spread, rel=0.15)
