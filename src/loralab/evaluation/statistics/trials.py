"""The expected best validation value as a function of the number of trials.

Dodge et al. (2019, *Show Your Work*, eq. 1) draw n of N trials with replacement, which
is biased; here without (Tang et al. 2020; Dodge et al. 2021), the mean of the best over
all subsets of n trials. With v₍₁₎ ≤ … ≤ v₍N₎:

    E[max of n] = Σ_i v₍ᵢ₎ C(i−1, n−1) / C(N, n)

Two methods are comparable where both have the same number of trials; the last values
rest on few subsets and vary much between searches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loralab.errors import EvidenceError
from loralab.evaluation.scores import Floats


def expected_best(values: Sequence[float] | Floats, higher_is_better: bool) -> Floats:
    """Return the expected best value after 1, 2, …, N trials.

    Args:
        values: The validation value of each trial, [N], in any order.
        higher_is_better: Of the metric.

    Returns:
        [N] float64 in the metric's unit: the mean first, the best of all last.

    Raises:
        EvidenceError: no trials, or one that is not finite: give a trial that diverged
            the worst value it can have instead of leaving it out.
        ValueError: not one-dimensional.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1:
        raise ValueError(f"values must be one a trial, not {found.shape}")
    if not len(found) or not np.isfinite(found).all():
        raise EvidenceError(
            "no trials, or a trial without a finite value",
            fix="give a trial that diverged the worst value that it can have",
        )
    n = len(found)
    ordered = np.sort(found) if higher_is_better else -np.sort(-found)
    rank, trials = np.arange(1, n + 1), np.arange(1, n + 1)[:, None]
    # C(i−1, t−1)/C(N, t), by the ratio of neighbours from i = N, where it is t/N
    steps = np.clip(rank - trials + 1, 0, None)[:, :-1] / rank[:-1]
    after = np.cumprod(steps[:, ::-1], axis=1)[:, ::-1]
    weights = np.concatenate([after, np.ones((n, 1))], axis=1) * trials / n
    return np.asarray(weights @ ordered)
