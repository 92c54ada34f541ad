"""The update of one module, ΔW = s·B·A, and its spectrum without ΔW itself.

    B = Q_B R_B,   Aᵀ = Q_A R_A                                 two thin QR
    s·R_B R_Aᵀ = U Σ Vᵀ                                         one SVD, rank × rank
    ΔW = (Q_B U) Σ (Q_A V)ᵀ                                     the SVD of ΔW

Q_B U and Q_A V have orthonormal columns, so Σ are the singular values of ΔW. It costs
O((in + out)·rank² + rank³) and never holds an in × out matrix. The best approximation
of a smaller rank keeps the largest of them, and its error is the norm of the rest
(Eckart & Young 1936):

    ‖ΔW − ΔW_k‖_F = √(Σ_{i>k} σ_i²)

Shapes: A is rank × in, B is out × rank. All is computed in float64: a singular value
is then right to about 1e-16 of the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loralab.lowrank.update import Update, spanned


@dataclass(frozen=True, eq=False)
class Factors:
    """A low-rank update ΔW = scale·B·A of a weight of shape out × in.

    Attributes:
        A: [rank, in], float32 or float64.
        B: [out, rank], of A's dtype and device.
        scale: s, alpha / rank of a plain LoRA and positive; times a task's weight,
            which may be negative, where tasks are merged.
    """

    A: Tensor
    B: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """How many directions are stored; that of ΔW may be smaller."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def direction_cost(self) -> int:
        """Parameters of one direction: in + out."""
        return sum(self.shape)

    @property
    def parameters(self) -> int:
        """Parameters of both factors: rank·(in + out)."""
        return self.rank * self.direction_cost

    def update(self, dtype: torch.dtype = torch.float64) -> Update:
        """Return ΔW between two orthonormal bases, for the algebra of `update.py`."""
        A, B = self.A.detach().to(dtype), self.B.detach().to(dtype)
        return spanned(A, B, self.scale)


@dataclass(frozen=True)
class Truncated:
    """The best approximation of an update by one of a smaller rank.

    Attributes:
        factors: The approximation.
        error: ‖ΔW − ΔW_k‖_F.
        relative_error: The same over ‖ΔW‖_F; 0 where ΔW is 0.
    """

    factors: Factors
    error: float
    relative_error: float


def singular_values(factors: Factors) -> Tensor:
    """Return the singular values of ΔW that can differ from 0.

    Returns:
        [min(rank, in, out)] float64, descending, on the factors' device.
    """
    R_B = torch.linalg.qr(factors.B.detach().double(), mode="r").R
    R_A = torch.linalg.qr(factors.A.detach().double().T, mode="r").R
    sigma: Tensor = torch.linalg.svdvals(factors.scale * (R_B @ R_A.T))
    return sigma


def frobenius_norm(factors: Factors) -> float:
    """Return ‖ΔW‖_F, by ‖BA‖ = ‖R_B A‖ or, of a tall weight, ‖B R_Aᵀ‖.

    tr((BᵀB)(AAᵀ)) would square what cancels between B and A, and lose twice the digits
    to a bad gauge.
    """
    A, B = factors.A.detach().double(), factors.B.detach().double()
    short, long = sorted((B, A.T), key=len)
    R = torch.linalg.qr(short, mode="r").R
    return abs(factors.scale) * float((long @ R.T).norm())


def truncate(factors: Factors, rank: int) -> Truncated:
    """Return the update of at most `rank` that is nearest in Frobenius norm.

    The factors are balanced, B = U√(Σ/s) and A = √(Σ/s)Vᵀ, so that both have the same
    norm; the scale stays.

    Args:
        factors: The update, of positive scale; one that is of this rank already comes
            back untouched.
        rank: At least 0; 0 gives the zero update.
    """
    if rank >= factors.rank:
        return Truncated(factors, 0.0, 0.0)
    exact = factors.update()
    U_core, sigma, Vh_core = torch.linalg.svd(exact.C, full_matrices=False)
    U, V = exact.L @ U_core, exact.R @ Vh_core.T
    root = (sigma[:rank] / factors.scale).sqrt()
    like = factors.A
    made = replace(
        factors,
        A=(root[:, None] * V[:, :rank].T).to(like.dtype).contiguous(),
        B=(U[:, :rank] * root).to(like.dtype).contiguous(),
    )
    error, whole = float(sigma[rank:].norm()), float(sigma.norm())
    return Truncated(made, error, error / whole if whole else 0.0)


def effective_rank(sigma: Sequence[float] | Tensor) -> float:
    """Return exp of the entropy of the normalised singular values.

    erank = exp(−Σ p_i ln p_i), p_i = σ_i / Σσ (Roy & Vetterli 2007, definition 1): k
    for k equal singular values, 1 for a single one, and 0 here for a zero update.
    """
    given = torch.as_tensor(sigma, dtype=torch.float64)
    total = given.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(given / total).sum().exp())


def stable_rank(sigma: Sequence[float] | Tensor) -> float:
    """Return ‖ΔW‖_F² / σ_1² (Rudelson & Vershynin 2007); 0 for a zero update."""
    given = torch.as_tensor(sigma, dtype=torch.float64)
    if given.sum() == 0:
        return 0.0
    return float((given / given.max()).square().sum())


def concatenate(first: Factors, *more: Factors) -> Factors:
    """Return the sum of updates of one weight, exactly, as stacked factors.

    Σ s_i B_i A_i = [s_1 B_1 … s_n B_n][A_1; …; A_n]: its rank is the sum of theirs, its
    scale 1.

    Raises:
        ValueError: updates of weights of different shapes.
    """
    parts = (first, *more)
    if len({part.shape for part in parts}) > 1:
        raise ValueError(f"updates of shapes {[part.shape for part in parts]}")
    return Factors(
        A=torch.cat([part.A for part in parts]),
        B=torch.cat([part.scale * part.B for part in parts], dim=1),
        scale=1.0,
    )
