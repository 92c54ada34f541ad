"""Intervals over rows: how far a figure may be off because the test set is finite.

Percentile bootstrap over rows (Efron & Tibshirani 1993, ch. 13), paired where two arms
saw the same rows. It says nothing of the spread between seeds.

A draw of E rows with replacement is how often each row was drawn; the numbers of all
metrics of an arm stand side by side, so a chunk of draws is one product with them,
`totals_RK = counts_RE @ sums_EK`, and the same draws serve every metric and both arms.

Where a row is right or wrong a bootstrap shrinks to nothing if all rows are right, or
if two arms are right on the same rows; below a few hundred rows it is too narrow
(Bowyer et al. 2025, arXiv 2503.01747). A share therefore has Wilson's interval, and
the difference of two shares on the same rows the Bayesian one that they advise:

    (p₁₁, p₁₀, p₀₁, p₀₀) ~ Dirichlet(½ + counts),  p_first − p_second = p₁₀ − p₀₁

where p₁₀ is that only the first is right. With a = ½ + n₁₀ and b = ½ + n₀₁ the
difference is D·(2Q − 1), D ~ Beta(a + b, rest) how often the two differ, and
Q ~ Beta(a, b) how often the first is then the right one, independent.

Shape suffixes: E rows, R draws, K numbers of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loralab.errors import EvidenceError
from loralab.evaluation.scores import Floats, Scores

CHUNK = 8_000_000
"""Numbers that a chunk of draws may hold at most (64 MB)."""

POINTS = 500
"""Nodes in each of the two Betas, dense in their tails; the interval's ends are good to
some 1e-3 up to a confidence of 0.999."""


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

    Unlike a bootstrap it does not shrink to nothing when all rows are right.
    """
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(successes / n, float(interval.low), float(interval.high))


def paired_proportions(
    both: int, only_first: int, only_second: int, neither: int, confidence: float
) -> Interval:
    """Return the difference of two shares on the same rows, with a credible interval.

    Args:
        both: Rows that both have right.
        only_first: Rows that only the first has right.
        only_second: Rows that only the second has right.
        neither: Rows that neither has right.
        confidence: For example 0.95.

    Raises:
        EvidenceError: no rows.
        ValueError: a negative count.
    """
    from scipy.stats import beta

    rows = _rows_of([both, only_first, only_second, neither])
    a, b = 0.5 + only_first, 0.5 + only_second
    angles = np.pi * (np.arange(POINTS) + 0.5) / POINTS
    nodes, weights = (1 - np.cos(angles)) / 2, np.sin(angles) / np.sin(angles).sum()
    differ = beta.ppf(nodes, a + b, 1.0 + both + neither)
    # from both ends, so that swapping the arms mirrors the interval
    lead = beta.ppf(nodes, a, b) - beta.ppf(nodes, b, a)[::-1]
    gaps, shares = np.outer(differ, lead).ravel(), np.outer(weights, weights).ravel()
    order = gaps.argsort()
    below = shares[order].cumsum() - shares[order] / 2
    tail = (1 - confidence) / 2
    low, high = np.interp([tail, 1 - tail], below, gaps[order])
    value = (only_first - only_second) / rows
    return Interval(value, min(float(low), value), max(float(high), value))


def _rows_of(counts: list[int]) -> int:
    if min(counts) < 0:
        raise ValueError(f"counts must not be negative: {counts}")
    if sum(counts) == 0:
        raise EvidenceError("a proportion of no rows", fix="evaluate on some rows")
    return sum(counts)


def _paired(first: Scores, second: Scores, confidence: float) -> Interval:
    """Return the difference of two shares from the numbers of their rows."""
    right, too = (np.asarray(scores.sums)[:, 0] > 0 for scores in (first, second))
    masks = (right & too, right & ~too, ~right & too, ~right & ~too)
    both, only_first, only_second, neither = (int(mask.sum()) for mask in masks)
    return paired_proportions(both, only_first, only_second, neither, confidence)


def _weighted(sums_EK: Any, weights_E: Floats | None) -> Any:
    """Return a row's numbers times its weight, dense or sparse as they were."""
    if weights_E is None:
        return sums_EK
    if isinstance(sums_EK, np.ndarray):
        return sums_EK * weights_E[:, None]
    return sums_EK.multiply(weights_E[:, None]).tocsr()


class _Arm:
    """The numbers of all metrics of one arm, those that are dense in one array."""

    def __init__(self, metrics: Mapping[str, Scores], weights_E: Floats | None) -> None:
        self.metrics = metrics
        self._sparse: dict[str, Any] = {}
        self._where: dict[str, slice] = {}
        dense, at = [], 0
        for name, scores in metrics.items():
            sums = _weighted(scores.sums, weights_E)
            if isinstance(sums, np.ndarray):
                self._where[name] = slice(at, at + sums.shape[1])
                at += sums.shape[1]
                dense.append(sums)
            else:
                self._sparse[name] = sums
        rows = next(iter(metrics.values())).sums.shape[0]
        self._dense = np.concatenate([np.empty((rows, 0)), *dense], axis=1)

    def values(self, counts_RE: Floats) -> dict[str, Floats]:
        """Return each metric's values, [R]."""
        totals = counts_RE @ self._dense
        return {
            name: scores.value(
                totals[:, self._where[name]]
                if name in self._where
                else counts_RE @ self._sparse[name]
            )
            for name, scores in self.metrics.items()
        }


def _draws(rows: int, resamples: int, widest: int, seed: int) -> Iterator[Floats]:
    """Yield chunks of Multinomial(rows; 1/rows, …), each [R, E] float64."""
    rng = np.random.default_rng(seed)
    at_once = max(1, CHUNK // max(rows, widest))
    for start in range(0, resamples, at_once):
        counts = np.empty((min(at_once, resamples - start), rows))
        for draw in counts:  # the law of rng.multinomial, in a tenth of its time
            draw[:] = np.bincount(rng.integers(rows, size=rows), minlength=rows)
        yield counts


def score_intervals(
    arms: Sequence[Mapping[str, Scores]],
    confidence: float,
    resamples: int,
    seed: int,
    weights: Floats | None = None,
) -> dict[str, list[Interval]]:
    """Return each metric's interval for each arm, then for the first minus the second.

    Args:
        arms: One or two, of the same metrics on the same rows in the same order.
        confidence: For example 0.95.
        resamples: R.
        seed: Of the draws.
        weights: How much each row counts, [E] float64; all alike by default.
            A weighted share has a bootstrap interval, not Wilson's, and so has a
            difference of weighted shares.

    Raises:
        ValueError: arms of different metrics or different numbers of rows, or no rows.
    """
    shapes = {scores.sums.shape[0] for arm in arms for scores in arm.values()}
    if len({tuple(arm) for arm in arms}) > 1 or len(shapes) != 1 or 0 in shapes:
        raise ValueError("arms must hold the same metrics on the same rows")
    (rows,) = shapes
    widest = max(scores.sums.shape[1] for arm in arms for scores in arm.values())
    made = [_Arm(arm, weights) for arm in arms]
    values = [arm.values(np.ones((1, rows))) for arm in made]
    parts = [
        [arm.values(counts) for arm in made]
        for counts in _draws(rows, resamples, widest, seed)
    ]
    found: dict[str, list[Interval]] = {}
    for name in arms[0]:
        drawn = [
            np.concatenate([part[i][name] for part in parts]) for i in range(len(arms))
        ]
        ones = [float(value[name][0]) for value in values]
        found[name] = [
            _percentiles(one, draws, confidence)
            if weights is not None or not arm[name].proportion
            else wilson(int(arm[name].sums[:, 0].sum()), rows, confidence)
            for arm, one, draws in zip(arms, ones, drawn, strict=True)
        ]
        if len(arms) == 2:
            gap, gaps = ones[0] - ones[1], drawn[0] - drawn[1]
            shares = weights is None and all(arm[name].proportion for arm in arms)
            found[name].append(
                _paired(arms[0][name], arms[1][name], confidence)
                if shares
                else _percentiles(gap, gaps, confidence)
            )
    return found
