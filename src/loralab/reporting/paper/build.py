"""From a draft to a document without references: everything is checked, nothing drawn.

It reads JSON, the draft and its bibliography, and hashes figures; it writes nothing.
All that is wrong is told at once, each with its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from loralab.errors import PaperError, PaperErrors, nearest
from loralab.reporting.paper import lock
from loralab.reporting.paper.draft import FRONT, Draft, read
from loralab.reporting.paper.references import Resolved, resolve
from loralab.reporting.paper.sources import Library, below
from loralab.runs.files import sha256_file

FIGURE_FORMATS = (".svg", ".pdf", ".png", ".jpg", ".jpeg")
_ENTRY = re.compile(r"^\s*@(?P<kind>\w+)\s*\{\s*(?P<key>[^\s,{}]+)\s*,", re.MULTILINE)
_NO_ENTRY = ("comment", "string", "preamble")


@dataclass(frozen=True)
class Paper:
    """A draft whose references are resolved and whose guards have passed.

    Attributes:
        draft: Its file.
        text: Pandoc's Markdown, with numbers for references.
        front: Its front matter.
        numbers: Every reference and what it came to, in the draft's order.
        figures: Target as the draft has it -> the file.
        bibliography: BibTeX files.
        lock: What is written beside the draft when the document is made.
    """

    draft: Path
    text: str = field(repr=False)
    front: dict[str, Any]
    numbers: tuple[Resolved, ...] = field(repr=False)
    figures: dict[str, Path]
    bibliography: tuple[Path, ...]
    lock: lock.Lock = field(repr=False)


def build(
    file: Path, root: Path, runs_dir: Path | None = None, *, update: bool = False
) -> Paper:
    """Return a draft with every number in its place.

    Args:
        file: The draft.
        root: The project's root, that sources are named from.
        runs_dir: Where runs are; by default ``runs`` below the root.
        update: Whether numbers may have changed since the last build.

    Raises:
        PaperErrors: everything that is wrong, at once.
        PaperError: the draft or its lock cannot be read.
    """
    try:
        draft = read(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PaperError(
            "the draft cannot be read", where=str(file), why=str(error)
        ) from None
    front = _front_matter(draft.text, str(file))
    library, problems = Library(root, runs_dir), list[PaperError]()
    numbers = _resolved(library, draft, file, problems)
    problems += _typed(draft, file)
    figures = _figures(draft, file, problems)
    files = _bibliography(front, file)
    problems += _cited(draft, file, files)
    sources = {source.file: source.sha256 for source in library.used}
    sources |= {below(f, root): sha256_file(f) for f in figures.values()}
    now = lock.made_of(numbers, sources)
    if not update:
        lines = {one.reference.text: one.reference.line for one in reversed(numbers)}
        problems += lock.stale(lock.read(file), now, lines, str(file))
    if problems:
        raise PaperErrors(sorted(problems, key=_line))
    text = _written(draft, numbers)
    return Paper(file, text, front, tuple(numbers), figures, tuple(files), now)


def _front_matter(text: str, where: str) -> dict[str, Any]:
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


def _line(problem: PaperError) -> int:
    match = re.search(r":(\d+)$", problem.where)
    return int(match[1]) if match else 0


def _resolved(
    library: Library, draft: Draft, file: Path, problems: list[PaperError]
) -> list[Resolved]:
    found = []
    for reference in draft.references:
        try:
            found.append(resolve(library, reference, draft.labels))
        except PaperError as error:
            where = f"{file}:{reference.line}"
            what = f"{{{{ {reference.text} }}}}: {error.what}"
            parts = {"why": error.why, "fix": error.fix}
            problems.append(PaperError(what, where=where, **parts))
    return found


def _typed(draft: Draft, file: Path) -> Iterator[PaperError]:
    for spot in draft.stray:
        yield PaperError(
            f"{spot.text} does not close",
            where=f"{file}:{spot.line}",
            fix="a reference ends with }}; in maths part two braces by a space",
        )
    for spot in draft.typed:
        yield PaperError(
            f"{spot.text.strip()!r} is typed by hand",
            where=f"{file}:{spot.line}",
            why="a number in prose is read from a result, so that it cannot be wrong",
            fix="{{ SOURCE ADDRESS }}, or if nothing measured it "
            f'{{{{ literal {spot.text.strip()} "why" }}}}',
        )


def _figures(draft: Draft, file: Path, problems: list[PaperError]) -> dict[str, Path]:
    found = {}
    for spot in draft.images:
        path = file.parent / spot.text
        if path.is_file() and path.suffix in FIGURE_FORMATS:
            found[spot.text] = path
            continue
        there = sorted(p.name for p in path.parent.glob("*") if p.is_file())
        problems.append(
            PaperError(
                f"no figure {spot.text}",
                where=f"{file}:{spot.line}",
                why=f"figures are files beside the draft: {', '.join(FIGURE_FORMATS)}",
                fix=nearest(path.name, there),
            )
        )
    return found


def _bibliography(front: dict[str, Any], file: Path) -> list[Path]:
    named = front.get("bibliography", [])
    return [
        file.parent / str(n) for n in (named if isinstance(named, list) else [named])
    ]


def _keys(file: Path) -> list[str]:
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


def _cited(draft: Draft, file: Path, files: list[Path]) -> Iterator[PaperError]:
    try:
        known = [key for one in files for key in _keys(one)]
    except PaperError as error:
        yield error
        return
    named = ", ".join(one.name for one in files) or "no bibliography is named"
    for spot in draft.citations:
        if spot.text not in known:
            yield PaperError(
                f"@{spot.text} is in no bibliography ({named})",
                where=f"{file}:{spot.line}",
                fix=nearest(spot.text, known),
            )


def _written(draft: Draft, numbers: list[Resolved]) -> str:
    pieces, at = [], 0
    for one in numbers:
        pieces += [draft.text[at : one.reference.start], one.written]
        at = one.reference.end
    return "".join([*pieces, draft.text[at:]])
