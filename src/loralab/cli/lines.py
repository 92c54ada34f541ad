"""One text a line, in a file or on standard input."""

from __future__ import annotations

from pathlib import Path

from loralab.errors import DataError


def read_text(file: Path, newline: str | None = None) -> str:
    """Return what stands in a file, with or without a byte order mark.

    Args:
        file: UTF-8.
        newline: As of `open`: None takes every line ending for a line feed.

    Raises:
        DataError: there is no such file, or it is not UTF-8.
    """
    if not file.is_file():
        raise DataError("no such file", where=str(file))
    try:
        with file.open(encoding="utf-8-sig", newline=newline) as handle:
            return handle.read()
    except UnicodeDecodeError:
        raise DataError("not UTF-8", where=str(file)) from None


def read_lines(file: Path) -> list[str]:
    """Return the lines of a file; see `lines_of`.

    Raises:
        DataError: there is no such file, or it is not UTF-8.
    """
    return lines_of(read_text(file, newline="\n"))


def lines_of(text: str) -> list[str]:
    """Return the lines of a text, without empty ones at its end.

    Only a line feed ends a line: U+2028, NEL and form feed, at which
    `str.splitlines` breaks too, stand within texts, and bare in JSON.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines
