"""Tag accuracy: the share of words with the right tag, where tags are no entities."""

from __future__ import annotations

import numpy as np

from loralab.evaluation.scores import Answers, Scores, ratio_of
from loralab.registry import Params, register


@register("metric", "tag-accuracy", answers="tags", better="higher")
def tag_accuracy(params: Params, answers: Answers) -> Scores:
    """Return right words / words, in [0, 1]."""
    pairs = zip(answers.references, answers.predictions, strict=True)
    right = [sum(a == b for a, b in zip(*pair, strict=True)) for pair in pairs]
    words = [len(tags) for tags in answers.references]
    return ratio_of(np.asarray(right, np.float64), np.asarray(words, np.float64))
