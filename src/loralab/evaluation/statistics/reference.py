"""The law of (estimate − truth) / standard error when two variances are estimated.

An estimate's variance is the sum of two, each estimated on its own:

    estimate − truth ~ N(0, v₁ + v₂),   f₁ V₁/v₁ ~ χ²(f₁),   f₂ V₂/v₂ ~ χ²(f₂).

This is the Behrens–Fisher problem: no exact interval exists. We take the posterior of
the truth under the problem's reference prior (Bernardo 1979; see Liseo 1993),

    π(v₁, v₂) ∝ (v₁ + v₂)^½ / (v₁ v₂)^(3/2),

which is Jeffreys' prior of everything but the truth. The posterior of a vᵢ is then that
of fᵢVᵢ/χ²(fᵢ + 1), weighed by (v₁ + v₂)^½, and

    P(T > t) = E[(v₁+v₂)^½ Φ(−t √((V₁+V₂)/(v₁+v₂)))] / E[(v₁+v₂)^½].

With w = V₁ / (V₁ + V₂), w = 1 is Student's t with f₁ degrees of freedom and w = 0 that
with f₂. Coverage lies between that of Satterthwaite's t (too low) and of Cochran's or
Howe's (too high): `coverage.py` holds them against each other.

Shape suffixes: M nodes of the first variance, K of the second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from loralab.evaluation.scores import Floats

NODES = 200
"""Nodes of the trapezoid rule over log χ²; 400 change no critical value by 1e-9."""


@lru_cache(maxsize=64)
def _inverse_chi2(df: float) -> tuple[Floats, Floats]:
    """Return values of df / χ²(df + 1) and their probabilities, both [NODES].

    The density of log χ² is analytic and falls off exponentially, so that the plain
    trapezoid rule converges exponentially.
    """
    from scipy.stats import chi2

    if math.isinf(df):
        return np.ones(1), np.ones(1)
    low, high = chi2.ppf(1e-20, df + 1), chi2.isf(1e-20, df + 1)
    log_x = np.linspace(np.log(low), np.log(high), NODES)
    x = np.exp(log_x)
    weights = chi2.pdf(x, df + 1) * x
    return df / x, weights / weights.sum()


@dataclass(frozen=True)
class Reference:
    """The law of (estimate − truth) / standard error, symmetric around 0.

    Attributes:
        share: w, the part of the squared standard error that is the first variance.
        first_df: f₁, its degrees of freedom.
        second_df: f₂, those of the second variance; may be infinite.
    """

    share: float
    first_df: float
    second_df: float = math.inf

    def tail(self, t: float) -> float:
        """Return the probability of more than `t`; half of 1 at 0."""
        from scipy.special import ndtr
        from scipy.stats import t as student_t

        if self.share in (0.0, 1.0):
            df = self.first_df if self.share else self.second_df
            return float(student_t.sf(t, df))
        first_M, p_M = _inverse_chi2(self.first_df)
        second_K, q_K = _inverse_chi2(self.second_df)
        variance_MK = self.share * first_M[:, None] + (1 - self.share) * second_K
        weights_MK = p_M[:, None] * q_K * np.sqrt(variance_MK)
        beyond_MK = ndtr(-t / np.sqrt(variance_MK))
        return float((weights_MK * beyond_MK).sum() / weights_MK.sum())

    def critical(self, confidence: float) -> float:
        """Return the c with P(−c < T < c) = confidence.

        Raises:
            ValueError: a confidence that is not between 0 and 1.
        """
        from scipy.optimize import brentq

        if not 0 < confidence < 1:
            raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
        wanted = (1 - confidence) / 2
        high = 1.0
        while self.tail(high) > wanted:
            high *= 2
        return float(brentq(lambda c: self.tail(c) - wanted, 0.0, high, xtol=1e-10))

    def p_value(self, value: float, standard_error: float) -> float:
        """Return the two-sided p of truth = 0; without any spread 1 at 0, else 0."""
        if standard_error == 0:
            return float(value == 0)
        return min(1.0, 2 * self.tail(abs(value) / standard_error))


def student(df: float) -> Reference:
    """Return Student's t as a `Reference`.

    Raises:
        ValueError: degrees of freedom that are not positive.
    """
    if not df > 0:
        raise ValueError(f"degrees of freedom must be positive, not {df}")
    return Reference(1.0, df)
