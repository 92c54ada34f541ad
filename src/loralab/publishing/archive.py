"""An archive: a zip with a manifest; written, read, and taken apart with suspicion.

Entries are stored, not compressed (weights do not shrink), with fixed times and rights,
so the same run gives the same bytes. An archive from elsewhere may be hostile: what its
manifest does not list, a path that leads out of the folder, a link, a name that stands
twice or is another's folder, and entries that claim more bytes than the archive has are
refused before anything is written, and what is written is compared with the manifest's
sha256.
"""

from __future__ import annotations

import hashlib
import json
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Literal

from pydantic import Field, ValidationError

from loralab.errors import PublishingError
from loralab.publishing.files import FORMAT_VERSION, MANIFEST
from loralab.publishing.store import File, Tell
from loralab.registry import Strict
from loralab.runs.files import atomic_directory, atomic_file, check_format

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip can tell."""
LARGEST_MANIFEST = 16 << 20
LONGEST_PART, LONGEST_NAME = 255, 1024
"""Bytes of a name that every file system takes: between two slashes, and in all."""
_BLOCK = 1 << 20
_BROKEN = (zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error)
"""What zipfile raises of an entry that cannot be read."""


class Entry(Strict):
    """What a manifest says of a file."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(Strict):
    """What an archive says that it holds."""

    format: Literal[1]
    run: str
    kind: str
    files: dict[str, Entry]


def write_archive(path: Path, files: Sequence[File], tell: Tell) -> None:
    """Write the files into one archive, atomically, the same bytes for the same files.

    Args:
        path: The archive.
        files: All of them, the manifest among them.
        tell: Told of each.
    """
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for file in files:
            entry = zipfile.ZipInfo(file.name, EPOCH)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            entry.file_size = file.bytes
            with archive.open(entry, "w") as target, file.path.open("rb") as source:
                while block := source.read(_BLOCK):
                    target.write(block)
            tell(file.name, file.bytes)


def read_manifest(path: Path) -> Manifest:
    """Return what an archive says that it holds, after looking at its list of entries.

    Raises:
        PublishingError: no archive of ours, or a hostile one; see the module.
    """
    with _opened(path) as archive:
        return _checked(archive, path)


def check_archive(path: Path) -> Manifest:
    """Read a whole archive and compare it with its manifest.

    Raises:
        PublishingError: it is broken or hostile.
    """
    with _opened(path) as archive:
        manifest = _checked(archive, path)
        for name, entry in manifest.files.items():
            _copy(archive, name, entry, None, path)
    return manifest


def extract(archive: Path, folder: Path) -> Manifest:
    """Take an archive apart, into a folder that is there whole or not at all.

    Args:
        archive: The zip file.
        folder: New, or empty.

    Returns:
        Its manifest.

    Raises:
        PublishingError: the folder is not empty or cannot be written, or the archive
            is broken or hostile.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise PublishingError(
            "there is something already", where=str(folder), fix="name a new folder"
        )
    with _opened(archive) as opened:
        manifest = _checked(opened, archive)
        try:
            with atomic_directory(folder) as temporary:
                _write(opened, manifest, temporary, archive)
        except OSError as error:
            raise PublishingError(
                "the archive cannot be taken apart here",
                where=str(folder),
                why=str(error),
                fix="name a folder where you may write, on a disk with room",
            ) from None
    return manifest


def _write(
    archive: zipfile.ZipFile, manifest: Manifest, folder: Path, path: Path
) -> None:
    for name, entry in manifest.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as handle:
            _copy(archive, name, entry, handle, path)
    (folder / MANIFEST).write_bytes(archive.read(MANIFEST))


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise PublishingError("there is no such archive", where=str(path)) from None
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise _bad(path, "not a whole zip archive", str(error)) from None


def _checked(archive: zipfile.ZipFile, path: Path) -> Manifest:
    """Judge the list of entries; nothing but the manifest is read."""
    entries = archive.infolist()
    for entry in entries:
        if reason := _hostile(entry):
            raise _bad(path, f"{entry.filename!r} {reason}")
    names = [entry.filename.casefold() for entry in entries]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise _bad(path, f"{twice[0]!r} stands twice in it")
    folders = {str(above) for name in names for above in PurePosixPath(name).parents}
    if both := sorted(folders.intersection(names)):
        raise _bad(path, f"{both[0]!r} is a file in it, and a folder")
    total, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if total > size:
        raise _bad(
            path,
            f"its entries claim {total:,} bytes, and the archive has {size:,}",
            "archives of loralab are not compressed; this may be a zip bomb",
        )
    manifest = _manifest(archive, path)
    sizes = {e.filename: e.file_size for e in entries if e.filename != MANIFEST}
    told = {name: entry.bytes for name, entry in manifest.files.items()}
    if differ := sorted(sizes.items() ^ told.items()):
        raise _bad(path, f"manifest and entries disagree about {differ[0][0]!r}")
    return manifest


def _hostile(entry: zipfile.ZipInfo) -> str:
    """Return why an entry is refused, or nothing."""
    name = entry.orig_filename
    parts = name.split("/")
    if "\0" in name or "\\" in name or PureWindowsPath(name).drive:
        return "is no plain name"
    if name.startswith("/"):
        return "is an absolute path"
    if any(part in ("", ".", "..") for part in parts):
        return "leads out of the folder, or nowhere"
    longest = max(len(part.encode()) for part in parts)
    if longest > LONGEST_PART or len(name.encode()) > LONGEST_NAME:
        return "is too long a name"
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "is a link or a special file"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    return ""


def _manifest(archive: zipfile.ZipFile, path: Path) -> Manifest:
    try:
        if archive.getinfo(MANIFEST).file_size > LARGEST_MANIFEST:
            raise _bad(path, f"its {MANIFEST} is too large")
        raw = json.loads(archive.read(MANIFEST))
    except KeyError:
        raise _bad(path, f"it has no {MANIFEST}") from None
    except (*_BROKEN, OSError, ValueError, RecursionError) as error:
        raise _bad(path, f"its {MANIFEST} cannot be read", str(error)) from None
    version = raw.get("format") if isinstance(raw, dict) else None
    if isinstance(version, int):
        check_format(version, FORMAT_VERSION, PublishingError, path)
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        said = error.errors(include_url=False)[0]
        key = ".".join(map(str, said["loc"]))
        raise _bad(path, f"its {MANIFEST} is none: {key}: {said['msg']}") from None


def _copy(
    archive: zipfile.ZipFile,
    name: str,
    entry: Entry,
    target: IO[bytes] | None,
    path: Path,
) -> None:
    """Read one entry and compare it with the manifest."""
    digest, count = hashlib.sha256(), 0
    try:
        with archive.open(name) as source:
            while block := source.read(_BLOCK):  # zipfile ends it at the size told
                digest.update(block)
                count += len(block)
                if target is not None:
                    target.write(block)
    except _BROKEN as error:
        raise _bad(path, f"{name!r} is broken", str(error)) from None
    if count != entry.bytes or digest.hexdigest() != entry.sha256:
        raise _bad(path, f"{name!r} is not what the manifest says")


def _bad(path: Path, what: str, why: str = "") -> PublishingError:
    return PublishingError(
        f"this archive is refused: {what}",
        where=str(path),
        why=why or "nothing of it was kept",
        fix="fetch it again from where it was published",
    )
