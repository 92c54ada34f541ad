"""Which adapters may be merged: of one base, each once, of equal shapes.

An update is a difference to certain weights, so that the sum of two of different bases
means nothing, though every shape fits. What tells the base is the fingerprint of its
weights and what storage or a method made of them, where loralab wrote both adapters,
and otherwise its name. The same adapter twice is nearly always a slip of a path.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loralab.errors import MergeError
from loralab.lowrank.base import Base
from loralab.lowrank.files import WEIGHTS, AdapterFolder
from loralab.merging.merge import shapes_of
from loralab.runs.files import sha256_file

logger = logging.getLogger(__name__)


def opened(adapters: Sequence[Path]) -> list[AdapterFolder]:
    """Open adapters; those whose folders are named alike are called by their paths.

    Raises:
        MergeError: there is none.
        AdapterError: a folder is no plain LoRA.
    """
    if not adapters:
        raise MergeError("no adapter to merge", fix="name two folders or runs")
    found = [AdapterFolder.open(adapter) for adapter in adapters]
    names = [source.name for source in found]
    if len(set(names)) == len(names):
        return found
    return [
        replace(source, name=f"{number}:{source.path}")
        for number, source in enumerate(found, 1)
    ]


def check_fit(
    sources: Sequence[AdapterFolder], force: bool = False, known: int = 0
) -> None:
    """Refuse adapters that do not belong together.

    Args:
        sources: In the order of the tasks.
        force: Warn instead, of another base and of the same adapter again.
        known: How many of them were checked before, and are not told of again.

    Raises:
        MergeError: two are of different bases, or are the same.
        AdapterError: two see different shapes of one weight.
    """
    check_bases(sources, force, known)
    weights = [sha256_file(source.path / WEIGHTS) for source in sources]
    for number in range(max(known, 1), len(sources)):
        source = sources[number]
        if weights[number] in weights[:number]:
            twin = sources[weights.index(weights[number])].name
            _refused(
                f"{source.name} is the same adapter as {twin}, bit for bit",
                "twice the same task weighs double, and its projection removes itself",
                "name another, or --force if it is meant",
                force,
            )
    shapes_of(sources)


def check_bases(
    sources: Sequence[AdapterFolder], force: bool = False, known: int = 0
) -> None:
    """Refuse adapters of different bases; see `check_fit`.

    Raises:
        MergeError: two are of different bases.
    """
    first = sources[0]
    for number, source in enumerate(sources[known:], known):
        if not (source.base.name or source.base.fingerprint):
            logger.warning("%s does not say which base it belongs to", source.name)
        difference = other_base(first.base, source.base) if number else ""
        if difference:
            _refused(
                f"{source.name} and {first.name} are of different bases: {difference}",
                "an update is a difference to the very weights it was trained on",
                "leave it out, or --force if the two names mean one base",
                force,
            )


def other_base(one: Base, other: Base) -> str:
    """Say how two bases differ; nothing where they may be the same."""
    if one.fingerprint and other.fingerprint:
        if one.fingerprint == other.fingerprint:
            forms = [base.form or "in float" for base in (other, one)]
            same = (one.storage, one.rewritten) == (other.storage, other.rewritten)
            return "" if same else f"{other.name} {forms[0]}, and {forms[1]}"
        prints = (one.fingerprint[:12], other.fingerprint[:12])
        return f"{other.name} ({prints[1]}) and {one.name} ({prints[0]})"
    if one.name and other.name and one.name != other.name:
        return f"{other.name} and {one.name}"
    return ""


def _refused(what: str, why: str, fix: str, force: bool) -> None:
    if not force:
        raise MergeError(what, why=why, fix=fix)
    logger.warning("%s (forced)", what)
