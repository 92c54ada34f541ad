"""Adapters drawn at random, and the dense matrices that the library never makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from loralab.lowrank.factors import Factors
from loralab.lowrank.sketch import Sketch, Sketcher
from loralab.lowrank.update import Update
from loralab.merging.layer import Layer


@dataclass(frozen=True)
class Held:
    """An adapter in memory; a `Source`."""

    held: Mapping[str, Factors]
    name: str = "drawn"
    sketches: Mapping[str, Sketch] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        return {name: factors.shape for name, factors in self.held.items()}

    def factors(self, module: str) -> Factors:
        return self.held[module]

    def inputs(self, module: str) -> Sketch | None:
        return self.sketches.get(module)


def drawn_factors(
    shape: tuple[int, int], rank: int, seed: int, scale: float = 0.5
) -> Factors:
    """Return Gaussian factors in float64, with a spectrum that decays."""
    random = torch.Generator().manual_seed(seed)
    out, inner = shape
    decay = 0.8 ** torch.arange(rank, dtype=torch.float64)
    B = torch.randn(out, rank, generator=random, dtype=torch.float64) * decay
    A = torch.randn(rank, inner, generator=random, dtype=torch.float64)
    return Factors(A, B, scale)


def drawn(rank: int, shapes: Mapping[str, tuple[int, int]], seed: int = 0) -> Held:
    """Return an adapter of Gaussian factors."""
    made = {
        name: drawn_factors(shape, rank, seed * 1000 + number)
        for number, (name, shape) in enumerate(shapes.items())
    }
    return Held(made, f"drawn-{seed}")


def drawn_layer(
    shape: tuple[int, int], ranks: tuple[int, ...], seed: int = 0, name: str = "w"
) -> Layer:
    """Return a layer of tasks with these ranks."""
    tasks = [drawn_factors(shape, r, seed * 1000 + i) for i, r in enumerate(ranks)]
    inputs = [drawn_sketch(shape[1], seed * 1000 + i) for i in range(len(ranks))]
    return Layer(name, tuple(tasks), tuple(inputs))


def drawn_sketch(inner: int, seed: int, rank: int = 3) -> Sketch:
    """Return the sketch of correlated Gaussian inputs."""
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(inner, inner, generator=random, dtype=torch.float64)
    made = Sketcher(rank)
    made.add(torch.randn(50, inner, generator=random, dtype=torch.float64) @ mixed)
    return made.sketch()


def dense(factors: Factors) -> Tensor:
    """Return s·B·A as a matrix."""
    return factors.scale * (factors.B @ factors.A)


def dense_update(update: Update) -> Tensor:
    """Return L·C·Rᵀ as a matrix."""
    return update.L @ update.C @ update.R.T
