"""What a metric is given (`Answers`) and what it gives (`Scores`).

A metric is a function of sums over rows: each row gives K numbers, the rows' numbers
are added up, and the value is a function of the K totals. Accuracy is (right, rows) ->
right / rows; corpus BLEU is a function of summed n-gram counts; macro-F1 of a summed
confusion matrix. So a bootstrap over rows is one product with the numbers of draws,

    totals[R, K] = counts[R, E] @ sums[E, K],

the same draws for every metric and every arm.

Shape suffixes: E rows, K numbers of a row, R draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """What one arm answered to each row, and what is right.

    Attributes:
        form: ``class``, ``tags`` or ``text``: what the next two hold.
        references: A class index; a list of tags, one a word; or a list of acceptable
            texts (an empty list: there is no answer).
        predictions: A class index; a list of tags; or a text (empty: "no answer").
        rows: The checked rows, for what a metric needs besides (unit tests of code).
        classes: Number of classes; 0 where there are none.
        probabilities: Of the predicted class, [E] float64, or None.
        ranked: The classes of each row by probability, best first, at most ten.
        samples: Several sampled texts a row, where they were asked for.
    """

    form: str
    references: Sequence[Any]
    predictions: Sequence[Any]
    rows: Sequence[Mapping[str, Any]] = ()
    classes: int = 0
    probabilities: Floats | None = None
    ranked: Sequence[Sequence[int]] | None = None
    samples: Sequence[Sequence[str]] | None = None


@dataclass(frozen=True)
class Scores:
    """A metric's numbers of each row, and the value of their totals.

    Attributes:
        sums: [E, K] float64, dense or a scipy sparse matrix.
        value: From totals [..., K] to values [...], float64; the leading dimensions
            are bootstrap draws.
        proportion: Whether the value is the share of rows that are right: `sums` are
            then (0 or 1, 1), and the intervals are those of shares, because a bootstrap
            shrinks to nothing where all rows are right.
        ratio: Whether `sums` are [E, 2] and the value is the ratio of their totals,
            so that every row has its own part in it.
    """

    sums: Any
    value: Callable[[Floats], Floats]
    proportion: bool = False
    ratio: bool = False

    def total(self, mine: NDArray[np.bool_] | None = None) -> float:
        """Return the value over all rows, or over those of a mask [E]."""
        sums = self.sums if mine is None else self.sums[mine]
        return float(self.value(np.asarray(sums.sum(0)).ravel()))


def mean_of(values: Sequence[float] | Floats, *, proportion: bool = False) -> Scores:
    """Return the scores of a metric that is the mean of one number a row.

    Args:
        values: [E].
        proportion: Whether every number says right (1) or wrong (0).
    """
    column = np.asarray(values, dtype=np.float64)
    return replace(ratio_of(column, np.ones(len(column))), proportion=proportion)


def ratio_of(above: Floats, below: Floats) -> Scores:
    """Return the scores of a metric that is Σ above / Σ below; 0 where below is 0."""

    def value(totals: Floats) -> Floats:
        under = totals[..., 1]
        safe = np.where(under > 0, under, 1.0)
        return np.asarray(np.where(under > 0, totals[..., 0] / safe, 0.0))

    sums = np.stack([above, below], axis=1).astype(np.float64)
    return Scores(sums, value, ratio=True)


def by_draw(score: Callable[[Floats], float]) -> Callable[[Floats], Floats]:
    """Return a value of totals [..., K] from a score of one draw's totals, [K]."""

    def value(totals: Floats) -> Floats:
        draws = totals.reshape(-1, totals.shape[-1])
        return np.array([score(one) for one in draws]).reshape(totals.shape[:-1])

    return value
