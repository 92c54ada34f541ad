"""A control: a strategy turned upside down, at the same budget.

If a strategy knows where rank belongs, its opposite must do worse than uniform.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loralab.adapters.apportionment import Module
from loralab.config.schema import RankStrategyConfig
from loralab.registry import Params, register


class InvertedParams(Params):
    """Of what."""

    of: RankStrategyConfig


@register("rank strategy", "inverted", InvertedParams, needs="of")
def inverted(
    params: InvertedParams,
    modules: Sequence[Module],
    statistics: Mapping[str, float],
    seed: int,
) -> list[float]:
    """Give the largest weight to the module that had the smallest, and so on.

    Modules of equal weight are taken by depth, then by name.

    Args:
        params: The strategy.
        modules: The targeted modules.
        statistics: Its weights.
        seed: Not used.
    """
    rising = sorted(modules, key=lambda m: (statistics[m.name], m.depth, m.name))
    swapped = {
        low.name: statistics[high.name]
        for low, high in zip(rising, reversed(rising), strict=True)
    }
    return [swapped[module.name] for module in modules]
