"""More rank to the projections of attention than to all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from loralab.adapters.apportionment import Module
from loralab.adapters.ranks._shape import heavier
from loralab.registry import Params, register


class AttentionHeavyParams(Params):
    """How uneven ranks are."""

    ratio: float = Field(
        2.0, gt=1, description="rank of attention ÷ that of the others"
    )


@register("rank strategy", "attention-heavy", AttentionHeavyParams)
def attention_heavy(
    params: AttentionHeavyParams,
    modules: Sequence[Module],
    statistics: Mapping[str, Any] | None,
    seed: int,
) -> list[float]:
    """Return `ratio` for attention, 1 for all else."""
    return heavier("attention", params.ratio, modules)
