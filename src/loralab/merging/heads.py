"""A task's head travels with it: what an adapter saved in full, beside the merged one.

Heads of different tasks have no common weight, and are never averaged. Where all
adapters have equal ones, they stand in the merged adapter as in each of them. Otherwise

    heads/index.json            task -> its file, the modules it replaces, its note
    heads/<task>.safetensors    the tensors, by the names that PEFT gave them
    heads/<task>.json           the task's own loralab.json, where it has one

and PEFT's configuration names no module to save, unless the user chose one task whose
head is then the adapter's.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loralab.errors import AdapterError, MergeError
from loralab.lowrank.files import NOTE, AdapterFolder
from loralab.lowrank.stream import TensorFile, write_tensors

FOLDER, INDEX = "heads", "index.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Heads:
    """Where the tasks' heads go.

    Attributes:
        inside: The adapter whose head becomes the merged one's; None where none does.
        beside: The tasks whose heads stand in files of their own.
    """

    inside: AdapterFolder | None
    beside: tuple[AdapterFolder, ...]


def placed(adapters: Sequence[AdapterFolder], chosen: str | None = None) -> Heads:
    """Decide where the heads of adapters go.

    Args:
        adapters: Of all tasks.
        chosen: The task whose head the merged adapter shall have.

    Raises:
        MergeError: no adapter of that name, or it has no head.
    """
    having = [adapter for adapter in adapters if adapter.rest_plan]
    if chosen is not None:
        found = [adapter for adapter in having if adapter.name == chosen]
        if not found:
            raise MergeError(
                f"no task {chosen} with a head",
                fix=f"with one: {', '.join(a.name for a in having) or 'none'}",
            )
        return Heads(found[0], tuple(having) if len(having) > 1 else ())
    all_have = bool(having) and len(having) == len(adapters)
    if all_have and all(_equal(having[0], other) for other in having[1:]):
        return Heads(having[0], ())
    return Heads(None, tuple(having))


def _equal(one: AdapterFolder, other: AdapterFolder) -> bool:
    """Tell whether two adapters saved the same in full, a tensor at a time."""
    if one.rest_plan != other.rest_plan:
        return False
    return all(
        torch.equal(one.file.read(name), other.file.read(name))
        for name in one.rest_plan
    )


def write_heads(folder: Path, heads: Heads) -> None:
    """Write the heads that stand beside an adapter, and their index.

    Args:
        folder: The merged adapter's.
        heads: What `placed` decided.
    """
    if not heads.beside:
        return
    index: dict[str, Any] = {}
    for number, adapter in enumerate(heads.beside):
        stem = re.sub(r"[^\w.-]", "_", adapter.name)
        if any(entry["file"] == f"{stem}.safetensors" for entry in index.values()):
            stem = f"{stem}-{number}"
        stream = ((name, adapter.file.read(name)) for name in adapter.rest_plan)
        write_tensors(
            folder / FOLDER / f"{stem}.safetensors",
            adapter.rest_plan,
            stream,
            {"format": "pt"},
        )
        note = adapter.path / NOTE
        if note.exists():
            shutil.copyfile(note, folder / FOLDER / f"{stem}.json")
        index[adapter.name] = {
            "file": f"{stem}.safetensors",
            "note": f"{stem}.json" if note.exists() else None,
            "modules_to_save": adapter.config.get("modules_to_save"),
        }
    text = json.dumps({"format": FORMAT_VERSION, "tasks": index}, indent=1)
    (folder / FOLDER / INDEX).write_text(text, encoding="utf-8")


def head_index(folder: Path) -> dict[str, dict[str, Any]]:
    """Return task -> file, note and modules of the heads beside a merged adapter.

    Raises:
        AdapterError: the index is broken or of a later format.
    """
    file = folder / FOLDER / INDEX
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version, tasks = content["format"], dict(content["tasks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError("cannot be read", where=str(file), why=str(error)) from None
    if version > FORMAT_VERSION:
        raise AdapterError(
            f"format {version} is later than the {FORMAT_VERSION} known here",
            where=str(file),
            fix="update loralab",
        )
    return tasks


def read_head(folder: Path, task: str) -> dict[str, Tensor]:
    """Return a task's head from beside a merged adapter, by the names PEFT gave it.

    Args:
        folder: Of the merged adapter.
        task: As the adapter was called when it was merged.

    Raises:
        AdapterError: there is no head of this task, or its file is broken.
    """
    index = head_index(folder)
    if task not in index:
        raise AdapterError(
            f"no head of {task}", where=str(folder), fix=f"known: {', '.join(index)}"
        )
    file = TensorFile(folder / FOLDER / index[task]["file"])
    return {name: file.read(name) for name in file.tensors}
