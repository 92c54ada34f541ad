"""A merged update as a plain PEFT folder, whose peak memory is one layer.

The layers are merged once, one after another; their balanced factors wait in a file
(see `cut.py`) until every layer's spectrum is known, and with it the ranks (see
`room.py`) and the norm rule's scale, which goes into ``lora_alpha``. So the
error of the whole adapter is known exactly,

    ‖ΔW − ΔW_k‖² = Σ_layers (Σ_{i>k} σ_i² + what a factorisation had lost before)

and what the stored dtype changes beside it is measured. ``merge.json`` in the folder
says how it was made, heads travel beside it (see `merging/export/heads.py`).
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loralab.errors import ExportError, MergeError
from loralab.lowrank.files import (
    WEIGHTS,
    AdapterFolder,
    other_files,
    widest,
)
from loralab.lowrank.settings import CONFIG, NOTE, plain_config
from loralab.lowrank.stream import Spec, file_size, full_disk_told, write_tensors
from loralab.merging.export.cut import CutLayer, Waiting, cut_layer
from loralab.merging.export.exported import (
    DTYPES,
    RECORD,
    Exported,
    Plan,
    exported,
    record,
)
from loralab.merging.export.heads import FOLDER as HEADS
from loralab.merging.export.heads import Heads, placed, write_heads
from loralab.merging.export.room import Room
from loralab.merging.merge import MergedLayer
from loralab.merging.method import Method, factor_of_norm_rule
from loralab.runs.files import atomic_directory, sha256_file

logger = logging.getLogger(__name__)

METADATA = {"format": "pt"}
WITH_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
"""Task types for which PEFT expects a head in the adapter, whatever its list says."""
OF_ITS_OWN = (RECORD, "tuning.json")
"""What tells how an adapter was merged, and not of one that it is merged into."""


def export(
    folder: Path,
    merged: Iterable[MergedLayer],
    adapters: Sequence[AdapterFolder],
    method: Method,
    *,
    weights: Sequence[float] = (),
    room: Room | None = None,
    dtype: str | None = None,
    head: str | None = None,
) -> Exported:
    """Write a merged update as a plain PEFT folder, whole or not at all.

    Args:
        folder: Replaced if it is a merged adapter; otherwise new or empty.
        merged: The layers before the norm rule, drawn once, one by one.
        adapters: Of the tasks, in their order; the first gives the configuration's
            other keys (base, task).
        method: That merged them; tells whether the norm rule holds.
        weights: Each task's, for the record; by default 1.
        room: How much is written; by default all.
        dtype: ``fp64``, ``fp32``, ``bf16`` or ``fp16``; by default the narrowest that
            holds every adapter's.
        head: The task whose head the adapter shall have; by default one that all have.

    Raises:
        ExportError: the folder holds something else, the disk cannot hold the adapter,
            the room holds no direction, or the dtype has not the range.
        MergeError: two tasks of one name, or no task `head`.
        AdapterError: an adapter cannot be read, or the merged update is zero.
    """
    _check(Path(folder), adapters)
    with full_disk_told(Path(folder)), atomic_directory(Path(folder)) as temporary:
        with tempfile.TemporaryFile(dir=temporary) as waiting:
            stored, heads = _dtype(dtype, adapters), placed(adapters, head)
            limit = room or Room()
            cuts, scale = _cut(merged, adapters, method, waiting, stored, limit.rank)
            ranks = _ranks(cuts, limit, stored, heads)
            plan = Plan(cuts, ranks, scale, limit, stored, heads, tuple(adapters))
            config = _config(plan)
            _write_weights(temporary / WEIGHTS, plan, waiting)
        _write_json(temporary / CONFIG, config)
        write_heads(temporary, heads)
        left_out = _write_beside(temporary, plan)
        size = (temporary / WEIGHTS).stat().st_size
        found = exported(plan, Path(folder), size, left_out)
        content = record(found, plan, method, weights)
        content["files"] = sorted(file.name for file in temporary.iterdir())
        _write_json(temporary / RECORD, content)
    for warning in found.warnings:
        logger.warning("%s", warning)
    return found


def _check(folder: Path, adapters: Sequence[AdapterFolder]) -> None:
    """Refuse to write over what is no merged adapter, and tasks of one name."""
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not (folder / RECORD).exists():
        raise ExportError(
            "holds something that is no merged adapter, and is not replaced",
            where=str(folder),
            fix="name a new folder",
        )
    if others := _others(folder):
        raise ExportError(
            f"holds {', '.join(others)} besides the merged adapter, which would be "
            "deleted with it",
            where=str(folder),
            fix="name a new folder, or move that away",
        )
    target = folder.resolve()
    for adapter in adapters:
        if target in (adapter.path.resolve(), *adapter.path.resolve().parents):
            raise ExportError(
                "would replace an adapter that is merged into it",
                where=str(folder),
                fix="name a new folder",
            )
    names = [adapter.name for adapter in adapters]
    if twice := {name for name in names if names.count(name) > 1}:
        raise MergeError(
            f"two tasks are called {sorted(twice)[0]}", fix="give one another name"
        )


def _others(folder: Path) -> list[str]:
    """Return what was put into a merged adapter's folder after it was written."""
    if not (folder / RECORD).is_file():
        return []
    try:
        own = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):  # broken, or it did not name them yet
        own = [file.name for file in folder.iterdir() if file.is_file()] + [HEADS]
    there = {file.name for file in folder.iterdir()}
    return sorted(there - {*own, *OF_ITS_OWN})


def _dtype(name: str | None, adapters: Sequence[AdapterFolder]) -> torch.dtype:
    if name is None:
        return widest(adapter.dtype for adapter in adapters)
    if name not in DTYPES:
        raise ExportError(f"no dtype {name}", fix=f"known: {', '.join(DTYPES)}")
    return DTYPES[name]


def _cut(
    merged: Iterable[MergedLayer],
    adapters: Sequence[AdapterFolder],
    method: Method,
    waiting: Waiting,
    dtype: torch.dtype,
    most: int | None,
) -> tuple[tuple[CutLayer, ...], float]:
    """Return every layer, its factors waiting, and the norm rule's scale."""
    cuts, norms, whole = [], [], []
    for layer in merged:
        cut = cut_layer(layer.name, layer.update, adapters, waiting, dtype, most)
        cuts.append(cut)
        norms.append(layer.task_norms)
        whole.append(float(layer.update.C.norm()))
    scale = 1.0
    if method.normed:
        tasks = [math.hypot(*task) for task in zip(*norms, strict=True)]
        scale = factor_of_norm_rule(math.hypot(*whole), tasks)
    return tuple(cuts), scale


def _plan_of(
    cuts: Sequence[CutLayer], ranks: Mapping[str, int], dtype: torch.dtype, heads: Heads
) -> dict[str, Spec]:
    """Return the name, dtype and shape of every tensor of the adapter."""
    plan = dict(heads.inside.rest_plan) if heads.inside else {}
    for cut in cuts:
        if rank := ranks[cut.name]:
            plan.update(cut.kind.plan(cut.name, cut.shape, rank, dtype))
    return plan


def _ranks(
    cuts: Sequence[CutLayer], room: Room, dtype: torch.dtype, heads: Heads
) -> dict[str, int]:
    """Return each layer's rank."""
    spectra = {cut.name: cut.sigma for cut in cuts}
    costs = {cut.name: sum(cut.shape) for cut in cuts}
    whole = {cut.name: cut.held for cut in cuts}
    factors = sum(whole[name] * costs[name] for name in whole) * dtype.itemsize
    size = file_size(_plan_of(cuts, whole, dtype, heads), METADATA)
    ranks = room.ranks(spectra, costs, dtype.itemsize, size - factors)
    if not any(ranks.values()) and any(spectra.values()):
        raise ExportError(
            f"{room} holds no direction of any layer",
            why=f"one of the smallest takes {min(costs.values()) * dtype.itemsize} "
            f"bytes, beside {size - factors} for names and heads",
            fix="give it more",
        )
    return ranks


def _config(plan: Plan) -> dict[str, Any]:
    """Return PEFT's configuration, which names every module and its rank."""
    inside = plan.heads.inside
    like = (inside or plan.adapters[0]).config
    given = {name: (rank, plan.scale) for name, rank in plan.ranks.items()}
    tasks = {adapter.config.get("task_type") for adapter in plan.adapters}
    task = like.get("task_type") if inside or len(tasks) == 1 else None
    return {
        **plain_config(given, like),
        "modules_to_save": like.get("modules_to_save") if inside else None,
        "task_type": None if task in WITH_HEAD and not inside else task,
        "inference_mode": True,
    }


def _write_weights(path: Path, plan: Plan, waiting: Waiting) -> None:
    def stream() -> Iterator[tuple[str, Tensor]]:
        for cut, rank in plan.written:
            factors = cut.read(waiting, rank, plan.dtype)
            yield from cut.kind.tensors(cut.name, factors).items()
        if inside := plan.heads.inside:
            for name in inside.rest_plan:
                yield name, inside.saved(name)

    waiting.flush()
    tensors = _plan_of(plan.cuts, plan.ranks, plan.dtype, plan.heads)
    write_tensors(path, tensors, stream(), METADATA)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _write_beside(folder: Path, plan: Plan) -> list[str]:
    """Copy what stands beside every adapter alike (tokenizer); return what does not.

    The note of the task whose head the adapter has is the adapter's; of tasks that are
    told apart, the notes stand there (see `merging/export/heads.py`).
    """
    first, *others = plan.adapters
    left_out = []
    for file in other_files(first.path):
        if file.name in OF_ITS_OWN or (file.name == NOTE and plan.heads.beside):
            continue  # a note at the top tells of a head that is inside
        twins = [other.path / file.name for other in others]
        digest = sha256_file(file)
        if all(twin.is_file() and sha256_file(twin) == digest for twin in twins):
            shutil.copyfile(file, folder / file.name)
        else:
            left_out.append(file.name)
    note = plan.heads.inside.path / NOTE if plan.heads.inside else None
    if note and note.exists():
        shutil.copyfile(note, folder / NOTE)
    return [name for name in left_out if name != NOTE]
