"""What every number of a paper stands on: file, sha256, place, runs, commits."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loralab.reporting.paper.build import Paper
from loralab.reporting.paper.references import Resolved
from loralab.runs.files import sha256_file

FORMAT_VERSION = 1


def manifest(
    paper: Paper, written: Sequence[Path], tools: dict[str, str]
) -> dict[str, Any]:
    """Return what a paper was made of, as plain JSON.

    Args:
        paper: From `build`.
        written: The files that were made.
        tools: Program -> version.
    """
    return {
        "format": FORMAT_VERSION,
        "kind": "paper",
        "draft": {"file": paper.draft.name, "sha256": sha256_file(paper.draft)},
        "written": {file.name: sha256_file(file) for file in written},
        "tools": {"loralab": version("loralab"), **tools},
        "sources": dict(paper.lock.sources),
        "numbers": [_entry(paper, one) for one in paper.numbers],
    }


def _entry(paper: Paper, one: Resolved) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "line": one.reference.line,
        "reference": one.reference.text,
        "shown": one.shown,
    }
    if one.why:
        return {**entry, "literal": one.why}
    if not one.source:
        return entry
    return {
        **entry,
        "file": one.source,
        "sha256": paper.lock.sources[one.source],
        "pointers": list(one.pointers),
        "runs": list(one.runs),
        "commits": list(one.commits),
    }
