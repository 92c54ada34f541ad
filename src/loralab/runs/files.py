"""Files of ours, written atomically: a reader sees the old content or the new.

Write into a temporary neighbour, fsync it, rename it over the target, fsync the
directory. A kill at any point leaves at most a `.tmp-…` neighbour, which
`remove_leftovers` deletes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from loralab.errors import LoralabError

TEMPORARY = ".tmp-"


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _neighbour(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}{path.name}-{uuid4().hex[:8]}")


def rename(temporary: Path, path: Path) -> None:
    """Rename over the target, and fsync the directory that holds both."""
    temporary.replace(path)
    _fsync(path.parent)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on a clean exit it becomes `path`, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _neighbour(path)
    try:
        yield temporary
        _fsync(temporary)
        rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory; on a clean exit it becomes `path`, whole.

    A `path` that exists is moved aside first and deleted after: `rename` cannot replace
    a directory that has files. A kill between the two renames leaves the old one under
    its temporary name; what is written here can be made again from a checkpoint.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _neighbour(path)
    temporary.mkdir()
    try:
        yield temporary
        publish_directory(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_directory(temporary: Path, path: Path) -> None:
    """Give a finished temporary directory its name; what has the name is deleted."""
    for part in (*temporary.rglob("*"), temporary):
        _fsync(part)
    remove_directory(path)
    rename(temporary, path)


def remove_directory(path: Path) -> None:
    """Delete a directory so that no half-deleted one ever stands under its name."""
    if path.is_dir():
        aside = _neighbour(path)
        path.rename(aside)
        shutil.rmtree(aside)


def remove_leftovers(directory: Path) -> None:
    """Delete what a killed writer left below `directory`."""
    for path in sorted(directory.rglob(f"{TEMPORARY}*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically. NaN and infinities are refused by `json`."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_record(
    file: Path, latest: int, error: type[LoralabError], wrong: str, fix: str = ""
) -> dict[str, Any]:
    """Return the content of a JSON file of ours, which says its format.

    Args:
        file: Its path.
        latest: The format that is written now; earlier ones are read by the caller.
        error: The class of the errors.
        wrong: What to say of one that cannot be read.
        fix: What to do then.

    Raises:
        LoralabError: of the class `error`: missing, broken, or of a later format.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = int(content["format"])
    except (OSError, ValueError, KeyError, TypeError) as found:
        where, why = str(file.parent), str(found)
        raise error(wrong, where=where, why=why, fix=fix) from None
    check_format(version, latest, error, file)
    return dict(content)


def check_format(
    version: int, latest: int, error: type[LoralabError], file: Path
) -> None:
    """Refuse a file that a later loralab wrote.

    Raises:
        LoralabError: of the class `error`.
    """
    if version > latest:
        raise error(
            f"format {version} is later than the {latest} known here",
            where=str(file),
            fix="update loralab",
        )


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
