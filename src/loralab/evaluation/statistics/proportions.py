"""Proportions from few rows, where the central limit theorem does not help.

Below a few hundred rows, standard errors of an accuracy are too small (Bowyer et al.
2025, arXiv 2503.01747); they advise Wilson's interval (`intervals.wilson`) or Bayesian
ones:

    one classifier   p ~ Beta(½ + right, ½ + wrong)                 (Jeffreys' prior)
    two, same rows   (p₁₁, p₁₀, p₀₁, p₀₀) ~ Dirichlet(½ + counts),  p_first − p_second
                     = p₁₀ − p₀₁

where p₁₀ is that only the first is right. With a = ½ + n₁₀ and b = ½ + n₀₁ the
difference is D·(2Q − 1), D ~ Beta(a + b, rest) how often the two differ, and
Q ~ Beta(a, b) how often the first is then the right one, independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loralab.errors import EvidenceError
from loralab.evaluation.intervals import Interval

SMALL = 300
"""Rows below which to prefer these to standard errors and to a bootstrap of rows."""

POINTS = 500
"""Quantiles of each of the two Betas; the interval's ends are good to some 1e-3."""


@dataclass(frozen=True)
class PairedProportions:
    """The difference of two classifiers' accuracies on the same rows.

    Attributes:
        interval: First minus second; a credible interval.
        probability_better: That the first is better, given the rows.
        rows: n.
        small: Whether n < `SMALL`, so that a standard error would be too small.
    """

    interval: Interval
    probability_better: float
    rows: int
    small: bool


def jeffreys(successes: int, n: int, confidence: float) -> Interval:
    """Return a share with its Jeffreys interval.

    The ends are 0 where nothing is right and 1 where everything is (Brown, Cai &
    DasGupta 2001, section 4.1.2), so that the interval holds the share.

    Raises:
        EvidenceError: no rows.
        ValueError: successes that are not in 0..n.
    """
    from statsmodels.stats.proportion import proportion_confint

    _check([successes, n - successes])
    low, high = proportion_confint(successes, n, 1 - confidence, method="jeffreys")
    return Interval(
        successes / n,
        float(low) if successes else 0.0,
        float(high) if successes < n else 1.0,
    )


def paired_proportions(
    both: int, only_first: int, only_second: int, neither: int, confidence: float
) -> PairedProportions:
    """Return the Bayesian difference of two accuracies on the same rows.

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

    rows = _check([both, only_first, only_second, neither])
    a, b = 0.5 + only_first, 0.5 + only_second
    middles = (np.arange(POINTS) + 0.5) / POINTS
    differ = beta.ppf(middles, a + b, 1.0 + both + neither)
    # from both ends, so that swapping the arms mirrors the interval to the last bit
    lead = beta.ppf(middles, a, b) - beta.ppf(middles, b, a)[::-1]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.outer(differ, lead), [tail, 1 - tail])
    value = (only_first - only_second) / rows
    interval = Interval(value, min(float(low), value), max(float(high), value))
    better = float(beta.sf(0.5, a, b))
    return PairedProportions(interval, better, rows, rows < SMALL)


def _check(counts: list[int]) -> int:
    """Return how many rows there are."""
    if min(counts) < 0:
        raise ValueError(f"counts must not be negative: {counts}")
    if sum(counts) == 0:
        raise EvidenceError("a proportion of no rows", fix="evaluate on some rows")
    return sum(counts)
