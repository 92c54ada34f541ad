"""Exact match: the share of rows whose text is an acceptable one, once normalized.

As SQuAD 2.0 defines it (Rajpurkar, Jia & Liang 2018, "Know What You Don't Know").
"""

from __future__ import annotations

from loralab.evaluation.metrics._squad import best
from loralab.evaluation.scores import Answers, Scores, mean_of
from loralab.registry import Params, register


def _same(wanted: str, said: str) -> float:
    return float(wanted == said)


@register("metric", "exact-match", answers="text", better="higher")
def exact_match(params: Params, answers: Answers) -> Scores:
    """Return right / rows, in [0, 1]; right without references is saying nothing."""
    pairs = zip(answers.references, answers.predictions, strict=True)
    return mean_of([best(_same, *pair) for pair in pairs], proportion=True)
