"""Entities of tagged words: BIO, in either reading, or BIOES."""

from __future__ import annotations

from collections.abc import Sequence

from loralab.errors import DataError

Entity = tuple[str, int, int]
"""Type, first word, last word."""


def entities(tags: Sequence[str]) -> set[Entity]:
    """Return the entities of one row's tags, as the ``conlleval`` script finds them.

    An I or E that continues nothing of its type begins an entity; B and S always do.

    Raises:
        DataError: a tag that is neither ``O`` nor B, I, E or S with a type.
    """
    found: set[Entity] = set()
    start, before, kind_before = 0, "O", ""
    for at, tag in enumerate([*tags, "O"]):
        part, _, kind = tag.partition("-")
        if part not in ("O", "B", "I", "E", "S"):
            fix = "write tags as B-TYPE, I-TYPE and O (E- and S- are understood)"
            raise DataError(f"tag {tag!r} is neither BIO nor BIOES", fix=fix)
        goes_on = part in ("I", "E") and before in ("B", "I") and kind == kind_before
        if not goes_on:
            if before != "O":
                found.add((kind_before, start, at - 1))
            start = at
        before, kind_before = part, kind
    return found


def are_entity_tags(tags: Sequence[str]) -> bool:
    """Return whether all tags are ``O``, or B, I, E or S with a type."""
    parts = [tag.partition("-") for tag in tags]
    return all(
        tag == "O" or (mark in ("B", "I", "E", "S") and bool(kind))
        for tag, (mark, _, kind) in zip(tags, parts, strict=True)
    )
