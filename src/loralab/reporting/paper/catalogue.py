"""What a draft may refer to: every number of a source, with the words that reach it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from loralab.errors import PaperError
from loralab.reporting.paper.draft import Reference
from loralab.reporting.paper.numbers import is_estimate
from loralab.reporting.paper.path import as_text
from loralab.reporting.paper.references import Resolved, resolve
from loralab.reporting.paper.sources import ANALYSIS, RUN, Library, Source

MOST_KEYS = 3
"""As many keys tell the entries of a list apart; else they are told by their place."""
ROUND = 5
"""Characters of a float that somebody chose, such as 0.005."""


def numbers(library: Library, name: str) -> Iterator[Resolved]:
    """Yield every reference to a source's numbers and what it comes to.

    Args:
        library: Where sources are read.
        name: A study, a run (``runs/<id>``) or a JSON file.

    Raises:
        PaperError: there is no such source.
    """
    if name.startswith("runs/") and not name.endswith(".json"):
        yield from _of_run(library, name)
        return
    source = library.study(name)
    if source.is_analysis:
        yield from _short(library, source)
    for path, signed in _paths(source.document, "$"):
        text = f"{name} {path}{' signed' if signed else ''}"
        yield from _come_to(library, text)


def _of_run(library: Library, name: str) -> Iterator[Resolved]:
    folder = library.runs_dir / name.removeprefix("runs/")
    splits = sorted(file.stem for file in (folder / "eval").glob("*.json"))
    for split in splits or ["test"]:  # the error says what is missing
        for metric in library.run(name, split).document["metrics"]:
            for quantity in RUN:
                text = f"{name} {split}/{metric} {quantity}"
                yield from _come_to(library, text)


def _short(library: Library, source: Source) -> Iterator[Resolved]:
    for data, arm in source.addresses:
        for quantity in ANALYSIS:
            yield from _come_to(library, f"{source.name} {data}/{arm} {quantity}")


def _come_to(library: Library, text: str) -> Iterator[Resolved]:
    """Yield what a reference comes to, if it does to anything."""
    from loralab.reporting.paper.draft import read

    reference: Reference = read(f"{{{{ {text} }}}}").references[0]
    try:
        found = resolve(library, reference, {})
    except PaperError:
        return
    if found.shown:
        yield found


def _paths(node: Any, path: str) -> Iterator[tuple[str, bool]]:
    """Yield the paths of all numbers below a node, and whether they are differences."""
    if is_estimate(node):
        yield path, path.endswith("difference")
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _paths(value, f"{path}.{_quoted(key)}")
    elif isinstance(node, list):
        for step, value in zip(_steps(node), node, strict=True):
            yield from _paths(value, f"{path}{step}")
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield path, False


def _quoted(text: str) -> str:
    return text if text.replace("_", "").replace("-", "").isalnum() else f'"{text}"'


def _names(value: Any) -> bool:
    """Return whether a value may tell an entry apart: no measured number does."""
    if isinstance(value, float):
        return len(str(value)) <= ROUND
    return isinstance(value, str | int | None)


def _steps(entries: Sequence[Any]) -> list[str]:
    """Return what tells the entries of a list apart, as brackets."""
    objects = [entry for entry in entries if isinstance(entry, Mapping)]
    if len(objects) == len(entries):
        keys = [
            key
            for key in (objects[0] if objects else ())
            if all(_names(o.get(key)) for o in objects)
        ]
        for count in range(1, MOST_KEYS + 1):
            for chosen in combinations(keys, count):
                told = [
                    "".join(f"[{k}={_quoted(as_text(o.get(k)))}]" for k in chosen)
                    for o in objects
                ]
                if len(set(told)) == len(told):
                    return told
    return [f"[{place}]" for place in range(len(entries))]
