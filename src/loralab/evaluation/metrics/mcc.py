"""Matthews correlation for several classes (Gorodkin 2004, "R_K", eq. 8).

    (n·Σ_k C_kk − Σ_k t_k p_k) / sqrt((n² − Σ p_k²) (n² − Σ t_k²))

with t_k the true and p_k the predicted count of class k. 0 where it is undefined
(all of one class), as in scikit-learn.
"""

from __future__ import annotations

import numpy as np

from loralab.evaluation.metrics._confusion import margin_scores
from loralab.evaluation.scores import Answers, Floats, Scores
from loralab.registry import Params, register


def _correlation(right: Floats, true: Floats, said: Floats) -> Floats:
    n = true.sum(-1)
    above = right.sum(-1) * n - (true * said).sum(-1)
    below = (n**2 - (said**2).sum(-1)) * (n**2 - (true**2).sum(-1))
    safe = np.where(below > 0, below, 1.0)
    return np.asarray(np.where(below > 0, above / np.sqrt(safe), 0.0))


@register("metric", "mcc", answers="class", better="higher")
def mcc(params: Params, answers: Answers) -> Scores:
    """Return R_K, in [-1, 1]."""
    return margin_scores(answers, _correlation)
