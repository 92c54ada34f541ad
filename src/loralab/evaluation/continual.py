r"""What the matrix of a continual merge says, and the orders that it is measured in.

a[t, i] is the accuracy on task i after t merges, with the head of task i; tasks are
numbered in the order that they are merged in. Higher is better.

    ACC         (1/T) Σ_i a[T,i]                                     average_accuracy
    BWT         (1/(T−1)) Σ_{i<T} (a[T,i] − a[i,i])        backward_transfer, mingle
                (1/T)     Σ_{i<T} (a[T,i] − a[i,i])  backward_transfer, fusion_bench
    forgetting  (1/(T−1)) Σ_{i<T} (max_{i≤t<T} a[t,i] − a[T,i])            forgetting
    FWT         (1/(T−1)) Σ_{i>1} (a[i−1,i] − b_i)                   forward_transfer
    worst       min_i a[T,i]                                               worst_task
    normalised  (1/T) Σ_i a[T,i] / s_i                                     normalised

b_i is the base's accuracy with the head of task i, s_i that of task i's own adapter.

Sources. ACC, BWT and FWT: Lopez-Paz & Ranzato (2017, arXiv 1706.08840, eq. 2 to 4);
MINGLE (NeurIPS 2025) has their BWT. FusionBench's ``compute_backward_transfer`` divides
the same sum by the number of tasks, so its value is (T−1)/T of the other: never compare
the two. Forgetting: Chaudhry et al. (2018, arXiv 1801.10112, eq. 3), the maximum taken
from the merge of the task on. Normalised accuracy: Stoica et al. (2025, KnOTS).

A high BWT alone says nothing: a method that never learns a task forgets none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from math import factorial
from typing import Literal

import numpy as np

from loralab.evaluation.scores import Floats

Convention = Literal["mingle", "fusion_bench"]
EVERY_UP_TO = 4
"""Tasks up to which all orders are measured; above, some that are drawn."""
COUNT, SEED = 10, 42
"""Orders that are drawn, with the seeds 42 … 51 that MINGLE names."""


def _checked(a_TT: Floats) -> Floats:
    """Return a square matrix of at least one task."""
    found = np.asarray(a_TT, dtype=np.float64)
    if found.ndim != 2 or found.shape[0] != found.shape[1] or not found.size:
        raise ValueError(f"the matrix must be [tasks, tasks], not {found.shape}")
    return found


def _several(a_TT: Floats) -> Floats:
    found = _checked(a_TT)
    if len(found) < 2:
        raise ValueError("one task alone is neither forgotten nor helped by another")
    return found


def _measured(values: Floats, what: str) -> Floats:
    if np.isnan(values).any():
        raise ValueError(f"{what} needs cells of the matrix that were not measured")
    return values


def average_accuracy(a_TT: Floats) -> float:
    """Return ACC, the mean over tasks after the last merge.

    Args:
        a_TT: [T, T] float64, after t merges on task i; NaN where not measured.

    Raises:
        ValueError: not square, or a cell that is needed was not measured. So do all
            functions of this file.
    """
    return float(_measured(_checked(a_TT)[-1], "ACC").mean())


def backward_transfer(a_TT: Floats, convention: Convention) -> float:
    """Return BWT, the mean change of a task since it was merged; mostly negative.

    Args:
        a_TT: As `average_accuracy`.
        convention: ``mingle`` divides by T−1, ``fusion_bench`` by T.
    """
    a = _several(a_TT)
    change = _measured(a[-1, :-1] - a.diagonal()[:-1], "BWT")
    divisors = {"mingle": len(change), "fusion_bench": len(a)}
    return float(change.sum() / divisors[convention])


def forgetting(a_TT: Floats) -> float:
    """Return the mean fall of a task from its best since it was merged."""
    a = _several(a_TT)
    last = len(a) - 1
    since = [a[i:last, i] for i in range(last)]
    best = [float(_measured(one, "forgetting").max()) for one in since]
    return float(np.mean(best - _measured(a[-1, :-1], "forgetting")))


def forward_transfer(a_TT: Floats, base_T: Floats) -> float:
    """Return FWT: what the merge before a task's own gives it beyond the base.

    Args:
        a_TT: As `average_accuracy`, with the cells just above the diagonal.
        base_T: The base's accuracy on each task, [T].
    """
    a = _several(a_TT)
    return float(_measured(a.diagonal(1) - np.asarray(base_T)[1:], "FWT").mean())


def worst_task(a_TT: Floats) -> float:
    """Return the accuracy of the task that came off worst."""
    return float(_measured(_checked(a_TT)[-1], "the worst task").min())


def normalised(a_TT: Floats, alone_T: Floats) -> float:
    """Return the mean over tasks of accuracy over that of the task's own adapter.

    Args:
        a_TT: As `average_accuracy`.
        alone_T: Of each task's own adapter on the base, in the order of the columns.
    """
    last = _measured(_checked(a_TT)[-1], "the normalised accuracy")
    return float((last / np.asarray(alone_T, dtype=np.float64)).mean())


def order_std(values_O: Sequence[float] | Floats) -> float:
    """Return the standard deviation of a number over orders, with O − 1."""
    found = np.asarray(values_O, dtype=np.float64)
    if found.ndim != 1 or len(found) < 2:
        raise ValueError("a spread over orders needs at least two")
    return float(found.std(ddof=1))


def orders(
    tasks: int, count: int = COUNT, seed: int = SEED
) -> tuple[tuple[int, ...], ...]:
    """Return the orders that every method is measured in.

    Args:
        tasks: T.
        count: How many are drawn where T > `EVERY_UP_TO`, T! at most; below, all T! are
            there.
        seed: Order k is NumPy's permutation of seed + k; an order that was drawn
            already is left out.
    """
    if tasks <= EVERY_UP_TO:
        return tuple(permutations(range(tasks)))
    found: dict[tuple[int, ...], None] = {}
    while len(found) < min(count, factorial(tasks)):
        drawn = np.random.default_rng(seed).permutation(tasks)
        found[tuple(drawn.tolist())] = None
        seed += 1
    return tuple(found)
