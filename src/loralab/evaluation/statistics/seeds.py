"""Intervals of a quantity that k training seeds gave on the same n test examples.

The model (balanced, crossed; S seeds, E examples):

    y_se = μ + a_s + b_e + r_se,   variances σ²_seed, σ²_example, σ²_residual
    Var(ȳ) = σ²_seed/k + σ²_example/n + σ²_residual/(kn)

and its mean squares (Searle, Casella & McCulloch 1992, ch. 4):

    MS_seed     = n Σ_s (ȳ_s − ȳ)² / (k−1)       E = nσ²_seed + σ²_residual
    MS_example  = k Σ_e (ȳ_e − ȳ)² / (n−1)       E = kσ²_example + σ²_residual
    MS_residual = Σ (y_se − ȳ_s − ȳ_e + ȳ)² / ((k−1)(n−1))   E = σ²_residual

Two claims, two intervals:

    t      the mean over seeds on THESE examples: ȳ ± t(k−1) √(MS_seed/(kn)),
           exact where seed means are normal; it is silent about other examples
    mixed  the mean over seeds AND over the population of examples: squared standard
           error V₁ + V₂, V₁ = MS_seed/(kn) with k−1 degrees of freedom,
           V₂ = max(0, MS_example − MS_residual)/(kn) with n−1, and the critical value
           of `reference.py`

V₁ + V₂ is the textbook (MS_seed + MS_example − MS_residual)/(kn), except that it never
falls below V₁: with few seeds a negative estimate of σ²_example is noise, and dropping
it errs on the wide side. Satterthwaite's (1946) degrees of freedom, the usual choice,
cover 92 to 95 % with 3 seeds, because they are computed from V₁ as if it were known,
and V₁ then has 2 degrees of freedom; so we do not use them.

With lognormal examples (n = 200) and 10 seeds, mixed falls to 93.6 %: means of so few
heavy-tailed values are not normal, whatever the interval.

Which is offered when (`offered`) follows from the simulation in `coverage.py`. An
interval may leave the range of its metric (an accuracy above 1), and both need examples
that are independent: rows of one document are not.

Shape suffixes: S seeds, E examples; ... leading dimensions (repetitions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loralab.errors import EvidenceError
from loralab.evaluation.intervals import Interval
from loralab.evaluation.scores import Floats
from loralab.evaluation.statistics.reference import Reference, student

LEAST_SEEDS = {"t": 2, "mixed": 3}
"""The fewest seeds with 93 to 97 % coverage in every case of the grid.

`tests/unit/test_statistics.py` holds it against the simulation, in both directions.
With 2 seeds, t is exact but 12.7 standard errors wide on each side, and mixed covers
92.6 to 97.0 %. Percentile bootstraps are not offered for any number: over 3 to 10 seeds
they cover 74 to 90 %, over seeds and examples 79 to 99 %.
"""

CLAIMS = {
    "t": "the mean over training seeds on these test examples",
    "mixed": "the mean over training seeds and over the population of test examples",
}


@dataclass(frozen=True)
class Components:
    """Mean squares of a balanced crossed design, each of the shape [...].

    Attributes:
        mean: ȳ.
        seed: MS_seed.
        example: MS_example.
        residual: MS_residual.
        seeds: k.
        examples: n.
    """

    mean: Floats
    seed: Floats
    example: Floats
    residual: Floats
    seeds: int
    examples: int

    @property
    def variances(self) -> tuple[Floats, Floats, Floats]:
        """σ² of seed, example and residual by moments, negative ones set to 0.

        They equal REML's (restricted maximum likelihood) where none is negative.
        """
        return (
            np.maximum(0.0, self.seed - self.residual) / self.examples,
            np.maximum(0.0, self.example - self.residual) / self.seeds,
            self.residual,
        )

    @property
    def squared_errors(self) -> tuple[Floats, Floats]:
        """V₁ and V₂, the two parts of the squared standard error of the mean."""
        cells = self.seeds * self.examples
        second = np.maximum(0.0, self.example - self.residual)
        return self.seed / cells, second / cells


@dataclass(frozen=True)
class SeedInterval:
    """An interval over seeds, and what it is about.

    Attributes:
        interval: In the unit of the metric.
        method: ``t`` or ``mixed``.
        claim: What the interval is about, in words.
        confidence: For example 0.95.
        standard_error: Of the value.
        reference: The law of (value − truth) / standard_error.
        seeds: k.
        examples: n; None where there are no values per example.
        variances: σ² of seed, example, residual; only of ``mixed``.
    """

    interval: Interval
    method: str
    claim: str
    confidence: float
    standard_error: float
    reference: Reference
    seeds: int
    examples: int | None = None
    variances: tuple[float, float, float] | None = None

    @property
    def p_value(self) -> float:
        """The two-sided p of a true value of 0."""
        return self.reference.p_value(self.interval.value, self.standard_error)

    @property
    def df(self) -> tuple[float, float]:
        """Degrees of freedom of the seeds' and of the examples' part."""
        return self.reference.first_df, self.reference.second_df


def mean_squares(values: Floats) -> Components:
    """Return the mean squares of values [..., S, E], S and E at least 2."""
    *_, k, n = values.shape
    of_seed = values.mean(-1)
    of_example = values.mean(-2)
    mean = of_seed.mean(-1)
    seed = n * of_seed.var(-1, ddof=1)
    example = k * of_example.var(-1, ddof=1)
    total = np.square(values - mean[..., None, None]).sum((-1, -2))
    rest = total - (k - 1) * seed - (n - 1) * example
    residual = np.maximum(0.0, rest) / ((k - 1) * (n - 1))
    return Components(mean, seed, example, residual, k, n)


def _checked(values: Sequence[float] | Floats, dimensions: Sequence[int]) -> Floats:
    """Return finite values of one of the dimensions with at least two seeds."""
    found = np.asarray(values, dtype=np.float64)
    if found.ndim not in dimensions or found.size == 0:
        raise ValueError(f"values of shape {found.shape}: seeds first, then examples")
    if not np.isfinite(found).all():
        raise EvidenceError(
            "a run's value is not finite",
            why="leaving out runs that diverged would make the rest look better",
            fix="report the share of runs that diverged, or repair them",
        )
    if len(found) < 2:
        raise EvidenceError(
            "an interval over seeds from one seed",
            why="one run says nothing of how much runs differ",
            fix="train with at least 3 seeds; 5 or more give useful widths",
        )
    return found


def offered(method: str, seeds: int) -> bool:
    """Return whether a method covers 93 to 97 % with so many seeds in all our cases.

    Raises:
        ValueError: a method that is not in `LEAST_SEEDS`.
    """
    if method not in LEAST_SEEDS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(LEAST_SEEDS)}")
    return seeds >= LEAST_SEEDS[method]


def _interval(
    value: float, error: float, reference: Reference, confidence: float
) -> Interval:
    half = reference.critical(confidence) * error
    return Interval(value, value - half, value + half)


def _over_seeds(values_S: Floats, confidence: float) -> SeedInterval:
    error = float(values_S.std(ddof=1)) / len(values_S) ** 0.5
    reference = student(len(values_S) - 1)
    interval = _interval(float(values_S.mean()), error, reference, confidence)
    claim = CLAIMS["t"]
    if error == 0:
        claim += "; the seeds show no spread at all: check that the seed has an effect"
    return SeedInterval(
        interval, "t", claim, confidence, error, reference, len(values_S)
    )


def t_interval(values_S: Sequence[float] | Floats, confidence: float) -> Interval:
    """Return Student's t interval of the mean over seeds, conditional on these rows.

    Args:
        values_S: The metric of each seed, or a paired difference of two arms, [S].
        confidence: For example 0.95.

    Raises:
        EvidenceError: fewer than two seeds, or a value that is not finite.
        ValueError: not one-dimensional, or a confidence that is not in (0, 1).
    """
    return _over_seeds(_checked(values_S, [1]), confidence).interval


def mixed_interval(values_SE: Floats, confidence: float) -> SeedInterval:
    """Return the interval of the mean over seeds and the population of examples.

    It computes for any k ≥ 2; `seed_interval` refuses where it does not cover.

    Args:
        values_SE: What each seed gave on each example, [S, E]; for paired arms the
            difference; for a ratio of sums `ratio_values`.
        confidence: For example 0.95.

    Raises:
        EvidenceError: fewer than two seeds, or a value that is not finite.
        ValueError: not [S, E] with E ≥ 2, or a confidence that is not in (0, 1).
    """
    found = mean_squares(_two_examples(_checked(values_SE, [2])))
    first, second = (float(one) for one in found.squared_errors)
    error = (first + second) ** 0.5
    reference = Reference(
        first / (first + second) if error else 1.0, found.seeds - 1, found.examples - 1
    )
    return SeedInterval(
        _interval(float(found.mean), error, reference, confidence),
        "mixed",
        CLAIMS["mixed"],
        confidence,
        error,
        reference,
        found.seeds,
        found.examples,
        (
            float(found.variances[0]),
            float(found.variances[1]),
            float(found.variances[2]),
        ),
    )


def _two_examples(values_SE: Floats) -> Floats:
    if values_SE.shape[1] < 2:
        raise ValueError("the mixed model needs at least two examples")
    return values_SE


def ratio_values(numerators: Floats, denominators: Floats) -> Floats:
    """Return values per example whose mean is Σ numerators / Σ denominators.

    For cross-entropy per token: nll of each example over its number of labels. Each
    value is the ratio R plus the example's influence on it, (num_e − R den_e) / mean
    den, so that the spread of the values is that of the ratio to first order (the delta
    method; Cochran 1977, *Sampling Techniques*, section 6.3). Differences of two arms
    are differences of these.

    Args:
        numerators: [E] or [S, E].
        denominators: [E], shared by all seeds.

    Returns:
        float64 of the shape of `numerators`, in the unit of the ratio.

    Raises:
        ValueError: shapes that do not fit, or denominators that sum to 0 or less.
    """
    above = np.asarray(numerators, dtype=np.float64)
    below = np.asarray(denominators, dtype=np.float64)
    if below.ndim != 1 or above.shape[-1:] != below.shape or below.sum() <= 0:
        raise ValueError("denominators must be [E], fit the numerators, and sum to > 0")
    ratio = above.sum(-1, keepdims=True) / below.sum()
    return np.asarray(ratio + (above - ratio * below) / below.mean())


def seed_interval(
    values: Sequence[float] | Floats,
    confidence: float = 0.95,
    method: str | None = None,
) -> SeedInterval:
    """Return an interval over seeds that covers what it claims, or refuse.

    Args:
        values: [S, E], or [S] where the metric has no value per example.
        confidence: For example 0.95.
        method: ``t`` or ``mixed``; by default the widest claim that the values carry:
            ``mixed`` of [S, E] with at least 3 seeds, else ``t``.

    Raises:
        EvidenceError: fewer than two seeds, a value that is not finite, or a method
            that does not cover with so few seeds.
        ValueError: an unknown method, ``mixed`` without examples, or a wrong shape.
    """
    found = _checked(values, [1, 2])
    seeds, by_example = len(found), found.ndim == 2 and found.shape[1] > 1
    if method is None:
        method = "mixed" if by_example and offered("mixed", seeds) else "t"
    if not offered(method, seeds):
        raise EvidenceError(
            f"the interval {method!r} over {seeds} seeds",
            why="in simulation it then misses 93 to 97 % coverage",
            fix=f"train with at least {LEAST_SEEDS[method]} seeds, or use 't', whose "
            f"claim is narrower: {CLAIMS['t']}",
        )
    if method == "mixed":
        return mixed_interval(found, confidence)
    return _over_seeds(found if found.ndim == 1 else found.mean(1), confidence)
