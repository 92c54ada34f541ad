"""From one S_t of a merge state to the next, and back by a replay."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch

from loralab import __version__
from loralab.lowrank.files import AdapterFolder
from loralab.lowrank.update import frobenius, total
from loralab.merging.merge import shapes_of
from loralab.merging.state.folder import place
from loralab.merging.state.log import Entry, Log, Sum
from loralab.merging.state.stored import (
    StoredSum,
    Told,
    Updates,
    replay,
    step,
    told,
    write_sum,
)
from loralab.runs.files import rename


def sources_of(folder: Path, tasks: Iterable[Entry]) -> list[AdapterFolder]:
    """Return the adapters of tasks, as a state keeps them."""
    return [
        AdapterFolder.open(place(folder, task.digest), task.adapter) for task in tasks
    ]


def stored_sum(folder: Path, log: Log) -> StoredSum | None:
    """Return S_t, if one is stored."""
    return StoredSum(folder / log.merged.file) if log.merged else None


def stepped(
    folder: Path, log: Log, source: AdapterFolder, weight: float, on_event: Told
) -> Sum | None:
    """Write S_{t+1}; a joint method has none.

    Args:
        folder: Of the state.
        log: What it says of S_t.
        source: The next task's adapter.
        weight: What its update is multiplied with.
        on_event: Is told each layer.
    """
    method = log.resolved
    if not method.continual:
        return None
    count, stored = len(log.tasks), stored_sum(folder, log)
    known = {**(stored.shapes if stored else {}), **source.shapes}
    made = step(method, stored, count, source, weight, log.precision)
    what = f"adding {source.name} to {count} tasks"
    return keep_sum(folder, told(made, what, len(known), on_event))


def replayed(
    folder: Path, log: Log, tasks: tuple[Entry, ...], on_event: Told
) -> Updates:
    """Return S_t of these tasks, merged anew from the adapters."""
    sources = sources_of(folder, tasks)
    weights = [task.weight for task in tasks]
    made = replay(log.resolved, sources, weights, log.precision)
    what = f"merging {len(tasks)} tasks anew"
    return told(made, what, len(shapes_of(sources)), on_event)


def keep_sum(folder: Path, updates: Updates) -> Sum:
    """Write S_t under the name that its content gives it."""
    path, digest, norm = write_sum(folder, updates)
    merged = Sum(sha256=digest, norm=norm)
    rename(path, folder / merged.file)
    return merged


def distance(stored: StoredSum, replay: Updates) -> float:
    """Return ‖S_t − S_t'‖_F of what is stored and what a replay gives."""
    return math.hypot(
        *(frobenius(total([new, stored.update(name) * -1.0])) for name, new in replay)
    )


def difference(log: Log, then: Entry, gap: float) -> str:
    """Say that a replay is not, up to rounding, what there was after an entry.

    Args:
        log: Of the state.
        then: The entry.
        gap: How far the two are from each other, as ‖S_t‖_F is counted.
    """
    norm = then.merged.norm if then.merged else 0.0
    if gap <= norm * torch.finfo(log.precision).eps ** 0.5:
        return ""
    return (
        f"merged anew, the tasks up to {then.adapter} are {gap:.3g} from the sum of "
        f"norm {norm:.3g} that was written, by loralab {then.version} (this is "
        f"{__version__}) or on a machine whose rounding tipped a choice of the method"
    )
