"""Token F1: the overlap of words with the best acceptable text, averaged over rows.

As SQuAD 2.0 defines it (Rajpurkar, Jia & Liang 2018, "Know What You Don't Know"): words
are counted, F1 = 2·common / (words said + words wanted); where either has no words, it
is whether both have none.
"""

from __future__ import annotations

from collections import Counter

from loralab.evaluation.metrics._squad import best
from loralab.evaluation.scores import Answers, Scores, mean_of
from loralab.registry import Params, register


def _overlap(wanted: str, said: str) -> float:
    one, two = wanted.split(), said.split()
    if not one or not two:
        return float(one == two)
    common = sum((Counter(one) & Counter(two)).values())
    return 2 * common / (len(one) + len(two))


@register("metric", "token-f1", answers="text", better="higher")
def token_f1(params: Params, answers: Answers) -> Scores:
    """Return the mean F1 of a row's words, in [0, 1]."""
    pairs = zip(answers.references, answers.predictions, strict=True)
    return mean_of([best(_overlap, *pair) for pair in pairs])
