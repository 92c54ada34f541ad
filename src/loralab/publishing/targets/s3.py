"""`s3`: a bucket of Amazon S3, or of a server that speaks its protocol.

A file above ``part_bytes`` goes up in parts. An upload that was interrupted goes on:
the parts that the server lists with equal checksum are not sent again. Each part is
sent with its sha256, which the server checks. What is there is judged by size, by the
sha256 in the object's metadata, and by the server's own checksum: the ETag

    single: md5(file)      in parts: md5(md5(part 1) ‖ … ‖ md5(part n))-n

or, where a key of KMS makes the ETag something else, the same construction over sha256.
Credentials are found by boto3: the environment, or the role of the machine.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

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

MEBIBYTE = 1 << 20
PASSING = ("RequestTimeout", "BadDigest", "XAmzContentChecksumMismatch")
"""Codes of S3 that pass although their status is 400: lost or changed on the way."""
FIX = (
    "look at bucket and permissions; credentials come from the environment: "
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, or a role"
)


class S3Params(TargetParams):
    """Which bucket, and where in it."""

    bucket: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
    prefix: str | None = Field(
        None,
        pattern=r"^[^/].*$|^$",
        description="the folder in the bucket; null: the run's id; empty: its root",
    )
    endpoint_url: Endpoint | None = Field(
        None, description="of another server that speaks S3: MinIO, R2, Ceph"
    )
    region: str | None = Field(None, description="null: as boto3 finds it")
    part_bytes: int = Field(
        8 * MEBIBYTE,
        ge=5 * MEBIBYTE,
        le=5120 * MEBIBYTE,
        description="of a large file; another size sends large files again",
    )


def folder(params: S3Params, run_id: str) -> str:
    """Return the keys' common beginning, with its last ``/`` unless empty."""
    prefix = run_id if params.prefix is None else params.prefix.rstrip("/")
    return f"{prefix}/" if prefix else ""


def destination(params: S3Params, run_id: str) -> str:
    """Return where files go, for people."""
    at = f" at {params.endpoint_url}" if params.endpoint_url else ""
    return f"s3://{params.bucket}/{folder(params, run_id)}{at}"


@dataclass(frozen=True)
class Part:
    """A piece of a file: where it begins, its size and checksums."""

    start: int
    size: int
    md5: bytes
    sha256: bytes

    @property
    def sum(self) -> str:
        """Its sha256 as S3 writes it."""
        return base64.b64encode(self.sha256).decode()


def parts_of(file: File, part_bytes: int) -> list[Part]:
    """Return the parts of a file; one, perhaps empty, if it is not larger."""
    found = []
    with file.path.open("rb") as handle:
        for start in range(0, max(file.bytes, 1), part_bytes):
            data = handle.read(part_bytes)
            md5 = hashlib.md5(data, usedforsecurity=False).digest()
            found.append(Part(start, len(data), md5, hashlib.sha256(data).digest()))
    return found


def sums_of(parts: Sequence[Part]) -> tuple[str, str]:
    """Return the ETag and the sha256 that the server has of a whole file."""
    if len(parts) == 1:
        return parts[0].md5.hex(), parts[0].sum
    md5 = hashlib.md5(b"".join(p.md5 for p in parts), usedforsecurity=False)
    sha = hashlib.sha256(b"".join(p.sha256 for p in parts)).digest()
    return f"{md5.hexdigest()}-{len(parts)}", base64.b64encode(sha).decode()


@register("publishing target", "s3", S3Params, destination=destination)
class S3:
    """A bucket; see `loralab.publishing.store.Store`."""

    def __init__(self, params: S3Params, run_id: str) -> None:
        session, config = library("boto3.session"), library("botocore.config")
        self._params, self._folder = params, folder(params, run_id)
        self._destination = destination(params, run_id)
        self._errors = library("botocore.exceptions")
        self._client = session.Session().client(
            "s3",
            region_name=params.region,
            endpoint_url=params.endpoint_url,
            # one request is one attempt: trying again is `Delivery`'s
            config=config.Config(retries={"total_max_attempts": 1}),
        )
        self._parts: dict[str, list[Part]] = {}

    def _at(self, file: File) -> dict[str, str]:
        return {"Bucket": self._params.bucket, "Key": self._folder + file.name}

    def _cut(self, file: File) -> list[Part]:
        if file.name not in self._parts:
            self._parts[file.name] = parts_of(file, self._params.part_bytes)
        return self._parts[file.name]

    def present(self, files: Sequence[File]) -> set[str]:
        """Return the names of the objects with equal size and checksums."""
        return {file.name for file in files if self._is_there(file)}

    def _is_there(self, file: File) -> bool:
        try:
            head = self._client.head_object(**self._at(file), ChecksumMode="ENABLED")
        except self._errors.ClientError as error:
            if _status(error) == 404:
                return False
            raise
        told = head.get("Metadata", {}).get("sha256")
        if (head["ContentLength"], told) != (file.bytes, file.sha256):
            return False
        etag, sha256 = sums_of(self._cut(file))
        theirs = str(head.get("ChecksumSHA256", "")).partition("-")[0]
        return bool(head["ETag"].strip('"') == etag or theirs == sha256)

    def send(self, files: Sequence[File], tell: Tell) -> None:
        """Put small files whole, and large ones in parts."""
        for file in files:
            if len(self._cut(file)) > 1:
                self._send_parts(file, tell)
                continue
            with file.path.open("rb") as handle:
                self._client.put_object(
                    **self._at(file),
                    Body=handle,
                    ChecksumSHA256=self._cut(file)[0].sum,
                    Metadata={"sha256": file.sha256},
                )
            tell(file.name, file.bytes)

    def _send_parts(self, file: File, tell: Tell) -> None:
        at, parts = self._at(file), self._cut(file)
        pending = Pending(self._destination, file)
        upload, there = self._begun(file, pending)
        listed = []
        with file.path.open("rb") as handle:
            for number, part in enumerate(parts, 1):
                same = {**at, "UploadId": upload, "PartNumber": number}
                etag = _same(there.get(number), part)
                if etag is None:
                    handle.seek(part.start)
                    data = handle.read(part.size)
                    answer = self._client.upload_part(
                        **same, Body=data, ChecksumSHA256=part.sum
                    )
                    etag = answer["ETag"]
                    tell(file.name, part.size)
                listed.append(
                    {"PartNumber": number, "ETag": etag, "ChecksumSHA256": part.sum}
                )
        self._client.complete_multipart_upload(
            **at, UploadId=upload, MultipartUpload={"Parts": listed}
        )
        pending.forget()

    def _begun(self, file: File, pending: Pending) -> tuple[str, dict[int, Any]]:
        """Return the id of this file's upload, and the parts that it has."""
        if known := pending.find():
            try:
                return known, self._listed(file, known)
            except self._errors.ClientError as error:
                if _status(error) != 404:
                    raise
        if stale := pending.stale():  # its parts would be kept, and paid for
            self._abort(file, stale)
        made = self._client.create_multipart_upload(
            **self._at(file),
            ChecksumAlgorithm="SHA256",
            Metadata={"sha256": file.sha256},
        )
        pending.keep(made["UploadId"])
        return str(made["UploadId"]), {}

    def _abort(self, file: File, upload: str) -> None:
        try:
            self._client.abort_multipart_upload(**self._at(file), UploadId=upload)
        except self._errors.ClientError as error:
            if _status(error) != 404:
                raise

    def _listed(self, file: File, upload: str) -> dict[int, Any]:
        pages = self._client.get_paginator("list_parts").paginate(
            **self._at(file), UploadId=upload
        )
        return {p["PartNumber"]: p for page in pages for p in page.get("Parts", ())}

    def failure(self, error: Exception) -> Failure | None:
        """Return what an exception of botocore means."""
        errors = self._errors
        if isinstance(error, errors.ClientError):
            said = error.response.get("Error", {})
            why = f"HTTP {_status(error)}: {said.get('Code')}: {said.get('Message')}"
            if said.get("Code") in PASSING:
                return Failure(True, why)
            return http_failure(_status(error), why, FIX)
        if isinstance(error, errors.HTTPClientError | errors.ConnectionError):
            return Failure(True, str(error))
        if isinstance(error, errors.BotoCoreError):
            return Failure(False, str(error), FIX)
        return None


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _same(theirs: Any, part: Part) -> str | None:
    """Return the ETag of a part that the server has with equal content."""
    if theirs is None or theirs["Size"] != part.size:
        return None
    etag = str(theirs["ETag"])
    equal = (
        etag.strip('"') == part.md5.hex() or theirs.get("ChecksumSHA256") == part.sum
    )
    return etag if equal else None
