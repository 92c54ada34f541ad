"""How the SQuAD 2.0 evaluation reads an answer (Rajpurkar, Jia & Liang 2018).

Lower case, then no ASCII punctuation, no English article, single spaces, as in the
official ``evaluate-v2.0.py``. Other scripts' punctuation stays, as it does there.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Return `text` as two answers are compared."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def best(
    score: Callable[[str, str], float], acceptable: Sequence[str], said: str
) -> float:
    """Return the best score of an answer over all acceptable ones, all normalized.

    Acceptable texts of which normalization leaves nothing are dropped; where none is
    left, the row has no answer and only an empty prediction is right.
    """
    wanted = [text for text in map(normalize, acceptable) if text] or [""]
    answer = normalize(said)
    return max(score(text, answer) for text in wanted)
