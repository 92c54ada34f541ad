"""TSV-M: the tasks' top singular vectors side by side, made orthogonal, and their σ.

    ΔW_t = U_t Σ_t V_tᵀ,  its k_t largest kept
    Û = polar([U_1 … U_T]),  V̂ = polar([V_1 … V_T]),  Σ̂ = diag(Σ_1, …, Σ_T)
    ΔW = scale · Û Σ̂ V̂ᵀ

Gargiulo et al., Task Singular Vectors, CVPR 2025 (arXiv 2412.00081); the rule of
AntoAndGar/task_singular_vectors, `compute_and_sum_svd_mem_reduction`, which FusionBench
carries as TaskSingularVectorMerging (its `alpha`, 1 by default, is `scale`).

The original takes k = ⌊min(out, in) / T⌋ vectors of every task. An adapter has far
fewer: the others are an arbitrary basis of the null space that weighs nothing in Σ̂ but
bends Û and V̂, so that another LAPACK driver gives another merge. Here
k_t = min(k, rank ΔW_t), which is the original wherever that is well defined, and keeps
an adapter whole as long as Σ r_t ≤ min(out, in). `keep` cuts each task to a share of
its own rank instead. A task that leaves the layer alone takes no part in T.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field

from loralab.lowrank.update import Update, svd
from loralab.merging.layer import Layer
from loralab.merging.method import INVARIANT
from loralab.merging.methods._spectral import Scaled, joined
from loralab.registry import register


class TSVMParams(Scaled):
    """Parameters of TSV-M.

    Attributes:
        keep: Share of each task's own rank, rounded up, instead of the original's
            min(out, in) / T directions; 1 keeps all ("lossless" in the repository).
    """

    keep: float | None = Field(default=None, gt=0, le=1)


@register("merge method", "tsv-m", TSVMParams, laws=INVARIANT | {"identity": {}})
def tsv_m(params: TSVMParams, layer: Layer) -> Update:
    """Return the sum of the tasks' top singular triplets after orthogonalisation."""
    space = layer.space
    found = [svd(core) for core in space.cores]
    present = sum(bool(s.numel()) for _, s, _ in found)
    share = max(1, min(layer.shape) // max(1, present))
    kept = [_kept(s.numel(), share, params.keep) for _, s, _ in found]
    U = torch.cat([U[:, :k] for (U, _, _), k in zip(found, kept, strict=True)], 1)
    s = torch.cat([s[:k] for (_, s, _), k in zip(found, kept, strict=True)])
    V = torch.cat([V[:, :k] for (_, _, V), k in zip(found, kept, strict=True)], 1)
    return space.update(params.scale * joined(U, s, V))


def _kept(rank: int, share: int, keep: float | None) -> int:
    """Return k_t; a product that is an integer but for rounding is that integer."""
    if keep is None:
        return min(share, rank)
    return math.ceil(keep * rank - 1e-9)
