"""Adapter survival: how much of an adapter is in what was stored.

Of one layer let W be the weight that the adapter is a difference to, ΔW its update, Q0
the values that are stored without the adapter and Q1 those with it. With D = Q1 − Q0,

    kept  = ⟨D, ΔW⟩ / ‖ΔW‖²              the projection of what changed onto ΔW
    noise = ‖D − kept·ΔW‖ / ‖ΔW‖         what changed besides
    size  = ‖ΔW‖ / ‖W‖                   Frobenius norms throughout

kept is 1 where the adapter was stored and 0 where it was swallowed: a weight that
stands on a grid and is moved by less than half a step is rounded back to where it was.
Noise alone is no loss of the adapter. Where W is between the grid's values, as the
weights of a float model are, Q1 rounds other weights than Q0 did: D then holds the
difference of two rounding errors, larger than a small ΔW, and kept is still near 1.

All layers together are one long vector:

    kept  = Σ ⟨D_l, ΔW_l⟩ / Σ ‖ΔW_l‖²
    noise = √( Σ (noise_l² + (kept_l − kept)²) ‖ΔW_l‖² / Σ ‖ΔW_l‖² )

A low-rank ΔW = s·B·A is not formed for the projection, ⟨D, s·B·A⟩ = s·tr(Bᵀ D Aᵀ), and
its norm is `loralab.lowrank.factors.frobenius_norm`. All is computed in float64.

Shapes: W, ΔW, Q0, Q1, D are O × I; A is rank × I, B is O × rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from loralab.errors import ExportError
from loralab.lowrank.factors import Factors, frobenius_norm
from loralab.units import percent

THRESHOLD = 0.9
"""Below this share an adapter does not do in the artefact what it was trained to do."""

Update = Factors | Tensor
"""ΔW: as factors where it is of low rank, else O × I."""


@dataclass(frozen=True)
class LayerSurvival:
    """What one layer kept.

    Attributes:
        kept: ⟨D, ΔW⟩ / ‖ΔW‖².
        noise: ‖D − kept·ΔW‖ / ‖ΔW‖.
        update_norm: ‖ΔW‖, above 0.
        weight_norm: ‖W‖.
    """

    kept: float
    noise: float
    update_norm: float
    weight_norm: float

    @property
    def size(self) -> float:
        """‖ΔW‖ / ‖W‖; infinite where W is 0."""
        return self.update_norm / self.weight_norm if self.weight_norm else math.inf

    def as_dict(self) -> dict[str, float]:
        """Return it as plain JSON, with the relative size."""
        return {**asdict(self), "size": self.size}


@dataclass(frozen=True)
class Survival:
    """What every layer kept, and all of them together.

    Attributes:
        layers: Module -> what it kept; at least one.
        float_layers: Adapted modules that were stored in float, and so were not lost.
    """

    layers: Mapping[str, LayerSurvival]
    float_layers: tuple[str, ...] = ()

    def _mean(self, value: Callable[[LayerSurvival], float]) -> float:
        """Return the mean of a value over layers, each weighing ‖ΔW‖²."""
        weights = [one.update_norm**2 for one in self.layers.values()]
        values = [value(one) for one in self.layers.values()]
        total = math.fsum(v * w for v, w in zip(values, weights, strict=True))
        return total / math.fsum(weights)

    @property
    def kept(self) -> float:
        """The projection of all layers together."""
        return self._mean(lambda one: one.kept)

    @property
    def noise(self) -> float:
        """What changed besides, of all layers together."""
        kept = self.kept
        return math.sqrt(self._mean(lambda one: one.noise**2 + (one.kept - kept) ** 2))

    @property
    def size(self) -> float:
        """‖ΔW‖ / ‖W‖ of all layers together."""
        updates = math.hypot(*(one.update_norm for one in self.layers.values()))
        weights = math.hypot(*(one.weight_norm for one in self.layers.values()))
        return updates / weights if weights else math.inf

    @property
    def worst(self) -> str:
        """The module that kept least."""
        return min(self.layers, key=lambda name: self.layers[name].kept)

    @property
    def survived(self) -> bool:
        """Whether all layers together kept at least `THRESHOLD`."""
        return self.kept >= THRESHOLD

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON: the total, and every layer."""
        return {
            "kept": self.kept,
            "noise": self.noise,
            "size": self.size,
            "threshold": THRESHOLD,
            "layers": {name: one.as_dict() for name, one in self.layers.items()},
            "float_layers": list(self.float_layers),
        }


def norm(update: Update) -> float:
    """Return ‖ΔW‖."""
    if isinstance(update, Factors):
        return frobenius_norm(update)
    return float(torch.linalg.vector_norm(update.double()))


def projection(change: Tensor, update: Update) -> float:
    """Return ⟨D, ΔW⟩ of a change D (O × I) in float64."""
    if isinstance(update, Factors):
        A, B = update.A.detach().double(), update.B.detach().double()
        return update.scale * float(((B.T @ change) * A).sum())
    return float((change * update.double()).sum())


def _without(change: Tensor, update: Update, share: float) -> Tensor:
    """Return D − share·ΔW; D is overwritten."""
    if isinstance(update, Factors):
        A, B = update.A.detach().double(), update.B.detach().double()
        return change.addmm_(B, A, alpha=-share * update.scale)
    return change.sub_(update.double(), alpha=share)


def layer_survival(
    weight: Tensor, without: Tensor, stored: Tensor, update: Update
) -> LayerSurvival | None:
    """Return what one layer kept, or None where its update is 0.

    Args:
        weight: W, what the adapter is a difference to.
        without: Q0, the values that are stored without the adapter.
        stored: Q1, the values that were stored.
        update: ΔW.

    Raises:
        ValueError: they are not of one shape.
    """
    shape = update.shape if isinstance(update, Factors) else tuple(update.shape)
    shapes = {tuple(t.shape) for t in (weight, without, stored)} | {shape}
    if len(shapes) > 1:
        raise ValueError(f"a layer's W, Q0, Q1 and ΔW are of the shapes {shapes}")
    size = norm(update)
    if not size:
        return None
    change = stored.detach().double() - without.detach().double()
    kept = projection(change, update) / size**2
    rest = float(torch.linalg.vector_norm(_without(change, update, kept)))
    whole = float(torch.linalg.vector_norm(weight.detach().double()))
    return LayerSurvival(kept, rest / size, size, whole)


def measure(
    stored: Iterable[tuple[str, Tensor]],
    names: Collection[str],
    weight: Callable[[str], Tensor],
    update: Callable[[str], Update],
    rounded: Callable[[Tensor], Tensor] | None,
) -> Survival | None:
    """Return what was kept, one layer in memory at a time.

    Args:
        stored: Modules and the values that were stored, as a format reads them back.
        names: The adapted modules.
        weight: From a module to W.
        update: From a module to ΔW.
        rounded: From W to the values that are stored without the adapter; None where
            these are W itself.

    Returns:
        None where no stored module has an update, as with an adapter of norms only.

    Raises:
        ExportError: the values of a module are stored twice, or not finite.
    """
    layers: dict[str, LayerSurvival] = {}
    seen: set[str] = set()
    for name, values in stored:
        if name in seen or not values.isfinite().all():
            what = "stored twice" if name in seen else "not finite"
            raise ExportError(f"the stored values are {what}", where=name)
        seen.add(name)
        if name not in names:
            continue
        own = weight(name)
        found = layer_survival(
            own, rounded(own) if rounded else own, values, update(name)
        )
        if found:
            layers[name] = found
    in_float = tuple(name for name in names if name not in seen)
    return Survival(layers, in_float) if layers else None


def whole(
    names: Collection[str],
    weight: Callable[[str], Tensor],
    update: Callable[[str], Update],
) -> Survival | None:
    """Return the survival of an adapter that was not merged: 1, by construction.

    Args:
        names: The adapted modules.
        weight: From a module to W.
        update: From a module to ΔW.
    """
    layers = {}
    for name in names:
        if size := norm(update(name)):
            of_weight = float(torch.linalg.vector_norm(weight(name).double()))
            layers[name] = LayerSurvival(1.0, 0.0, size, of_weight)
    return Survival(layers) if layers else None


def warning(survival: Survival, route: str, better: str) -> str:
    """Return what must be said loudly, or an empty text where enough was kept.

    Args:
        survival: As it was measured.
        route: The route that was taken.
        better: The route, or routes, to take instead.
    """
    if survival.survived:
        return ""
    low, layers = survival.worst, survival.layers
    kept, least = percent(survival.kept), percent(layers[low].kept)
    return (
        f"THE ADAPTER WAS SWALLOWED: {route} kept {kept} of it, below "
        f"{percent(THRESHOLD, 0)} (least in {low}: {least})\n"
        f"  why: it moves the weights by {percent(survival.size)} of their norm, too "
        "little for the steps of this format, so most weights were rounded back\n"
        f"  fix: {better}"
    )
