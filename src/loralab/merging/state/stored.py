"""S_t of a continual method in a file, and one more step from it to the next.

Of each layer there are ``<module>.L``, ``.C`` and ``.R`` (see `lowrank/update.py`) in
the state's dtype, before the norm rule; what a factorisation lost stands in the header.
One layer is in memory at a time. A step from the file and a fold over all tasks go
through the same calls on equal numbers in equal memory layout (`_at_rest`), so that a
replay gives the bytes that the steps gave.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from loralab.lowrank.factors import Factors
from loralab.lowrank.stream import Spec, TensorFile, write_tensors
from loralab.lowrank.update import Update, frobenius
from loralab.merging.merge import Source, layers
from loralab.merging.method import Method, Step
from loralab.runs.files import TEMPORARY, sha256_file

T = TypeVar("T")
PARTS = ("L", "C", "R")
Updates = Iterable[tuple[str, Update]]
Told = Callable[[dict[str, Any]], None]
"""Takes events: ``merging`` with what, done and of (layers)."""


def silent(event: dict[str, Any]) -> None:
    """Take an event and do nothing."""


def told(found: Iterable[T], what: str, total: int, on_event: Told) -> Iterator[T]:
    """Yield what is found of each of `total` layers, and tell of it."""
    for done, item in enumerate(found, 1):
        yield item
        on_event({"event": "merging", "what": what, "done": done, "of": total})


class StoredSum:
    """The updates of S_t, each read when it is asked for.

    Args:
        path: What `write_sum` wrote.
    """

    def __init__(self, path: Path) -> None:
        self._file = TensorFile(path)
        self._lost: dict[str, float] = json.loads(self._file.metadata["lost"])

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Module path in the base -> (out, in) of its weight."""
        tensors = self._file.tensors
        return {
            name: (tensors[f"{name}.L"][1][0], tensors[f"{name}.R"][1][0])
            for name in self._lost
        }

    def update(self, module: str) -> Update:
        """Return one layer of S_t."""
        L, C, R = (self._file.read(f"{module}.{part}") for part in PARTS)
        return Update(L, C, R, self._lost[module])


def step(
    method: Method,
    before: StoredSum | None,
    count: int,
    source: Source,
    weight: float,
    dtype: torch.dtype,
) -> Iterator[tuple[str, Update]]:
    """Yield S_{t+1} layer by layer: what is stored, and one more task.

    Args:
        method: A continual one.
        before: S_t; None before the first task.
        count: t.
        source: The next task's adapter.
        weight: What its update is multiplied with.
        dtype: What the algebra is done in.
    """
    known = before.shapes if before else {}
    for module, shape in sorted({**known, **source.shapes}.items()):
        new = nothing(shape)
        if module in source.shapes:
            found = source.factors(module)
            new = replace(found, scale=found.scale * weight)
        if before and module in known:
            tasks, start, update = [new], count, _at_rest(before.update(module), dtype)
        else:  # the tasks before this one leave the layer alone
            tasks, start, update = [*[nothing(shape)] * count, new], 0, None
        yield module, _folded(method, module, tasks, start, update, dtype)


def replay(
    method: Method,
    sources: Sequence[Source],
    weights: Sequence[float],
    dtype: torch.dtype,
) -> Iterator[tuple[str, Update]]:
    """Yield S_t layer by layer from the adapters alone, bit for bit what steps gave."""
    for layer in layers(sources, weights, dtype):
        yield layer.name, _folded(method, layer.name, layer.tasks, 0, None, dtype)


def _folded(
    method: Method,
    module: str,
    tasks: Sequence[Factors],
    start: int,
    update: Update | None,
    dtype: torch.dtype,
) -> Update:
    """Return a layer's update with more tasks, of which the first is number `start`."""
    for count, task in enumerate(tasks, start):
        step = Step(module, count, dtype)
        update = _at_rest(method.add(update, task, step), dtype)
    if update is None:
        raise ValueError("nothing to merge")
    return update


def _at_rest(update: Update, dtype: torch.dtype) -> Update:
    """Return an update in memory of its own, row by row.

    A BLAS may round otherwise where rows lie elsewhere, and then a step from a file
    would not be the step in memory, bit for bit.
    """
    L, C, R = (
        part.to(dtype).clone(memory_format=torch.contiguous_format)
        for part in (update.L, update.C, update.R)
    )
    return Update(L, C, R, update.lost)


def nothing(shape: tuple[int, int]) -> Factors:
    """Return the update of rank 0 of a task that leaves a weight alone."""
    out, inner = shape
    return Factors(torch.zeros(0, inner), torch.zeros(out, 0), 1.0)


def write_sum(folder: Path, updates: Updates) -> tuple[Path, str, float]:
    """Write S_t under a temporary name, one layer in memory at a time.

    No shape is known before its layer was merged, and the header comes first: the
    tensors wait in a file without one.

    Args:
        folder: Of the state.
        updates: Of every layer.

    Returns:
        The file, its sha256, and ‖S_t‖_F.
    """
    path = folder / f"{TEMPORARY}merged.safetensors"
    plan: dict[str, Spec] = {}
    lost: dict[str, float] = {}
    norms: list[float] = []
    with tempfile.TemporaryFile(dir=folder) as waiting:
        for module, update in updates:
            lost[module] = update.lost
            norms.append(frobenius(update))
            for part in PARTS:
                tensor: Tensor = getattr(update, part)
                plan[f"{module}.{part}"] = (tensor.dtype, tuple(tensor.shape))
                tensor.numpy().tofile(waiting)
        waiting.seek(0)

        def stored() -> Iterator[tuple[str, Tensor]]:
            for name, (dtype, shape) in plan.items():
                size = dtype.itemsize * math.prod(shape)
                raw = bytearray(waiting.read(size))
                yield name, _tensor(raw, dtype, shape)

        metadata = {"format": "1", "lost": json.dumps(lost)}
        write_tensors(path, plan, stored(), metadata)
    return path, sha256_file(path), math.hypot(*norms)


def _tensor(raw: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor of these bytes; torch refuses to look at none."""
    if not raw:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(raw, dtype=dtype).reshape(shape)
