"""Merging layer by layer: what is read, merged and let go again is one layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from loralab.errors import AdapterError
from loralab.lowrank.factors import Factors, frobenius_norm
from loralab.lowrank.sketch import Sketch
from loralab.lowrank.update import Update, frobenius
from loralab.merging.layer import Layer
from loralab.merging.method import Method, factor_of_norm_rule


class Source(Protocol):
    """Where one adapter's factors come from, a layer at a time."""

    @property
    def name(self) -> str:
        """What messages and logs call it."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """Module path in the base -> (out, in) of its weight."""

    def factors(self, module: str) -> Factors:
        """Return the update of one module."""

    def inputs(self, module: str) -> Sketch | None:
        """Return the sketch of the module's inputs, if there is one."""


@dataclass(frozen=True, eq=False)
class MergedLayer:
    """What became of one layer, before the norm rule.

    Attributes:
        name: Module path in the base.
        update: The merged ΔW.
        task_norms: ‖ΔW_t‖_F of each task in this layer.
    """

    name: str
    update: Update
    task_norms: tuple[float, ...]


def shapes_of(sources: Sequence[Source]) -> dict[str, tuple[int, int]]:
    """Return module -> (out, in) of all weights that any adapter updates, sorted.

    Raises:
        AdapterError: two adapters see different shapes of one weight.
    """
    shapes: dict[str, tuple[int, int]] = {}
    first: dict[str, str] = {}
    for source in sources:
        for module, shape in source.shapes.items():
            if shapes.setdefault(module, shape) != shape:
                raise AdapterError(
                    f"{module} is {shape} in {source.name} and {shapes[module]} "
                    f"in {first[module]}",
                    why="adapters of different bases have no common weight to merge",
                )
            first.setdefault(module, source.name)
    return dict(sorted(shapes.items()))


def layers(
    sources: Sequence[Source],
    weights: Sequence[float] = (),
    dtype: torch.dtype = torch.float64,
    *,
    inputs: bool = False,
) -> Iterator[Layer]:
    """Yield the layers of all adapters, each read when its turn comes.

    Args:
        sources: The adapters, in the order of the tasks.
        weights: What each task's update is multiplied with first; by default 1.
        dtype: What the algebra is done in.
        inputs: Whether sketches of inputs are read too.
    """
    scales = tuple(weights) or (1.0,) * len(sources)
    for module, shape in shapes_of(sources).items():
        tasks = [_factors(source, module, shape) for source in sources]
        yield Layer(
            name=module,
            tasks=tuple(
                replace(task, scale=task.scale * scale)
                for task, scale in zip(tasks, scales, strict=True)
            ),
            inputs=tuple(s.inputs(module) if inputs else None for s in sources),
            sources=tuple(source.name for source in sources),
            dtype=dtype,
        )


def _factors(source: Source, module: str, shape: tuple[int, int]) -> Factors:
    """Return an adapter's update of a module, of rank 0 where it has none."""
    if module in source.shapes:
        return source.factors(module)
    out, inner = shape
    return Factors(torch.zeros(0, inner), torch.zeros(out, 0), 1.0)


def merged_layers(
    method: Method,
    sources: Sequence[Source],
    weights: Sequence[float] = (),
    dtype: torch.dtype = torch.float64,
) -> Iterator[MergedLayer]:
    """Yield the merged layers one by one, before the norm rule.

    The arguments are those of `layers`; sketches are read if the method needs them.
    """
    for layer in layers(sources, weights, dtype, inputs=method.reads_inputs):
        norms = tuple(frobenius_norm(task) for task in layer.tasks)
        yield MergedLayer(layer.name, method.merged(layer), norms)


def scale_of(method: Method, merged: Sequence[MergedLayer]) -> float:
    """Return what the norm rule multiplies the whole update with; 1 without it."""
    if not method.normed:
        return 1.0
    norms = zip(*(layer.task_norms for layer in merged), strict=True)
    return factor_of_norm_rule(
        math.hypot(*(frobenius(layer.update) for layer in merged)),
        [math.hypot(*task) for task in norms],
    )


def merge(
    method: Method,
    sources: Sequence[Source],
    weights: Sequence[float] = (),
    dtype: torch.dtype = torch.float64,
) -> dict[str, Update]:
    """Return the merged update of every layer, in memory, norm rule included.

    For adapters larger than memory see `merging/export/export.py`, which streams. The
    arguments are those of `layers`.
    """
    found = list(merged_layers(method, sources, weights, dtype))
    scale = scale_of(method, found)
    return {layer.name: layer.update * scale for layer in found}
