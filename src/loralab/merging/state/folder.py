"""The files of a merge state: adapters kept as they are, everything known by sha256."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from loralab.errors import MergeError
from loralab.lowrank.stream import check_space
from loralab.merging.state.log import Log
from loralab.runs.files import atomic_directory, remove_leftovers, sha256_file


def place(folder: Path, digest: str) -> Path:
    """Return where a state keeps the adapter of a digest."""
    return folder / "adapters" / digest


def keep(folder: Path, adapter: Path) -> tuple[str, dict[str, str]]:
    """Copy an adapter's files into a state, bit for bit, unless they are there.

    What lies in folders below the adapter's (checkpoints) is not part of it.

    Args:
        folder: Of the state.
        adapter: With PEFT's two files.

    Returns:
        The sha256 of all files and their names, which is the copy's name; and the name
        and sha256 of each.

    Raises:
        ExportError: the disk has not enough room.
        MergeError: the adapter changes while it is read.
    """
    found = sorted(file for file in adapter.iterdir() if file.is_file())
    files = {file.name: sha256_file(file) for file in found}
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    kept = place(folder, digest)
    if not kept.is_dir():  # made at once, or not at all
        check_space(folder, sum(file.stat().st_size for file in found))
        with atomic_directory(kept) as temporary:
            for file in found:
                shutil.copyfile(file, temporary / file.name)
    _check_adapter(kept, files)
    return digest, files


def check_files(folder: Path, log: Log) -> None:
    """Refuse a state with a file that is not what was written.

    Raises:
        MergeError: a file is missing or was changed; it is named.
    """
    for entry in log.entries:
        if entry.action == "add":
            _check_adapter(place(folder, entry.digest), entry.files)
    if log.merged:
        _check_file(folder / log.merged.file, log.merged.sha256)


def tidy(folder: Path, log: Log) -> None:
    """Delete what no entry of the log names: what a killed change left behind."""
    remove_leftovers(folder)
    current = log.merged.file if log.merged else None
    for file in folder.glob("merged-*.safetensors"):
        if file.name != current:
            file.unlink()
    for kept in folder.glob("adapters/*"):
        if kept.name not in log.digests:
            shutil.rmtree(kept)


def _check_adapter(kept: Path, files: Mapping[str, str]) -> None:
    for name, digest in files.items():
        _check_file(kept / name, digest)


def _check_file(file: Path, digest: str) -> None:
    there = file.is_file()
    if not there or sha256_file(file) != digest:
        raise MergeError(
            "is not what was written" if there else "is missing",
            where=str(file),
            why="every file of a merge state is known by its sha256",
            fix="bring it back from a backup, or begin a new merge",
        )
