"""Macro-F1: the unweighted mean over classes of F1 = 2·TP / (2·TP + FP + FN)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loralab.registry import register


def f1_by_class(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return F1 [..., C]; NaN for a class neither true nor predicted anywhere."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    total = confusion.sum(-1) + confusion.sum(-2)
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * right / total, dtype=np.float64)


@register("metric", "macro-f1")
def macro_f1(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean F1 [...] over the classes that occur, float64."""
    return np.asarray(np.nanmean(f1_by_class(confusion), axis=-1), dtype=np.float64)
