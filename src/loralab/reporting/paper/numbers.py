"""How a number is written: the one rule of rounding, and the forms that it can take.

A number is written with as many decimals as show the width of its interval in two
significant figures, the rule of our tables (`reporting.tables.interval_decimals`); its
`low` and `high` are of the same decimals, and so is its `value` where it stands alone.
A mean over records has the range of what it is the mean of for that width, and at most
three significant figures. A number that has neither is written in three significant
figures, a whole number in all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from loralab.errors import PaperError, nearest
from loralab.evaluation.intervals import Interval
from loralab.reporting.paper.path import Hit
from loralab.reporting.tables import (
    MINUS,
    MOST_DECIMALS,
    format_interval,
    format_number,
    interval_decimals,
)

FIGURES = 3
"""Significant figures of a number without an interval."""
P_FIGURES, P_LEAST = 2, 0.001
"""p values are written in two significant figures, and as "< 0.001" below that."""
HARD_SPACE = "\N{NO-BREAK SPACE}"
ESTIMATE = ("value", "low", "high")


@dataclass(frozen=True)
class Figure:
    """A number with what is known of how sure it is.

    Attributes:
        value: The number, or a text such as a version.
        low: Of its interval, or of the range that it stands for; None without one.
        high: The same.
        whole: Whether the interval is written behind it.
        parted: Between low and high, where that is a range and no interval.
    """

    value: float | str
    low: float | None = None
    high: float | None = None
    whole: bool = False
    parted: str = ""

    @property
    def interval(self) -> Interval | None:
        """Value, low and high."""
        if self.low is None or self.high is None or isinstance(self.value, str):
            return None
        return Interval(self.value, self.low, self.high)

    def times(self, factor: float) -> Figure:
        """Return the figure in another unit.

        Raises:
            PaperError: it is a text.
        """
        if isinstance(self.value, str):
            raise PaperError(f"{self.value!r} is a text, and has no unit")
        low, high = (None if x is None else factor * x for x in (self.low, self.high))
        return replace(self, value=factor * self.value, low=low, high=high)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_estimate(value: Any) -> bool:
    """Return whether an object is a number with its interval."""
    return isinstance(value, Mapping) and all(
        _is_number(value.get(key)) for key in ESTIMATE
    )


def figure(document: Any, hit: Hit) -> Figure:
    """Return what a hit says, with the interval that stands with it.

    Raises:
        PaperError: it is neither a number nor a text.
    """
    value = hit.value
    if is_estimate(value):
        return Figure(value["value"], value["low"], value["high"], whole=True)
    if isinstance(value, str):
        return Figure(value)
    if not _is_number(value):
        raise PaperError(f"{hit.pointer} is {_kind(value)}, and no number")
    around = document
    for step in hit.steps[:-1]:
        around = around[step]
    if hit.steps[-1:] and hit.steps[-1] in ESTIMATE and is_estimate(around):
        return Figure(value, around["low"], around["high"])
    return Figure(value)


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"an object with {', '.join(list(value)[:8])}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"{value!r}"


def _numbers(figures: Sequence[Figure]) -> list[float]:
    found = [one.value for one in figures if not isinstance(one.value, str)]
    if len(found) < len(figures):
        raise PaperError("texts have no mean, least or most")
    return found


def _mean(figures: Sequence[Figure]) -> Figure:
    values = _numbers(figures)
    return Figure(fmean(values), min(values), max(values), parted=" to ")


def _spread(figures: Sequence[Figure]) -> Figure:
    return replace(_mean(figures), whole=True)


def _of(choose: Callable[[list[float]], float]) -> Callable[..., Figure]:
    def one(figures: Sequence[Figure]) -> Figure:
        values = _numbers(figures)
        return replace(figures[values.index(choose(values))], whole=False)

    return one


AGGREGATES: dict[str, Callable[[Sequence[Figure]], Figure]] = {
    "mean": _mean,
    "spread": _spread,
    "least": _of(min),
    "most": _of(max),
    "sum": lambda figures: Figure(sum(_numbers(figures))),
    "count": lambda figures: Figure(len(figures)),
}
"""What makes one number of several: the first word of a reference."""

UNITS: dict[str, tuple[float, str]] = {
    "percent": (100, "%"),
    "MB": (1e-6, "MB"),
    "GB": (1e-9, "GB"),
    "minutes": (1 / 60, "minutes"),
    "seconds": (1, "s"),
    "ms": (1000, "ms"),
}
"""Forms that change the unit: factor, and what is written behind."""
FORMS = (*UNITS, "signed", "p", "p bare", "figures N")


def write(found: Figure, forms: Sequence[str]) -> str:
    """Return a figure as it is written.

    Args:
        found: What to write.
        forms: ``signed``, ``p`` (with its relation: ``= 0.012``, ``< 0.001``; of
            ``p bare`` no equals sign, for a table), ``figures N`` (of a number without
            an interval), or a unit of `UNITS`.

    Raises:
        PaperError: a form that does not exist, or does not fit.
    """
    words, signed, unit, figures = list(forms), False, "", FIGURES
    while words:
        word = words.pop(0)
        if word == "p":
            return _p_value(found, words)
        if word == "signed":
            signed = True
        elif word == "figures" and words and words[0].isdecimal():
            figures = int(words.pop(0))
        elif word in UNITS:
            factor, unit = UNITS[word]
            found = found.times(factor) if factor != 1 else found
        else:
            raise PaperError(f"no form {word!r}", fix=nearest(word, FORMS))
    if isinstance(found.value, str):
        return found.value
    return _rounded(found, signed, figures) + (HARD_SPACE + unit if unit else "")


def _p_value(found: Figure, words: Sequence[str]) -> str:
    if isinstance(found.value, str) or not 0 <= found.value <= 1:
        raise PaperError(f"{found.value!r} is no p value")
    rest = [word for word in words if word != "p"]
    if rest not in ([], ["bare"]):
        raise PaperError(f"no form p {' '.join(rest)}", fix="p or p bare")
    if found.value < P_LEAST:
        return f"<{HARD_SPACE}{P_LEAST:g}"
    text = _significant(float(found.value), False, P_FIGURES)
    return text if rest else f"={HARD_SPACE}{text}"


def _decimals(found: Figure, figures: int) -> int | None:
    """Return the decimals of the rule; None where no width tells them.

    A range says how far records lie apart, not how sure a number is: where it is narrow
    it shows no more figures than a number has that stands alone.
    """
    if found.interval is None:
        return None
    decimals = interval_decimals(found.interval)
    if not found.parted or not found.value:
        return decimals
    alone = max(0, figures - 1 - _exponent(float(found.value), figures))
    return alone if decimals is None else min(alone, decimals)


def _exponent(value: float, figures: int) -> int:
    """Return the power of ten of a number as it is written: 0 for 0.9999, or 1.00."""
    return int(f"{value:.{figures - 1}e}".partition("e")[2])


def _rounded(found: Figure, signed: bool, figures: int) -> str:
    value = float(found.value)
    interval, decimals = found.interval, _decimals(found, figures)
    if interval is not None and found.whole:
        text = format_interval(interval, decimals, signed=signed)
        if found.parted:
            text = text.replace(", ", found.parted).replace("[", "(")
            text = text.replace("]", ")")
        return text
    if value.is_integer() and (decimals is None or abs(value) >= 10_000):
        return format_number(int(value), signed=signed)
    if decimals is not None and decimals <= MOST_DECIMALS:
        return format_number(value, decimals, signed=signed)
    if decimals is not None:
        figures = max(1, decimals + 1 + math.floor(math.log10(abs(value))))
    return _significant(value, signed, figures)


def _significant(value: float, signed: bool, figures: int) -> str:
    """Return a number in so many significant figures; with an exponent if tiny."""
    if not math.isfinite(value):
        raise PaperError(f"{value} is no number that a paper can tell")
    if float(f"{value:.{figures}g}") == value:  # no digits were lost: 0.02, not 0.0200
        return format_number(value, signed=signed)
    decimals = figures - 1 - _exponent(value, figures)
    if decimals > MOST_DECIMALS:
        sign = "+" if signed else ""
        return f"{value:{sign}.{figures - 1}e}".replace("-", MINUS)
    if decimals < 0:
        return format_number(round(value, decimals), 0, signed=signed)
    return format_number(value, decimals, signed=signed)
