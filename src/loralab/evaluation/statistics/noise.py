"""The A/A noise floor: how much runs differ that differ in nothing but the seed.

With s the standard deviation of k runs of one configuration,

    σ's interval         s √((k−1)/χ²), quantiles of χ²(k−1)
    unpaired arms        half-width t(2m−2) s √(2/m) for arms of m seeds each
    paired by seed       half-width t(m−1) s √(2(1−ρ)/m), ρ the correlation of the two
                         arms over seeds; A/A runs of different seeds show ρ = 0
    detectable           the difference d that a two-sided paired t test of k seeds sees
                         with the power asked for; t is noncentral with d √k / sd

No effect below the floor is worth a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from loralab.errors import EvidenceError
from loralab.evaluation.intervals import Interval
from loralab.evaluation.scores import Floats

MOST_SPLITS = 1000
MOST_SEEDS = 100_000


@dataclass(frozen=True)
class NoiseFloor:
    """What k runs of the same configuration show.

    Attributes:
        seeds: k.
        sd: The standard deviation between seeds with its interval, in the metric's
            unit. It assumes normal seeds; no other line of this class does.
        pairs: |difference| of every two runs, sorted, [k(k−1)/2].
        halves: |difference| of the means of two disjoint halves (⌊k/2⌋ runs each),
            sorted; at most `MOST_SPLITS`, in lexicographic order of the first half.
        confidence: Of the intervals and half-widths.
    """

    seeds: int
    sd: Interval
    pairs: Floats
    halves: Floats
    confidence: float

    def half_width(self, seeds: int, correlation: float | None = None) -> float:
        """Return the half-width of the interval of a difference of two arms.

        Args:
            seeds: m, of each arm, at least 2.
            correlation: ρ of the arms over shared seeds, in [−1, 1]; None: unpaired.

        Raises:
            ValueError: fewer than two seeds, or a correlation outside.
        """
        from scipy.stats import t

        if seeds < 2 or abs(correlation or 0.0) > 1:
            raise ValueError("at least two seeds, and a correlation in [-1, 1]")
        df = 2 * (seeds - 1) if correlation is None else seeds - 1
        error = self.sd.value * (2 * (1 - (correlation or 0.0)) / seeds) ** 0.5
        return float(t.ppf((1 + self.confidence) / 2, df) * error)


def _halves(values_S: Floats) -> Floats:
    size = len(values_S) // 2
    found: list[float] = []
    for first in combinations(range(len(values_S)), size):
        rest = [i for i in range(len(values_S)) if i not in first]
        for second in combinations(rest, size):
            if first < second:
                gap = values_S[list(first)].mean() - values_S[list(second)].mean()
                found.append(abs(float(gap)))
        if len(found) >= MOST_SPLITS:
            break
    return np.sort(found[:MOST_SPLITS])


def noise_floor(
    values_S: Sequence[float] | Floats, confidence: float = 0.95
) -> NoiseFloor:
    """Return the A/A noise floor of runs that differ only in their seed.

    Args:
        values_S: The metric of each run, [S].
        confidence: For example 0.95.

    Raises:
        EvidenceError: fewer than two runs, or one that is not finite.
    """
    from scipy.stats import chi2

    values = np.asarray(values_S, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise EvidenceError(
            "a noise floor needs two finite runs or more",
            fix="train the same configuration with 5 to 10 seeds",
        )
    df, sd = len(values) - 1, float(values.std(ddof=1))
    tail = (1 - confidence) / 2
    low, high = (sd * float(df / chi2.ppf(p, df)) ** 0.5 for p in (1 - tail, tail))
    first, second = np.triu_indices(len(values), 1)
    pairs = np.sort(np.abs(values[first] - values[second]))
    return NoiseFloor(
        len(values), Interval(sd, low, high), pairs, _halves(values), confidence
    )


def _power(effect: float, seeds: int, alpha: float) -> float:
    """Return the power of the two-sided paired t test, from the noncentral t."""
    from scipy.stats import nct, t

    critical = t.isf(alpha / 2, seeds - 1)
    shift = effect * seeds**0.5
    upper = float(nct.sf(critical, seeds - 1, shift))
    lower = float(nct.cdf(-critical, seeds - 1, shift))
    return upper + (0.0 if np.isnan(lower) else lower)  # nan where it is below 1e-300


def _check(sd: float, alpha: float, power: float) -> None:
    if not (sd >= 0 and 0 < alpha < power < 1):
        raise ValueError("sd >= 0 and 0 < alpha < power < 1")


def detectable_difference(
    sd_of_differences: float, seeds: int, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Return the smallest true difference that a paired t test sees with this power.

    Args:
        sd_of_differences: Between seeds, of the paired differences.
        seeds: k, at least 2.
        alpha: Two-sided level; divide by the number of comparisons to allow for Holm.
        power: The chance to see it.

    Raises:
        ValueError: fewer than two seeds, a negative sd, or not 0 < alpha < power < 1.
    """
    from scipy.optimize import brentq

    _check(sd_of_differences, alpha, power)
    if seeds < 2:
        raise ValueError(f"a paired t test needs two seeds, not {seeds}")
    high = 1.0
    while _power(high, seeds, alpha) < power:
        high *= 2
    effect = brentq(lambda d: _power(d, seeds, alpha) - power, 0.0, high)
    return float(effect) * sd_of_differences


def seeds_needed(
    sd_of_differences: float, difference: float, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Return how many seeds a paired t test needs to see a difference.

    Args:
        sd_of_differences: Between seeds, of the paired differences.
        difference: The smallest difference of interest, > 0.
        alpha: Two-sided level.
        power: The chance to see it.

    Raises:
        EvidenceError: more than `MOST_SEEDS`: the difference drowns in the noise.
        ValueError: a difference that is not positive; otherwise as
            `detectable_difference`.
    """
    _check(sd_of_differences, alpha, power)
    if not difference > 0:
        raise ValueError(f"the difference must be positive, not {difference}")
    if sd_of_differences == 0:
        return 2
    effect, low, high = difference / sd_of_differences, 1, 2
    while _power(effect, high, alpha) < power:
        low, high = high, 2 * high
        if high > MOST_SEEDS:
            raise EvidenceError(
                f"a difference of {difference} needs more than {MOST_SEEDS:,} seeds",
                why=f"seeds differ by {sd_of_differences}",
                fix="look for a larger difference, or for a less noisy metric",
            )
    while high - low > 1:  # power grows with seeds
        middle = (low + high) // 2
        if _power(effect, middle, alpha) < power:
            low = middle
        else:
            high = middle
    return high
