"""What a draft's numbers were when somebody last looked: ``<draft>.lock.json``.

A build compares. A source whose bytes are others, or a reference that comes to another
value, is an error that says old and new; `--update` accepts what is there now. What the
draft names for the first time is no change.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loralab.errors import PaperError
from loralab.reporting.paper.references import Resolved
from loralab.runs.files import write_json

FORMAT_VERSION = 1
_FIX = "read the sentence again, then build with --update"


@dataclass(frozen=True)
class Lock:
    """What was built last.

    Attributes:
        sources: File from the project's root -> sha256; figures too.
        numbers: Text of a reference -> what it was: ``shown``, ``values``, ``source``.
    """

    sources: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def path_of(draft: Path) -> Path:
    """Return where a draft's lock is."""
    return draft.with_suffix(".lock.json")


def read(draft: Path) -> Lock:
    """Return a draft's lock; an empty one where it was never built.

    Raises:
        PaperError: it cannot be read.
    """
    file = path_of(draft)
    if not file.exists():
        return Lock()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] != FORMAT_VERSION:
            raise ValueError(f"format {found['format']}, known is {FORMAT_VERSION}")
        return Lock(found["sources"], found["numbers"])
    except (ValueError, KeyError, TypeError) as error:
        raise PaperError(
            "the lock cannot be read",
            where=str(file),
            why=str(error),
            fix="restore it from git",
        ) from None


def made_of(numbers: Iterable[Resolved], sources: Mapping[str, str]) -> Lock:
    """Return the lock of what was resolved now.

    Args:
        numbers: All references of the draft.
        sources: File -> sha256 of everything that was read.
    """
    entries = {
        one.reference.text: {
            "shown": one.shown,
            "values": list(one.values),
            "source": one.source,
        }
        for one in numbers
        if one.source
    }
    return Lock(dict(sorted(sources.items())), dict(sorted(entries.items())))


def write(draft: Path, lock: Lock) -> None:
    """Write a draft's lock, atomically."""
    content = {"format": FORMAT_VERSION, "draft": draft.name}
    shown = {"sources": lock.sources, "numbers": lock.numbers}
    write_json(path_of(draft), {**content, **shown})


def stale(
    before: Lock, now: Lock, lines: Mapping[str, int], draft: str
) -> list[PaperError]:
    """Return an error for every number and source that is not what it was.

    Args:
        before: What was built last.
        now: What is there.
        lines: Text of a reference -> its first line.
        draft: Its file, for the messages.
    """
    found, told = [], set[str]()
    for text, entry in now.numbers.items():
        old = before.numbers.get(text)
        if old is None or dict(old) == dict(entry):
            continue
        told.add(entry["source"])
        found.append(_changed(text, old, entry, f"{draft}:{lines[text]}"))
    for file, digest in now.sources.items():
        old_digest = before.sources.get(file)
        if old_digest in (None, digest) or file in told:
            continue
        count = sum(entry["source"] == file for entry in now.numbers.values())
        found.append(
            PaperError(
                f"{file} has changed since the paper was built",
                where=draft,
                why=f"sha256 was {str(old_digest)[:12]}…, is {digest[:12]}…; "
                f"{count} numbers of the draft are read from it, and none has changed",
                fix=_FIX,
            )
        )
    return found


def _changed(
    text: str, old: Mapping[str, Any], entry: Mapping[str, Any], where: str
) -> PaperError:
    was, now = old["shown"], entry["shown"]
    if was == now:
        was, now = (json.dumps(one["values"]) for one in (old, entry))
    return PaperError(
        f"a number is stale: it was {was}, and is {now}",
        where=where,
        why=f"{{{{ {text} }}}} in {entry['source']} has changed since the paper was "
        "built",
        fix=_FIX,
    )
