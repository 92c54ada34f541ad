"""chrF of the corpus, 0 to 100 (Popović 2015): an F score over character n-grams.

A row gives, for each order, the n-grams of its text, of its best reference, and the
matching ones; the score is sacrebleu's function of their sums. chrF++ (Popović 2017) is
``word_order=2``.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from loralab.evaluation.scores import Answers, Floats, Scores, by_draw
from loralab.registry import Params, register


class ChrfParams(Params):
    """Orders of n-grams and the weight of recall; the defaults are sacrebleu's."""

    char_order: int = Field(6, ge=1, le=10)
    word_order: int = Field(0, ge=0, le=4, description="2 makes it chrF++")
    beta: int = Field(2, ge=1)
    lowercase: bool = False


@register("metric", "chrf", ChrfParams, answers="text", better="higher")
def chrf(params: ChrfParams, answers: Answers) -> Scores:
    """Return corpus chrF, in [0, 100]; a row without references has an empty one."""
    from sacrebleu.metrics.chrf import CHRF

    counter = CHRF(**params.model_dump())
    # sacrebleu's own bootstrap stands on these two; it has no public name for them
    rows = [
        counter._extract_corpus_statistics([said], [[x] for x in wanted or [""]])[0]
        for wanted, said in zip(answers.references, answers.predictions, strict=True)
    ]

    def score(totals: Floats) -> float:
        return counter._compute_f_score(totals.tolist())

    return Scores(np.array(rows, dtype=np.float64), by_draw(score))
