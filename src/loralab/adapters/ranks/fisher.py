"""Rank by the empirical Fisher information: the mean squared gradient of the weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loralab.adapters.apportionment import Module
from loralab.registry import Params, register


@register("rank strategy", "fisher", needs="fisher")
def fisher(
    params: Params,
    modules: Sequence[Module],
    statistics: Mapping[str, float],
    seed: int,
) -> list[float]:
    """Return the statistic itself.

    Args:
        params: None.
        modules: The targeted modules.
        statistics: Mean squared gradient of each one's weight.
        seed: Not used.
    """
    return [statistics[module.name] for module in modules]
