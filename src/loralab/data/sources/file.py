"""Files and folders of the user's own, here or at a URL that fsspec reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from loralab.data.embedded import RawRow
from loralab.data.readers import READERS, Place
from loralab.errors import DataError
from loralab.registry import Params, register

_EXTRAS = {"s3": "s3", "s3a": "s3"}
"""The extra of ours that brings a protocol's package."""

SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}
_ALMOST = ("val", "eval")
"""Beginnings that probably mean a split, but are none of the known names."""


class FileParams(Params):
    """The files; the ending of the name tells the format."""

    path: str = Field(
        description="training rows (.csv .tsv .jsonl .json .parquet .txt .conll), "
        "relative to where loralab is called, or a URL such as s3://BUCKET/KEY; a "
        "folder's files may be named after their splits, or lie in train/, "
        "validation/, test/; splits that have no file are taken from train"
    )
    validation_path: str | None = None
    test_path: str | None = None


def _place(name: str) -> Place:
    """Return where a path or URL is.

    Raises:
        DataError: no such protocol, its package is missing, or a secret in the URL.
    """
    import fsspec

    protocol, is_url, rest = name.partition("://")
    if not is_url:
        return Place(fsspec.filesystem("file"), str(Path(name).expanduser()), name)
    if "@" in rest.partition("/")[0]:
        raise DataError(
            "a URL may not hold credentials",
            where=f"{protocol}://…",
            why="it is written into the run, and they with it",
            fix="set them in the environment, for S3 AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY",
        )
    try:
        fs, path = fsspec.url_to_fs(name)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        raise DataError(
            f"the package that reads {protocol}:// is not installed",
            where=name,
            fix=f"pip install 'loralab[{extra}]'" if extra else str(error),
        ) from None
    except ValueError as error:
        raise DataError(str(error), where=name, fix="use a path, or s3://…") from None
    return Place(fs, path, name)


def _entries(place: Place) -> list[tuple[Place, bool]]:
    """Return what lies in a folder and whether it is one too, sorted by name."""
    found = []
    for entry in place.fs.ls(place.path, detail=True):
        base = str(entry["name"]).rstrip("/").rpartition("/")[2]
        if base and not base.startswith((".", "_")):
            path = f"{place.path.rstrip('/')}/{base}"
            own = Place(place.fs, path, f"{place.name.rstrip('/')}/{base}")
            found.append((own, entry["type"] == "directory"))
    return sorted(found, key=lambda pair: pair[0].path)


def _base(place: Place) -> str:
    return place.path.rpartition("/")[2]


def _unclear(folder: Place, why: str, found: list[tuple[Place, bool]]) -> DataError:
    shown = ", ".join(_base(p) + "/" * is_folder for p, is_folder in found[:12])
    more = f" and {len(found) - 12} more" if len(found) > 12 else ""
    return DataError(
        f"this folder's layout is not clear: {why}",
        where=folder.name,
        why=f"it holds {shown or 'nothing'}{more}",
        fix="let all files, or none, begin with train, validation (or dev) and test; "
        "or lay them into folders of these names; or name single files with path, "
        "validation_path and test_path",
    )


def _known(folder: Place, found: list[tuple[Place, bool]]) -> list[Place]:
    """Return the files of known endings, which must be one and the same."""
    files = [p for p, is_folder in found if not is_folder and p.ending in READERS]
    endings = sorted({p.ending for p in files})
    if len(endings) > 1:
        raise _unclear(folder, f"files of several kinds ({', '.join(endings)})", found)
    return files


def _split_of(base: str) -> str | None:
    for beginning, split in SPLIT_NAMES.items():
        if base.lower().startswith(beginning):
            return split
    return None


def _flat(folder: Place) -> list[Place]:
    """Return a folder's files, none of them in a folder below."""
    found = _entries(folder)
    files = _known(folder, found)
    if not files or any(is_folder for _, is_folder in found):
        why = "no file of a known ending" if not files else "a folder within"
        raise _unclear(folder, why, found)
    return files


def _layout(folder: Place) -> list[tuple[Place, str | None]]:
    """Return a folder's files, each with the split that names give it.

    Raises:
        DataError: the names do not tell; nothing is guessed.
    """
    found = _entries(folder)
    files = _known(folder, found)
    folders = [p for p, is_folder in found if is_folder]
    if folders:
        other = [_base(p) for p in folders if _base(p) not in SPLIT_NAMES]
        if other or files:
            why = f"{other[0]}/ is no split" if other else "files beside split folders"
            raise _unclear(folder, why, found)
        pairs = [(file, SPLIT_NAMES[_base(p)]) for p in folders for file in _flat(p)]
    else:
        splits = [_split_of(_base(p)) for p in files]
        almost = [p for p in files if _base(p).lower().startswith(_ALMOST)]
        if almost and None in splits:
            odd = next((p for p in almost if _split_of(_base(p)) is None), None)
            if odd:
                raise _unclear(folder, f"{_base(odd)} may be a split or not", found)
        if not any(splits):
            if not files:
                raise _unclear(folder, "no file of a known ending", found)
            return [(file, None) for file in files]
        if None in splits:
            base = _base(files[splits.index(None)])
            raise _unclear(folder, f"{base} belongs to no split", found)
        pairs = [(f, s) for f, s in zip(files, splits, strict=True) if s]
    if all(split != "train" for _, split in pairs):
        raise _unclear(folder, "no training rows", found)
    if len({file.ending for file, _ in pairs}) > 1:
        raise _unclear(folder, "files of several kinds", [(f, False) for f, _ in pairs])
    return [*pairs]


def _find(name: str) -> tuple[Place, bool]:
    """Return the place of a name, and whether it is a folder.

    Raises:
        DataError: nothing is there, or the store cannot be asked.
    """
    place = _place(name)
    is_url = "://" in name
    try:
        if place.fs.isdir(place.path):
            return place, True
        if place.fs.isfile(place.path):
            return place, False
    except Exception as error:  # every store raises its own kinds
        raise _no_answer(name, error) from None
    why = "" if is_url else f"looked from {Path.cwd().name}/"
    raise DataError("no such file", where=name, why=why)


def _no_answer(name: str, error: Exception) -> DataError:
    said = str(error).strip().partition("\n")[0][:300]
    return DataError(
        "cannot be read",
        where=name,
        why=f"{type(error).__name__}: {said}",
        fix="check the name, the network and your right to read it; credentials come "
        "from the environment only" * ("://" in name),
    )


def _rows(place: Place, split: str | None) -> Iterator[RawRow]:
    reader: Any = READERS.get(place.ending)
    if reader is None:
        raise DataError(
            f"the ending {place.ending!r} names no known format",
            where=place.name,
            fix=f"use one of {', '.join(READERS)}",
        )
    try:
        for row in reader(place):
            yield replace(row, split=split)
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 (byte {error.start})",
            where=place.name,
            fix="save the file as UTF-8",
        ) from None
    except OSError as error:
        raise _no_answer(place.name, error) from None


@register("data source", "file", FileParams)
def read(params: FileParams) -> Iterator[RawRow]:
    """Yield the rows of the files, with the split that a file of its own gives."""
    own = {"validation": params.validation_path, "test": params.test_path}
    named = {split: path for split, path in own.items() if path}
    place, is_folder = _find(params.path)
    pairs: list[tuple[Place, str | None]] = [(place, None)]
    if is_folder:
        pairs = _layout(place)
    for split, path in named.items():
        if any(of == split for _, of in pairs):
            raise DataError(
                f"the folder has {split} files, and {split}_path is set too",
                where=params.path,
                fix=f"remove {split}_path, or name the training files' own folder",
            )
        other, is_folder = _find(path)
        pairs += [(file, split) for file in (_flat(other) if is_folder else [other])]
    empty = True
    for file, of in pairs:
        for row in _rows(file, of or ("train" if named else None)):
            empty = False
            yield row
    if empty:
        where = ", ".join(file.name for file, _ in pairs[:3])
        raise DataError("no usable row", where=where, why="empty, or only a header")
