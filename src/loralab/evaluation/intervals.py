"""Intervals over examples: how far a figure may be off because the test set is finite.

Percentile bootstrap over examples (Efron & Tibshirani 1993, ch. 13), paired where two
arms saw the same examples. It says nothing of the spread between seeds.

A metric of a confusion matrix depends on the counts of (true, predicted by a,
predicted by b) only, so resampling examples is drawing those counts from a multinomial:
exact, and independent of the number of examples.

Shape suffixes: E examples, R draws, C classes, K cells that occur.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Metric = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Interval:
    """A value with its interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0

    def as_dict(self) -> dict[str, float]:
        """Return it as plain JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def _percentiles(value: float, draws_R: Floats, confidence: float) -> Interval:
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(draws_R, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def wilson(successes: int, n: int, confidence: float) -> Interval:
    """Return a share with its Wilson score interval (Wilson 1927).

    Unlike a bootstrap it does not shrink to nothing when all examples are right.
    """
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(successes / n, float(interval.low), float(interval.high))


def confusion_intervals(
    true_E: Ints,
    arms_E: tuple[Ints, ...],
    metric: Metric,
    classes: int,
    confidence: float,
    resamples: int,
    seed: int,
) -> list[Interval]:
    """Return the metric's interval for each arm, then for the first minus the second.

    Args:
        true_E: True classes, [E].
        arms_E: Predicted classes of one or two arms, each [E].
        metric: A function of confusion matrices [..., C, C].
        classes: C.
        confidence: For example 0.95.
        resamples: R.
        seed: Of the draws.
    """
    n = len(true_E)
    cells, counts_K = np.unique(np.stack([true_E, *arms_E]), axis=1, return_counts=True)
    rng = np.random.default_rng(seed)
    draws_RK = rng.multinomial(n, counts_K / n, size=resamples)
    found, drawn, values = [], [], []
    for arm in range(1, len(cells)):
        flat_K = cells[0] * classes + cells[arm]
        onto = np.zeros((len(flat_K), classes**2))
        onto[np.arange(len(flat_K)), flat_K] = 1
        one = (counts_K @ onto).reshape(classes, classes)
        many = (draws_RK @ onto).reshape(resamples, classes, classes)
        values.append(float(metric(one)))
        drawn.append(metric(many))
        found.append(_percentiles(values[-1], drawn[-1], confidence))
    if len(drawn) == 2:
        gap = values[0] - values[1]
        found.append(_percentiles(gap, drawn[0] - drawn[1], confidence))
    return found


def ratio_intervals(
    sums: tuple[Floats, ...],
    weights_E: Floats,
    confidence: float,
    resamples: int,
    seed: int,
) -> list[Interval]:
    """Return Σ sums / Σ weights with its interval for each arm, then the difference.

    With `sums` the summed negative log-likelihood of an example and `weights` its
    number of supervised tokens, this is cross-entropy per token.

    Args:
        sums: One or two arms, each [E] float64.
        weights_E: [E] float64, the same for all arms.
        confidence: For example 0.95.
        resamples: R.
        seed: Of the draws.
    """
    n = len(weights_E)
    rng = np.random.default_rng(seed)
    columns = np.stack([weights_E, *sums], axis=1)
    parts = []
    for start in range(0, resamples, 100):  # bounds the memory to 100 × E counts
        size = min(100, resamples - start)
        parts.append(rng.multinomial(n, np.full(n, 1 / n), size=size) @ columns)
    totals_R = np.concatenate(parts)
    drawn = [totals_R[:, arm] / totals_R[:, 0] for arm in range(1, len(sums) + 1)]
    values = [float(arm.sum() / weights_E.sum()) for arm in sums]
    found = [
        _percentiles(value, draws, confidence)
        for value, draws in zip(values, drawn, strict=True)
    ]
    if len(drawn) == 2:
        gap = values[0] - values[1]
        found.append(_percentiles(gap, drawn[0] - drawn[1], confidence))
    return found
