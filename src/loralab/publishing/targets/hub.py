"""`hub`: a model repository of the Hugging Face Hub, in one commit.

Large files go up before the commit, and the server takes none twice (LFS asks by
sha256, Xet by chunk), so a repeat sends what is missing. What is there is judged by the
repository's tree: size, and sha256 of a large file or git's sha1 of a small one. The
token is ``HF_TOKEN`` of the environment; one that a login stored is not used. The
library tries single requests again by itself too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from loralab.errors import PublishingError
from loralab.logs import routed
from loralab.publishing.store import (
    Endpoint,
    Failure,
    File,
    TargetParams,
    Tell,
    http_failure,
)
from loralab.registry import register

FIX = "look at the repository's name, and that HF_TOKEN may write to it"


class HubParams(TargetParams):
    """Which repository."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="`ORG/NAME`")
    private: bool = Field(True, description="false: everybody may read it")
    revision: str = Field("main", description="the branch")
    endpoint: Endpoint | None = Field(
        None, description="of another hub; null: HF_ENDPOINT, or the public one"
    )


def destination(params: HubParams, run_id: str) -> str:
    """Return where files go, for people."""
    from huggingface_hub import constants

    seen = "private" if params.private else "public"
    where = params.endpoint or constants.ENDPOINT
    return f"{where}/{params.repo} (branch {params.revision}, {seen})"


@register("publishing target", "hub", HubParams, destination=destination)
class Hub:
    """A model repository; see `loralab.publishing.store.Store`."""

    def __init__(self, params: HubParams, run_id: str) -> None:
        from huggingface_hub import HfApi

        token = os.environ.get("HF_TOKEN")
        if not token:
            raise PublishingError(
                "no token for the hub",
                where="HF_TOKEN",
                fix="export HF_TOKEN with a token that may write",
            )
        self._params, self._title = params, f"Publish {run_id}"
        self._api = HfApi(endpoint=params.endpoint, token=token)

    def present(self, files: Sequence[File]) -> set[str]:
        """Return the names of the files that the branch has with equal checksum."""
        from huggingface_hub.errors import (
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
        from huggingface_hub.hf_api import RepoFile

        repo, branch = self._params.repo, self._params.revision
        try:
            tree = list(self._api.list_repo_tree(repo, revision=branch, recursive=True))
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return set()
        theirs = {item.path: item for item in tree if isinstance(item, RepoFile)}
        return {f.name for f in files if f.name in theirs and _equal(theirs[f.name], f)}

    def send(self, files: Sequence[File], tell: Tell) -> None:
        """Make the repository if need be, and commit the files.

        Raises:
            PublishingError: the repository is public, and `private` was asked for.
        """
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.utils.tqdm import disable_progress_bars

        repo, private = self._params.repo, self._params.private
        with disable_progress_bars(), routed():
            self._api.create_repo(repo, private=private, exist_ok=True)
            if private and not self._api.model_info(repo).private:
                raise PublishingError(
                    "this repository is public, and private=true",
                    where=repo,
                    fix="publish with private=false, or make the repository private",
                )
            if self._params.revision != "main":
                self._api.create_branch(
                    repo, branch=self._params.revision, exist_ok=True
                )
            self._api.create_commit(
                repo,
                [CommitOperationAdd(f.name, str(f.path)) for f in files],
                commit_message=self._title,
                revision=self._params.revision,
            )
        for file in files:
            tell(file.name, file.bytes)

    def failure(self, error: Exception) -> Failure | None:
        """Return what an exception of huggingface_hub, or of its client, means."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        if isinstance(error, RuntimeError):  # of one large file, wrapped; or Xet's own
            cause = error.__cause__
            known = self.failure(cause) if isinstance(cause, Exception) else None
            return known or Failure(True, str(error))
        if isinstance(error, OfflineModeIsEnabled):
            return Failure(False, str(error), "unset HF_HUB_OFFLINE")
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            said = error.server_message or error.response.reason_phrase
            return http_failure(status, f"HTTP {status}: {said}", FIX)
        if isinstance(error, httpx2.TransportError | ConnectionError | TimeoutError):
            return Failure(True, f"{type(error).__name__}: {error}")
        if isinstance(error, ValueError | PermissionError):
            return Failure(False, str(error), FIX)
        return None


def _equal(theirs: Any, file: File) -> bool:
    if theirs.size != file.bytes:
        return False
    if theirs.lfs is not None:
        return bool(theirs.lfs.sha256 == file.sha256)
    digest = hashlib.sha1(f"blob {file.bytes}\0".encode(), usedforsecurity=False)
    digest.update(file.path.read_bytes())  # small: the hub stores large ones as LFS
    return bool(theirs.blob_id == digest.hexdigest())
