"""What every number of a paper stands on: file, sha256, place, runs, commits.

Numbers are listed below the file that they are read from. Many stand on the same runs:
each run and commit is written once, each set of them once (``stands_on``, of places in
``runs`` and ``commits``), and a number has the place of its set.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from loralab.reporting.paper.build import Paper
from loralab.reporting.paper.references import Resolved
from loralab.runs.files import sha256_file

FORMAT_VERSION = 2
Thing = TypeVar("Thing", bound=Hashable)


class _Once(dict[Thing, int]):
    """Things in their order, each once: thing -> its place."""

    def __missing__(self, thing: Thing) -> int:
        self[thing] = len(self)
        return self[thing]


def manifest(
    paper: Paper, written: Sequence[Path], tools: dict[str, str]
) -> dict[str, Any]:
    """Return what a paper was made of, as plain JSON.

    Args:
        paper: From `build`.
        written: The files that were made.
        tools: Program -> version.
    """
    runs, commits = _Once[str](), _Once[str]()
    sets = _Once[tuple[tuple[int, ...], tuple[int, ...]]]()
    sources: dict[str, dict[str, Any]] = {
        file: {"sha256": digest, "numbers": {}}
        for file, digest in paper.lock.sources.items()
    }
    others: dict[str, Any] = {}
    for lines, one in _by_text(paper.numbers):
        entry: dict[str, Any] = {"lines": lines, "shown": one.shown}
        if one.source:
            behind = (
                tuple(runs[run] for run in one.runs),
                tuple(commits[commit] for commit in one.commits),
            )
            entry |= {"pointers": list(one.pointers), "stands_on": sets[behind]}
            sources[one.source]["numbers"][one.reference.text] = entry
        else:
            others[one.reference.text] = entry | ({"why": one.why} if one.why else {})
    return {
        "format": FORMAT_VERSION,
        "kind": "paper",
        "draft": {"file": paper.draft.name, "sha256": sha256_file(paper.draft)},
        "written": {file.name: sha256_file(file) for file in written},
        "tools": {"loralab": version("loralab"), **tools},
        "runs": list(runs),
        "commits": list(commits),
        "stands_on": [{"runs": r, "commits": c} for r, c in sets],
        "sources": sources,
        "literals and labels": others,
    }


def _by_text(numbers: Sequence[Resolved]) -> Iterator[tuple[list[int], Resolved]]:
    """Yield each reference once, with its lines: one text comes to one number."""
    lines: dict[str, list[int]] = {}
    for one in numbers:
        lines.setdefault(one.reference.text, []).append(one.reference.line)
    for text, one in {one.reference.text: one for one in numbers}.items():
        yield lines[text], one
