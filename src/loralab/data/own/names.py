"""Names to invent people, places and organizations with; one pool of words a split.

Every word belongs to exactly one split, by rank of its sha256: no first name, surname,
place stem or organization stem of the training passages stands in a test passage.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

SHARES = {"test": 0.2, "validation": 0.2}
"""Which share of every list belongs to these splits; the rest is for training."""

_WORDS = {
    name: text.split(", ")
    for name, text in yaml.safe_load(
        Path(__file__).with_name("words.yaml").read_text(encoding="utf-8")
    ).items()
}
PLACE_ENDINGS = _WORDS["place_endings"]
ORG_KINDS = _WORDS["org_kinds"]
SCHOOL_KINDS = _WORDS["school_kinds"]
OCCUPATIONS = _WORDS["occupations"]
PRODUCTS = _WORDS["products"]
COLLECTED = _WORDS["collected"]
SKILLS = _WORDS["skills"]
MONTHS = _WORDS["months"]
WEEKDAYS = _WORDS["weekdays"]


@dataclass(frozen=True)
class Pool:
    """The words of one split."""

    female: tuple[str, ...]
    male: tuple[str, ...]
    surnames: tuple[str, ...]
    place_stems: tuple[str, ...]
    org_stems: tuple[str, ...]


def _part(words: list[str], split: str) -> tuple[str, ...]:
    ranked = sorted(words, key=lambda word: hashlib.sha256(word.encode()).digest())
    start = 0
    for name, share in SHARES.items():
        end = start + round(share * len(ranked))
        if name == split:
            return tuple(ranked[start:end])
        start = end
    return tuple(ranked[start:])


@functools.cache
def pool(split: str) -> Pool:
    """Return the words of ``train``, ``validation`` or ``test``; they share none.

    Raises:
        ValueError: there is no such split.
    """
    if split not in ("train", *SHARES):
        raise ValueError(f"no split {split!r}: train, validation or test")
    return Pool(*(_part(_WORDS[field.name], split) for field in fields(Pool)))
