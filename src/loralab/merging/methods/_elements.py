r"""Element-wise rules on ΔW itself, by blocks of rows; never on the factors.

A mask of B and a mask of A are no mask of s·B·A, and what the factors' signs elect is
no sign of an entry: both change under B → BG, A → G⁻¹A, which leaves ΔW as it is. So a
rule here sees the entries,

    ΔW_t[rows] = s_t·B_t[rows]·A_t        [h, in] of each task, h rows at a time

and gives the same rows of a merged M. Its thresholds are exact order statistics over
the whole layer, and M is factorised by passes over its blocks (`lowrank/rows.py`): its
rank is full, so a factorisation loses something, and how much is in `Update.lost`.
Every pass makes the blocks again; nothing of the size out × in is held. With T tasks

    memory = T·h·in values for the blocks, h = max(1, 2¹⁹ // (T·in)) unless `rows` says
             otherwise: 4 MB in float64, and a few times that for a rule's own masks

Random masks are those of entries and not of blocks: entry (i, j) of task t takes the
number i·in + j of a counter-based stream (Philox, Salmon et al. 2011) whose key is the
hash of (seed, layer, t). The height of the blocks does not change them, nor do the
other tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from loralab.lowrank.rows import factorised, kth_smallest
from loralab.lowrank.update import Update
from loralab.merging.layer import Layer
from loralab.merging.method import Normed

VALUES = 1 << 19
"""Values of all tasks' blocks together, unless `rows` says otherwise."""

Rule = Callable[[int], Tensor]
"""From the first row of a block to the block, [h, in]."""

Sign = Literal["total", "frequency"]
Fuse = Literal["mean", "sum"]


class ElementParams(Normed):
    """What all element-wise methods have.

    Attributes:
        scale: What the merged update is multiplied with (λ).
        rank: Of the factorisation; null for the sum of the tasks' ranks.
        oversample: Columns of the sketch beyond the rank.
        power: Power iterations of the range finder.
        seed: Of the sketch, and of the masks where there are random ones.
        rows: Rows of ΔW that are held at a time; null: see `_elements.py`.
    """

    scale: float = Field(1.0, gt=0)
    rank: int | None = Field(None, ge=1)
    oversample: int = Field(16, ge=0)
    power: int = Field(2, ge=0)
    seed: int = Field(0, ge=0)
    rows: int | None = Field(None, ge=1)


class Trimmed(ElementParams):
    """Of methods that keep the largest magnitudes.

    Attributes:
        density: Share of the entries of each task that is kept.
    """

    density: float = Field(0.2, gt=0, le=1)


@dataclass(frozen=True, eq=False)
class Entries:
    """The entries of all tasks' updates of a layer, a block of rows at a time.

    Attributes:
        layer: The tasks.
        height: Rows of a block.
    """

    layer: Layer
    height: int

    @cached_property
    def _factors(self) -> list[tuple[Tensor, Tensor]]:
        dtype = self.layer.dtype
        return [
            (task.scale * task.B.to(dtype), task.A.to(dtype))
            for task in self.layer.tasks
        ]

    @property
    def count(self) -> int:
        """How many tasks there are."""
        return len(self.layer.tasks)

    @property
    def size(self) -> int:
        """How many entries a task has: out·in."""
        out, inner = self.layer.shape
        return out * inner

    def of(self, task: int, start: int) -> Tensor:
        """Return rows of a task's ΔW from `start` on, [h, in]."""
        B, A = self._factors[task]
        return B[start : start + self.height] @ A

    def all(self, start: int) -> Tensor:
        """Return the same rows of all tasks, [T, h, in]."""
        return torch.stack([self.of(task, start) for task in range(self.count)])

    def blocks(self, rule: Rule) -> Iterable[Tensor]:
        """Yield the blocks of the matrix that a rule makes."""
        for start in range(0, self.layer.shape[0], self.height):
            yield rule(start)

    def smallest(self, rule: Rule, k: int) -> float:
        """Return the k-th smallest magnitude of a rule's matrix, k from 1."""
        return kth_smallest(lambda: self.blocks(rule), k)

    def floor(self, rule: Rule, density: float) -> float:
        """Return the smallest of the int(density·out·in) largest magnitudes.

        At least one entry is kept. At density 1 it is 0, and no pass is made.
        """
        kept = max(1, int(density * self.size))
        return self.smallest(rule, self.size - kept + 1) if density < 1 else 0.0

    def floors(self, density: float) -> Tensor:
        """Return each task's `floor`, [T, 1, 1] as `all` needs it."""

        def of(task: int) -> float:
            return self.floor(lambda start: self.of(task, start), density)

        return self.per_task([of(task) for task in range(self.count)])

    def per_task(self, values: list[float]) -> Tensor:
        """Return one number a task as [T, 1, 1] float64, which holds it exactly."""
        device = self.layer.tasks[0].A.device
        return torch.tensor(values, dtype=torch.float64, device=device)[:, None, None]

    def uniform(self, seed: int, task: int, start: int) -> Tensor:
        """Return a task's own random numbers in [0, 1) for a block, [h, in] float64."""
        out, inner = self.layer.shape
        rows = min(self.height, out - start)
        text = f"{seed}:{self.layer.name}:{task}"
        key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
        # Philox makes four numbers at each value of its counter
        counter, skip = divmod(start * inner, 4)
        drawn = np.random.Generator(np.random.Philox(key=key, counter=counter))
        found = torch.from_numpy(drawn.random(skip + rows * inner)[skip:])
        return found.view(rows, inner).to(self.layer.tasks[0].A.device)

    def uniforms(self, seed: int, start: int) -> Tensor:
        """Return the random numbers of all tasks for a block, [T, h, in] float64."""
        made = [self.uniform(seed, task, start) for task in range(self.count)]
        return torch.stack(made)

    def factorised(self, rule: Rule, params: ElementParams) -> Update:
        """Return scale·M for the M that a rule makes, as factors of known error."""
        layer = self.layer
        rank = layer.total_rank if params.rank is None else params.rank
        made = factorised(
            lambda: self.blocks(rule),
            layer.shape,
            min(rank, *layer.shape),
            layer.generator(params.seed),
            oversample=params.oversample,
            power=params.power,
        )
        return made * params.scale


def entries(layer: Layer, params: ElementParams) -> Entries:
    """Return a layer's entries in blocks of as many rows as the params allow."""
    usual = max(1, VALUES // (len(layer.tasks) * layer.shape[1]))
    return Entries(layer, params.rows or usual)


def trimmed(ΔW: Tensor, floor: Tensor | float) -> Tensor:
    """Return the entries whose magnitude is at least `floor`; all ties with it too.

    This is the rule of TIES' own code (|x| ≥ threshold), where mergekit and PEFT keep
    exactly k and leave it to `topk` which of equal ones.
    """
    return ΔW * (ΔW.abs() >= floor)


def dropped(ΔW: Tensor, uniform: Tensor, keep: Tensor | float) -> Tensor:
    """Return entries that are kept with probability `keep`, then divided by it.

    The expectation of each entry is what it was (DARE, Yu et al. 2024, eq. 3).
    """
    return (ΔW * (uniform < keep) / keep).to(ΔW)


def elected(ΔW: Tensor, sign: Sign, fuse: Fuse) -> Tensor:
    """Return what the tasks say where they agree with the elected sign (TIES).

    An entry's sign is that of the sum of the tasks' values (``total``) or of their
    signs (``frequency``); positive where that is 0, as in PEFT and mergekit. TIES' own
    code gives such entries the sign that most entries of the model have, which only
    matters where tasks cancel to the last bit.

    Args:
        ΔW: [T, h, in].
        sign: How the sign is elected.
        fuse: ``mean`` over the tasks that agree and are not 0 there, or their ``sum``.

    Returns:
        [h, in].
    """
    signs = ΔW.sign()
    poll = ΔW.sum(0) if sign == "total" else signs.sum(0)
    agree = signs == torch.where(poll >= 0, 1.0, -1.0)
    total = (ΔW * agree).sum(0)
    return total / agree.sum(0).clamp(min=1) if fuse == "mean" else total
