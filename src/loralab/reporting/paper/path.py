"""A path into a JSON document: one address for every format that a result has.

    $.dense.ratio.float64                      keys
    $.exports[0].seconds                       an entry of a list, by its place
    $.comparisons[data=trec-6][arm=gradient]   entries whose keys have these values
    $.cells[grid="int4 g32, fp32 zeros"]       quotes, where a value is not one word
    $.trials[seed<3].value                     also != < >

Steps follow each other, so two brackets mean both. `[*]` is every entry of a list or an
object. A bracket that chooses several entries makes several hits; a path that hits
nothing is an error that says what there is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from loralab.errors import PaperError, nearest

_STEP = re.compile(
    r"""\.(?P<key>"[^"]*"|[\w%:/+-]+)
    |\[(?P<place>\d+|\*)\]
    |\[(?P<name>[\w.-]+)(?P<sign>!=|=|<|>)(?P<value>"[^"]*"|[^\]"]*)\]""",
    re.VERBOSE,
)
_SHOWN = 12
"""As many values an error lists."""


@dataclass(frozen=True)
class Hit:
    """What a path leads to.

    Attributes:
        steps: Keys and places from the document's root.
        value: What stands there.
    """

    steps: tuple[str | int, ...]
    value: Any

    @property
    def pointer(self) -> str:
        """The place as a JSON pointer (RFC 6901)."""
        texts = (str(step).replace("~", "~0").replace("/", "~1") for step in self.steps)
        return "".join(f"/{text}" for text in texts)


def find(document: Any, path: str) -> list[Hit]:
    """Return everything that a path leads to, in the document's order.

    Args:
        document: Parsed JSON.
        path: Begins with ``$``.

    Raises:
        PaperError: the path is not one, or leads nowhere.
    """
    hits, at = [Hit((), document)], 1
    while at < len(path):
        step = _STEP.match(path, at)
        if step is None:
            raise PaperError(
                f"cannot read the path from {path[at:]!r} on",
                fix='steps are .key, ."a key", [0], [*] and [key=value]',
            )
        hits = _taken(hits, step, path[:at])
        at = step.end()
    return hits


def _taken(hits: list[Hit], step: re.Match[str], before: str) -> list[Hit]:
    if step["key"] is not None:
        return [_child(hit, _bare(step["key"]), before) for hit in hits]
    if step["place"] is not None:
        found = chain.from_iterable(_placed(hit, step["place"], before) for hit in hits)
        return list(found)
    return _chosen(hits, step, before)


def _bare(text: str) -> str:
    return text[1:-1] if text[:1] == '"' else text


def _child(hit: Hit, key: str, before: str) -> Hit:
    if isinstance(hit.value, list):
        raise PaperError(
            f"{before} is a list of {len(hit.value)}, which has no key {key!r}",
            fix="choose of it with [key=value], [0] or [*]",
        )
    if not isinstance(hit.value, Mapping):
        raise PaperError(f"{before} is {hit.value!r}: no key {key!r} below it")
    if key not in hit.value:
        raise PaperError(f"{before} has no key {key!r}", fix=nearest(key, hit.value))
    return Hit((*hit.steps, key), hit.value[key])


def _entries(hit: Hit, before: str) -> list[Hit]:
    """Return the entries of a list or an object.

    Raises:
        PaperError: it is neither.
    """
    pairs: Any
    if isinstance(hit.value, list):
        pairs = enumerate(hit.value)
    elif isinstance(hit.value, Mapping):
        pairs = hit.value.items()
    else:
        raise PaperError(f"{before} is {hit.value!r}, not a list to choose of")
    return [Hit((*hit.steps, key), value) for key, value in pairs]


def _placed(hit: Hit, place: str, before: str) -> list[Hit]:
    entries = _entries(hit, before)
    if place == "*":
        return entries
    if not isinstance(hit.value, list) or int(place) >= len(entries):
        raise PaperError(f"{before} has {len(entries)} entries, and no [{place}]")
    return [entries[int(place)]]


def _chosen(hits: list[Hit], step: re.Match[str], before: str) -> list[Hit]:
    """Return the entries with a value.

    A second bracket chooses among what the first has chosen, and not inside of it.
    """
    name, sign, value = step["name"], step["sign"], _bare(step["value"])
    again = before.endswith("]") and not re.search(r"\[(\d+|\*)\]$", before)
    if again:
        entries = hits
    else:
        entries = list(chain.from_iterable(_entries(hit, before) for hit in hits))
    having = [e for e in entries if isinstance(e.value, Mapping) and name in e.value]
    if not having:
        keys = chain.from_iterable(
            e.value for e in entries if isinstance(e.value, Mapping)
        )
        raise PaperError(
            f"no entry of {before} has a key {name!r}", fix=nearest(name, set(keys))
        )
    found = [e for e in having if _holds(e.value[name], sign, value)]
    if not found:
        there = list(dict.fromkeys(as_text(e.value[name]) for e in having))
        more = f", … ({len(there)})" if len(there) > _SHOWN else ""
        raise PaperError(
            f"no entry of {before} has {name}{sign}{value}",
            fix=f"there is {name} = {', '.join(there[:_SHOWN])}{more}",
        )
    return found


def as_text(value: Any) -> str:
    """Return a scalar as a bracket writes it: ``null``, ``true``, a number or text."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
}


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _holds(found: Any, sign: str, asked: str) -> bool:
    left, right = _number(found), _number(asked)
    if sign in _COMPARE:
        return left is not None and right is not None and _COMPARE[sign](left, right)
    both = left is not None and right is not None and not isinstance(found, str)
    same = left == right if both else as_text(found) == asked
    return same == (sign == "=")
