"""What stands in two splits: an input, one that is answered on the way, a near one.

Inputs are compared as they are written. What differs in case or white space only stays
where it is, since it may be another thing to a model, and is counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loralab.errors import DataError

SPLITS = ("train", "validation", "test")

WHOLE = "give each conversation once, whole"
"""What to do of conversations that were exported turn by turn."""


@dataclass(frozen=True)
class Checked:
    """A row that its task can use.

    Attributes:
        content: The task's own columns.
        origin: ``file:line``.
        split: The split the source gives it, or None.
        input_key: sha256 of what the model is given.
        row_key: sha256 of the whole content; of an image, its pixels.
        earlier_keys: As `input_key`, of the responses of a conversation before its
            last: training supervises them too.
    """

    content: dict[str, Any]
    origin: str
    split: str | None
    input_key: str
    row_key: str
    earlier_keys: tuple[str, ...] = ()


def remove_duplicates(
    splits: dict[str, list[Checked]], policy: str
) -> tuple[dict[str, list[Checked]], dict[str, int]]:
    """Return the splits without repeated and leaking rows, and the counts.

    Raises:
        DataError: the policy is ``error`` and there is one; both origins are named.
    """
    counts = {"duplicates": 0, "leaks": 0, "conflicts": 0}
    later: dict[str, str] = {}
    kept: dict[str, list[Checked]] = {}
    for name in reversed([n for n in SPLITS if n in splits]):
        seen: dict[str, str] = {}
        inputs: dict[str, str] = {}
        kept[name] = []
        for row in splits[name]:
            kind = ""
            if row.row_key in seen:
                kind, other = "duplicates", seen[row.row_key]
            elif row.input_key in later:
                kind, other = "leaks", later[row.input_key]
            if kind:
                counts[kind] += 1
                if policy == "error":
                    raise DataError(
                        f"repeats {other}"
                        + (" of a later split" if kind == "leaks" else ""),
                        where=row.origin,
                        fix="remove it, or set data.duplicates=drop",
                    )
            if not kind and row.input_key in inputs:
                counts["conflicts"] += 1
            seen.setdefault(row.row_key, row.origin)
            inputs.setdefault(row.input_key, row.origin)
            if not kind or policy == "keep":
                kept[name].append(row)
        later |= inputs
    return {name: kept[name] for name in SPLITS if name in kept}, counts


def remove_answering(
    splits: dict[str, list[Checked]], policy: str
) -> tuple[dict[str, list[Checked]], int]:
    """Return the splits without rows that answer a later one's input on the way.

    So are conversations exported turn by turn: the answer to one row is supervised
    word for word in the next. `remove_duplicates` sees last responses only.

    Returns:
        The splits, and how many rows there were of the kind.

    Raises:
        DataError: the policy is ``error`` and there is one; both origins are named.
    """
    count = 0
    later: dict[str, str] = {}
    kept: dict[str, list[Checked]] = {}
    for name in reversed([n for n in SPLITS if n in splits]):
        clean = []
        for row in splits[name]:
            found = next((key for key in row.earlier_keys if key in later), None)
            if found is None or row.input_key in later:  # this one is counted already
                clean.append(row)
            elif policy == "error":
                raise DataError(
                    f"answers {later[found]} of a later split in an earlier turn",
                    where=row.origin,
                    fix=f"{WHOLE}, or set data.duplicates=drop",
                )
        count += len(splits[name]) - len(clean)
        later |= {row.input_key: row.origin for row in clean}
        kept[name] = splits[name] if policy == "keep" else clean
    return {name: kept[name] for name in SPLITS if kept.get(name)}, count


def folded(given: str) -> int:
    """Return a hash of an input without case, its white space joined, part by part."""
    parts = re.split("[\x1e\x1f]", given)  # what joins them is white space to `split`
    return hash(tuple(" ".join(part.casefold().split()) for part in parts))


def count_near(
    splits: Mapping[str, Sequence[Checked]], input_of: Callable[[dict[str, Any]], str]
) -> dict[str, int]:
    """Return how many rows differ from a train row in case or white space only.

    Args:
        splits: Train and later ones.
        input_of: The task's; what it says of an image has neither.

    Returns:
        The rows of validation and of test, where there are any.
    """
    same = {row.input_key for row in splits["train"]}
    near = {folded(input_of(row.content)) for row in splits["train"]}
    found = {}
    for name in [name for name in splits if name != "train"]:
        others = [row for row in splits[name] if row.input_key not in same]
        found[name] = sum(folded(input_of(row.content)) in near for row in others)
    return {name: count for name, count in found.items() if count}
