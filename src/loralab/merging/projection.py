r"""What is taken out of a new update, so that it leaves the merged one alone (OPCM).

S = U diag(σ) Vᵀ, of rank k, is what has been merged; T is the next task's update; the
p leading directions of S are protected. P takes T to the orthogonal complement of a
span of matrices (Tang et al. 2025, arXiv 2501.09522), which depends on the mode:

    code     u_i v_jᵀ for i, j ≤ p;                  u_i v_iᵀ for i ≤ k
    paper    u_i xᵀ and x v_iᵀ for i ≤ p, any x;     u_i v_iᵀ for i ≤ k
    stable   u_i v_jᵀ for i, j ≤ p;                  S

S = Σ σ_i u_i v_iᵀ lies in all three, so ⟨S, P(T)⟩ = 0 and ‖S + P(T)‖² = ‖S‖² + ‖P(T)‖².
P is linear, symmetric and idempotent, and does not see the size of S. With the rest of
S, which is what lies outside of the protected block, ``stable`` is

    T' = T − U_p U_pᵀ T V_p V_pᵀ,   S' = S − U_p U_pᵀ S V_p V_pᵀ
    P(T) = T' − ⟨T', S'⟩ / ‖S'‖² S'

p follows from the share of the nuclear norm, c_i = Σ_{j≤i} σ_j / Σ_j σ_j:

    code, stable   p = #{i : c_i ≤ α}          the 0-based index of the first c_i > α
    paper          p = #{i : c_{i−1} < α}      the fewest directions with a share ≥ α

α = 0 protects no block, only the diagonal (``stable``: only S itself). α = 1 protects
the whole span: p = k. (The authors' code asks for the first c_i > 1, finds none, and
so protects no block at α = 1, or nearly all where rounding makes a share exceed 1.)

The authors take u_i and v_i for i > k too, which are arbitrary: their diagonal is that
of whatever basis LAPACK returned. Here i ≤ k, where k is the numerical rank. What is
left of this is a repeated σ_i: `code` and `paper` then depend on the driver's choice of
vectors. ``stable`` needs nothing but the span of the protected directions, and never
cuts between two σ that are equal, so it does not.

A sketch (randomized subspace iteration, Halko, Martinsson & Tropp 2011, algorithm 4.4)
finds leading directions alone, without the O(k³) of an SVD. The diagonal of ``code``
and ``paper`` needs all, so only ``stable`` can be sketched; there ⟨S, P(T)⟩ = 0 holds
exactly however rough the sketch, and what is approximate is known afterwards:

* the directions, by their backward error ‖S V_p − U_p diag(σ_p)‖ / ‖S‖: they are
  exact singular vectors of an update that is so near to S;
* the share, since Σσ is only bracketed: for the part E that the sketch leaves out,
  ‖E‖_F³ / ‖E Eᵀ‖_F ≤ Σσ(E) ≤ √(rank E) ‖E‖_F (Hölder; Cauchy-Schwarz).

A core that is no larger than the sketch gets the SVD, and one of a few hundred is as
fast with it (`benchmarks/merging.py`).

All matrices are cores (see `lowrank/update.py`), merged ones in the leading corner.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from loralab.errors import MergeError
from loralab.lowrank.update import orthonormal, svd

logger = logging.getLogger(__name__)

Mode = Literal["code", "paper", "stable"]
ITERATIONS = 8
"""Of the subspace iteration, at most; it ends sooner where its error is a tenth of
what is allowed."""


@dataclass(frozen=True)
class Sketch:
    """How leading directions are looked for at random.

    Attributes:
        size: ℓ, the directions that it holds; must be more than are to be protected.
        tolerance: The largest backward error, and the largest uncertainty of the share
            of the nuclear norm, with which a merge goes on.
        seed: Of the random start.
        where: What an error names, such as the layer.
    """

    size: int = 128
    tolerance: float = 0.05
    seed: int = 0
    where: str = ""


@dataclass(frozen=True, eq=False)
class Protected:
    """The directions of a merged core and how many of them are protected.

    Attributes:
        U: [k, m], orthonormal columns: all of rank m, or those of a sketch.
        s: [m], descending.
        V: [l, m], orthonormal columns.
        count: p.
        sketched: Whether there may be more directions than these.
        error: Backward error of the p directions relative to ‖S‖; 0 with an SVD.
        doubt: By how much the share that p stands for can be wrong; 0 with an SVD.
    """

    U: Tensor
    s: Tensor
    V: Tensor
    count: int
    sketched: bool = False
    error: float = 0.0
    doubt: float = 0.0


def protected_count(
    s: Tensor, alpha: float, mode: Mode = "code", nuclear: float | None = None
) -> int:
    """Return p, how many leading directions a threshold protects.

    A share that differs from `alpha` by rounding counts as equal to it.

    Args:
        s: [k] singular values, descending, none zero.
        alpha: Share of the nuclear norm, within [0, 1].
        mode: See the top of this file.
        nuclear: Σσ, where `s` are only the leading ones.
    """
    if alpha == 1 or not len(s):
        return len(s)
    through = s.cumsum(0)
    whole = through[-1] if nuclear is None else nuclear
    rounding = len(s) * torch.finfo(s.dtype).eps
    if mode == "paper":
        return int(((through - s) / whole < alpha - rounding).sum())
    count = int((through / whole <= alpha + rounding).sum())
    if mode == "stable" and count:
        count = int((s >= s[count - 1] - rounding * s[0]).sum())
    return count


@dataclass(frozen=True)
class OrthogonalProjector:
    """P, for a merged core and a new one.

    Attributes:
        alpha_threshold: α, the share of the nuclear norm that is protected.
        mode: ``code``, ``paper`` or ``stable``.
        sketch: How leading directions are found; by a full SVD without it.
    """

    alpha_threshold: float = 0.5
    mode: Mode = "code"
    sketch: Sketch | None = None

    def __post_init__(self) -> None:
        if self.sketch and self.mode != "stable":
            raise ValueError("only the mode `stable` needs no more than a sketch")

    def __call__(self, merged: Tensor, new: Tensor) -> Tensor:
        """Return P(T) of a new core.

        Args:
            merged: [k, l] core of S.
            new: [k', l'] core of T; S is in its leading corner, k ≤ k' and l ≤ l'.

        Raises:
            MergeError: the sketch is too small or its error too large.
        """
        found = self.directions(merged)
        rows, columns = (b - a for a, b in zip(merged.shape, new.shape, strict=True))
        wide = replace(
            found, U=pad(found.U, (0, 0, 0, rows)), V=pad(found.V, (0, 0, 0, columns))
        )
        return RULES[self.mode](new, pad(merged, (0, columns, 0, rows)), wide)

    def directions(self, merged: Tensor) -> Protected:
        """Return the directions of a merged core, and how many are protected.

        Raises:
            MergeError: the sketch is too small or its error too large.
        """
        if self.sketch and self.sketch.size < min(merged.shape):
            return _sketched(merged, self.alpha_threshold, self.sketch)
        U, s, V = svd(merged)
        return Protected(U, s, V, protected_count(s, self.alpha_threshold, self.mode))


def _code(new: Tensor, merged: Tensor, of: Protected) -> Tensor:
    """Return T without the protected block and without the diagonal."""
    Z = of.U.T @ new @ of.V
    removed = torch.diag(Z.diagonal())
    removed[: of.count, : of.count] = Z[: of.count, : of.count]
    return new - of.U @ removed @ of.V.T


def _paper(new: Tensor, merged: Tensor, of: Protected) -> Tensor:
    """Return T without the protected rows and columns and without the diagonal."""
    (U, rest_U), (V, rest_V) = (_split(X, of.count) for X in (of.U, of.V))
    new = new - U @ (U.T @ new)
    new = new - (new @ V) @ V.T
    diagonal = (rest_U * (new @ rest_V)).sum(0)
    return new - (rest_U * diagonal) @ rest_V.T


def _stable(new: Tensor, merged: Tensor, of: Protected) -> Tensor:
    """Return T without the protected block and without the component along S."""
    (U, rest_U), (V, rest_V) = (_split(X, of.count) for X in (of.U, of.V))
    new = new - U @ (U.T @ new @ V) @ V.T
    if of.count == len(of.s):  # S is all in the block
        return new
    rest = (rest_U * of.s[of.count :]) @ rest_V.T
    if of.sketched:
        rest = merged - U @ (U.T @ merged @ V) @ V.T
    return new - (new * rest).sum() / rest.square().sum() * rest


RULES: dict[Mode, Callable[[Tensor, Tensor, Protected], Tensor]] = {
    "code": _code,
    "paper": _paper,
    "stable": _stable,
}


def _split(X: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return X[:, :count], X[:, count:]


def _sketched(merged: Tensor, alpha: float, sketch: Sketch) -> Protected:
    """Return the leading directions by subspace iteration, with both errors."""
    made = torch.Generator().manual_seed(sketch.seed)
    start = torch.randn(
        merged.shape[1], sketch.size, generator=made, dtype=torch.float64
    ).to(merged)
    norm, rows = float(merged.norm()), merged.shape[0]
    for _ in range(ITERATIONS):
        Q, _ = orthonormal(merged @ start)
        U, s, V = svd(Q.T @ merged)
        U, start = Q @ U, V
        left = math.sqrt(max(norm**2 - float(s.square().sum()), 0.0))
        guess = float(s.sum()) + math.sqrt(rows) * left  # Σσ is at most this
        count = protected_count(s, alpha, "stable", guess)
        error = _backward_error(merged, U, s, V, count)
        if error <= sketch.tolerance / 10 * norm:
            break
    low, high = _tail(merged - U @ (s[:, None] * V.T), V)
    nuclear = float(s.sum()) + (low + high) / 2
    count = protected_count(s, alpha, "stable", nuclear)
    error = _backward_error(merged, U, s, V, count) / norm if norm else 0.0
    doubt = alpha * (high - low) / 2 / nuclear if nuclear else 0.0
    found = Protected(U, s, V, count, True, error, doubt)
    logger.debug(
        "%s: %d of %d directions protected, backward error %.2g, share within %.2g",
        *(sketch.where, count, min(merged.shape), error, doubt),
    )
    _refuse(found, sketch, alpha)
    return found


def _backward_error(S: Tensor, U: Tensor, s: Tensor, V: Tensor, count: int) -> float:
    """Return ‖S V_p − U_p diag(σ_p)‖; Sᵀ U_p = V_p diag(σ_p) holds as they are made."""
    return float((S @ V[:, :count] - U[:, :count] * s[:count]).norm())


def _tail(E: Tensor, V: Tensor) -> tuple[float, float]:
    """Return the least and the most that a sketch's remainder E adds to Σσ.

    The columns of E are orthogonal to the sketch's left vectors, so its rank is at most
    rows − ℓ; the least is that of the part which is orthogonal to the right ones too
    (‖·‖_* of a matrix is no less than that of its two diagonal blocks).
    """
    rank = min(E.shape[0] - V.shape[1], E.shape[1])
    high = math.sqrt(max(rank, 0)) * float(E.norm())
    inner = E - (E @ V) @ V.T
    fourth = float((inner @ inner.T).norm())
    return (float(inner.norm()) ** 3 / fourth if fourth else 0.0), high


def _refuse(found: Protected, sketch: Sketch, alpha: float) -> None:
    if 0 < len(found.s) == found.count:
        raise MergeError(
            f"a sketch of {sketch.size} directions holds less than {alpha:.3g} of the "
            "merged update's nuclear norm",
            where=sketch.where,
            fix="a larger sketch_size, a smaller alpha_threshold, or "
            "projection_method=svd",
        )
    worst = max(found.error, found.doubt)
    if worst > sketch.tolerance:
        what = "directions are" if found.error > found.doubt else "share is"
        raise MergeError(
            f"the protected {what} known to {worst:.2g} by a sketch of {sketch.size}, "
            f"and sketch_tolerance is {sketch.tolerance:.2g}",
            where=sketch.where,
            why="the merged update's spectrum decays too slowly for it",
            fix="a larger sketch_size, or projection_method=svd",
        )
