"""Rank in proportion to a power of the weight's size: larger matrices get more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from loralab import Params, register
from loralab.adapters.allocation import Module


class BySizeParams(Params):
    """How strongly size counts."""

    power: float = Field(0.5, gt=0, description="rank ∝ (inputs · outputs) ^ power")


@register("rank strategy", "by-size", BySizeParams)
def by_size(
    params: BySizeParams,
    modules: Sequence[Module],
    statistics: Mapping[str, Any] | None,
    seed: int,
) -> list[float]:
    """Return one weight a module; whole ranks within the budget are made of them."""
    return [(module.inputs * module.outputs) ** params.power for module in modules]
