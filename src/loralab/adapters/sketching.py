"""Sketches of what each adapted layer reads, with the adapter on.

The inputs are those at real tokens, of the adapted model: RegMean weighs each task by
what its own model sees. A sketch holds 3k·in float64 values while it is made, and
modules that read the same tensor (query, key, value) have one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loralab.adapters.calibration import (
    Batches,
    at_real_tokens,
    hearing,
)
from loralab.lowrank.sketch import Sketch, Sketcher
from loralab.models.forward import Batch, supervised_logits
from loralab.models.loaded import LoadedModel

if TYPE_CHECKING:
    import torch


@dataclass
class _Listening:
    """The sketchers of modules; those that read one tensor have one."""

    rank: int
    batch: Batch = field(default_factory=dict)
    made: dict[str, Sketcher] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    last: tuple[torch.Tensor | None, str] = (None, "")

    def take(self, name: str, inputs_BTI: torch.Tensor) -> None:
        """Add a module's inputs, unless another has just read them."""
        if self.last[0] is inputs_BTI:
            self.shared[name] = self.last[1]
            return
        self.last = (inputs_BTI, name)
        sketcher = self.made.setdefault(name, Sketcher(self.rank))
        sketcher.add(at_real_tokens(name, inputs_BTI, self.batch))


def input_sketches(
    model: Any,
    modules: Mapping[str, Any],
    loaded: LoadedModel,
    batches: Batches,
    rank: int,
    done: Callable[[int], None] = lambda _: None,
) -> tuple[dict[str, Sketch], dict[str, str]]:
    """Return the sketches of modules' inputs at real tokens.

    Args:
        model: The base, or a PEFT model on it, whose inputs are then the adapted ones.
        modules: Name -> the module.
        loaded: The base, for its head and numerics.
        batches: Of rows.
        rank: k of a sketch; the width of its module where that is less.
        done: Told how many batches have been read.

    Returns:
        Name -> sketch, and the other names -> the name whose inputs they share.
    """
    import torch

    heard = _Listening(rank)
    with torch.no_grad(), hearing(model, modules, heard.take):
        for number, batch in enumerate(batches(), start=1):
            heard.batch = batch
            supervised_logits(model, batch, loaded)
            done(number)
    return {name: made.sketch() for name, made in heard.made.items()}, heard.shared
