"""What has been merged after each task: the rows of a continual matrix.

A continual method is folded over the tasks, one step a row; a joint one merges the
first t tasks anew. Either way row t is what `merge` gives of the first t adapters, norm
rule included, and no step sees the factor that the rule scaled an earlier row with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from loralab.lowrank.factors import frobenius_norm
from loralab.lowrank.update import Update
from loralab.merging.layer import Layer
from loralab.merging.merge import MergedLayer, Source, layers, scale_of
from loralab.merging.method import Method, Step


def after_each(
    method: Method,
    sources: Sequence[Source],
    weights: Sequence[float] = (),
    dtype: torch.dtype = torch.float64,
) -> Iterator[dict[str, Update]]:
    """Yield the merged update of every layer after 1, 2, … T tasks.

    The arguments are those of `loralab.merging.merge.merge`. All adapters' factors are
    held in memory.
    """
    found = list(layers(sources, weights, dtype, inputs=method.reads_inputs))
    before: list[Update | None] = [None] * len(found)
    for count in range(len(sources)):
        merged = [
            _merged(method, layer, count, update)
            for layer, update in zip(found, before, strict=True)
        ]
        scale = scale_of(method, merged)
        yield {one.name: one.update * scale for one in merged}
        before = [one.update for one in merged]


def _merged(
    method: Method, layer: Layer, count: int, before: Update | None
) -> MergedLayer:
    """Return what one layer becomes with task number `count`, from 0."""
    end = count + 1
    if method.continual:
        step = Step(layer.name, count, layer.dtype)
        update = method.add(before, layer.tasks[count], step)
    else:
        update = method.merged(layer.first(end))
    norms = tuple(frobenius_norm(task) for task in layer.tasks[:end])
    return MergedLayer(layer.name, update, norms)
