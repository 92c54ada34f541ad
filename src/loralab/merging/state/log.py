"""`state.json`: what a merge state is made of, and all that was ever done to it.

The log only grows. Each entry holds the sha256 of the one before it, the first that of
the head (format, method, dtype), and the file that of the last:

    h_0 = sha256(head),   previous_i = h_{i−1},   h_i = sha256(entry_i),   tip = h_n

so a changed word anywhere breaks a link. It tells damage and slips, not forgery: who
rewrites the whole chain has a whole chain.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError

from loralab.config import MergeConfig
from loralab.errors import MergeError
from loralab.merging.method import Method, resolve
from loralab.registry import Strict
from loralab.runs.files import read_record, write_json

FORMAT_VERSION = 1
STATE = "state.json"

Dtype = Literal["float64", "float32"]


class Sum(Strict):
    """S_t as it is stored, before the norm rule.

    Attributes:
        sha256: Of the file's content, which is also in its name.
        norm: ‖S_t‖_F over all layers.
    """

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    norm: float

    @property
    def file(self) -> str:
        """The file's name in the state's folder."""
        return f"merged-{self.sha256[:16]}.safetensors"


class Entry(Strict):
    """One line of the log.

    Attributes:
        number: Its place, from 1.
        action: ``add``, or ``undo`` of the last task that is still there.
        adapter: What the task is called.
        digest: Of the adapter that is meant; its folder's name in ``adapters/``.
        weight: What the adapter's update is multiplied with.
        norm: ‖weight·ΔW‖_F over all layers.
        files: Name -> sha256 of each file of the adapter's folder.
        merged: S_t afterwards, of a continual method; None where nothing is merged.
        time: UTC, ISO 8601.
        version: Of loralab.
        previous: sha256 of the entry before this one.
    """

    number: int
    action: Literal["add", "undo"]
    adapter: str
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    weight: float
    norm: float
    files: dict[str, str]
    merged: Sum | None
    time: str
    version: str
    previous: str


class Log(Strict):
    """The content of ``state.json``.

    Attributes:
        format: Of the directory; this is `FORMAT_VERSION`.
        method: The merge method and all its params.
        dtype: What the algebra is done in and S_t is stored in.
        entries: All that was done.
        tip: sha256 of the last entry, or of the head.
    """

    format: int
    method: MergeConfig
    dtype: Dtype
    entries: tuple[Entry, ...] = ()
    tip: str

    @property
    def tasks(self) -> tuple[Entry, ...]:
        """The tasks that are merged, in their order: what was added and not undone."""
        found: list[Entry] = []
        for entry in self.entries:
            if entry.action == "add":
                found.append(entry)
            else:
                found.pop()
        return tuple(found)

    @property
    def resolved(self) -> Method:
        """The merge method with its params."""
        return resolve(self.method)

    @property
    def precision(self) -> torch.dtype:
        """What the algebra is done in."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def merged(self) -> Sum | None:
        """S_t as it is now."""
        return self.entries[-1].merged if self.entries else None

    @property
    def digests(self) -> set[str]:
        """Of all adapters that the log names, those that were undone too."""
        return {entry.digest for entry in self.entries}

    def then(self, **what: Any) -> Log:
        """Return the log with one more entry; its number and link are made here."""
        number = len(self.entries) + 1
        entry = Entry(number=number, previous=self.tip, **what)
        entries = (*self.entries, entry)
        return self.model_copy(update={"entries": entries, "tip": _sha256(entry)})

    def links(self) -> list[str]:
        """Return what each entry's `previous` must be, and at last the tip."""
        head = self.model_dump(mode="json", include={"format", "method", "dtype"})
        return [_sha256(head), *map(_sha256, self.entries)]

    def write(self, folder: Path) -> None:
        """Write ``state.json`` atomically."""
        write_json(folder / STATE, self.model_dump(mode="json"))


def begun(method: MergeConfig, dtype: Dtype) -> Log:
    """Return the log of a state without a task."""
    log = Log(format=FORMAT_VERSION, method=method, dtype=dtype, tip="")
    return log.model_copy(update={"tip": log.links()[0]})


def read_log(folder: Path) -> Log:
    """Return the log of a state, each link checked.

    Raises:
        MergeError: missing, broken, changed, or of a later format.
    """
    file = folder / STATE
    content = read_record(
        file,
        FORMAT_VERSION,
        MergeError,
        f"not a merge state: {STATE} cannot be read",
        "name a folder that `loralab merge init` made",
    )
    try:
        log = Log.model_validate(content)
    except ValidationError as error:
        raise MergeError(
            "not what loralab wrote", where=str(file), why=str(error)
        ) from None
    _check_links(log, file)
    return log


def _check_links(log: Log, file: Path) -> None:
    """Refuse a log whose words are not those that were written."""
    said = [*(entry.previous for entry in log.entries), log.tip]
    wrong = [
        number
        for number, pair in enumerate(zip(said, log.links(), strict=True))
        if pair[0] != pair[1]
    ]
    if wrong:
        what = f"entry {wrong[0]}" if wrong[0] else "the head (format, method, dtype)"
        raise MergeError(
            f"{what} is not what was written",
            where=str(file),
            why="the sha256 that follows it is of other words",
            fix="take the file from a backup; the adapters are all in adapters/",
        )


def _sha256(content: Entry | dict[str, Any]) -> str:
    """Return the sha256 of an entry, or of the head, as canonical JSON."""
    raw = content.model_dump(mode="json") if isinstance(content, Entry) else content
    text = json.dumps(raw, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
