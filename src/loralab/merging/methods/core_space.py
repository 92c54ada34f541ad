"""Core Space: the updates in common input and output directions, merged by any method.

    [B_1 … B_T] = U Σ_B ·,   [A_1; …; A_T] = · Σ_A Vᵀ      (reference bases)
    M_t = Uᵀ ΔW_t V,   ΔW = U · inner(M_1, …, M_T) · Vᵀ

Panariello et al., NeurIPS 2025 (arXiv 2509.17786), `get_core_matrices` of
apanariello4/core-space-merging. Nothing is lost: U and V span all factors. Cores are
Σr_t × Σr_t, or smaller where factors repeat each other, as null directions are left
out (in the repository they stay, and count in the density of TIES).

What depends on the bases: nothing where the inner rule knows only norms, angles and
singular values, such as the rank-aware tsv-m, iso-c, karcher: with them Core Space is
that method. Element-wise rules do. The paper's bases come from the *factors*, so that
B → BG, A → G⁻¹A, which changes no update, turns U and V and with them the merge; also
the scale α/r of a task weighs in M_t but not in the bases. ``reference: updates`` takes
the left singular vectors of [ΔW_1 … ΔW_T] and the right ones of [ΔW_1; …; ΔW_T]
instead, which are unique up to signs (that cancel) wherever singular values differ.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from loralab.lowrank.update import Update, orthonormal, svd
from loralab.merging.layer import Layer
from loralab.merging.method import INVARIANT
from loralab.merging.methods._inner import WHOLE, Inner, merged_within
from loralab.registry import register


class CoreSpaceParams(Inner):
    """Parameters of Core Space merging.

    Attributes:
        inner: The method that merges the cores; its own params scale the result.
        reference: What the bases are the singular vectors of: the stacked ``factors``
            (the paper), or the stacked ``updates``, which no gauge changes.
    """

    reference: Literal["factors", "updates"] = "factors"


@register(
    "merge method",
    "core-space",
    CoreSpaceParams,
    laws=INVARIANT | {"gauge": {"reference": "updates"}, "identity": WHOLE},
)
def core_space(params: CoreSpaceParams, layer: Layer) -> Update:
    """Return the inner method's merge of the cores, back in the weight."""
    space = layer.space
    if params.reference == "updates":
        U = space.L @ svd(torch.cat(space.cores, dim=1))[0]
        V = space.R @ svd(torch.cat(space.cores, dim=0))[2]
    else:
        U = _directions([task.B for task in layer.tasks], layer.dtype)
        V = _directions([task.A.T for task in layer.tasks], layer.dtype)
    return merged_within(layer, params.inner, U, V)


def _directions(blocks: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the left singular vectors of the blocks side by side."""
    Q, T = orthonormal(torch.cat([block.to(dtype) for block in blocks], dim=1))
    return Q @ svd(T)[0]
