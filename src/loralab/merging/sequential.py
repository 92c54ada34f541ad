"""Adapters into a merge state in one call, under the names that users look for."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from loralab.config import MergeConfig
from loralab.config.named import chosen
from loralab.errors import MergeError
from loralab.lowrank.factors import Factors
from loralab.lowrank.files import AdapterFolder
from loralab.merging.export.export import export
from loralab.merging.export.exported import Exported
from loralab.merging.export.room import Room
from loralab.merging.merge import merged_layers, shapes_of
from loralab.merging.method import Method
from loralab.merging.state.state import MergedState
from loralab.merging.state.stored import Told, silent, told

LoRAModule = Factors
"""The update s·B·A of one module (see `loralab.lowrank.factors`)."""


def merge(
    adapters: Iterable[Path | str],
    method: str,
    folder: Path | str | None = None,
    weights: Sequence[float] = (),
    force: bool = False,
    on_event: Told = silent,
    **params: Any,
) -> MergedState:
    """Merge adapters in their order into a new state.

    A state copies the adapters, so that it can be continued and undone::

        state = loralab.merge(["runs/one", "runs/two"], "opcm", alpha_threshold=0.4)
        state.export("merged", rank=16)

    Args:
        adapters: Plain PEFT LoRA folders, or runs that made one.
        method: A merge method's name.
        folder: Of the state, a new one; by default a temporary directory, which stays
            until it is deleted.
        weights: What each adapter's update is multiplied with; by default 1.
        force: Take adapters of different bases, or one twice.
        on_event: Is told each layer.
        params: Of the method.

    Raises:
        ConfigError: no such method, or a param that it does not have.
        AdapterError: an adapter is broken, not plain, or of other shapes.
        MergeError: the adapters are of different bases, one is there twice, or their
            number is not that of the weights.
    """
    config = chosen(MergeConfig, method, params)
    given = [Path(adapter) for adapter in adapters]
    if not given:
        raise MergeError("no adapter to merge")
    scales = _weights(weights, len(given))
    place = Path(folder or tempfile.mkdtemp(prefix="loralab-merge-"))
    state = MergedState.begin(place, config)
    for adapter, weight in zip(given, scales, strict=True):
        state.add(adapter, weight=weight, force=force, on_event=on_event)
    return state


def merge_to_adapter(
    folder: Path,
    sources: Sequence[AdapterFolder],
    method: Method,
    *,
    weights: Sequence[float] = (),
    room: Room | None = None,
    dtype: str | None = None,
    head: str | None = None,
    on_event: Told = silent,
) -> Exported:
    """Merge adapters into a plain PEFT folder, without a state; exact without a `room`.

    Args:
        folder: New or empty, or an adapter that was merged before.
        sources: What `opened` and `check_fit` of `merging/state/fit.py` let through.
        method: The merge method.
        weights: What each adapter's update is multiplied with; by default 1.
        room: How much is written.
        dtype: Of the merged factors; by default what holds the adapters'.
        head: The task whose head the adapter shall have.
        on_event: Is told each layer.

    Raises:
        ExportError: `export` in `merging/export/export.py` says when.
        MergeError: the weights do not fit.
        AdapterError: an adapter is broken, or of other shapes.
    """
    scales = _weights(weights, len(sources))
    merged = merged_layers(method, sources, scales, precision_of(sources))
    what = f"merging {len(sources)} adapters"
    return export(
        folder,
        told(merged, what, len(shapes_of(sources)), on_event),
        sources,
        method,
        weights=scales,
        room=room,
        dtype=dtype,
        head=head,
    )


def precision_of(sources: Sequence[AdapterFolder]) -> torch.dtype:
    """Return what the algebra is done in: float32 where all is stored in 16 bits.

    Its rounding (some 2e-6 of an update) is a thousandth of that of bfloat16, and it
    takes two thirds of the time.
    """
    narrow = all(source.dtype.itemsize <= 2 for source in sources)
    return torch.float32 if narrow else torch.float64


def _weights(given: Sequence[float], count: int) -> tuple[float, ...]:
    """Return one weight for each of `count` adapters."""
    weights = tuple(given) or (1.0,) * count
    if len(weights) != count:
        raise MergeError(
            f"{len(weights)} weights for {count} adapters", fix="give one for each"
        )
    if bad := [w for w in weights if not math.isfinite(w) or w == 0]:
        raise MergeError(f"a weight of {bad[0]:g} merges nothing")
    return weights


class LoRAOPCMMerger:
    """Orthogonal projection of each task away from those before it (`methods/opcm.py`).

    Args:
        mode: ``code``, ``paper`` or ``stable``.
        alpha_threshold: Share of the nuclear norm that is protected, 0 to 1.
        params: The method's others; `loralab merge --method opcm --help` lists them.

    Raises:
        ConfigError: a param that the method does not have, or of a wrong value.
    """

    def __init__(
        self, mode: str = "code", alpha_threshold: float = 0.5, **params: Any
    ) -> None:
        given = {"mode": mode, "alpha_threshold": alpha_threshold, **params}
        self.params = chosen(MergeConfig, "opcm", given).params

    def merge_sequential(
        self,
        adapters: Iterable[Path | str],
        folder: Path | str | None = None,
        weights: Sequence[float] = (),
        force: bool = False,
    ) -> MergedState:
        """Merge adapters in their order; arguments and errors are those of `merge`."""
        return merge(adapters, "opcm", folder, weights, force, **self.params)
