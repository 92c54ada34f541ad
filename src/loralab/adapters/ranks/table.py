"""Ranks that the user writes down, by pattern."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from loralab.adapters.apportionment import WHERE, Module
from loralab.errors import AdapterError
from loralab.registry import Params, register


class TableParams(Params):
    """The table."""

    ranks: dict[str, Annotated[int, Field(gt=0)]] = Field(
        min_length=1,
        description="pattern -> rank; a pattern matches the end of a module's path, as "
        "in target_modules",
    )


@register("rank strategy", "table", TableParams, gives="ranks")
def table(
    params: TableParams,
    modules: Sequence[Module],
    statistics: Mapping[str, Any] | None,
    seed: int,
) -> list[int]:
    """Return the rank of the one pattern that matches each module.

    Raises:
        AdapterError: a pattern is no regular expression or matches nothing, a module
            is matched by none or by several.
    """
    found: dict[str, list[str]] = {module.name: [] for module in modules}
    for pattern in params.ranks:
        matched = _matched(pattern, list(found))
        if not matched:
            raise AdapterError(
                f"{pattern!r} matches no targeted module",
                where=WHERE,
                fix=f"write the end of a path, such as {modules[0].name!r}",
            )
        for name in matched:
            found[name].append(pattern)
    for name, own in found.items():
        if len(own) != 1:
            several = " and ".join(map(repr, own))
            what = f"is matched by {several}" if own else "has no rank in the table"
            raise AdapterError(
                f"{name} {what}",
                where=WHERE,
                why="a table gives every targeted module one rank",
                fix="make the patterns exclude each other" if own else "add a pattern",
            )
    return [params.ranks[found[module.name][0]] for module in modules]


def _matched(pattern: str, names: Sequence[str]) -> list[str]:
    try:
        compiled = re.compile(rf"(?:.*\.)?(?:{pattern})")
    except re.error as error:
        raise AdapterError(
            f"{pattern!r} is no regular expression: {error}", where=WHERE
        ) from None
    return [name for name in names if compiled.fullmatch(name)]
