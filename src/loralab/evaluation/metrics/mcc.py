"""Matthews correlation for several classes (Gorodkin 2004, "R_K", eq. 8).

    (n·Σ_k C_kk − Σ_k t_k p_k) / sqrt((n² − Σ p_k²) (n² − Σ t_k²))

with t_k the true and p_k the predicted count of class k. 0 where it is undefined
(all of one class), as in scikit-learn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loralab.registry import register


@register("metric", "mcc")
def mcc(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return R_K [...] in [-1, 1], float64."""
    true, predicted = confusion.sum(-1), confusion.sum(-2)
    n = confusion.sum((-2, -1))
    right = np.trace(confusion, axis1=-2, axis2=-1)
    above = right * n - (true * predicted).sum(-1)
    below = (n**2 - (predicted**2).sum(-1)) * (n**2 - (true**2).sum(-1))
    safe = np.where(below > 0, below, 1.0)
    return np.asarray(np.where(below > 0, above / np.sqrt(safe), 0.0))
