r"""How much the tasks of one layer have in common, without their ΔW themselves.

    ΔW_t = U_t diag(s_t) V_tᵀ                        thin SVD of each, of numerical rank
    [U₁ … U_T] = L·X,   [V₁ … V_T] = R·Y             one pair of bases, two thin QR
    ⟨ΔW_s, ΔW_t⟩ = s_sᵀ ((X_sᵀX_t) ∘ (Y_sᵀY_t)) s_t  inner products, and so cosines
    svd(X_sᵀX_t)                                     cosines of the principal angles
                                                     of the left spans; Y: the right
    svd(Σ_t X_t diag(s_t) Y_tᵀ)                      the spectrum of the exact sum

L and R have orthonormal columns and are let go again: all that is asked here is the
same without them. With k = Σ rank the cost is O((out + in)·k²) a layer, and the largest
thing held is (out + in) × k. Directions that are only rounding are dropped first (see
`lowrank.update.svd`): a span must not hold what an adapter does not use.

Principal angles: Björck & Golub (1973). Tensor shapes: X [k, m], Y [l, m], s [m] with
m = Σ numerical rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from loralab.lowrank.factors import Factors
from loralab.lowrank.update import orthonormal, principal_cosines, svd, thin
from loralab.merging.layer import Layer

LEAST_THRESHOLD, MOST_THRESHOLD = 0.3, 0.7
"""The range that the documentation of OPCM's reference implementation calls typical."""


@dataclass(frozen=True, eq=False)
class Directions:
    """The singular triplets of all tasks of a layer, side by side in common bases.

    Attributes:
        X: [k, m] left singular vectors, upper triangular, k = min(out, m).
        s: [m] singular values, descending within a task.
        Y: [l, m] right singular vectors, upper triangular, l = min(in, m).
        parts: Which of the m belong to each task.
    """

    X: Tensor
    s: Tensor
    Y: Tensor
    parts: tuple[slice, ...]

    def core(self, task: int) -> Tensor:
        """Return a task's update in the common bases, [k, l]."""
        part = self.parts[task]
        return (self.X[:, part] * self.s[part]) @ self.Y[:, part].T

    def spectrum(self, task: int) -> Tensor:
        """Return the singular values of a task's update."""
        return self.s[self.parts[task]]

    @property
    def total(self) -> Tensor:
        """The core [k, l] of the exact sum of all tasks."""
        return (self.X * self.s) @ self.Y.T


@dataclass(frozen=True)
class Angles:
    """How much of two spans is shared, by the cosines of their principal angles.

    Attributes:
        mean: Of the min(k, l) cosines.
        largest: 1 where the spans share a direction.
        overlap: Mean of the squared cosines: the share of the smaller span that lies
            in the other. Two random spans have max(k, l) / n in n dimensions.
    """

    mean: float
    largest: float
    overlap: float


def directions(layer: Layer) -> Directions:
    """Return the singular triplets of all tasks of a layer in one pair of bases."""
    found = [thin(task.update(layer.dtype)) for task in layer.tasks]
    ends = [0]
    for one in found:
        ends.append(ends[-1] + len(one.s))
    _, X = orthonormal(torch.cat([one.U for one in found], dim=1))
    _, Y = orthonormal(torch.cat([one.V for one in found], dim=1))
    parts = tuple(map(slice, ends[:-1], ends[1:]))
    return Directions(X, torch.cat([one.s for one in found]), Y, parts)


def gram(found: Directions) -> Tensor:
    """Return ⟨ΔW_s, ΔW_t⟩_F of all tasks, [T, T]."""
    products = (found.X.T @ found.X) * (found.Y.T @ found.Y)
    weighted = found.s[:, None] * products * found.s
    mine = weighted.new_zeros(len(found.parts), len(found.s))
    for task, part in enumerate(found.parts):
        mine[task, part] = 1.0
    return mine @ weighted @ mine.T


def cosine(inner: float, one: float, other: float) -> float | None:
    """Return ⟨a, b⟩ / (‖a‖ ‖b‖) within [−1, 1]; None where one of them is zero."""
    if not one or not other:
        return None
    return max(-1.0, min(1.0, inner / one / other))


def angles(one: Tensor, other: Tensor) -> Angles | None:
    """Return what two spans share; None where one of them is empty.

    Args:
        one: [n, k], orthonormal columns.
        other: [n, l], orthonormal columns.
    """
    if not one.shape[1] or not other.shape[1]:
        return None
    cosines = principal_cosines(one, other)
    squared = float(cosines.square().mean())
    return Angles(float(cosines.mean()), float(cosines[0]), squared)


def row_cosine(one: Factors, other: Factors) -> float | None:
    """Return the mean cosine of the rows of two A with the same number.

    Unlike anything above it is a property of the factors, not of ΔW, and is there to
    find how they began: rows that were drawn independently have a mean of 0 with a
    standard deviation of 1/√(rank·in), whatever is learned, because nothing ties row i
    of one adapter to row i of another; rows drawn with one seed begin at 1.

    Returns:
        Over the first min(rank) rows; None where no pair of rows has a direction.
    """
    rows = min(one.rank, other.rank)
    A, A2 = (f.A[:rows].detach().double() for f in (one, other))
    lengths = A.norm(dim=1) * A2.norm(dim=1)
    known = lengths > 0
    if not known.any():
        return None
    return float(((A * A2).sum(1)[known] / lengths[known]).mean())


@dataclass(frozen=True)
class Kept:
    """What the best approximation of the sum by one of a fixed rank keeps, in energy.

    Attributes:
        total: Σ_{i≤rank} σ_i² of the sum.
        tasks: ‖U_rankᵀ ΔW_t V_rank‖_F² of each task: its part between the spans kept.
    """

    total: float
    tasks: tuple[float, ...]


def kept(found: Directions, ranks: Sequence[int]) -> tuple[Tensor, list[Kept]]:
    """Return the singular values of the exact sum, and what each rank keeps of it."""
    U, s, V = svd(found.total)
    left, right = U.T @ found.X, V.T @ found.Y
    spans = [(left[:, part] * found.s[part]) @ right[:, part].T for part in found.parts]
    kept_of = [
        Kept(
            float(s[:rank].square().sum()),
            tuple(float(core[:rank, :rank].square().sum()) for core in spans),
        )
        for rank in ranks
    ]
    return s, kept_of


def removed(
    found: Directions, project: Callable[[Tensor, Tensor], Tensor]
) -> list[float]:
    """Return the energy ‖ΔW_t − P(ΔW_t)‖_F² that projecting removes, task by task.

    S_1 = ΔW_1, S_t = S_{t−1} + P(ΔW_t), as in `methods/opcm.py`. X and Y are upper
    triangular, so the first t tasks stand in the leading corner of the common bases,
    and nothing needs to be extended: O(k³) a step.

    Args:
        found: The tasks, in their order.
        project: Cores of S and of ΔW_t, which has S in its leading corner -> P(ΔW_t);
            `projection.OrthogonalProjector` is one.

    Returns:
        [T]; 0 for the first task.
    """
    cores = [found.core(task) for task in range(len(found.parts))]
    held, rows, columns = cores[0], 0, 0
    left_out = []
    for task, core in enumerate(cores):
        before = held[:rows, :columns]
        end = found.parts[task].stop
        rows, columns = min(end, core.shape[0]), min(end, core.shape[1])
        if task == 0:
            left_out.append(0.0)
            continue
        new = core[:rows, :columns]
        added = project(before, new)
        left_out.append(float((new - added).square().sum()))
        held = held + pad(added, (0, core.shape[1] - columns, 0, core.shape[0] - rows))
    return left_out


def suggested_threshold(similarity: float) -> float:
    """Return a share of the nuclear norm for OPCM to protect: a heuristic.

        α = 0.7 − 0.4·similarity

    A projection removes what a new task puts between directions that are protected.
    Where tasks share nothing that is nothing, and protecting much is free: the upper
    end of the range that is called typical. Where they share all, it is most of the new
    task: the lower end. Nothing is derived beyond that direction.

    Args:
        similarity: In [0, 1]; see `analysis.Analysis`.
    """
    share = min(1.0, max(0.0, similarity))
    return MOST_THRESHOLD - (MOST_THRESHOLD - LEAST_THRESHOLD) * share


def pooled(found: Sequence[Angles]) -> Angles | None:
    """Return the angles of several layers as one: means of means, and the largest."""
    if not found:
        return None
    count = len(found)
    return Angles(
        math.fsum(one.mean for one in found) / count,
        max(one.largest for one in found),
        math.fsum(one.overlap for one in found) / count,
    )
