"""CSV, TSV, JSONL and Parquet files of the user's own."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from loralab.data.embedded import RawRow
from loralab.errors import DataError
from loralab.registry import Params, register


class FileParams(Params):
    """The files; the ending of the name tells the format."""

    path: str = Field(
        description="training rows (.csv .tsv .jsonl .parquet), relative to where "
        "loralab is called; splits that have no file are taken from it"
    )
    validation_path: str | None = None
    test_path: str | None = None


def _csv(path: Path) -> Iterator[RawRow]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as handle:
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
                        raise DataError(
                            f"two columns are called {twice[0]!r}", where=f"{path}:1"
                        )
                    continue
                problem = ""
                if len(cells) != len(header):
                    problem = f"{len(cells)} cells, and the header has {len(header)}; "
                    problem += "quote cells that hold the delimiter or a line break"
                row = dict(zip(header, cells, strict=False))
                yield RawRow(row, f"{path}:{start}", problem=problem)
        except csv.Error as error:
            raise DataError(f"not CSV: {error}", where=f"{path}:{end + 1}") from None


def _jsonl(path: Path) -> Iterator[RawRow]:
    with path.open(encoding="utf-8") as handle:
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
            yield RawRow(row, f"{path}:{number}", problem=problem)


def _parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"not Parquet: {error}", where=str(path)) from None
    for number, row in enumerate(table.to_pylist(), 1):
        yield RawRow(row, f"{path}:row {number}")


READERS = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def _read_one(name: str, split: str | None) -> Iterator[RawRow]:
    path = Path(name).expanduser()
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"the ending {path.suffix!r} names no known format",
            where=name,
            fix=f"use one of {', '.join(READERS)}",
        )
    if not path.is_file():
        raise DataError(
            "no such file", where=name, why=f"looked from {Path.cwd().name}/"
        )
    try:
        for row in reader(path):
            yield replace(row, split=split)
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 (byte {error.start})",
            where=name,
            fix="save the file as UTF-8",
        ) from None


@register("data source", "file", FileParams)
def read(params: FileParams) -> Iterator[RawRow]:
    """Yield the rows of the files, with the split that a file of its own gives."""
    own = params.validation_path or params.test_path
    yield from _read_one(params.path, "train" if own else None)
    if params.validation_path:
        yield from _read_one(params.validation_path, "validation")
    if params.test_path:
        yield from _read_one(params.test_path, "test")
