"""Accuracy: the share of examples whose predicted class is the true one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loralab.registry import register


@register("metric", "accuracy")
def accuracy(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return trace / sum, [...] float64."""
    right = np.trace(confusion, axis1=-2, axis2=-1)
    return np.asarray(right / confusion.sum((-2, -1)), dtype=np.float64)
