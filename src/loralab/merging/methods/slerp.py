"""SLERP: along the great circle between the directions of two updates.

    u_t = ΔW_t / ‖ΔW_t‖_F,   cos θ = ⟨u_0, u_1⟩
    u = [sin((1 − t)θ) u_0 + sin(tθ) u_1] / sin θ
    ΔW = [(1 − t)‖ΔW_0‖ + t‖ΔW_1‖] u

The convention: direction and length apart, the direction along the sphere (Shoemake
1985), the length linearly, for each layer on its own and on *updates*, not on weights.
mergekit's `slerp` and `nuslerp` take the same angle but weigh ΔW_0 and ΔW_1 themselves
with the two sines, so that two updates of norm 1 and 100 give almost the direction of
the longer one; for equal norms all agree. mergekit's switch to a linear rule at
|cos θ| > 0.9995 is not needed in double precision. With t = 1/2 this is the Karcher
mean of two (`karcher.py`).

A zero update has a length but no direction: the other's is taken. Opposite updates
(cos θ = −1) have no one way between them and are refused.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from loralab.errors import ConfigError
from loralab.lowrank.update import Update
from loralab.merging.layer import Layer
from loralab.merging.method import INVARIANT, Normed
from loralab.merging.methods._sphere import (
    OPPOSITE,
    lengths_and_directions,
    opposite,
)
from loralab.registry import register


class SLERPParams(Normed):
    """Parameters of spherical interpolation.

    Attributes:
        t: 0 is the first task, 1 the second.
    """

    t: float = Field(default=0.5, ge=0, le=1)


@register(
    "merge method",
    "slerp",
    SLERPParams,
    laws=INVARIANT | {"identity": {}, "permutation": {"t": 0.5}},
    most_tasks=2,
)
def slerp(params: SLERPParams, layer: Layer) -> Update:
    """Return the update between two.

    Raises:
        ConfigError: more than two tasks.
        AdapterError: two updates that are opposite.
    """
    space = layer.space
    if len(space.cores) > 2:
        raise ConfigError(
            f"slerp merges two adapters, not {len(space.cores)}",
            fix="use karcher, which is the same for any number",
        )
    lengths, directions = lengths_and_directions(layer)
    if not len(directions):
        return space.update(space.total)
    length = (1 - params.t) * lengths[0] + params.t * lengths[-1]
    merged = length * _between(directions[0], directions[-1], params.t, layer)
    return space.update(merged.reshape(space.total.shape).to(layer.dtype))


def _between(u: Tensor, v: Tensor, t: float, layer: Layer) -> Tensor:
    """Return the direction at t between u and v.

    The angle by Kahan's formula, exact for small ones where acos is not.
    """
    across, along = (u - v).norm(), (u + v).norm()
    if along < OPPOSITE:
        raise opposite(layer)
    θ = 2 * torch.atan2(across, along)
    if not θ:
        return u
    mixed: Tensor = (torch.sin((1 - t) * θ) * u + torch.sin(t * θ) * v) / torch.sin(θ)
    return mixed
