"""The keys of a BibTeX file, and what its front matter says of a draft."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from loralab.errors import PaperError
from loralab.reporting.paper.draft import FRONT

_ENTRY = re.compile(r"^\s*@(?P<kind>\w+)\s*\{\s*(?P<key>[^\s,{}]+)\s*,", re.MULTILINE)
_NO_ENTRY = ("comment", "string", "preamble")


def front_matter(text: str, where: str) -> dict[str, Any]:
    """Return a draft's front matter.

    Raises:
        PaperError: it is no YAML mapping, or there is none.
    """
    match = FRONT.match(text)
    fix = "begin the draft with ---, title: …, bibliography: references.bib, ---"
    if match is None:
        raise PaperError("the draft has no front matter", where=where, fix=fix)
    inside = match[0].splitlines()[1:-1]
    try:
        found = yaml.safe_load("\n".join(inside))
    except yaml.YAMLError as error:
        raise PaperError(
            "the front matter is no YAML", where=where, why=str(error), fix=fix
        ) from None
    if not isinstance(found, dict) or "title" not in found:
        raise PaperError("the front matter names no title", where=where, fix=fix)
    return found


def keys(file: Path) -> list[str]:
    """Return the keys of a BibTeX file.

    Raises:
        PaperError: it cannot be read, or has a key twice.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PaperError(
            "the bibliography cannot be read",
            where=str(file),
            why=str(error),
            fix="bibliography: FILE in the front matter is beside the draft",
        ) from None
    found = [
        match["key"]
        for match in _ENTRY.finditer(text)
        if match["kind"].lower() not in _NO_ENTRY
    ]
    twice = sorted({key for key in found if found.count(key) > 1})
    if twice:
        raise PaperError(f"keys that are there twice: {twice}", where=str(file))
    return found
