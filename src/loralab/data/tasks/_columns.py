"""What tasks ask of a column, with errors that name it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loralab.errors import nearest


def column_of(columns: Mapping[str, Any], name: str) -> Any:
    """Return a column's value.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in columns:
        hint = nearest(name, map(str, columns))
        raise ValueError(
            f"no column {name!r} ({hint}); name yours with data.columns.{name}=COLUMN"
        )
    return columns[name]


def text_of(columns: Mapping[str, Any], name: str) -> str:
    """Return a column's text.

    Raises:
        ValueError: there is no such column, or it is empty or no text.
    """
    value = column_of(columns, name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {type(value).__name__}, not text")
    if not value.strip():
        raise ValueError(f"{name} is empty")
    return value


def words_of(columns: Mapping[str, Any], name: str) -> list[str]:
    """Return a column's list of words.

    Raises:
        ValueError: there is no such column, or it holds anything but words.
    """
    value = column_of(columns, name)
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{name} is not a list of texts")
    if not all(isinstance(x, str) and x.strip() for x in value):
        raise ValueError(f"{name} holds something empty, or that is no text")
    return list(value)
