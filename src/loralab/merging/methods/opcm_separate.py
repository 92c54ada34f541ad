r"""A baseline that projects B and A separately. It is not an approximation of `opcm`.

    X ∈ {B, A}, each on its own:   X_t = X_{t−1} + Y_t − Σ_{i≤p} (u_iᵀ Y_t v_i) u_i v_iᵀ
    λ_t = √(‖B_t‖² + ‖A_t‖²) / n̄_t,   n̄_t = mean of √(‖B‖² + ‖A‖²) over the tasks
    ΔW = (B_t / λ_t)(A_t / λ_t)

with Y_t the new task's factor, u_i and v_i the singular vectors of X_{t−1}, and p the
fewest of them that hold `alpha_threshold` of its nuclear norm. Sketches of "OPCM for
LoRA" describe this rule, so it is here to be compared with, and it fails in these ways
(measured on synthetic factors, 512 × 512, rank 16):

* Cross terms. (B + B')(A + A') holds BA' + B'A, which are no task's update. At 8 tasks
  with A of different seeds they have 7 times the energy of the signal, and the cosine
  of the result to the sum of the updates is 0.36.
* The gauge. B → BG, A → G⁻¹A is the same adapter and gives another result (149 % off).
* No orthogonality. ⟨P(B), B_m⟩ = 0 and ⟨P(A), A_m⟩ = 0 do not make
  ⟨P(B)P(A), B_m A_m⟩ zero, and only p rank-one terms of 2·r are removed: 99.95 % of the
  norm stays.
* λ twice. Both factors are divided by λ, so the update falls by λ².
* The scale. Its norm is that of factors, so it depends on how alpha / r is shared out
  between B and A; here all of it goes into B, and updates times c do not give the
  merged update times c.
* The rank stays that of the largest adapter, whatever the tasks need; others are
  padded with zeros, which aligns directions that have nothing to do with each other.

It looks right only if all adapters start from the same A. It is a joint method, since
the factors that it needs again are in no merged update. λ_t is each layer's own.
"""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from loralab.lowrank.update import Update, orthonormal, spanned, svd
from loralab.merging.layer import Layer
from loralab.merging.method import factor_of_norm_rule
from loralab.merging.projection import protected_count
from loralab.registry import Params, register


class OPCMSeparateParams(Params):
    """Params of `opcm-separate`.

    Attributes:
        alpha_threshold: Share of each factor's nuclear norm that is projected away.
    """

    alpha_threshold: float = Field(0.5, ge=0, le=1)


@register(
    "merge method",
    "opcm-separate",
    OPCMSeparateParams,
    laws={"identity": {}, "rank": {}, "driver": {}},
)
def opcm_separate(params: OPCMSeparateParams, layer: Layer) -> Update:
    """Return (B_T/λ_T)(A_T/λ_T) of one layer."""
    rank = max(task.rank for task in layer.tasks)
    pairs = [
        (
            _padded(task.scale * task.B.to(layer.dtype), rank),
            _padded(task.A.to(layer.dtype).T, rank),
        )
        for task in layer.tasks
    ]
    norms = [_norm(*pair) for pair in pairs]
    B, A = pairs[0]
    for more_B, more_A in pairs[1:]:
        B = B + _projected(B, more_B, params.alpha_threshold)
        A = A + _projected(A, more_A, params.alpha_threshold)
    factor = factor_of_norm_rule(_norm(B, A), norms)
    return spanned(A.T, B, factor**2)


def _padded(X: Tensor, rank: int) -> Tensor:
    return pad(X, (0, rank - X.shape[1]))


def _norm(B: Tensor, A: Tensor) -> float:
    return math.hypot(float(B.norm()), float(A.norm()))


def _projected(X: Tensor, Y: Tensor, alpha: float) -> Tensor:
    """Return Y [n, r] without the first rank-one terms of X [n, r]."""
    Q, T = orthonormal(X)
    u, s, V = svd(T)
    kept = protected_count(s, alpha, "paper")
    U, V = Q @ u[:, :kept], V[:, :kept]
    along = (U * (Y @ V)).sum(0)
    return Y - (U * along) @ V.T
