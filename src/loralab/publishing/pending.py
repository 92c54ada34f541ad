"""Uploads that were begun: what a server needs to be told to go on with one.

The note lies in the user's cache, not in the run: whoever holds the address of an
upload session can write to it. It is readable by its owner only.
"""

from __future__ import annotations

import hashlib
import json

from loralab.data.packages import cache_dir
from loralab.publishing.store import File
from loralab.runs.files import atomic_file


class Pending:
    """The note of one file's upload to one destination."""

    def __init__(self, destination: str, file: File) -> None:
        key = hashlib.sha256(f"{destination}\n{file.name}".encode()).hexdigest()
        self._path = cache_dir() / "publishing" / f"{key[:32]}.json"
        self._sha256 = file.sha256

    def find(self) -> str | None:
        """Return the id of an upload of this very content."""
        upload, sha256 = self._read()
        return upload if sha256 == self._sha256 else None

    def stale(self) -> str | None:
        """Return the id of an upload of what the file held before it was changed."""
        upload, sha256 = self._read()
        return upload if sha256 != self._sha256 else None

    def _read(self) -> tuple[str | None, str | None]:
        try:
            note = json.loads(self._path.read_text(encoding="utf-8"))
            return str(note["upload"]), str(note["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None, None

    def keep(self, upload: str) -> None:
        """Write the upload's id down."""
        with atomic_file(self._path) as temporary:
            temporary.touch(mode=0o600)
            note = {"sha256": self._sha256, "upload": upload}
            temporary.write_text(json.dumps(note), encoding="utf-8")

    def forget(self) -> None:
        """The upload has ended, or the server no longer knows it."""
        self._path.unlink(missing_ok=True)
