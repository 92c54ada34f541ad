"""Readers of file formats, one a function; the ending of a file's name chooses.

A file may lie here or anywhere that fsspec reaches (``s3://…``, ``memory://…``).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from loralab.data.embedded import RawRow
from loralab.errors import DataError

_CELL_LIMIT = 2**31 - 1
"""Characters of a CSV cell: Python's own limit of 131,072 is too small for texts."""


@dataclass(frozen=True)
class Place:
    """A file or folder: where it is, and what the user calls it.

    Attributes:
        fs: The fsspec file system.
        path: In `fs`.
        name: As the user wrote it; for origins and messages.
    """

    fs: Any
    path: str
    name: str

    @property
    def ending(self) -> str:
        """The ending of its name, with the dot, in lower case."""
        base = self.path.rstrip("/").rpartition("/")[2]
        return f".{base.rpartition('.')[2]}".lower() if "." in base[1:] else ""

    def text(self, newline: str | None = None) -> IO[str]:
        """Open it as UTF-8 text, with or without a byte order mark."""
        handle: IO[str] = self.fs.open(
            self.path, "r", encoding="utf-8-sig", newline=newline
        )
        return handle


def _check_delimiter(place: Place, header: list[str], delimiter: str) -> None:
    """Refuse a header that is one column here and several with another delimiter.

    A column whose name holds one is refused too: its name can be changed.

    Raises:
        DataError: it is, which would else be told of every row.
    """
    names = {",": "a comma", ";": "';'", "\t": "a tab"}
    others = [one for one in names if one != delimiter and one in header[0]]
    if len(header) == 1 and others:
        raise DataError(
            f"its columns seem to be separated by {names[others[0]]}, "
            f"and {place.ending} is read with {names[delimiter]}",
            where=f"{place.name}:1",
            fix="save it with commas as .csv, with tabs as .tsv, or as .jsonl or "
            ".parquet",
        )


def _csv(place: Place) -> Iterator[RawRow]:
    delimiter = "\t" if place.ending == ".tsv" else ","
    csv.field_size_limit(_CELL_LIMIT)
    with place.text(newline="") as handle:
        reader = csv.reader(handle, delimiter=delimiter, strict=True)
        header: list[str] = []
        end = 0
        try:
            for cells in reader:
                start, end = end + 1, reader.line_num
                if not cells:  # an empty line
                    continue
                if not header:
                    header = cells
                    twice = sorted({c for c in cells if cells.count(c) > 1})
                    if twice:
                        what = f"two columns are called {twice[0]!r}"
                        raise DataError(what, where=f"{place.name}:1")
                    _check_delimiter(place, header, delimiter)
                    continue
                problem = ""
                if len(cells) != len(header):
                    problem = f"{len(cells)} cells, and the header has {len(header)}; "
                    problem += "quote cells that hold the delimiter or a line break"
                row = dict(zip(header, cells, strict=False))
                yield RawRow(row, f"{place.name}:{start}", problem=problem)
        except csv.Error as error:
            where = f"{place.name}:{end + 1}"
            raise DataError(f"not CSV: {error}", where=where) from None


def _jsonl(place: Place) -> Iterator[RawRow]:
    with place.text() as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            row, problem = {}, ""
            try:
                row = json.loads(line)
            except ValueError as error:
                problem = f"not JSON: {error}"
            if not isinstance(row, dict):
                row, problem = {}, "a line must be one JSON object"
            yield RawRow(row, f"{place.name}:{number}", problem=problem)


def _json(place: Place) -> Iterator[RawRow]:
    with place.text() as handle:
        try:
            content = json.load(handle)
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise DataError(f"not JSON: {error}", where=place.name) from None
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        yield from _squad(place, content["data"])
        return
    if not isinstance(content, list):
        raise DataError(
            "neither a list of objects nor SQuAD's object with a list `data`",
            where=place.name,
            fix="write one list, or one object a line in a .jsonl file",
        )
    for number, row in enumerate(content, 1):
        problem = "" if isinstance(row, dict) else "not an object"
        columns = {} if problem else row
        yield RawRow(columns, f"{place.name}:item {number}", problem=problem)


def _squad(place: Place, articles: list[Any]) -> Iterator[RawRow]:
    """Yield one row a question of SQuAD's nesting, version 1 or 2."""
    for a, article in enumerate(articles, 1):
        try:
            title, paragraphs = article.get("title"), article["paragraphs"]
            flat = [(p["context"], qa) for p in paragraphs for qa in p["qas"]]
        except (KeyError, TypeError, AttributeError):
            raise DataError(
                "not SQuAD's nesting: data, paragraphs, context, qas",
                where=f"{place.name}:article {a}",
                fix="write plain rows as one list, without the object around it",
            ) from None
        for q, (context, qa) in enumerate(flat, 1):
            origin, problem = f"{place.name}:article {a} question {q}", ""
            row: dict[str, Any] = {}
            try:
                answers = [] if qa.get("is_impossible") else qa["answers"]
                row = {
                    "id": qa.get("id"),
                    "title": title,
                    "context": context,
                    "question": qa["question"],
                    "answers": {
                        "text": [answer["text"] for answer in answers],
                        "answer_start": [answer["answer_start"] for answer in answers],
                    },
                }
            except (KeyError, TypeError, AttributeError) as error:
                problem = f"not SQuAD's question: {error} is missing or misplaced"
            yield RawRow(row, origin, problem=problem)


def _txt(place: Place) -> Iterator[RawRow]:
    with place.text() as handle:
        for number, line in enumerate(handle, 1):
            if line.strip():
                yield RawRow({"text": line.rstrip("\n")}, f"{place.name}:{number}")


def _conll(place: Place) -> Iterator[RawRow]:
    """Yield a row a sentence: the first column is the token, the last one its tag."""
    tokens: list[str] = []
    tags: list[str] = []
    width, start, problem = 0, 0, ""
    with place.text() as handle:
        for number, line in enumerate([*handle, ""], 1):
            if line.strip() and not line.startswith("-DOCSTART-"):
                # tabs and blanks only: a no-break space is part of a token
                cells = re.split(r"[ \t]+", line.strip(" \t\n"))
                start, width = start or number, width or len(cells)
                if len(cells) != width or width < 2:
                    problem = problem or (
                        f"line {number} has {len(cells)} columns, not "
                        + (f"{width} as the first" if width > 1 else "token … tag")
                    )
                tokens.append(cells[0])
                tags.append(cells[-1])
            elif tokens:
                row = {"tokens": tokens, "tags": tags}
                yield RawRow(row, f"{place.name}:{start}", problem=problem)
                tokens, tags, start, problem = [], [], 0, ""


def _parquet(place: Place) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with place.fs.open(place.path, "rb") as handle:
            for batch in pq.ParquetFile(handle).iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield RawRow(row, f"{place.name}:row {number}")
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"not Parquet: {error}", where=place.name) from None


READERS: Mapping[str, Callable[[Place], Iterator[RawRow]]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".txt": _txt,
    ".conll": _conll,
}
"""By the ending of a file's name."""
