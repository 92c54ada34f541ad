"""From numbers to one of: better, worse, equivalent, inconclusive.

    p          of the paired difference, corrected for the number of comparisons (Holm)
    TOST       |difference| < δ at level α: both one-sided tests reject (Schuirmann
               1987); the same as: the 1 − 2α interval lies inside (−δ, δ)

Rules of `verdict`, in this order:

    better        corrected p < α and the interval lies wholly on the good side of 0
    worse         corrected p < α and it lies wholly on the bad side
    equivalent    TOST passes for the smallest difference of interest δ
    inconclusive  none of these

A better or worse whose TOST passes too is real but smaller than what matters
(`negligible`). A comparison is `underpowered` where the difference that it could detect
(`noise.detectable_difference`) exceeds δ: its "inconclusive" then says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loralab.errors import EvidenceError
from loralab.evaluation.intervals import Interval
from loralab.evaluation.scores import Floats
from loralab.evaluation.statistics.reference import Reference, student

EXACT_UP_TO = 16
"""Seeds up to which all 2^k sign flips are counted; above, 65,536 random ones."""


@dataclass(frozen=True)
class Permutation:
    """A sign-flip test over seeds.

    Attributes:
        p_value: Two-sided.
        smallest: The smallest p that so many seeds can give: 2/2^k. With 5 seeds it is
            0.0625, so that the test can never reach 0.05.
        seeds: k.
        exact: Whether all flips were counted.
    """

    p_value: float
    smallest: float
    seeds: int
    exact: bool


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests against a margin.

    Attributes:
        p_value: The larger of the two one-sided p.
        interval: At confidence 1 − 2α.
        margin: δ, in the unit of the difference.
        alpha: The level.
    """

    p_value: float
    interval: Interval
    margin: float
    alpha: float

    @property
    def passes(self) -> bool:
        """Whether the difference is shown to be smaller than the margin."""
        return self.p_value < self.alpha


@dataclass(frozen=True)
class Verdict:
    """What a comparison shows.

    Attributes:
        word: ``better``, ``worse``, ``equivalent`` or ``inconclusive``.
        negligible: Better or worse, and yet within the smallest difference of interest.
        underpowered: Whether the smallest difference of interest was too small to see.
    """

    word: str
    negligible: bool
    underpowered: bool


def _differences(values: Sequence[float] | Floats) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise ValueError("differences must be finite and one a seed")
    if len(found) < 2:
        raise EvidenceError(
            "a test over seeds of fewer than two",
            why="one pair of runs says nothing of how much pairs differ",
            fix="train both arms with at least 3 seeds",
        )
    return found


def paired_permutation(
    differences_S: Sequence[float] | Floats, seed: int = 0
) -> Permutation:
    """Return the exact sign-flip test of paired differences, one a seed.

    Under no effect each difference is as likely as its negative (Fisher 1935, section
    21). Exact for symmetric differences of any distribution.

    Args:
        differences_S: First arm minus second, of the same seed, [S].
        seed: Of the random flips, above `EXACT_UP_TO` seeds.

    Raises:
        EvidenceError: fewer than two seeds.
        ValueError: not finite or not one-dimensional.
    """
    from scipy.stats import permutation_test

    found = _differences(differences_S)
    exact = len(found) <= EXACT_UP_TO
    result = permutation_test(
        (found,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2 ** min(len(found), EXACT_UP_TO),
        rng=np.random.default_rng(seed),
    )
    smallest = 2.0 ** (1 - len(found)) if exact else 2 / (2**EXACT_UP_TO + 1)
    return Permutation(float(result.pvalue), smallest, len(found), exact)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p values corrected for their number (Holm 1979), under the same names.

    Raises:
        ValueError: a p that is not in [0, 1].
    """
    from statsmodels.stats.multitest import multipletests

    if not all(0 <= p <= 1 for p in p_values.values()):
        raise ValueError("p values must lie between 0 and 1")
    if not p_values:
        return {}
    corrected = multipletests(list(p_values.values()), method="holm")[1]
    return dict(zip(p_values, map(float, corrected), strict=True))


def tost(
    differences_S: Sequence[float] | Floats, margin: float, alpha: float = 0.05
) -> Equivalence:
    """Return the test of equivalence of paired differences, one a seed.

    Args:
        differences_S: First arm minus second, [S].
        margin: δ > 0, the smallest difference of interest, in the same unit.
        alpha: The level of each one-sided test; the interval is at 1 − 2 alpha.

    Raises:
        EvidenceError: fewer than two seeds.
        ValueError: a margin that is not positive, or an alpha not in (0, ½).
    """
    found = _differences(differences_S)
    error = float(found.std(ddof=1)) / len(found) ** 0.5
    return tost_of(float(found.mean()), error, student(len(found) - 1), margin, alpha)


def tost_of(
    difference: float,
    standard_error: float,
    reference: Reference | float,
    margin: float,
    alpha: float = 0.05,
) -> Equivalence:
    """Return the test of equivalence of an estimated difference.

    Args:
        difference: First arm minus second.
        standard_error: Of the difference.
        reference: Its law, as `SeedInterval.reference`; or degrees of freedom of t.
        margin: δ > 0, the smallest difference of interest.
        alpha: The level of each one-sided test; the interval is at 1 − 2 alpha.

    Raises:
        ValueError: a margin that is not positive, a negative standard error, degrees
            of freedom that are not positive, or an alpha not in (0, ½).
    """
    if not (margin > 0 and standard_error >= 0 and 0 < alpha < 0.5):
        raise ValueError("margin > 0, standard_error >= 0 and 0 < alpha < 0.5")
    law = reference if isinstance(reference, Reference) else student(reference)
    distance = margin - abs(difference)  # to the nearer end
    if standard_error == 0:
        p = float(distance <= 0)
    else:
        p = law.tail(distance / standard_error)
    half = law.critical(1 - 2 * alpha) * standard_error
    interval = Interval(difference, difference - half, difference + half)
    return Equivalence(p, interval, margin, alpha)


def verdict(
    interval: Interval,
    p_value: float,
    equivalence: Equivalence,
    *,
    higher_is_better: bool,
    detectable: float,
    alpha: float = 0.05,
) -> Verdict:
    """Return what a comparison of a candidate with a baseline shows.

    Args:
        interval: Of candidate minus baseline.
        p_value: Of no difference, already corrected by `holm`.
        equivalence: `tost` of the same difference; its margin is the smallest
            difference of interest.
        higher_is_better: Of the metric.
        detectable: `noise.detectable_difference` of this comparison.
        alpha: The level.
    """
    underpowered = not detectable <= equivalence.margin
    if p_value < alpha and interval.excludes_zero:
        good = (interval.low > 0) == higher_is_better
        return Verdict("better" if good else "worse", equivalence.passes, underpowered)
    word = "equivalent" if equivalence.passes else "inconclusive"
    return Verdict(word, False, underpowered)
