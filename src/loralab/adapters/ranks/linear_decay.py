"""Rank falls from the first layer to the last, in a straight line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from loralab.adapters.apportionment import Module
from loralab.adapters.ranks._shape import positions, told_apart
from loralab.registry import Params, register


class LinearDecayParams(Params):
    """How uneven ranks are."""

    ratio: float = Field(
        3.0, gt=1, description="rank of the first layer ÷ that of the last"
    )


@register("rank strategy", "linear-decay", LinearDecayParams)
def linear_decay(
    params: LinearDecayParams,
    modules: Sequence[Module],
    statistics: Mapping[str, Any] | None,
    seed: int,
) -> list[float]:
    """Return weights from `ratio` in the first layer down to 1 in the last."""
    weights = [1 + (params.ratio - 1) * (1 - x) for x in positions(modules)]
    return told_apart(weights, "all targeted modules are in one layer")
