r"""Two merge methods on the same tasks, the same rows and the same orders.

d_oie is what the first method scored on row e of task i, merged in order o, minus what
the second did. The difference is the mean over orders of the mean over tasks, each task
alike; O orders, T tasks, n_i rows of task i, N rows in all. Tasks are fixed, orders and
rows are drawn; rows are drawn within tasks. With

    y_oie = d̄ + (d_oie − d̄_i)·N/(T·n_i),   d̄_i over orders and rows, d̄ over tasks

the mean of y over all rows is d̄, the mean of an order is that order's own, and the
variance of the mean over rows is that of a stratified sample, Σ_i s_i²/(T²n_i). So y is
a crossed design of orders and rows, and `seeds.mixed_interval` is its interval. With
fewer than three orders, or where all orders there are were measured, only rows vary:
ȳ_ie (over orders) has an interval of its own, t with N − T degrees of freedom.

What is not covered: other tasks, and adapters trained with other seeds. One adapter a
task was merged, whatever its seed gave it.

Shape suffixes: O orders, E rows of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loralab.evaluation.intervals import Interval
from loralab.evaluation.scores import Floats
from loralab.evaluation.statistics.reference import student
from loralab.evaluation.statistics.seeds import mixed_interval, offered

COVERS = {
    "rows": "test rows of these tasks; not other orders, tasks or adapters",
    "orders and rows": "orders and test rows of these tasks; not other tasks or "
    "adapters",
}
"""What an interval is about."""


@dataclass(frozen=True)
class Difference:
    """One method minus another, with its interval.

    Attributes:
        interval: In the unit of the score.
        p_value: Two-sided, of no difference; not corrected for other comparisons.
        covers: Which variation the interval covers, a key of `COVERS`.
        orders: O.
        rows: N.
    """

    interval: Interval
    p_value: float
    covers: str
    orders: int
    rows: int


def stratified(values: Sequence[Floats]) -> Floats:
    """Return y of this file's head, [O, N].

    Args:
        values: Of each task, [O, E], every task with the same orders.

    Raises:
        ValueError: no task, shapes that do not fit, or a value that is not finite.
    """
    found = [np.asarray(task, dtype=np.float64) for task in values]
    if not found or {one.ndim for one in found} != {2}:
        raise ValueError("values must be one [orders, rows] a task")
    if len({len(one) for one in found}) > 1 or min(one.size for one in found) == 0:
        raise ValueError("every task must have the same orders, and a row")
    rows = sum(one.shape[1] for one in found)
    means = [one.mean() for one in found]
    stretch = [rows / (len(found) * one.shape[1]) for one in found]
    y_ON = np.concatenate(
        [
            (one - mean) * by
            for one, mean, by in zip(found, means, stretch, strict=True)
        ],
        axis=1,
    )
    if not np.isfinite(y_ON).all():
        raise ValueError("a score is not finite")
    return np.asarray(y_ON + np.mean(means))


def paired_difference(
    first: Sequence[Floats],
    second: Sequence[Floats],
    confidence: float = 0.95,
    *,
    every_order: bool = False,
) -> Difference:
    """Return the first method minus the second, paired over orders, tasks and rows.

    Args:
        first: Scores of each task, [O, E]; [1, E] of a method that knows no order.
        second: Of the same tasks and rows; [O, E] in the same orders, or [1, E].
        confidence: Of the interval.
        every_order: Whether all orders that there are were measured, so that they are
            no sample.

    Raises:
        ValueError: other tasks, rows or orders, or scores that are not finite.
    """
    if [np.shape(a)[1:] for a in first] != [np.shape(b)[1:] for b in second]:
        raise ValueError("methods are compared on the same rows of the same tasks")
    y_ON = stratified(
        [np.asarray(a) - np.asarray(b) for a, b in zip(first, second, strict=True)]
    )
    orders, rows = y_ON.shape
    if offered("mixed", orders) and not every_order:
        found = mixed_interval(y_ON, confidence)
        covers = "orders and rows"
        return Difference(found.interval, found.p_value, covers, orders, rows)
    y_N = y_ON.mean(0)
    freedom = rows - len(first)
    if freedom < 1:
        raise ValueError("an interval over rows needs two rows of a task")
    value = float(y_N.mean())
    squares = float(np.square(y_N - value).sum())
    error = (squares / freedom / rows) ** 0.5
    law = student(freedom)
    half = law.critical(confidence) * error
    interval = Interval(value, value - half, value + half)
    return Difference(interval, law.p_value(value, error), "rows", orders, rows)
