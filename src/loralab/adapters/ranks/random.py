"""A control: ranks that know nothing, at the same budget.

Weights are exponential draws, so every way to split the budget is equally likely (a
Dirichlet of ones). A module's draw comes from the seed and its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from pydantic import Field

from loralab.adapters.apportionment import Module
from loralab.registry import Params, register


class RandomParams(Params):
    """Which draw."""

    seed: int | None = Field(None, ge=0, description="null: the run's own seed")


@register("rank strategy", "random", RandomParams)
def random(
    params: RandomParams,
    modules: Sequence[Module],
    statistics: Mapping[str, Any] | None,
    seed: int,
) -> list[float]:
    """Return one draw a module."""
    own = seed if params.seed is None else params.seed
    return [Random(f"{own} {module.name}").expovariate(1) for module in modules]
