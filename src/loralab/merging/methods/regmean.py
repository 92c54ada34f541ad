r"""RegMean: the merge whose outputs are nearest to each task's own (ICLR 2023).

Jin et al. 2023 (arXiv 2212.09849), eq. 2: with G_t the second moment of task t's inputs
to a layer, the minimum of Σ_t tr((W − W_t) G_t (W − W_t)ᵀ), that is of the mean squared
distance Σ_t E‖W x − W_t x‖² of the outputs, is

    W = (Σ_t W_t G_t)(Σ_t G_t)⁻¹

The base cancels: with W_t = W_0 + s_t B_t A_t the first factor is
W_0 (Σ G_t) + Σ s_t B_t A_t G_t, so that

    ΔW = W − W_0 = Σ_t s_t B_t A_t',    A_t' = A_t G_t (Σ_u G_u)⁻¹

B_t stays, and the rank is at most the sum of the ranks: it is exact in factored form.

G_t is a sketch, and its off-diagonal is shrunk by α as in the paper (section 3.3):
G_t = X_t X_tᵀ + diag(D_t) with the exact diagonal (`lowrank/sketch.py`). With
X = [X_1 … X_T] and D = Σ D_t, Woodbury's identity gives the inverse through a matrix
of (T·k) × (T·k), and no in × in matrix is made:

    (Σ G_t)⁻¹ = D⁻¹ − D⁻¹X (I + XᵀD⁻¹X)⁻¹ XᵀD⁻¹

To each G_t is added ε·mean(d_t)·I, ε = 1e-6: an input that is 0 in all tasks has no
least-squares solution, and gets the mean of the updates so. A sketch of full rank with
α = 1 leaves no more than that in D, and ZᵀZ is as large as 1 / ε: this algebra is in
float64, whatever the layer's dtype, and what it gives is rounded once. The paper's
moments are sums over a task's rows; here they are means over its tokens, as in
FusionBench, so that a task does not weigh more because it was sketched on more. A task
that leaves the layer alone and has no sketch of it has no say.
"""

from __future__ import annotations

from itertools import zip_longest

import torch
from pydantic import Field
from torch import Tensor

from loralab.errors import AdapterError
from loralab.lowrank.sketch import INPUTS, MAKE, Sketch
from loralab.lowrank.update import Update, spanned
from loralab.merging.layer import Layer
from loralab.merging.method import INVARIANT, Normed
from loralab.registry import register

RIDGE = 1e-6
"""ε, relative to the mean of a moment's diagonal."""
EXACT = torch.float64
"""What moments are in, for the sake of their inverse."""


class RegMeanParams(Normed):
    """Of RegMean.

    Attributes:
        alpha: What the off-diagonal of a moment is multiplied with.
    """

    alpha: float = Field(0.9, ge=0, le=1)


@register(
    "merge method",
    "regmean",
    RegMeanParams,
    needs="inputs",
    laws=INVARIANT | {"identity": {}},
)
def regmean(params: RegMeanParams, layer: Layer) -> Update:
    """Return the update whose outputs are nearest to those of all tasks.

    Raises:
        AdapterError: a task has no sketch of its inputs to this layer.
    """
    parts = [
        (task, *_moment(sketch, params.alpha))
        for task, sketch in zip(layer.tasks, _sketches(layer), strict=True)
        if sketch is not None
    ]
    if not parts:
        return layer.space.update(layer.space.total)  # all updates are zero
    X = torch.cat([X_t for _, X_t, _ in parts], dim=1)
    D = torch.stack([D_t for _, _, D_t in parts]).sum(0)
    if not D.any():  # no task has an input here that is not 0
        return layer.space.update(layer.space.total / len(parts))
    A = torch.cat([_times(task.A.to(EXACT), X_t, D_t) for task, X_t, D_t in parts])
    B = [task.scale * task.B.to(layer.dtype) for task, _, _ in parts]
    return spanned(_over(A, X, D).to(layer.dtype), torch.cat(B, dim=1), 1.0)


def _sketches(layer: Layer) -> list[Sketch | None]:
    """Return each task's sketch; only a task that leaves the layer alone may lack it.

    Raises:
        AdapterError: another does.
    """
    named = zip_longest(layer.tasks, layer.inputs, layer.sources)
    for number, (task, sketch, name) in enumerate(named, start=1):
        if sketch is None and task.rank:
            raise AdapterError(
                f"{name or f'adapter {number}'} has no sketch of its inputs",
                where=layer.name,
                why=f"regmean weighs by the inputs, from {INPUTS} beside the adapter",
                fix=f"make it: {MAKE}; or choose a method that needs none",
            )
    return list(layer.inputs)


def _moment(sketch: Sketch, alpha: float) -> tuple[Tensor, Tensor]:
    """Return X and D of G = X·Xᵀ + diag(D), shrunk and with its ridge."""
    X, D = sketch.shrunk(alpha, EXACT)
    return X, D + RIDGE * sketch.diagonal.to(EXACT).mean()


def _times(A: Tensor, X: Tensor, D: Tensor) -> Tensor:
    """Return A·(X·Xᵀ + diag(D)), [r, in]."""
    return (A @ X) @ X.T + A * D


def _over(A: Tensor, X: Tensor, D: Tensor) -> Tensor:
    """Return A·(X·Xᵀ + diag(D))⁻¹ by Woodbury's identity, [r, in].

    D is taken in by halves, Z = D^(−1/2)·X, which keeps I + ZᵀZ symmetric.
    """
    root = D.sqrt()
    Z, scaled = X / root[:, None], A / root
    small = torch.eye(Z.shape[1], dtype=Z.dtype, device=Z.device) + Z.T @ Z
    solved = torch.cholesky_solve((scaled @ Z).T, torch.linalg.cholesky(small)).T
    return (scaled - solved @ Z.T) / root
