"""Accuracy: the share of rows whose predicted class is the true one."""

from __future__ import annotations

import numpy as np

from loralab.evaluation.scores import Answers, Scores, mean_of
from loralab.registry import Params, register


@register("metric", "accuracy", answers="class", better="higher")
def accuracy(params: Params, answers: Answers) -> Scores:
    """Return right / rows, in [0, 1]."""
    right = np.asarray(answers.references) == np.asarray(answers.predictions)
    return mean_of(right, proportion=True)
