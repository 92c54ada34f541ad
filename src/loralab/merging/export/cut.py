r"""One merged layer as balanced factors, and what it would lose at every rank.

    ΔW = U·diag(σ)·Vᵀ,   B = U√σ,   A = √σVᵀ                 columns and rows descending

The first k columns and rows are the best approximation of rank k. So one pass over the
layers is enough, though the ranks of an energy or a budget are known only after all:
factors wait in a file without a header, and each rank's cost is kept as a curve,

    cut       Σ_{i>k} σ_i²                                   Eckart & Young 1936
    rounding  ‖B̂_k Â_k − B_k A_k‖² = Σ_{i,j≤k} ⟨b̂_i â_i − b_i a_i, b̂_j â_j − b_j a_j⟩
    kept      ‖P_U ΔW_t P_V‖² = Σ_{i,j≤k} (u_iᵀ ΔW_t v_j)²   of task t

B̂, Â are the factors as they are stored. ‖P_U ΔW_t P_V‖² / ‖ΔW_t‖² is the share of a
task's energy that the k directions can hold at all: the two-sided square of the
subspace alignment ratio (Marczak et al. 2025, arXiv 2502.04959, section 3). It does not
see by how much a method scales a task down, which is the method's own doing; only what
the rank has no place for lowers it (and what the method removed).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import torch
from torch import Tensor

from loralab.errors import ExportError
from loralab.lowrank.factors import Factors, frobenius_norm
from loralab.lowrank.files import AdapterFolder, Kind
from loralab.lowrank.stream import bytes_of
from loralab.lowrank.update import Update, svd

Waiting = IO[bytes]


@dataclass(frozen=True, eq=False)
class CutLayer:
    """A merged layer whose factors wait in a file.

    Attributes:
        name: Module path in the base.
        kind: How its factors will be stored.
        shape: (out, in).
        sigma: All singular values that are more than rounding, descending.
        lost: ‖·‖² of what a factorisation had lost before.
        place: First byte of Bᵀ [k, out] in the file; A [k, in] follows.
        held: k, the largest rank that can be taken from there.
        kept: [tasks, k + 1], ‖P_U ΔW_t P_V‖² by rank.
        tasks: ‖ΔW_t‖² of each task.
        rounding: [k + 1], ‖·‖² of what the stored dtype changes, by rank.
    """

    name: str
    kind: Kind
    shape: tuple[int, int]
    sigma: tuple[float, ...]
    lost: float
    place: int
    held: int
    kept: Tensor
    tasks: tuple[float, ...]
    rounding: Tensor

    def cut(self, rank: int) -> float:
        """Return ‖·‖² of what is missing at a rank, that was lost before included."""
        return sum(sigma**2 for sigma in self.sigma[rank:]) + self.lost

    def read(self, waiting: Waiting, rank: int, dtype: torch.dtype) -> Factors:
        """Return the first `rank` directions as they are stored, of scale 1."""
        out, into = self.shape
        row = dtype.itemsize * out
        Bt = _rows(waiting, self.place, rank, out, dtype)
        A = _rows(waiting, self.place + self.held * row, rank, into, dtype)
        return Factors(A, Bt.T, 1.0)


def _rows(
    waiting: Waiting, place: int, rows: int, width: int, dtype: torch.dtype
) -> Tensor:
    size = rows * width * dtype.itemsize
    raw = bytearray(os.pread(waiting.fileno(), size, place))
    return torch.frombuffer(raw, dtype=dtype).reshape(rows, width)


def cut_layer(
    name: str,
    update: Update,
    adapters: Sequence[AdapterFolder],
    waiting: Waiting,
    dtype: torch.dtype,
    most: int | None,
) -> CutLayer:
    """Write a layer's balanced factors into the file of those that wait.

    Args:
        name: Module path in the base.
        update: Merged.
        adapters: Of the tasks.
        waiting: Is appended to.
        dtype: That the factors are stored in.
        most: No more directions than this are needed; None for all.

    Raises:
        ExportError: the dtype has no number as large as one of the factors'.
    """
    U_core, s, V_core = svd(update.C)
    held = min(len(s), most or len(s))
    U, V = update.L @ U_core[:, :held], update.R @ V_core[:, :held]
    root = s[:held].sqrt()
    Bt, A = (U * root).T, (V * root).T
    stored = [part.to(dtype).contiguous() for part in (Bt, A)]
    if not all(part.isfinite().all() for part in stored):
        raise ExportError(
            f"{name} has numbers beyond {dtype}",
            fix="name another dtype; bf16 has the range of fp32",
        )
    place = waiting.seek(0, os.SEEK_END)
    for part in stored:
        waiting.write(bytes_of(part))
    having = [a.factors(name) if name in a.modules else None for a in adapters]
    return CutLayer(
        name=name,
        kind=kind_of(name, adapters),
        shape=update.shape,
        sigma=tuple(s.tolist()),
        lost=update.lost,
        place=place,
        held=held,
        kept=torch.stack([_kept(U, V, task) for task in having]),
        tasks=tuple(frobenius_norm(task) ** 2 if task else 0.0 for task in having),
        rounding=_rounding(Bt, A, stored[0], stored[1]),
    )


def kind_of(module: str, adapters: Sequence[AdapterFolder]) -> Kind:
    """Return how a module's factors are stored, the same in all adapters.

    Raises:
        ExportError: it is a linear layer in one and a convolution in another.
    """
    kinds = {a.name: a.modules[module].kind for a in adapters if module in a.modules}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{kind.name} in {name}" for name, kind in kinds.items())
        raise ExportError(f"{module} is {told}", why="the bases are not the same")
    return next(iter(kinds.values()), Kind())


def _leading(square: Tensor) -> Tensor:
    """Return the sum of the leading k × k block, for every k from 0."""
    sums = square.cumsum(0).cumsum(1).diagonal()
    return torch.cat([sums.new_zeros(1), sums])


def _kept(U: Tensor, V: Tensor, task: Factors | None) -> Tensor:
    if task is None:
        return U.new_zeros(U.shape[1] + 1)
    inside = (U.T @ task.B.to(U.dtype)) @ (task.A.to(U.dtype) @ V)
    return _leading((task.scale * inside).square())


def _rounding(Bt: Tensor, A: Tensor, stored_Bt: Tensor, stored_A: Tensor) -> Tensor:
    """Return ‖B̂_k Â_k − B_k A_k‖² = ‖(B̂−B)_k Â_k + B_k (Â−A)_k‖² by rank.

    The differences are small and exact, so that their Gram matrices cancel nothing.
    """
    rank, exact = A.shape[0], A.dtype
    left = torch.cat([stored_Bt.to(exact) - Bt, Bt])
    right = torch.cat([stored_A.to(exact), stored_A.to(exact) - A])
    gram = (left @ left.T) * (right @ right.T)
    return _leading(gram.reshape(2, rank, 2, rank).sum((0, 2))).clamp(min=0)
