r"""MagMax: of each entry the largest magnitude (Marczak et al. 2024, arXiv 2407.06322).

    M_ij = λ·τ_t*(i,j),   t* = argmax_t |ΔW_t,ij|

on the entries of ΔW_t, then factorised (`_elements.py`). Of equal magnitudes the later
task's is taken, and λ is 0.5, as in the authors' code and FusionBench's `magmax`.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from loralab.lowrank.update import Update
from loralab.merging.layer import Layer
from loralab.merging.method import INVARIANT
from loralab.merging.methods._elements import ElementParams, entries
from loralab.registry import register


class MagmaxParams(ElementParams):
    """Of MagMax.

    Attributes:
        scale: λ.
    """

    scale: float = Field(0.5, gt=0)


@register(
    "merge method",
    "magmax",
    MagmaxParams,
    laws=INVARIANT | {"identity": {"scale": 1.0}},
)
def magmax(params: MagmaxParams, layer: Layer) -> Update:
    """Return the entries of the largest magnitude."""
    found = entries(layer, params)

    def rule(start: int) -> Tensor:
        best = found.of(0, start)
        for task in range(1, found.count):
            new = found.of(task, start)
            best = torch.where(new.abs() >= best.abs(), new, best)
        return best

    return found.factorised(rule, params)
