"""Macro-F1: the unweighted mean over classes of F1 = 2·TP / (2·TP + FP + FN).

Over the classes that are true or predicted somewhere, as in scikit-learn.
"""

from __future__ import annotations

import numpy as np

from loralab.evaluation.metrics._confusion import margin_scores
from loralab.evaluation.scores import Answers, Floats, Scores
from loralab.registry import Params, register


def f1_by_class(confusion: Floats) -> Floats:
    """Return F1 [..., C]; NaN for a class neither true nor predicted anywhere.

    Args:
        confusion: [..., C, C]; ``confusion[..., t, p]`` counts the rows of class t
            that were predicted as p.
    """
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    return _f1(right, confusion.sum(-1), confusion.sum(-2))


def _f1(right: Floats, true: Floats, said: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * right / (true + said), dtype=np.float64)


def _mean_f1(right: Floats, true: Floats, said: Floats) -> Floats:
    return np.asarray(np.nanmean(_f1(right, true, said), axis=-1))


@register("metric", "macro-f1", answers="class", better="higher")
def macro_f1(params: Params, answers: Answers) -> Scores:
    """Return the mean F1 over the classes that occur, in [0, 1]."""
    return margin_scores(answers, _mean_f1)
