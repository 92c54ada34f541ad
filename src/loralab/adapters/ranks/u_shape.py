"""The first and the last layer have the most rank, the middle the least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from loralab.adapters.apportionment import Module
from loralab.adapters.ranks._shape import positions, told_apart
from loralab.registry import Params, register


class UShapeParams(Params):
    """How uneven ranks are."""

    ratio: float = Field(
        3.0, gt=1, description="rank of the first and last layer ÷ that of the middle"
    )


@register("rank strategy", "u-shape", UShapeParams)
def u_shape(
    params: UShapeParams,
    modules: Sequence[Module],
    statistics: Mapping[str, Any] | None,
    seed: int,
) -> list[float]:
    """Return weights from `ratio` at both ends down to 1 in the middle."""
    weights = [1 + (params.ratio - 1) * abs(2 * x - 1) for x in positions(modules)]
    return told_apart(weights, "the targeted modules are in fewer than three layers")
