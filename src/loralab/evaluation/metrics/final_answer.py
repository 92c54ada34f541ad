"""Final answer: the share of rows whose last number is the wanted one (GSM8K).

Cobbe et al. 2021 end a solution with ``#### 42``. The wanted number stands after the
``####`` of the reference; the given one after the last ``####`` of the prediction, or,
where it has none, it is the last number of the text.
"""

from __future__ import annotations

import re
from decimal import Decimal

from loralab.errors import DataError
from loralab.evaluation.scores import Answers, Scores, mean_of
from loralab.registry import Params, register

# A minus directly after a letter, digit or bracket subtracts; it is no sign.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]])[-−])?(?:[$€£](?P<inner>[-−])?)?"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\d)\.\d+)"
)


def _numbers(text: str) -> list[Decimal]:
    found = []
    for match in _NUMBER.finditer(text):
        number = Decimal(match["digits"].replace(",", ""))
        found.append(-number if match["sign"] or match["inner"] else number)
    return found


def final_number(text: str) -> Decimal | None:
    """Return the number that a solution ends in, or None.

    Thousands separators, currency and percent signs and a final full stop are no part
    of it: ``$1,234.50.`` is 1234.5.
    """
    _, mark, after = text.rpartition("####")
    found = _numbers(after)
    if not found:
        return None
    return found[0] if mark else found[-1]


@register("metric", "final-answer", answers="text", better="higher")
def final_answer(params: Params, answers: Answers) -> Scores:
    """Return right / rows, in [0, 1].

    Raises:
        DataError: a row none of whose references holds a number.
    """
    right = []
    pairs = zip(answers.references, answers.predictions, strict=True)
    for row, (acceptable, said) in enumerate(pairs):
        wanted = {final_number(text) for text in acceptable} - {None}
        if not wanted:
            raise DataError(
                f"no number in the reference {list(acceptable)!r}",
                where=f"metric final-answer, row {row}",
                fix="end references with `#### NUMBER`, or choose another metric",
            )
        right.append(final_number(said) in wanted)
    return mean_of(right, proportion=True)
