"""What a merge method is: one pure function of one layer.

A joint method sees all tasks at once::

    @register("merge method", "average", AverageParams)
    def average(params: AverageParams, layer: Layer) -> Update: ...

A continual one sees what has been merged and the next task; it is registered with
``continual=True``, and a joint call folds it over the tasks in their order::

    @register("merge method", "opcm", OPCMParams, continual=True)
    def opcm(params, merged: Update | None, new: Factors, step: Step) -> Update: ...

It is of the updates and not of their coordinates (turned bases give the turned result),
so the joint call folds over small factors, between the bases that all tasks share.

What no layer can know alone is the size of the whole update. A method whose schema is
`Normed` gets it from here: with ``norm: mean`` the update of all layers together is
scaled to the mean norm of the tasks' updates so far (the norm rule of OPCM, Tang et al.
2025, arXiv 2501.09522),

    λ_t = ‖S_t‖ / n̄_t,   n̄_t = (1/t) Σ_{i≤t} ‖ΔW_i‖,   merged = S_t / λ_t

with ‖·‖ the Frobenius norm over all layers. S_t itself is kept without it: λ never
compounds, and the singular vectors of S_t do not see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from loralab.config import MergeConfig
from loralab.config.named import chosen
from loralab.errors import MergeError
from loralab.lowrank.factors import Factors
from loralab.lowrank.update import Update
from loralab.merging.layer import Layer
from loralab.registry import Entry, Params, get

ROUNDING = 1e-12
"""‖S_t‖ / Σ‖ΔW_i‖ below which S_t is what rounding leaves of tasks that cancel."""


INVARIANT: dict[str, dict[str, Any]] = {
    "gauge": {},
    "scale": {},
    "permutation": {},
    "rank": {},
    "driver": {},
}
"""The laws of what depends on the updates alone, whatever their order."""


class Normed(Params):
    """Base of the schemas of methods that may follow the norm rule.

    Attributes:
        norm: ``mean`` scales the whole update to the mean norm of the tasks' updates;
            ``none`` leaves it.
    """

    norm: Literal["mean", "none"] = "none"


@dataclass(frozen=True)
class Step:
    """Where a continual merge stands.

    Attributes:
        layer: Module path in the base.
        count: Tasks that the update before this step holds; 0 for the first.
        dtype: What the algebra is done in.
    """

    layer: str
    count: int
    dtype: torch.dtype = torch.float64


Joint = Callable[[Any, Layer], Update]
Continual = Callable[[Any, Update | None, Factors, Step], Update]


@dataclass(frozen=True)
class Method:
    """A merge method with its parameters.

    Attributes:
        entry: Of the registry.
        params: Validated against the method's own schema.
    """

    entry: Entry
    params: Params

    @property
    def name(self) -> str:
        """As a user writes it."""
        return self.entry.name

    @property
    def continual(self) -> bool:
        """Whether one more task can be added to what has been merged."""
        return bool(self.entry.facts.get("continual"))

    @property
    def normed(self) -> bool:
        """Whether the whole update is scaled to the mean norm of the tasks'."""
        return isinstance(self.params, Normed) and self.params.norm == "mean"

    @property
    def reads_inputs(self) -> bool:
        """Whether it, or the method within it, needs sketches of the tasks' inputs."""
        inner = getattr(self.params, "inner", None)
        within = isinstance(inner, MergeConfig) and resolve(inner).reads_inputs
        return within or self.entry.facts.get("needs") == "inputs"

    def merged(self, layer: Layer) -> Update:
        """Return the merged update of one layer, before the norm rule."""
        if not self.continual:
            return self._checked(self.entry.target(self.params, layer), layer.name)
        space, before = layer.space, None
        for count, task in enumerate(space.tasks):
            before = self.add(before, task, Step(layer.name, count, layer.dtype))
        if before is None:
            raise ValueError("nothing to merge")
        return space.update(before.L @ before.C @ before.R.T, before.lost)

    def add(self, before: Update | None, task: Factors, step: Step) -> Update:
        """Return one layer's update with one more task; `continual` methods only."""
        found = self.entry.target(self.params, before, task, step)
        return self._checked(found, step.layer)

    def _checked(self, update: Any, layer: str) -> Update:
        """Return what a method gave, which may be somebody else's.

        Raises:
            MergeError: it is no update.
        """
        if not isinstance(update, Update):
            raise MergeError(
                f"the merge method {self.name!r} gave {type(update).__name__}",
                where=layer,
                why="a merged layer is an Update, in factored form",
                fix="return layer.space.update(core)",
            )
        return update


def method(name: str, **params: Any) -> Method:
    """Return the merge method called `name` with these parameters.

    Raises:
        ConfigError: no such method, or a parameter that its schema does not have.
    """
    return resolve(chosen(MergeConfig, name, params))


def resolve(config: MergeConfig) -> Method:
    """Return the merge method that a configuration names."""
    entry = get(config.kind, config.name)
    return Method(entry, entry.schema.model_validate(config.params))


def factor_of_norm_rule(merged: float, tasks: Sequence[float]) -> float:
    """Return 1/λ, what the whole update is multiplied with under the norm rule.

    Args:
        merged: ‖S_t‖ over all layers.
        tasks: ‖ΔW_i‖ over all layers, of every task so far.

    Returns:
        n̄ / ‖S_t‖; 1 for an update that is zero, or only rounding.
    """
    whole = math.fsum(tasks)
    return whole / len(tasks) / merged if merged > ROUNDING * whole else 1.0
