"""Updates as points of a sphere: a length and a direction each, in double precision."""

from __future__ import annotations

import torch
from torch import Tensor

from loralab.errors import AdapterError
from loralab.merging.layer import Layer

OPPOSITE = 1e-6
"""‖u_0 + u_1‖ of unit vectors below which no direction between them can be told."""


def lengths_and_directions(layer: Layer) -> tuple[Tensor, Tensor]:
    """Return ‖ΔW_t‖_F [T], and ΔW_t / ‖ΔW_t‖_F of those that are not zero.

    The directions are those of the flattened cores, [T', k·l]: all inner products are
    those of the updates.
    """
    flat = torch.stack([core.flatten() for core in layer.space.cores]).double()
    lengths = flat.norm(dim=1)
    present = lengths > 0
    return lengths, flat[present] / lengths[present, None]


def opposite(layer: Layer) -> AdapterError:
    """Return the error for updates with no one direction between them."""
    return AdapterError(
        "updates are opposite",
        where=layer.name,
        why="opposite points of a sphere have no unique mean, and no one way between",
        fix="merge with task-arithmetic or average",
    )
