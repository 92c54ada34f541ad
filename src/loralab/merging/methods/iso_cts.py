"""Iso-CTS: Iso-C over the common directions and a few of each task's own.

    Σ ΔW_t = U diag(σ) Vᵀ of rank ρ;   (U_c, σ_c, V_c): its first c triplets
    (I − U_c U_cᵀ) ΔW_t = U_t diag(σ_t) V_tᵀ;   its first n triplets
    Û = polar([U_1 … U_T U_c]),  V̂ = polar([V_1 … V_T V_c]),  σ̄ = mean of all their σ
    ΔW = scale · σ̄ Û V̂ᵀ

with n = round((ρ − ⌊ρ·common_space_fraction⌋) / T), at most ⌊ρ / T⌋, and c = ρ − T·n.
Marczak et al. 2025, No Task Left Behind (arXiv 2502.04959), `iso_cts` of
danielm1405/iso-merging; the names and defaults of FusionBench: `common_space_fraction`
0.8, `scaling_factor` 1 (`scale` here).

The original has ρ = min(out, in) and so fills the space with null directions of
adapters (see `iso_c.py`). Here ρ is the numerical rank of the sum, and a task whose
update lies in the common directions adds the fewer that it has left, nothing that is
rounding; a task that leaves the layer alone takes no part in T. It is the original
wherever that is well defined: rounding n up can leave a negative c, with which its
slices take other directions than they mean.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from loralab.lowrank.update import Update, svd
from loralab.merging.layer import Layer
from loralab.merging.method import INVARIANT
from loralab.merging.methods._spectral import Scaled, joined
from loralab.registry import register

Triplets = tuple[Tensor, Tensor, Tensor]


class IsoCTSParams(Scaled):
    """Parameters of Iso-CTS.

    Attributes:
        common_space_fraction: Share of the directions that are those of the sum.
    """

    common_space_fraction: float = Field(default=0.8, ge=0, le=1)


@register("merge method", "iso-cts", IsoCTSParams, laws=INVARIANT)
def iso_cts(params: IsoCTSParams, layer: Layer) -> Update:
    """Return common and task-specific directions, orthogonal, all of one length."""
    space = layer.space
    U, s, V = svd(space.total)
    tasks = [core for core in space.cores if float(core.norm())]
    own = _own(s.numel(), len(tasks), params.common_space_fraction)
    common = s.numel() - own * len(tasks)
    found = [_rest(core, U[:, :common], own) for core in tasks]
    found.append((U[:, :common], s[:common], V[:, :common]))
    side_by_side = [torch.cat(parts, -1) for parts in zip(*found, strict=True)]
    σ = side_by_side[1]
    flat = torch.full_like(σ, float(σ.sum()) / max(1, σ.numel()))
    return space.update(params.scale * joined(side_by_side[0], flat, side_by_side[2]))


def _own(rank: int, tasks: int, fraction: float) -> int:
    """Return n, how many directions of its own a task may add."""
    if not tasks:
        return 0
    return min(round((rank - int(rank * fraction)) / tasks), rank // tasks)


def _rest(core: Tensor, common: Tensor, count: int) -> Triplets:
    """Return the first triplets of what is left of a task outside the common ones."""
    left = core - common @ (common.T @ core)
    U, s, V = svd(left - common @ (common.T @ left))
    rounding = max(core.shape) * torch.finfo(core.dtype).eps * core.norm()
    count = min(count, int((s > rounding).sum()))
    return U[:, :count], s[:count], V[:, :count]
