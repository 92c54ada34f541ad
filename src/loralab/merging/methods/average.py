"""Simple average of the updates, ΔW = (1/T) Σ ΔW_t, exactly, of rank ≤ Σ rank."""

from __future__ import annotations

from loralab.lowrank.update import Update
from loralab.merging.layer import Layer
from loralab.merging.method import INVARIANT, Normed
from loralab.registry import register


@register("merge method", "average", Normed, laws=INVARIANT | {"identity": {}})
def average(params: Normed, layer: Layer) -> Update:
    """Return the mean of all tasks' updates; a task that leaves a layer counts as 0."""
    return layer.space.update(layer.space.total / len(layer.space.cores))
