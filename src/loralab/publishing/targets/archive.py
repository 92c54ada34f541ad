"""`archive`: a zip file, written at once or not at all, and read back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from loralab.errors import PublishingError
from loralab.publishing.archive import check_archive, read_manifest, write_archive
from loralab.publishing.files import MANIFEST
from loralab.publishing.store import Failure, File, TargetParams, Tell
from loralab.registry import register


class ArchiveParams(TargetParams):
    """Which file."""

    path: str = Field(min_length=1, description="the zip file, or a folder for it")


def place(params: ArchiveParams, run_id: str) -> Path:
    """Return the archive's path; in a folder it is named after the run.

    Raises:
        PublishingError: its name is that of another kind of file.
    """
    path = Path(params.path).expanduser()
    if path.is_dir():
        return path / f"{run_id}.zip"
    if path.suffix.lower() != ".zip":
        raise PublishingError(
            "an archive is a zip file, and this is not the name of one",
            where=params.path,
            fix=f"path={path.with_name(run_id)}.zip, or a folder that is there",
        )
    return path


def destination(params: ArchiveParams, run_id: str) -> str:
    """Return where files go, for people."""
    return str(place(params, run_id))


@register("publishing target", "archive", ArchiveParams, destination=destination)
class Archive:
    """A zip file; see `loralab.publishing.store.Store`. It has all files or none."""

    def __init__(self, params: ArchiveParams, run_id: str) -> None:
        self._path, self._run = place(params, run_id), run_id

    def present(self, files: Sequence[File]) -> set[str]:
        """Return all names if the archive holds these very files, else none.

        Raises:
            PublishingError: the file is there, and is no archive of this run.
        """
        if not self._path.exists():
            return set()
        try:
            ours = read_manifest(self._path).run == self._run
        except PublishingError:
            ours = False
        if not ours:
            raise PublishingError(
                "there is another file, and it is not written over",
                where=str(self._path),
                fix="name another path, or move that file away",
            )
        expected = {f.name: f.sha256 for f in files if f.name != MANIFEST}
        try:
            manifest = check_archive(self._path)
        except PublishingError:
            return set()  # a broken archive of this run: it is written again
        theirs = {name: entry.sha256 for name, entry in manifest.files.items()}
        return {f.name for f in files} if theirs == expected else set()

    def send(self, files: Sequence[File], tell: Tell) -> None:
        """Write the archive."""
        write_archive(self._path, files, tell)

    def failure(self, error: Exception) -> Failure | None:
        """A disk's error does not pass by itself; its own words say which file."""
        return Failure(False, str(error)) if isinstance(error, OSError) else None
