"""More rank to the feed-forward blocks than to all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from loralab.adapters.apportionment import Module
from loralab.adapters.ranks._shape import heavier
from loralab.registry import Params, register


class MlpHeavyParams(Params):
    """How uneven ranks are."""

    ratio: float = Field(
        2.0, gt=1, description="rank of the feed-forward blocks ÷ that of the others"
    )


@register("rank strategy", "mlp-heavy", MlpHeavyParams)
def mlp_heavy(
    params: MlpHeavyParams,
    modules: Sequence[Module],
    statistics: Mapping[str, Any] | None,
    seed: int,
) -> list[float]:
    """Return `ratio` for feed-forward blocks, 1 for all else."""
    return heavier("mlp", params.ratio, modules)
