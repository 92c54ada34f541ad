"""One weight and the updates that the tasks' adapters make to it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from loralab.lowrank.factors import Factors
from loralab.lowrank.sketch import Sketch
from loralab.lowrank.update import Update, orthonormal


@dataclass(frozen=True, eq=False)
class Space:
    """The pair of bases that all updates of a layer share, and their cores.

    ΔW_t = L·C_t·Rᵀ exactly, for every task: see `lowrank/update.py`.

    Attributes:
        L: [out, k], orthonormal columns, k = min(out, Σ rank).
        R: [in, l], orthonormal columns, l = min(in, Σ rank).
        cores: C_t [k, l] of each task.
        tasks: The same as factors: B is k × rank, A is rank × l.
    """

    L: Tensor
    R: Tensor
    cores: tuple[Tensor, ...]
    tasks: tuple[Factors, ...]

    @property
    def total(self) -> Tensor:
        """Σ C_t [k, l], the core of the exact sum of all tasks' updates."""
        return sum(self.cores[1:], self.cores[0])

    def update(self, C: Tensor, lost: float = 0.0) -> Update:
        """Return the update of a core between these bases."""
        return Update(self.L, C, self.R, lost)


@dataclass(frozen=True, eq=False)
class Layer:
    """The updates of one weight by every task, in the order of the tasks.

    Attributes:
        name: Module path in the base.
        tasks: One a task; of rank 0 where an adapter leaves this weight alone. All
            scaling (alpha / r, a task's weight) is in their `scale`.
        inputs: Sketch of the second moment of each task's inputs to this layer; None
            where an adapter has none beside it.
        sources: What messages call each task's adapter.
        dtype: What the algebra is done in.
    """

    name: str
    tasks: tuple[Factors, ...]
    inputs: tuple[Sketch | None, ...] = ()
    sources: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float64

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return self.tasks[0].shape

    def first(self, count: int) -> Layer:
        """Return the layer of the first tasks alone."""
        return replace(
            self,
            tasks=self.tasks[:count],
            inputs=self.inputs[:count],
            sources=self.sources[:count],
        )

    @property
    def total_rank(self) -> int:
        """The most that an exact sum needs: Σ rank, or the weight's own rank."""
        return min(sum(task.rank for task in self.tasks), *self.shape)

    @cached_property
    def space(self) -> Space:
        """The common bases and each task's core; made once, O((out + in)·(Σ rank)²)."""
        ranks = [task.rank for task in self.tasks]
        L, X = orthonormal(_stacked([task.B for task in self.tasks], self.dtype))
        R, Y = orthonormal(_stacked([task.A.T for task in self.tasks], self.dtype))
        parts = zip(
            self.tasks, torch.split(X, ranks, 1), torch.split(Y, ranks, 1), strict=True
        )
        tasks = tuple(Factors(y.T, x, task.scale) for task, x, y in parts)
        return Space(L, R, tuple(t.scale * (t.B @ t.A) for t in tasks), tasks)

    def generator(self, seed: int) -> torch.Generator:
        """Return a generator of random numbers that are this layer's own."""
        digest = hashlib.sha256(f"{seed}:{self.name}".encode()).digest()
        made = torch.Generator()
        return made.manual_seed(int.from_bytes(digest[:7], "big"))


def _stacked(blocks: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([block.to(dtype) for block in blocks], dim=1)
