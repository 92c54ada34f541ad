"""A task's head travels with it: what an adapter saved in full, beside the merged one.

Heads of different tasks have no common weight, and are never averaged. Where all
adapters have equal ones, they stand in the merged adapter as in each of them. Otherwise

    heads/index.json            task -> its file, the modules it replaces, its note
    heads/<task>.safetensors    the tensors, by the names that PEFT gave them, if any
    heads/<task>.json           the task's own loralab.json, where it has one

and PEFT's configuration names no module to save, unless the user chose one task whose
head is then the adapter's. `head_of` finds a task's again, so that the merged adapter
answers as it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loralab.errors import AdapterError, MergeError
from loralab.lowrank.files import AdapterFolder
from loralab.lowrank.settings import NOTE
from loralab.lowrank.stream import TensorFile, write_tensors
from loralab.runs.files import check_format

FOLDER, INDEX = "heads", "index.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Heads:
    """Where the tasks' heads go.

    Attributes:
        inside: The adapter whose head becomes the merged one's; None where none does.
        beside: The tasks that are told apart in files of their own.
    """

    inside: AdapterFolder | None
    beside: tuple[AdapterFolder, ...]


def placed(adapters: Sequence[AdapterFolder], chosen: str | None = None) -> Heads:
    """Decide where the heads of adapters go.

    Args:
        adapters: Of all tasks.
        chosen: The task whose head the merged adapter shall have; see `called`.

    Raises:
        MergeError: no adapter of that name, or it has no head.
    """
    having = [adapter for adapter in adapters if adapter.rest_plan]
    if chosen is not None:
        wanted = called(chosen, [adapter.name for adapter in having])
        found = [adapter for adapter in having if adapter.name in wanted]
        if len(found) != 1:
            raise MergeError(
                f"no task {chosen} with a head",
                fix=f"with one: {', '.join(a.name for a in having) or 'none'}",
            )
        return Heads(found[0], tuple(having) if len(having) > 1 else ())
    all_have = bool(having) and len(having) == len(adapters)
    if all_have and all(_equal(having[0], other) for other in having[1:]):
        return Heads(having[0], ())
    notes = {_note(adapter) for adapter in adapters}
    told = [a for a in adapters if a.rest_plan or (len(notes) > 1 and _note(a))]
    return Heads(None, tuple(told))


def _note(adapter: AdapterFolder) -> bytes:
    """Return what an adapter's own note says; nothing where it has none."""
    file = adapter.path / NOTE
    return file.read_bytes() if file.exists() else b""


def called(asked: str, names: Collection[str]) -> list[str]:
    """Return the names that are the one asked for, or it and the hash of its run."""
    own = re.compile(rf"{re.escape(asked)}-[0-9a-f]{{10}}")
    return (
        [asked] if asked in names else [name for name in names if own.fullmatch(name)]
    )


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
    stems = {Path(INDEX).stem}
    for number, adapter in enumerate(heads.beside):
        stem = re.sub(r"[^\w.-]", "_", adapter.name)
        if stem in stems:
            stem = f"{stem}-{number}"
        stems.add(stem)
        file = folder / FOLDER / f"{stem}.safetensors"
        file.parent.mkdir(exist_ok=True)
        if adapter.rest_plan:
            stream = ((name, adapter.saved(name)) for name in adapter.rest_plan)
            write_tensors(file, adapter.rest_plan, stream, {"format": "pt"})
        note = adapter.path / NOTE
        if note.exists():
            shutil.copyfile(note, folder / FOLDER / f"{stem}.json")
        index[adapter.name] = {
            "file": file.name if adapter.rest_plan else None,
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
    check_format(version, FORMAT_VERSION, AdapterError, file)
    return tasks


def read_head(folder: Path, task: str) -> dict[str, Tensor]:
    """Return a task's head from beside a merged adapter, by the names PEFT gave it.

    Args:
        folder: Of the merged adapter.
        task: As the adapter was called when it was merged.

    Returns:
        Nothing for a task that has no head of its own (a language model's).

    Raises:
        AdapterError: there is no head of this task, or its file is broken.
    """
    index = head_index(folder)
    if task not in index:
        raise AdapterError(
            f"no head of {task}", where=str(folder), fix=f"known: {', '.join(index)}"
        )
    if index[task]["file"] is None:
        return {}
    file = TensorFile(folder / FOLDER / index[task]["file"])
    return {name: file.read(name) for name in file.tensors}


@dataclass(frozen=True, eq=False)
class Head:
    """What makes a merged adapter answer as one of its tasks.

    Attributes:
        note: The task's own ``loralab.json``.
        modules: Modules of the base that are replaced.
        tensors: Of these, by the names that PEFT gave them.
    """

    note: Path
    modules: tuple[str, ...]
    tensors: dict[str, Tensor]


def own_head(adapter: AdapterFolder) -> Head:
    """Return the head of an adapter that was not merged, or has one inside."""
    modules = tuple(adapter.config.get("modules_to_save") or ())
    return Head(adapter.path / NOTE, modules, adapter.rest())


def head_of(folder: Path, asked: str | None) -> Head:
    """Return a task's head from a merged adapter.

    Args:
        folder: Of the merged adapter.
        asked: The task's name, see `called`; by default the one that the adapter has
            inside.

    Raises:
        AdapterError: none of this name, or none was named and there are several.
    """
    index = head_index(folder)
    if asked is None and (folder / NOTE).exists():
        return own_head(AdapterFolder.open(folder))
    names = ", ".join(index)
    if not index:
        raise AdapterError(
            f"has no head of {asked} beside it" if asked else f"has no {NOTE}",
            where=str(folder),
            why="its adapters had one head in common, which is inside"
            if (folder / NOTE).exists()
            else "no adapter of it was trained by loralab, so its task is not known",
            fix="leave --head out"
            if (folder / NOTE).exists()
            else "load it in PEFT, on its base",
        )
    if asked is None:
        raise AdapterError(
            "answers as one of several tasks, and none is named",
            where=str(folder),
            fix=f"--head with one of {names}",
        )
    found = called(asked, index)
    if len(found) != 1 or not index[found[0]]["note"]:
        raise AdapterError(
            f"{len(found) or 'none'} of its tasks are called {asked}"
            if len(found) != 1
            else f"{asked} has no {NOTE}, so what it answers is not known",
            where=str(folder),
            fix=f"--head with one of {names}",
        )
    entry = index[found[0]]
    modules = tuple(entry["modules_to_save"] or ())
    return Head(folder / FOLDER / entry["note"], modules, read_head(folder, found[0]))
