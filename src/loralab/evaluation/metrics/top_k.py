"""Top-k accuracy: the share of rows whose true class is among the k most probable."""

from __future__ import annotations

from pydantic import Field

from loralab.evaluation.scores import Answers, Scores, mean_of
from loralab.registry import Params, register


class TopKParams(Params):
    """How many classes a row may name."""

    k: int = Field(5, ge=1, le=10)


@register(
    "metric", "top-k", TopKParams, answers="class", better="higher", needs="ranked"
)
def top_k(params: TopKParams, answers: Answers) -> Scores:
    """Return right / rows, in [0, 1]."""
    ranked = answers.ranked or ()
    right = [
        true in list(best)[: params.k]
        for true, best in zip(answers.references, ranked, strict=True)
    ]
    return mean_of(right, proportion=True)
