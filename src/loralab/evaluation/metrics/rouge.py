"""ROUGE: overlap of n-grams or of the longest common subsequence (Lin 2004), as F1.

Counted by torchmetrics, which keeps the tokens of the ``rouge-score`` package: lower
case, and nothing but ASCII letters and digits. So it is meant for English; a text in
another script has no tokens.
"""

from __future__ import annotations

from typing import Literal

from loralab.evaluation.scores import Answers, Scores, mean_of
from loralab.registry import Params, register


class RougeParams(Params):
    """Which ROUGE: words, pairs of words, or the longest common subsequence."""

    variant: Literal["rouge1", "rouge2", "rougeL"] = "rougeL"


@register("metric", "rouge", RougeParams, answers="text", better="higher")
def rouge(params: RougeParams, answers: Answers) -> Scores:
    """Return the mean over rows of the best F1 over acceptable texts, in [0, 1].

    Without references, saying nothing scores 1 and anything else 0.
    """
    from torchmetrics.functional.text.rouge import rouge_score

    def score(acceptable: list[str], said: str) -> float:
        if not acceptable:
            return float(not said.strip())
        found = rouge_score(said, [acceptable], rouge_keys=params.variant)
        return float(found[f"{params.variant}_fmeasure"])

    pairs = zip(answers.references, answers.predictions, strict=True)
    return mean_of([score(list(wanted), said) for wanted, said in pairs])
