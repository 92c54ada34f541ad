"""An adapter's update added into its base's weights, shard by shard.

    W' = round(W + s·B·A)                                    in the weight's own dtype

One tensor of the base is in memory at a time, and s·B·A only some rows at a time. What
rounding loses is measured, ‖W' − W − s·B·A‖ / ‖s·B·A‖: a small update of a bf16 weight
may vanish in it, tensor by tensor, without a word from any loader.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loralab.errors import ExportError
from loralab.lowrank.factors import Factors
from loralab.lowrank.files import PREFIX, AdapterFolder, all_finite
from loralab.lowrank.stream import (
    TensorFile,
    check_space,
    full_disk_told,
    write_tensors,
)
from loralab.merging.export.checkpoint import (
    Target,
    read_config,
    shards_of,
    shared,
    targets_of,
    tied_rows,
)
from loralab.runs.files import atomic_directory
from loralab.units import percent

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
RECORD = "bake.json"
OTHER_WEIGHTS = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"),
    *(".onnx", ".onnx_data", ".gguf"),
}
"""Endings of files that would hold the old weights, and are not copied."""
BLOCK = 1 << 22
"""Entries of ΔW that are made at a time."""
SWALLOWED = 0.1
"""Share of an update lost to rounding above which it is told."""


@dataclass(frozen=True)
class BakedWeight:
    """One weight of the base that was changed.

    Attributes:
        module: Path in the adapter.
        tensor: Name in the checkpoint.
        update: ‖ΔW‖_F.
        relative_rounding: ‖W' − W − ΔW‖_F / ‖ΔW‖_F; 0 where ΔW is 0.
    """

    module: str
    tensor: str
    update: float
    relative_rounding: float


@dataclass(frozen=True)
class Baked:
    """A base with an adapter in its weights.

    Attributes:
        folder: A model folder like the base's.
        weights: Those that were changed.
        relative_rounding: Over all of them.
        replaced: Tensors that the adapter saved in full, and the base has.
        left: Tensors that the adapter saved in full, and the base has no place for.
        left_out: Files of the base that would hold the old weights.
        warnings: What the user should know before using it.
    """

    folder: Path
    weights: tuple[BakedWeight, ...]
    relative_rounding: float
    replaced: tuple[str, ...]
    left: tuple[str, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]


def bake(
    base: Path,
    adapter: AdapterFolder,
    out: Path,
    names: Mapping[str, str] | None = None,
) -> Baked:
    """Write a copy of a base whose weights hold an adapter's update.

    Args:
        base: A folder of transformers' with one safetensors file, or several and an
            index.
        adapter: A plain LoRA; a merged one is exported exactly first.
        out: A new or empty folder, written whole or not at all.
        names: Module -> its weight's name, where the checkpoint names it otherwise than
            the model that transformers makes of it.

    Raises:
        ExportError: the base is quantized, is no safetensors, has no such weight or
            one of another shape, ties a weight that the adapter changes; a sum is not
            finite in its dtype; `out` is not empty; or the disk cannot hold it.
        AdapterError: the adapter or a shard cannot be read.
    """
    base, out = Path(base), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError("is not empty", where=str(out), fix="name a new folder")
    config = read_config(base)
    shards = {path.name: TensorFile(path) for path in shards_of(base)}
    shapes = {
        name: spec[1] for file in shards.values() for name, spec in file.tensors.items()
    }
    targets = targets_of(adapter, shapes, config, base, names or {})
    heads, left = _heads(adapter, shapes, tied_rows(config, shapes), base)
    out.parent.mkdir(parents=True, exist_ok=True)
    check_space(out.parent, sum(file.path.stat().st_size for file in shards.values()))
    weights: list[BakedWeight] = []
    with full_disk_told(out), atomic_directory(out) as temporary:
        for name, file in shards.items():
            stream = _baked(file, adapter, targets, heads, weights)
            write_tensors(temporary / name, file.tensors, stream, file.metadata)
        left_out = _copy_others(base, temporary, shards)
        found = _told(out, weights, heads, left, left_out, adapter.base.form)
        text = json.dumps(_record(found, adapter), indent=1)
        (temporary / RECORD).write_text(text, encoding="utf-8")
    for warning in found.warnings:
        logger.warning("%s", warning)
    return found


def _heads(
    adapter: AdapterFolder,
    shapes: Mapping[str, tuple[int, ...]],
    tied: set[int],
    base: Path,
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return base tensor -> the adapter's that replaces it, and what finds no place."""
    heads, left = {}, []
    both = adapter.config.get("ensure_weight_tying")  # trained as one, too
    for stored, (_, shape) in adapter.rest_plan.items():
        name = stored.removeprefix(PREFIX)
        if shapes.get(name) == shape:
            if len(shape) == 2 and shape[0] in tied and not both:
                raise shared(name.removesuffix(".weight"), base)
            heads[name] = stored
        else:
            left.append(stored)
    return heads, tuple(left)


def _baked(
    file: TensorFile,
    adapter: AdapterFolder,
    targets: Mapping[str, Target],
    heads: Mapping[str, str],
    weights: list[BakedWeight],
) -> Iterator[tuple[str, Tensor]]:
    """Yield a shard's tensors, the adapter in those that it changes."""
    for name, (dtype, _) in file.tensors.items():
        if name in heads:
            yield name, _head(adapter, heads[name], name, dtype, file)
        elif name in targets:
            W, target = file.read(name), targets[name]
            if not dtype.is_floating_point or dtype.itemsize < 2:
                raise ExportError(
                    f"{name} is stored as {dtype}",
                    where=str(file.path),
                    why="an update cannot be added to codes",
                    fix="bake into the float base, then quantize",
                )
            update, lost = add(W, adapter.factors(target.module), target.transposed)
            if not math.isfinite(lost):
                raise ExportError(
                    f"{name} is not finite in {dtype}", where=str(file.path)
                )
            share = lost / update if update else 0.0
            weights.append(BakedWeight(target.module, name, update, share))
            yield name, W
        else:
            yield name, file.read(name)


def _head(
    adapter: AdapterFolder, stored: str, name: str, dtype: torch.dtype, file: TensorFile
) -> Tensor:
    """Return what the adapter saved in full, in the dtype of the base's tensor."""
    head = adapter.saved(stored).to(dtype)
    if not all_finite(head):
        raise ExportError(f"{name} is not finite in {dtype}", where=str(file.path))
    return head


def add(W: Tensor, factors: Factors, transposed: bool = False) -> tuple[float, float]:
    """Add an update to a weight in place, some rows at a time.

    The sum is made in float32, or float64 for a weight of float64, and rounded once.

    Args:
        W: [out, in], [out, in, k…] or, `transposed`, [in, out].
        factors: s·B·A.
        transposed: Whether W is the transpose.

    Returns:
        ‖ΔW‖_F, and ‖W' − W − ΔW‖_F, what rounding lost; not finite if W' is not.
    """
    exact = torch.float64 if W.dtype == torch.float64 else torch.float32
    left, right = (factors.A.T, factors.B.T) if transposed else (factors.B, factors.A)
    left, right = factors.scale * left.to(exact), right.to(exact)
    flat = W.view(W.shape[0], -1)
    rows = max(1, BLOCK // flat.shape[1])
    update = lost = 0.0
    for start in range(0, flat.shape[0], rows):
        block = flat[start : start + rows]
        ΔW = left[start : start + rows] @ right
        before = block.to(exact, copy=True)
        block.copy_(before + ΔW)
        update = math.hypot(update, float(ΔW.norm()))
        lost = math.hypot(lost, float((block.to(exact) - before - ΔW).norm()))
    return update, lost


def _copy_others(base: Path, folder: Path, shards: Mapping[str, Any]) -> list[str]:
    """Copy what is no weight; return the files that would hold the old ones."""
    left_out = []
    for file in sorted(base.iterdir()):
        if not file.is_file() or file.name in shards:
            continue
        if file.suffix in OTHER_WEIGHTS or file.name.startswith("pytorch_model"):
            left_out.append(file.name)
        else:
            shutil.copyfile(file, folder / file.name)
    return left_out


def _told(
    out: Path,
    weights: list[BakedWeight],
    heads: Mapping[str, str],
    left: tuple[str, ...],
    left_out: list[str],
    form: str,
) -> Baked:
    update = math.hypot(*(weight.update for weight in weights))
    lost = math.hypot(*(w.update * w.relative_rounding for w in weights))
    share = lost / update if update else 0.0
    told = []
    if form:
        told.append(
            f"the base that the adapter was trained on was {form}, and the float base "
            "with the adapter in it is another: evaluate it before it is used"
        )
    if share > SWALLOWED:
        told.append(
            f"rounding to the base's dtype lost {percent(share, 0)} of the update"
        )
    if left:
        told.append(
            f"the base has no place for {len(left)} tensors that the adapter saved in "
            f"full, such as {left[0]}: they are not in it"
        )
    return Baked(
        out, tuple(weights), share, tuple(heads), left, tuple(left_out), tuple(told)
    )


def _record(found: Baked, adapter: AdapterFolder) -> dict[str, Any]:
    content = asdict(found)
    del content["folder"]
    adapted = {"name": adapter.name, "digest": adapter.digest}
    return {"format": FORMAT_VERSION, "adapter": adapted, **content}
