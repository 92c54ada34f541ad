"""The best approximation of the sum of all updates by one of a given rank.

    ΔW = U_k Σ_k V_kᵀ   of   Σ ΔW_t = U Σ Vᵀ           (Eckart & Young 1936)

PEFT's ``add_weighted_adapter(combination_type="svd")``, without the dense out × in sum
(and its full square U and V) that PEFT factorises. What PEFT 0.21 does, and what of it
is so here:

- each adapter's weight and scaling (alpha / r, or alpha / √r) are in its ΔW_t: so here;
- the rank is `svd_rank`, else the largest of the adapters' ranks (over all modules):
  here `rank`, else the largest rank among the tasks *in this layer*;
- the new adapter has lora_alpha = rank, which is scaling 1, but keeps `use_rslora`,
  with which its scaling is √rank: not so here, an export states the scale it means;
- one adapter alone is merged linearly, without an SVD: the same at its own rank;
- `svd_clamp` clips the factors' entries afterwards, which depends on their gauge: not
  offered.

σ_k = σ_{k+1} leaves the choice among the directions open, in PEFT as here. The square
of what is cut is known, and is in `lost`.
"""

from __future__ import annotations

from pydantic import Field

from loralab.lowrank.update import Update, truncated
from loralab.merging.layer import Layer
from loralab.merging.method import INVARIANT, Normed
from loralab.registry import register


class SVDParams(Normed):
    """Parameters of the truncated sum.

    Attributes:
        rank: Of the merged update; by default the largest among the layer's tasks.
    """

    rank: int | None = Field(default=None, ge=1)


@register("merge method", "svd", SVDParams, laws=INVARIANT | {"identity": {}})
def svd(params: SVDParams, layer: Layer) -> Update:
    """Return the sum of all tasks' updates at the given rank."""
    rank = params.rank or max(task.rank for task in layer.tasks)
    return truncated(layer.space.update(layer.space.total), rank)
