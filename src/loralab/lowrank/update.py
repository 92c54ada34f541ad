r"""An update between two orthonormal bases, ΔW = L·C·Rᵀ, and its algebra.

    B = L R_B,   Aᵀ = R R_A,   C = s·R_B R_Aᵀ             one update: two thin QR
    [B₁ … B_T] = L [X₁ … X_T],   [A₁ᵀ … A_Tᵀ] = R [Y₁ … Y_T]
    ΔW_t = L (s_t X_t Y_tᵀ) Rᵀ = L C_t Rᵀ                 T updates in one pair of bases

L and R have orthonormal columns, so whatever does not depend on the choice of a basis
is the same for C as for ΔW: norms, inner products, singular values, angles. An update
of a 4096 × 4096 weight by adapters whose ranks sum to 128 is a core of 128 × 128, and
no out × in matrix is ever made. (Core Space merging, Panariello et al. 2025, works in
the same pair of bases.)

Shapes: L is out × k, C is k × l, R is in × l. All three have one dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Update:
    """ΔW = L·C·Rᵀ of a weight of shape out × in.

    Attributes:
        L: [out, k], orthonormal columns.
        C: [k, l], the core.
        R: [in, l], orthonormal columns.
        lost: ‖·‖_F² of what a factorisation left out on the way here, known and not
            estimated; 0 where the update is exact.
    """

    L: Tensor
    C: Tensor
    R: Tensor
    lost: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return self.L.shape[0], self.R.shape[0]

    @property
    def rank(self) -> int:
        """The most that the rank of ΔW can be: min(k, l)."""
        return min(self.C.shape)

    def with_core(self, C: Tensor, lost: float = 0.0) -> Update:
        """Return the update of another core between the same bases."""
        return replace(self, C=C, lost=self.lost + lost)

    def __mul__(self, scale: float) -> Update:
        """Return scale·ΔW."""
        return replace(self, C=scale * self.C, lost=scale**2 * self.lost)


@dataclass(frozen=True, eq=False)
class Thin:
    """The thin SVD ΔW = U·diag(s)·Vᵀ.

    Attributes:
        U: [out, k], orthonormal columns.
        s: [k], descending, none negative.
        V: [in, k], orthonormal columns.
    """

    U: Tensor
    s: Tensor
    V: Tensor


def orthonormal(X: Tensor) -> tuple[Tensor, Tensor]:
    """Return Q [n, k] with orthonormal columns and T [k, c] of X = Q·T, k = min(n, c).

    Where X has dependent columns, Q holds directions that X does not use and T has
    (nearly) zero rows for them.
    """
    Q, T = torch.linalg.qr(X)
    return Q, T


def extend(L: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis that begins with L and spans B too, and B in it.

    What L leaves of B is cut to its own rank: a direction that is only rounding (of a B
    that L spans, that is zero, or whose columns depend on each other) would not be
    orthogonal to L. So the basis grows by what is new and no more. What is kept is made
    orthogonal to L once more; Gram-Schmidt done twice is enough for full precision
    (Giraud & Langou 2005).

    Args:
        L: [n, k], orthonormal columns.
        B: [n, r].

    Returns:
        The basis [n, k'] with k' ≤ min(n, k + r), and coordinates X [k', r] with
        B = basis·X.
    """
    along = L.T @ B
    Q, T = orthonormal(B - L @ along)
    u, s, vh = torch.linalg.svd(T, full_matrices=False)
    terms = 2 * (L.shape[1] + B.shape[1] + math.sqrt(L.shape[0]))
    smallest = terms * torch.finfo(B.dtype).eps * B.norm()
    kept = min(int((s > smallest).sum()), L.shape[0] - L.shape[1])
    Q, T = Q @ u[:, :kept], s[:kept, None] * vh[:kept]
    more = L.T @ Q  # rounding, which counts where s is small
    Q, change = orthonormal(Q - L @ more)
    X = torch.cat([along + more @ T, change @ T])
    return torch.cat([L, Q], dim=1), X


def spanned(A: Tensor, B: Tensor, scale: float) -> Update:
    """Return s·B·A between bases of its own.

    Args:
        A: [r, in].
        B: [out, r].
        scale: s.
    """
    L, R_B = orthonormal(B)
    R, R_A = orthonormal(A.T)
    return Update(L, scale * (R_B @ R_A.T), R)


def svd(C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, s, V (not Vᵀ) of a core, without directions that are only rounding.

    A singular value below max(k, l)·ε·σ₁ is zero as far as this dtype can tell, and
    its vectors are arbitrary: a rule that used them would depend on the LAPACK driver.
    """
    U, s, Vh = torch.linalg.svd(C, full_matrices=False)
    kept = rank_of(s, max(C.shape))
    return U[:, :kept], s[:kept], Vh[:kept].T


def rank_of(s: Tensor, size: int) -> int:
    """Return how many singular values (descending) of a size × · core are not zero."""
    if not s.numel():
        return 0
    return int((s > s[0] * size * torch.finfo(s.dtype).eps).sum())


def thin(update: Update) -> Thin:
    """Return the thin SVD of ΔW, of its numerical rank (see `svd`)."""
    U, s, V = svd(update.C)
    return Thin(update.L @ U, s, update.R @ V)


def frobenius(update: Update) -> float:
    """Return ‖ΔW‖_F = ‖C‖_F."""
    return float(update.C.norm())


def inner(one: Update, other: Update) -> float:
    """Return ⟨ΔW₁, ΔW₂⟩_F = tr((L₁ᵀL₂) C₂ (R₂ᵀR₁) C₁ᵀ), bases need not agree."""
    across = (one.L.T @ other.L) @ other.C @ (other.R.T @ one.R)
    return float((across * one.C).sum())


def joined(one: Update, other: Update) -> tuple[Update, Update]:
    """Return two updates between the same bases, which begin with those of the first.

    The first one's core is then its own with zeros around it.
    """
    L, X = extend(one.L, other.L)
    R, Y = extend(one.R, other.R)
    grown = one.C.new_zeros(L.shape[1], R.shape[1])
    grown[: one.C.shape[0], : one.C.shape[1]] = one.C
    return Update(L, grown, R, one.lost), Update(L, X @ other.C @ Y.T, R, other.lost)


def total(updates: Sequence[Update]) -> Update:
    """Return the exact sum of updates of one weight; its rank is at most their sum."""
    whole = updates[0]
    for more in updates[1:]:
        held, added = joined(whole, more)
        whole = held.with_core(held.C + added.C, added.lost)
    return whole


def truncated(update: Update, rank: int) -> Update:
    """Return the nearest update of at most `rank`; what is cut is added to `lost`.

    ‖ΔW − ΔW_k‖_F² = Σ_{i>k} σ_i² (Eckart & Young 1936), so that adding it to what was
    lost before is exact where both losses are orthogonal, as after `range_finder`.
    """
    found = thin(update)
    cut = float(found.s[rank:].square().sum())
    core = torch.diag(found.s[:rank])
    return Update(found.U[:, :rank], core, found.V[:, :rank], update.lost + cut)


def principal_cosines(one: Tensor, other: Tensor) -> Tensor:
    """Return the cosines of the principal angles between two spans, descending.

    They are the singular values of Q₁ᵀQ₂ (Björck & Golub 1973).

    Args:
        one: [n, k], orthonormal columns.
        other: [n, l], orthonormal columns.

    Returns:
        [min(k, l)] within [0, 1].
    """
    found: Tensor = torch.linalg.svdvals(one.T @ other)
    return found.clamp(max=1.0)
