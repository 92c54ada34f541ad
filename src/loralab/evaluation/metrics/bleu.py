"""BLEU of the corpus, 0 to 100 (Papineni et al. 2002), as sacrebleu counts it.

A row gives its lengths, its matching n-grams and its n-grams; the score is sacrebleu's
function of their sums (Post 2018), so an interval resamples the corpus, not scores.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from loralab.evaluation.scores import Answers, Floats, Scores, by_draw
from loralab.registry import Params, register


class BleuParams(Params):
    """How texts become tokens; the defaults are sacrebleu's."""

    tokenize: Literal["13a", "intl", "char", "zh", "none"] = "13a"
    lowercase: bool = False


@register("metric", "bleu", BleuParams, answers="text", better="higher")
def bleu(params: BleuParams, answers: Answers) -> Scores:
    """Return corpus BLEU, in [0, 100]; a row without references has an empty one."""
    from sacrebleu.metrics.bleu import BLEU

    # effective order: only so that it does not warn of scores we do not use
    counter = BLEU(
        tokenize=params.tokenize, lowercase=params.lowercase, effective_order=True
    )
    rows = []
    for wanted, said in zip(answers.references, answers.predictions, strict=True):
        one = counter.sentence_score(said, list(wanted) or [""])
        rows.append([one.sys_len, one.ref_len, *one.counts, *one.totals])

    def score(totals: Floats) -> float:
        counts = [round(number) for number in totals]
        found = BLEU.compute_bleu(
            counts[2:6], counts[6:], counts[0], counts[1], smooth_method="exp"
        )
        return float(found.score)

    return Scores(np.array(rows, dtype=np.float64), by_draw(score))
