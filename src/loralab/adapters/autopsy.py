"""The autopsy of ranks: what a trained adapter has used of the ranks it was given.

Of each module the spectrum of ΔW = s·B·A, over all modules the energy Σσ², and the
smallest budget that would have kept a share of it. What is lost by truncating is told
exactly (`loralab.lowrank`); what it does to the task's metric is measured by
`loralab.evaluation.autopsy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from loralab.errors import AdapterError
from loralab.lowrank.budget import (
    Budget,
    energy_curve,
    smallest_in_parameters,
    smallest_in_ranks,
)
from loralab.lowrank.factors import (
    effective_rank,
    singular_values,
    stable_rank,
    truncate,
)
from loralab.lowrank.files import StoredAdapter, read_adapter, write_adapter
from loralab.runs import Run


@dataclass(frozen=True)
class ModuleRanks:
    """The spectrum of one module's update.

    Attributes:
        name: Path in the base.
        shape: (out, in) of its weight.
        rank: As it was configured.
        scale: s of ΔW = s·B·A.
        sigma: Singular values of ΔW, descending, min(rank, in, out) of them.
        norm: ‖ΔW‖_F.
        effective_rank: exp of the entropy of σ/Σσ (Roy & Vetterli 2007).
        stable_rank: ‖ΔW‖_F² / σ_1².
    """

    name: str
    shape: tuple[int, int]
    rank: int
    scale: float
    sigma: tuple[float, ...]
    norm: float
    effective_rank: float
    stable_rank: float


@dataclass(frozen=True)
class Autopsy:
    """What an adapter has used of its ranks.

    Attributes:
        folder: The adapter.
        keep: The share of the energy Σσ² that the budgets keep.
        modules: One for each adapted module, in the order of their names.
        total_rank: Sum of the configured ranks.
        parameters: Of all factors.
        curve: Share of the energy that the best k directions of all modules keep, for
            k = 0, 1, …; as long as there are directions.
        by_rank: The smallest sum of ranks that keeps the share; exact.
        by_parameters: A small number of parameters that keeps it; greedy.
    """

    folder: Path
    keep: float
    modules: tuple[ModuleRanks, ...]
    total_rank: int
    parameters: int
    curve: tuple[float, ...]
    by_rank: Budget
    by_parameters: Budget

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return {**asdict(self), "folder": str(self.folder)}


def adapter_folder(source: Run | Path | str) -> Path:
    """Return the adapter's folder of a run, or the folder that was named."""
    return source.require_adapter() if isinstance(source, Run) else Path(source)


def autopsy(source: Run | Path | str, keep: float = 0.9) -> Autopsy:
    """Return the spectra of an adapter, and the smallest budgets that keep a share.

    Args:
        source: A finished run, or a plain PEFT LoRA folder of anyone's.
        keep: Share of Σσ² over all modules, in (0, 1].

    Raises:
        AdapterError: the adapter cannot be read, is not plain LoRA, or its update is
            zero; or `keep` is no share.
        RunError: the run has no adapter.
    """
    if not 0 < keep <= 1:
        raise AdapterError(
            f"{keep} is no share of the energy", where="keep", fix="0 < keep ≤ 1"
        )
    folder = adapter_folder(source)
    stored = read_adapter(folder)
    modules = tuple(_module(name, f) for name, f in stored.factors.items())
    spectra = {module.name: module.sigma for module in modules}
    costs = {name: f.direction_cost for name, f in stored.factors.items()}
    curve = energy_curve(spectra)
    if not curve[-1]:
        raise AdapterError(
            "the update of every module is zero",
            where=str(folder),
            why="it has not been trained: B is still what it was at the start",
        )
    return Autopsy(
        folder=folder,
        keep=keep,
        modules=modules,
        total_rank=sum(f.rank for f in stored.factors.values()),
        parameters=sum(f.parameters for f in stored.factors.values()),
        curve=tuple(curve.tolist()),
        by_rank=smallest_in_ranks(spectra, costs, keep),
        by_parameters=smallest_in_parameters(spectra, costs, keep),
    )


def _module(name: str, factors: Any) -> ModuleRanks:
    sigma = singular_values(factors)
    return ModuleRanks(
        name=name,
        shape=factors.shape,
        rank=factors.rank,
        scale=factors.scale,
        sigma=tuple(sigma.tolist()),
        norm=float(sigma.norm()),
        effective_rank=effective_rank(sigma),
        stable_rank=stable_rank(sigma),
    )


def truncated(
    stored: StoredAdapter, ranks: Mapping[str, int]
) -> tuple[StoredAdapter, dict[str, float]]:
    """Return the best approximation of an adapter with these ranks.

    Args:
        stored: An adapter; tensors saved in full stay as they are.
        ranks: Module -> rank, 0 for none; for every module.

    Returns:
        The adapter, and each module's relative error ‖ΔW − ΔW_k‖ / ‖ΔW‖.
    """
    cut = {name: truncate(f, ranks[name]) for name, f in stored.factors.items()}
    kept = {name: made.factors for name, made in cut.items()}
    errors = {name: made.relative_error for name, made in cut.items()}
    return replace(stored, factors=kept), errors


def check_empty(folder: Path) -> None:
    """Refuse a folder that holds something: an adapter is written as a whole folder.

    Raises:
        AdapterError: it is a file, or not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AdapterError(
            "is not empty, and what it holds is not replaced",
            where=str(folder),
            fix="name a new folder",
        )


def write_truncated(found: Autopsy, folder: Path, budget: Budget | None = None) -> None:
    """Write the truncated adapter as a plain LoRA folder, with its note and tokenizer.

    Modules that keep nothing are not adapted in it. It loads in plain PEFT.

    Args:
        found: The autopsy of the whole adapter.
        folder: A new or empty one.
        budget: Of the autopsy's two; by default the one counted in ranks.

    Raises:
        AdapterError: the adapter can no longer be read, or the folder is not empty.
    """
    check_empty(folder)
    ranks = (budget or found.by_rank).ranks
    made, _ = truncated(read_adapter(found.folder), ranks)
    write_adapter(folder, made, beside=found.folder)
