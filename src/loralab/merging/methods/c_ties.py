r"""Continual TIES: at every step TIES of what has been merged and the next task.

    M_1 = λ·ΔW_1,   M_t = M_{t−1} + λ·TIES(M_{t−1}, ΔW_t)

the rule of FusionBench's `ContinualTiesMergingForCLIP` (method/opcm/ties_merging.py), a
baseline of OPCM and MINGLE: TIES sees two updates, trims both by their own quantile,
and its result is added to what was there. The disjoint ``sum`` is that code's default;
λ is 0.3 for 8 tasks and 0.1 for 14 and 20 in its scripts, at a density of 0.2.

Registered as a joint method whose result depends on the order of the tasks: M_t has
full rank, and factorising it at each step would feed the loss to the next threshold.
Instead the entries of M_{t−1} are made again from the originals for each block, with
the thresholds of the steps before; those of step t take two passes over all steps up
to it, O(T²) in all. The last M alone is factorised (`_elements.py`). The quantile is
that of a layer; FusionBench's is over the whole model.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from loralab.lowrank.update import Update
from loralab.merging.layer import Layer
from loralab.merging.methods._elements import (
    Entries,
    Fuse,
    Trimmed,
    elected,
    entries,
    trimmed,
)
from loralab.registry import register


class CTiesParams(Trimmed):
    """Of continual TIES.

    Attributes:
        scale: λ, of every step.
        fuse: What becomes of two entries that agree: their ``sum`` or ``mean``.
    """

    scale: float = Field(0.3, gt=0)
    fuse: Fuse = "sum"


@register(
    "merge method",
    "c-ties",
    CTiesParams,
    laws={
        "identity": {"scale": 1.0},
        "gauge": {},
        "scale": {},
        "rank": {},
        "driver": {},
    },
)
def c_ties(params: CTiesParams, layer: Layer) -> Update:
    """Return what continual TIES makes of the tasks in their order."""
    found = entries(layer, params)
    floors: list[Tensor] = []
    for task in range(1, found.count):
        floors.append(_floors(found, params, floors, task))

    def rule(start: int) -> Tensor:
        return _merged(found, params, floors, start)

    return found.factorised(rule, params.model_copy(update={"scale": 1.0}))


def _floors(
    found: Entries, params: CTiesParams, floors: list[Tensor], task: int
) -> Tensor:
    """Return the thresholds of what has been merged and of the next task, [2, 1, 1]."""

    def before(start: int) -> Tensor:
        return _merged(found, params, floors, start)

    def new(start: int) -> Tensor:
        return found.of(task, start)

    return found.per_task([found.floor(rule, params.density) for rule in (before, new)])


def _merged(
    found: Entries, params: CTiesParams, floors: list[Tensor], start: int
) -> Tensor:
    """Return a block after as many steps as have thresholds, [h, in]."""
    merged = params.scale * found.of(0, start)
    for task, floor in enumerate(floors, start=1):
        pair = torch.stack([merged, found.of(task, start)])
        agreed = elected(trimmed(pair, floor), "total", params.fuse)
        merged = merged + params.scale * agreed
    return merged
