"""How often an interval holds the truth: the simulation behind `seeds.offered`.

Values are drawn from the model of `seeds.py` with known components; an interval covers
if it holds what it claims. The grid is over seeds and over

    ratio    = σ²_seed / (σ²_example / n): one seed's variance over that of the mean of
               n examples; 0.1: the test set decides, 10: the seeds do
    residual = σ²_residual / σ²_example

The truth of a claim about these rows is μ + mean(b_e); of one about the population μ.
The methods that are not offered are here so that the table shows why.

Shape suffixes: R repetitions, S seeds, E examples, D draws of a bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from loralab.evaluation.intervals import Interval
from loralab.evaluation.scores import Floats
from loralab.evaluation.statistics.reference import Reference
from loralab.evaluation.statistics.seeds import mean_squares

SEEDS, RATIOS, RESIDUALS = (3, 5, 10), (0.1, 1.0, 10.0, 30.0), (0.0, 1.0, 4.0)
DRAWS = 1000
Bounds = tuple[Floats, Floats]


@dataclass(frozen=True)
class Case:
    """One point of the grid.

    Attributes:
        seeds: k.
        ratio: σ²_seed / (σ²_example / n).
        residual: σ²_residual / σ²_example.
        examples: n.
        heavy: Whether example effects and residuals are lognormal, as cross-entropies
            are nearly (skewness 6), instead of normal.
    """

    seeds: int
    ratio: float
    residual: float = 1.0
    examples: int = 200
    heavy: bool = False


def grid() -> list[Case]:
    """Return the cases that a method must cover to be offered."""
    return [Case(k, ratio, res) for k in SEEDS for ratio in RATIOS for res in RESIDUALS]


def draw(case: Case, repetitions: int, rng: np.random.Generator) -> tuple[Floats, ...]:
    """Return values [R, S, E], the truth for these rows [R], and for all (0) [R]."""

    def effects(*shape: int) -> Floats:
        found = rng.standard_normal(shape)
        if case.heavy:  # mean 0 and variance 1 again
            found = (np.exp(found) - np.exp(0.5)) / np.sqrt(np.exp(2) - np.exp(1))
        return found

    of_example = effects(repetitions, 1, case.examples)
    sd = (case.ratio / case.examples) ** 0.5
    of_seed = sd * rng.standard_normal((repetitions, case.seeds, 1))
    values = of_seed + of_example
    if case.residual:
        shape = (repetitions, case.seeds, case.examples)
        values = values + case.residual**0.5 * effects(*shape)
    return values, of_example.mean((1, 2)), np.zeros(repetitions)


@lru_cache(maxsize=64)
def _criticals(first_df: int, second_df: int, confidence: float) -> Bounds:
    shares = np.linspace(0, 1, 101)
    found = [Reference(w, first_df, second_df).critical(confidence) for w in shares]
    return shares, np.array(found)


def t_bounds(values: Floats, confidence: float) -> Bounds:
    """Return Student's t over seed means, as `seeds.t_interval`."""
    from scipy.stats import t

    k = values.shape[1]
    means_RS = values.mean(2)
    half = t.ppf((1 + confidence) / 2, k - 1) * means_RS.std(1, ddof=1) / k**0.5
    return means_RS.mean(1) - half, means_RS.mean(1) + half


def mixed_bounds(values: Floats, confidence: float) -> Bounds:
    """Return what `seeds.mixed_interval` returns, its critical value interpolated."""
    found = mean_squares(values)
    first, second = found.squared_errors
    at, critical = _criticals(found.seeds - 1, found.examples - 1, confidence)
    half = np.interp(first / (first + second), at, critical) * np.sqrt(first + second)
    return found.mean - half, found.mean + half


def satterthwaite_bounds(values: Floats, confidence: float) -> Bounds:
    """Return t with Satterthwaite's (1946) degrees of freedom on the same variance."""
    from scipy.stats import t

    found = mean_squares(values)
    first, second = found.squared_errors
    below = first**2 / (found.seeds - 1) + second**2 / (found.examples - 1)
    half = t.ppf((1 + confidence) / 2, (first + second) ** 2 / below)
    half = half * np.sqrt(first + second)
    return found.mean - half, found.mean + half


def cochran_bounds(values: Floats, confidence: float) -> Bounds:
    """Return Cochran's interpolated t (Cochran & Cox 1957, section 4.14)."""
    from scipy.stats import t

    found = mean_squares(values)
    first, second = found.squared_errors
    each = t.ppf((1 + confidence) / 2, [found.seeds - 1, found.examples - 1])
    half = (first * each[0] + second * each[1]) / np.sqrt(first + second)
    return found.mean - half, found.mean + half


def howe_bounds(values: Floats, confidence: float) -> Bounds:
    """Return Howe's (1974) interval, the modified-large-sample form."""
    from scipy.stats import t

    found = mean_squares(values)
    first, second = found.squared_errors
    each = t.ppf((1 + confidence) / 2, [found.seeds - 1, found.examples - 1])
    half = np.sqrt(each[0] ** 2 * first + each[1] ** 2 * second)
    return found.mean - half, found.mean + half


def _percentiles(draws_RD: Floats, confidence: float) -> Bounds:
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws_RD, [tail, 1 - tail], axis=1)
    return low, high


def _weights(rows: int, seed: int) -> Floats:
    """Return how much each row weighs in each draw of a bootstrap, [rows, D]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(rows, np.full(rows, 1 / rows), size=DRAWS).T / rows


def seed_bootstrap_bounds(values: Floats, confidence: float) -> Bounds:
    """Return the percentile bootstrap over seed means."""
    return _percentiles(values.mean(2) @ _weights(values.shape[1], 1), confidence)


def two_level_bootstrap_bounds(values: Floats, confidence: float) -> Bounds:
    """Return the percentile bootstrap over seeds and over examples, both redrawn."""
    of_seed_SD = _weights(values.shape[1], 2)
    drawn_RSD = values @ _weights(values.shape[2], 3)
    return _percentiles((drawn_RSD * of_seed_SD).sum(1), confidence)


METHODS: dict[str, tuple[str, Callable[[Floats, float], Bounds]]] = {
    "t": ("rows", t_bounds),
    "t, judged on the population": ("population", t_bounds),
    "mixed": ("population", mixed_bounds),
    "Satterthwaite": ("population", satterthwaite_bounds),
    "Cochran": ("population", cochran_bounds),
    "Howe": ("population", howe_bounds),
    "bootstrap of seeds": ("rows", seed_bootstrap_bounds),
    "bootstrap of both": ("population", two_level_bootstrap_bounds),
}
"""Name -> (whether its claim is about these rows or the population, its bounds)."""


def coverage(
    case: Case,
    methods: Iterable[str] = tuple(METHODS),
    repetitions: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, float]:
    """Return the share of repetitions in which each method held its truth.

    The simulation's standard error of a share p is √(p(1 − p)/repetitions): 0.7 points
    at 95 % and 1,000 repetitions.

    Args:
        case: What is drawn.
        methods: Names in `METHODS`.
        repetitions: R.
        seed: Of the draws.
        confidence: Of the intervals.
    """
    rng = np.random.default_rng(seed)
    held = dict.fromkeys(methods, 0)
    for start in range(0, repetitions, 500):  # some 10 MB at a time
        values, rows, population = draw(case, min(500, repetitions - start), rng)
        truths = {"rows": rows, "population": population}
        for name in held:
            claim, bounds = METHODS[name]
            low, high = bounds(values, confidence)
            held[name] += int(((low <= truths[claim]) & (truths[claim] <= high)).sum())
    return {name: count / repetitions for name, count in held.items()}


def proportion_coverage(
    interval: Callable[[int, int, float], Interval],
    n: int,
    proportion: float,
    confidence: float = 0.95,
) -> float:
    """Return the coverage of an interval of one proportion; exact, not simulated.

    Args:
        interval: Of (successes, n, confidence).
        n: Number of rows.
        proportion: The true one.
        confidence: Of the interval.
    """
    from scipy.stats import binom

    found = [interval(x, n, confidence) for x in range(n + 1)]
    held = [one.low <= proportion <= one.high for one in found]
    return float(binom.pmf(np.arange(n + 1), n, proportion)[held].sum())
