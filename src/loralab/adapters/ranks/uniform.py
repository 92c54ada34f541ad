"""The same rank everywhere: the baseline that a strategy must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loralab.adapters.apportionment import Module
from loralab.registry import Params, register


@register("rank strategy", "uniform")
def uniform(
    params: Params,
    modules: Sequence[Module],
    statistics: Mapping[str, Any] | None,
    seed: int,
) -> list[float]:
    """Return weight 1 for every module."""
    return [1.0] * len(modules)
