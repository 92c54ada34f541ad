"""What an export wrote, what it lost, and what the user should know before using it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from loralab import __version__
from loralab.lowrank.files import AdapterFolder
from loralab.lowrank.settings import MERGED
from loralab.merging.export.cut import CutLayer
from loralab.merging.export.heads import Heads, head_index
from loralab.merging.export.room import Room, energy_of, rank_that_keeps
from loralab.merging.method import Method
from loralab.units import percent

FORMAT_VERSION = 1
RECORD = MERGED
DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""What factors can be stored in."""
ENOUGH = 0.9
"""Share of the merged energy below which an export warns that its rank is too small."""
LITTLE = 0.5
"""Share of a task's energy in the written directions below which an export warns."""
COARSE = 0.01
"""Relative change by the stored dtype above which an export warns."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A merged adapter before it is written.

    Attributes:
        cuts: Every layer.
        ranks: Layer -> rank that will be written.
        scale: Of the norm rule.
        room: That gave the ranks.
        dtype: The factors'.
        heads: Where the tasks' heads go.
        adapters: Of the tasks.
    """

    cuts: tuple[CutLayer, ...]
    ranks: dict[str, int]
    scale: float
    room: Room
    dtype: torch.dtype
    heads: Heads
    adapters: tuple[AdapterFolder, ...]

    @property
    def spectra(self) -> dict[str, tuple[float, ...]]:
        """Layer -> its singular values."""
        return {cut.name: cut.sigma for cut in self.cuts}

    @property
    def written(self) -> list[tuple[CutLayer, int]]:
        """Each layer that keeps a direction, and how many."""
        pairs = ((cut, self.ranks[cut.name]) for cut in self.cuts)
        return [(cut, rank) for cut, rank in pairs if rank]


@dataclass(frozen=True)
class ExportedLayer:
    """What became of one layer.

    Attributes:
        name: Module path in the base.
        rank: Written; 0 where the layer is left out.
        of: Rank of the merged update.
        error: ‖ΔW − ΔW_k‖_F.
        relative_error: The same over ‖ΔW‖_F; 0 where ΔW is 0.
        rounding: ‖·‖_F of what the stored dtype changes beside it.
    """

    name: str
    rank: int
    of: int
    error: float
    relative_error: float
    rounding: float


@dataclass(frozen=True)
class Exported:
    """A merged adapter on disk.

    Attributes:
        folder: A plain PEFT adapter.
        room: What was asked for.
        dtype: The factors', by name.
        scale: What the norm rule multiplied the update with; 1 without it.
        bytes: Of the weights' file.
        layers: One for each merged layer.
        energy: Share of the merged Σσ² that is written.
        error: ‖ΔW − ΔW_k‖_F over all layers.
        relative_error: The same over ‖ΔW‖_F.
        rounding: ‖·‖_F over all layers of what the stored dtype changes beside it.
        relative_rounding: The same over ‖ΔW‖_F.
        kept: Task -> share of its energy that the written directions can hold.
        head: The task whose head is the adapter's; None if it has none.
        heads: Tasks whose heads stand in ``heads/``.
        left_out: Files beside the adapters that are not alike, and are not copied.
        warnings: What the user should know before using it.
    """

    folder: Path
    room: Room
    dtype: str
    scale: float
    bytes: int
    layers: tuple[ExportedLayer, ...]
    energy: float
    error: float
    relative_error: float
    rounding: float
    relative_rounding: float
    kept: dict[str, float]
    head: str | None
    heads: tuple[str, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def ranks(self) -> dict[str, int]:
        """Layer -> the rank that was written."""
        return {layer.name: layer.rank for layer in self.layers}

    def as_dict(self) -> dict[str, Any]:
        """Return all of it but the folder as JSON has it."""
        content = asdict(self)
        del content["folder"]
        return content


def _layer(cut: CutLayer, rank: int, scale: float) -> ExportedLayer:
    error, whole = math.sqrt(cut.cut(rank)), math.sqrt(cut.cut(0))
    return ExportedLayer(
        name=cut.name,
        rank=rank,
        of=len(cut.sigma),
        error=scale * error,
        relative_error=error / whole if whole else 0.0,
        rounding=scale * math.sqrt(float(cut.rounding[rank])),
    )


def _kept(plan: Plan) -> dict[str, float]:
    """Return of each task the share of its energy inside the written directions."""
    shares = {}
    for number, adapter in enumerate(plan.adapters):
        inside = sum(float(cut.kept[number, r]) for cut, r in plan.written)
        whole = sum(cut.tasks[number] for cut in plan.cuts)
        shares[adapter.name] = min(inside / whole, 1.0) if whole else 1.0
    return shares


def exported(plan: Plan, folder: Path, size: int, left_out: Sequence[str]) -> Exported:
    """Return what a plan wrote.

    Args:
        plan: That was carried out.
        folder: The adapter's.
        size: Bytes of its weights' file.
        left_out: Files that were not copied.
    """
    layers = tuple(_layer(c, plan.ranks[c.name], plan.scale) for c in plan.cuts)
    error = math.hypot(*(layer.error for layer in layers))
    rounding = math.hypot(*(layer.rounding for layer in layers))
    whole = plan.scale * math.sqrt(sum(cut.cut(0) for cut in plan.cuts))
    inside = plan.heads.inside
    return Exported(
        folder=folder,
        room=plan.room,
        dtype=next(name for name, value in DTYPES.items() if value == plan.dtype),
        scale=plan.scale,
        bytes=size,
        layers=layers,
        energy=energy_of(plan.spectra, plan.ranks),
        error=error,
        relative_error=error / whole,
        rounding=rounding,
        relative_rounding=rounding / whole,
        kept=_kept(plan),
        head=inside.name if inside else None,
        heads=tuple(adapter.name for adapter in plan.heads.beside),
        left_out=tuple(left_out),
        warnings=tuple(_warnings(plan, rounding / whole)),
    )


def _warnings(plan: Plan, rounding: float) -> list[str]:
    told = []
    energy = energy_of(plan.spectra, plan.ranks)
    if energy < ENOUGH:
        enough = rank_that_keeps(plan.spectra, ENOUGH)
        told.append(
            f"{plan.room} keeps {percent(energy, 0)} of the merged update's energy: it "
            f"has no place for the tasks. Rank {enough} of every layer would keep "
            f"{percent(ENOUGH, 0)}"
        )
    told += [
        f"{adapter.name} changes nothing: its update is zero in every layer"
        for number, adapter in enumerate(plan.adapters)
        if not any(cut.tasks[number] for cut in plan.cuts)
    ]
    shares = _kept(plan)
    least = min(shares, key=lambda name: shares[name])
    if shares[least] < LITTLE:
        told.append(
            f"the written directions hold {percent(shares[least], 0)} of {least}'s "
            "energy: the rest was cut, for louder tasks, or the method removed it"
        )
    told += [
        f"{adapter.name} is a merge with heads of its own beside it; they stay there"
        for adapter in plan.adapters
        if head_index(adapter.path)
    ]
    if rounding > COARSE:
        told.append(f"the stored dtype changes the update by {percent(rounding)}")
    return told


def record(
    found: Exported, plan: Plan, method: Method, weights: Sequence[float]
) -> dict[str, Any]:
    """Return the content of ``merge.json``, with which the folder explains itself."""
    scales = tuple(weights) or (1.0,) * len(plan.adapters)
    return {
        "format": FORMAT_VERSION,
        "loralab": __version__,
        "method": method.name,
        "params": method.params.model_dump(mode="json"),
        "adapters": [
            {
                "name": adapter.name,
                "digest": adapter.digest,
                "weight": weight,
                "base": asdict(adapter.base),
            }
            for adapter, weight in zip(plan.adapters, scales, strict=True)
        ],
        **found.as_dict(),
    }
