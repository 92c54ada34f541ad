"""What a publishing target is: a place that holds files by name.

A target is a class, registered as a ``publishing target`` with the schema of its params
and one fact: ``destination(params, run_id) -> str``, what a user is told before
anything is sent. It is made with ``(params, run_id)``, then it speaks `Store`.
Asking what is there serves three ends: what is there already is not sent again (so a
repeat resumes), what arrived is verified, and an error says how far it came.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Protocol
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from loralab.errors import PublishingError
from loralab.registry import Params


@dataclass(frozen=True)
class File:
    """A file that is published.

    Attributes:
        name: Its path at the destination, with ``/``.
        path: Where it is read from.
        bytes: Its size.
        sha256: Of its content, in hex.
    """

    name: str
    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Failure:
    """What an exception of a library means.

    Attributes:
        transient: Whether the same request may succeed a moment later.
        why: For the user; holds no secret.
        fix: What to do about one that is not transient.
    """

    transient: bool
    why: str
    fix: str = ""


Tell = Callable[[str, int], None]
"""Called with (a file's name, bytes of it that were just sent)."""


class Store(Protocol):
    """A target that is connected."""

    def present(self, files: Sequence[File]) -> set[str]:
        """Return the names of the files that are there with equal checksum."""

    def send(self, files: Sequence[File], tell: Tell) -> None:
        """Send files, resuming what of them was sent before."""

    def failure(self, error: Exception) -> Failure | None:
        """Return what an exception of this target means; None is a defect of ours."""


def _plain_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PydanticCustomError("loralab", "a URL begins with http:// or https://")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise PydanticCustomError(
            "loralab",
            "a URL here has no user, password or query: secrets come from the "
            "environment only",
        )
    return url.rstrip("/")


Endpoint = Annotated[str, AfterValidator(_plain_url)]
"""The URL of a server that speaks for the public one; no secret in it."""


class TargetParams(Params):
    """What every target takes."""

    license: str | None = Field(
        None, description="SPDX id for the model card; none is guessed"
    )


def library(name: str) -> Any:
    """Return a module of the extra ``publish``.

    Raises:
        PublishingError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise PublishingError(
            f"{package} is not installed",
            why=str(error),
            fix="pip install 'loralab[publish]'",
        ) from None


def http_failure(status: int, why: str, fix: str = "") -> Failure:
    """Return what an HTTP status means: 408, 425, 429 and 5xx pass."""
    return Failure(status in (408, 425, 429) or status >= 500, why, fix)
