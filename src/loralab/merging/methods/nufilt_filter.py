"""NUFILT's filter: each new update without the input directions already in use.

    S_{t−1} = U Σ Vᵀ,   V_k its first k right singular vectors
    S_t = S_{t−1} + ΔW_t (I − V_k V_kᵀ)

What S_{t−1} does to inputs along V_k is left exactly as it is: S_t V_k = S_{t−1} V_k.
Right-only, where OPCM works on both sides. It is the data-free, closed-form half of
NUFILT (Qiu et al., ICLR 2026; zihuanqiu/NUFILT, `filter_lora.py`), which then fits a
small LoRA on projected losses to give the new task back some of what the filter took:
that half is an optimisation and not here.

`null_rank` is the repository's `null_r` (128 for a ViT of width 768, whose S has full
rank). Directions without a singular value are arbitrary there; here k is at most the
numerical rank of S, so that for adapters whose ranks sum to less than `null_rank` all
input directions in use are protected. `alpha_threshold` protects fewer: as few as hold
this share of the nuclear norm.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field
from torch import Tensor

from loralab.lowrank.factors import Factors
from loralab.lowrank.update import Update, svd, total
from loralab.merging.method import Normed, Step
from loralab.registry import register


class NUFILTFilterParams(Normed):
    """Parameters of the filter.

    Attributes:
        null_rank: The most input directions that are protected.
        alpha_threshold: Share of the nuclear norm that they hold; 1 for all of it.
    """

    null_rank: int = Field(default=128, ge=0)
    alpha_threshold: float = Field(default=1.0, ge=0, le=1)


@register(
    "merge method",
    "nufilt-filter",
    NUFILTFilterParams,
    laws={"identity": {}, "gauge": {}, "scale": {}, "rank": {}, "driver": {}},
    continual=True,
)
def nufilt_filter(
    params: NUFILTFilterParams, merged: Update | None, new: Factors, step: Step
) -> Update:
    """Return the merged update and what of the new one acts on other inputs."""
    if merged is None:
        return new.update(step.dtype)
    _, s, V = svd(merged.C)
    used = merged.R @ V[:, : _protected(s, params)]
    A = new.A.detach().to(used)
    rest = A - (A @ used) @ used.T
    rest = rest - (rest @ used) @ used.T  # twice is enough for full precision
    return total([merged, replace(new, A=rest, B=new.B.to(used)).update(step.dtype)])


def _protected(s: Tensor, params: NUFILTFilterParams) -> int:
    """Return k: at most null_rank, and no more than the share asked for needs."""
    if params.alpha_threshold == 1:
        return min(params.null_rank, s.numel())
    share = s.cumsum(0) / s.sum()
    needed = int((share < params.alpha_threshold).sum()) + 1
    return min(params.null_rank, needed if params.alpha_threshold else 0, s.numel())
