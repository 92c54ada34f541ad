"""`gdrive`: a folder of Google Drive.

Files go into a folder named after the run, by Drive's resumable protocol: a session is
opened, pieces are sent, and after an interruption the session says how far it came. Its
address is kept in the user's cache (`loralab.publishing.pending`), so an upload goes
on after a kill too. What is there is judged by size, md5 and, where Drive tells it,
sha256. Credentials: the JSON file that ``GOOGLE_APPLICATION_CREDENTIALS`` names. A
service account has no room of its own: give it a folder of a shared drive.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from loralab.errors import PublishingError
from loralab.publishing.pending import Pending
from loralab.publishing.store import (
    Endpoint,
    Failure,
    File,
    TargetParams,
    Tell,
    http_failure,
    library,
)
from loralab.registry import register

VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"
SCOPE = "https://www.googleapis.com/auth/drive"
FOLDER = "application/vnd.google-apps.folder"
BINARY = "application/octet-stream"
STEP = 256 << 10
FIX = f"look at the folder's id, and that the account of {VARIABLE} may write there"
ALL_DRIVES = {"supportsAllDrives": True}


class GDriveParams(TargetParams):
    """Which folder."""

    folder: str = Field(
        pattern=r"^[\w-]+$", description="its id, the end of its address"
    )
    name: str | None = Field(
        None, min_length=1, description="of the folder made in it; null: the run's id"
    )
    chunk_bytes: int = Field(
        32 * STEP, ge=STEP, multiple_of=STEP, description="sent in one request"
    )
    endpoint: Endpoint | None = Field(
        None, description="of a server that speaks for Drive's"
    )


def destination(params: GDriveParams, run_id: str) -> str:
    """Return where files go, for people."""
    at = f" at {params.endpoint}" if params.endpoint else ""
    return f"gdrive:{params.folder}/{params.name or run_id}{at}"


def _connect(params: GDriveParams) -> Any:
    """Return a client of Drive's API.

    Raises:
        PublishingError: no credentials, or none that can be read.
    """
    discovery = library("googleapiclient.discovery")
    documents = library("googleapiclient.discovery_cache")
    auth, errors = library("google.auth"), library("google.auth.exceptions")
    path = os.environ.get(VARIABLE)
    if not path:
        raise PublishingError(
            "no credentials for Google Drive",
            where=VARIABLE,
            fix="export it with the path of a service account's JSON file",
        )
    try:
        credentials, _ = auth.load_credentials_from_file(path, scopes=[SCOPE])
    except (errors.GoogleAuthError, OSError, ValueError):
        raise PublishingError(  # the library's words may quote the file
            "the credentials cannot be read",
            where=VARIABLE,
            fix="it names the JSON file of a service account",
        ) from None
    document = json.loads(documents.get_static_doc("drive", "v3"))
    if params.endpoint:
        document["rootUrl"] = f"{params.endpoint}/"
        document["baseUrl"] = f"{params.endpoint}/{document['servicePath']}"
    return discovery.build_from_document(document, credentials=credentials)


@register("publishing target", "gdrive", GDriveParams, destination=destination)
class GDrive:
    """A folder; see `loralab.publishing.store.Store`."""

    def __init__(self, params: GDriveParams, run_id: str) -> None:
        self._params, self._destination = params, destination(params, run_id)
        self._name = params.name or run_id
        self._files = _connect(params).files()
        self._http = library("googleapiclient.http")
        self._md5: dict[str, str] = {}
        self._listed: dict[str, dict[str, Any]] = {}

    def present(self, files: Sequence[File]) -> set[str]:
        """Return the names of the files that Drive has with equal checksum."""
        self._listed = {}
        found = set()
        for file in files:
            theirs = self._find(file)
            if theirs is not None and self._equal(theirs, file):
                found.add(file.name)
        return found

    def _find(self, file: File) -> dict[str, Any] | None:
        *folders, name = file.name.split("/")
        parent = self._folder(folders, make=False)
        item = self._children(parent).get(name) if parent else None
        return dict(item) if item else None

    def _folder(self, path: Sequence[str], *, make: bool) -> str | None:
        """Return the id of a folder below ours, made if wished, or None."""
        at = self._params.folder
        for name in (self._name, *path):
            item = self._children(at).get(name)
            if item is None and not make:
                return None
            if item is None:
                body = {"name": name, "parents": [at], "mimeType": FOLDER}
                asked = self._files.create(body=body, fields="id", **ALL_DRIVES)
                item = asked.execute()
                self._listed[at][name] = item
            at = item["id"]
        return at

    def _children(self, folder: str) -> dict[str, Any]:
        """Return what lies in a folder, by name; asked once until `present`."""
        if folder in self._listed:
            return self._listed[folder]
        found: dict[str, Any] = {}
        asked = self._files.list(
            q=f"'{folder}' in parents and trashed = false",
            fields="nextPageToken, files(id,name,size,md5Checksum,sha256Checksum)",
            pageSize=1000,
            includeItemsFromAllDrives=True,
            **ALL_DRIVES,
        )
        while asked is not None:
            answer = asked.execute()
            found |= {item["name"]: item for item in answer.get("files", ())}
            asked = self._files.list_next(asked, answer)
        self._listed[folder] = found
        return found

    def _equal(self, theirs: dict[str, Any], file: File) -> bool:
        if file.name not in self._md5:
            digest = hashlib.md5(usedforsecurity=False)
            with file.path.open("rb") as handle:
                while block := handle.read(1 << 20):
                    digest.update(block)
            self._md5[file.name] = digest.hexdigest()
        return (
            int(theirs.get("size", -1)) == file.bytes
            and theirs.get("md5Checksum") == self._md5[file.name]
            and theirs.get("sha256Checksum", file.sha256) == file.sha256
        )

    def send(self, files: Sequence[File], tell: Tell) -> None:
        """Send each file in pieces, going on where its session stopped."""
        for file in files:
            self._send(file, tell)

    def _send(self, file: File, tell: Tell) -> None:
        request, pending = self._request(file), Pending(self._destination, file)
        known = pending.find()
        ended = bool(known) and self._resume(request, str(known), file, pending)
        while not ended:
            before = request.resumable_progress
            _, answer = request.next_chunk()
            ended = answer is not None
            pending.forget() if ended else pending.keep(request.resumable_uri)
            tell(
                file.name,
                (file.bytes if ended else request.resumable_progress) - before,
            )

    def _request(self, file: File) -> Any:
        """Return the upload: of a new file, or of new content of one that is there."""
        media = self._http.MediaFileUpload(
            str(file.path), BINARY, chunksize=self._params.chunk_bytes, resumable=True
        )
        # a cut line makes httplib2 send a body once more, and a stream would be at its
        # end: both sides would wait for each other until they time out
        media.has_stream = lambda: False
        given = {"media_body": media, "fields": "id", **ALL_DRIVES}
        if theirs := self._find(file):
            return self._files.update(fileId=theirs["id"], body={}, **given)
        *folders, name = file.name.split("/")
        parent = self._folder(folders, make=True)
        return self._files.create(body={"name": name, "parents": [parent]}, **given)

    def _resume(self, request: Any, uri: str, file: File, pending: Pending) -> bool:
        """Ask a session how far it came; return whether it has all.

        A session that Drive no longer knows is forgotten: the upload begins anew.
        """
        headers = {"Content-Range": f"bytes */{file.bytes}", "content-length": "0"}
        answer, content = request.http.request(uri, "PUT", headers=headers)
        if answer.status in (200, 201):
            pending.forget()
            return True
        if answer.status == 308:
            request.resumable_uri = uri
            last = answer.get("range", "bytes=0--1").rpartition("=")[2]
            request.resumable_progress = int(last.split("-", 1)[1]) + 1
            return False
        if http_failure(answer.status, "").transient:
            raise library("googleapiclient.errors").HttpError(answer, content)
        pending.forget()
        return False

    def failure(self, error: Exception) -> Failure | None:
        """Return what an exception of Google's client means; no session's address."""
        errors = library("googleapiclient.errors")
        auth, httplib2 = library("google.auth.exceptions"), library("httplib2")
        if isinstance(error, errors.HttpError):
            status, why = int(error.resp.status), f"{error.reason}"
            limited = status == 403 and "ate limit" in why.lower()
            found = http_failure(status, f"HTTP {status}: {why}", FIX)
            return Failure(True, found.why) if limited else found
        if isinstance(error, auth.GoogleAuthError):
            return Failure(error.retryable, f"{type(error).__name__}: {error}", FIX)
        passing = (ConnectionError, TimeoutError, http.client.HTTPException)
        if isinstance(error, (*passing, httplib2.HttpLib2Error)):
            return Failure(True, f"{type(error).__name__}: {error}")
        return None
