"""What may be said of a difference: a word that its measurement must carry.

better, worse      the study's verdict; where it has none: Holm's p below the level,
and the interval wholly on that side of zero
higher, lower      the same of the number itself, where no file says what is better
equivalent         the study's verdict (two one-sided tests passed)
undecided          none of these: neither a difference nor its absence is shown
not-shown          not shown to differ: undecided or equivalent
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loralab.errors import PaperError
from loralab.evaluation.intervals import Interval
from loralab.reporting.paper.numbers import ESTIMATE, is_estimate
from loralab.reporting.paper.path import Hit
from loralab.reporting.paper.sources import LOWER, Source
from loralab.reporting.tables import format_interval

WORDS: dict[str, str] = {
    "better": "better",
    "worse": "worse",
    "higher": "higher",
    "lower": "lower",
    "equivalent": "equivalent",
    "undecided": "undecided",
    "not-shown": "not shown to differ",
}
"""Words of a claim, and what is written for them."""
_SIDES = ("higher", "lower")


def holds(source: Source, hit: Hit, word: str) -> bool:
    """Return whether a measured difference carries a word of `WORDS`.

    Raises:
        PaperError: what was hit is no difference, or which side is better is not known.
    """
    shown = _shown(source, hit, word in _SIDES)
    if word == "not-shown":
        return shown in ("undecided", "equivalent")
    return shown == word


def check(source: Source, hit: Hit, word: str, than: str | None) -> None:
    """Refuse a claim that its measurement does not carry.

    Args:
        source: Where it was measured.
        hit: The comparison, or its difference.
        word: Of `WORDS`.
        than: What the draft says it was compared with; None where it says nothing.

    Raises:
        PaperError: the measurement says otherwise, or is of another pair.
    """
    estimate, record = _measured(source, hit)
    against = record.get("reference", record.get("second"))
    if "base" in record:  # a run's difference is from its base
        against = "base"
    if than is not None and than != against:
        raise PaperError(
            f"the claim is about {than!r}, and what is there was measured against "
            f"{against!r}",
            fix=f"than {against}",
        )
    if holds(source, hit, word):
        return
    shown = _shown(source, hit, word in _SIDES)
    interval = Interval(*(estimate[key] for key in ESTIMATE))
    p = record.get("p_holm")
    corrected = "" if p is None else f", Holm's p {p:.2g}"
    zero = "" if interval.excludes_zero else "; the interval includes zero"
    name = record.get("arm", record.get("first", hit.pointer))
    raise PaperError(
        f"{name} is claimed to be {WORDS[word]}, and is not",
        why=f"{shown}: {format_interval(interval, signed=True)}{corrected}{zero}",
        fix=f"say {WORDS[shown]!r}, or measure more",
    )


def _measured(source: Source, hit: Hit) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return a difference's estimate and the record that tells of it."""
    node, around = hit.value, source.document
    for step in hit.steps[:-1]:
        around = around[step]
    if isinstance(node, Mapping) and is_estimate(node.get("difference")):
        return node["difference"], node
    if is_estimate(node):
        whole = isinstance(around, Mapping) and around.get("difference") is node
        return node, around if whole else node
    raise PaperError(
        f"{hit.pointer} is no difference with an interval",
        why="a claim is judged by value, low and high",
        fix="name a comparison",
    )


def _shown(source: Source, hit: Hit, sides: bool) -> str:
    """Return the word that a measurement carries; of `higher`, `lower` if `sides`."""
    estimate, record = _measured(source, hit)
    if "verdict" in record and not sides:
        word = str(record["verdict"])
        return "undecided" if word == "inconclusive" else word
    interval = Interval(*(estimate[key] for key in ESTIMATE))
    significant = record.get("p_holm", 0.0) < source.alpha
    if not (interval.excludes_zero and significant):
        return "undecided"
    side = "higher" if interval.low > 0 else "lower"
    if sides:
        return side
    good = source.better(hit)
    if good is None:
        raise PaperError(
            f"{source.file} does not say whether higher or lower is better",
            fix="claim higher or lower",
        )
    return "better" if (side == LOWER) == (good == LOWER) else "worse"
