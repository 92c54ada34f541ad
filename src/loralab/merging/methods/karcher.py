r"""Karcher: the Riemannian mean of the updates' directions on the unit sphere.

    u_t = ΔW_t / ‖ΔW_t‖_F
    u = argmin_p Σ_t θ(p, u_t)²,   θ(p, q) = arccos⟨p, q⟩         (Karcher 1977)
    ΔW = mean_t ‖ΔW_t‖ · u

found as mergekit's `karcher` finds it: from the normalised sum of the directions, steps
along the mean of the logarithms,

    v = (1/T) Σ_t θ_t / sin θ_t · (u_t − cos θ_t p),   p ← cos‖v‖ p + sin‖v‖ v/‖v‖

until ‖v‖ < tol. For each layer on its own, and on updates where mergekit takes weights.
`tol` and `max_iter` are mergekit's names; its 10 steps at 1e-5 stop before a merge of
many tasks is settled, silently, so here they are 1000 and 1e-10 (the cores are small)
and not arriving is an error. A zero update counts in the mean norm, not in the mean
direction. Two updates that are opposite have no unique mean and are refused (mergekit
falls back to the first where the sum vanishes, else goes on).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from loralab.errors import AdapterError
from loralab.lowrank.update import Update
from loralab.merging.layer import Layer
from loralab.merging.method import INVARIANT, Normed
from loralab.merging.methods._sphere import (
    OPPOSITE,
    lengths_and_directions,
    opposite,
)
from loralab.registry import register


class KarcherParams(Normed):
    """Parameters of the Karcher mean.

    Attributes:
        tol: ‖v‖, in radians, at which a step is the last.
        max_iter: Steps after which it is given up.
    """

    tol: float = Field(default=1e-10, gt=0, lt=1)
    max_iter: int = Field(default=1000, ge=1)


@register("merge method", "karcher", KarcherParams, laws=INVARIANT | {"identity": {}})
def karcher(params: KarcherParams, layer: Layer) -> Update:
    """Return the mean direction of the tasks' updates at their mean norm.

    Raises:
        AdapterError: opposite updates, or no convergence.
    """
    space = layer.space
    lengths, directions = lengths_and_directions(layer)
    if not len(directions):
        return space.update(space.total)
    merged = lengths.mean() * _mean(directions, params, layer)
    return space.update(merged.reshape(space.total.shape).to(layer.dtype))


def _mean(units: Tensor, params: KarcherParams, layer: Layer) -> Tensor:
    """Return the Karcher mean [n] of the rows of `units` [T, n], each of norm 1."""
    start = units.mean(0)
    if start.norm() < OPPOSITE or any(_faces(u, units) for u in units):
        raise opposite(layer)
    p: Tensor = start / start.norm()
    for _ in range(params.max_iter):
        v = _mean_logarithm(units, p)
        step = v.norm()
        if step < params.tol:
            return p
        p = torch.cos(step) * p + torch.sin(step) * v / step
        p = p / p.norm()
    raise AdapterError(
        f"no Karcher mean to {params.tol} within {params.max_iter} steps",
        where=layer.name,
        fix="raise max_iter or tol",
    )


def _faces(u: Tensor, units: Tensor) -> bool:
    """Return whether any unit vector is opposite to u."""
    return bool(((units + u).norm(dim=1) < OPPOSITE).any())


def _mean_logarithm(units: Tensor, p: Tensor) -> Tensor:
    """Return v, the mean of the tangents at p that point to the rows of `units`."""
    cos = (units @ p).clamp(-1.0, 1.0)
    across = units - cos[:, None] * p
    sin = across.norm(dim=1)
    θ = torch.atan2(sin, cos)
    stretch = torch.where(sin > 0, θ / sin.clamp(min=torch.finfo(sin.dtype).tiny), 1.0)
    return (stretch[:, None] * across).mean(0)
