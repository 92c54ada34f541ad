"""Rank grows from the first layer to the last, in a straight line.

What AdaLoRA (arXiv:2303.10512), MoLA (arXiv:2402.08562) and ElaLoRA (arXiv:2504.00254)
find when they learn where rank goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from loralab.adapters.apportionment import Module
from loralab.adapters.ranks._shape import positions, told_apart
from loralab.registry import Params, register


class LinearGrowthParams(Params):
    """How uneven ranks are."""

    ratio: float = Field(
        3.0, gt=1, description="rank of the last layer ÷ that of the first"
    )


@register("rank strategy", "linear-growth", LinearGrowthParams)
def linear_growth(
    params: LinearGrowthParams,
    modules: Sequence[Module],
    statistics: Mapping[str, Any] | None,
    seed: int,
) -> list[float]:
    """Return weights from 1 in the first layer up to `ratio` in the last."""
    weights = [1 + (params.ratio - 1) * x for x in positions(modules)]
    return told_apart(weights, "all targeted modules are in one layer")
