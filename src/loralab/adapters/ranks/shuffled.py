"""A control: a strategy's own weights, dealt to other modules at random.

What it keeps is how uneven ranks are, what it loses is where they go; so it tells
whether a strategy's choice of modules matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from pydantic import Field

from loralab.adapters.apportionment import Module
from loralab.config.schema import RankStrategyConfig
from loralab.registry import Params, register


class ShuffledParams(Params):
    """Of what, and which permutation."""

    of: RankStrategyConfig
    seed: int | None = Field(None, ge=0, description="null: the run's own seed")


@register("rank strategy", "shuffled", ShuffledParams, needs="of")
def shuffled(
    params: ShuffledParams,
    modules: Sequence[Module],
    statistics: Mapping[str, float],
    seed: int,
) -> list[float]:
    """Return the weights in another order.

    Args:
        params: The strategy, and a seed.
        modules: The targeted modules.
        statistics: The strategy's weights.
        seed: Of the permutation, where params give none.
    """
    names = [m.name for m in sorted(modules, key=lambda m: (m.depth, m.name))]
    dealt = [statistics[name] for name in names]
    Random(seed if params.seed is None else params.seed).shuffle(dealt)
    weights = dict(zip(names, dealt, strict=True))
    return [weights[module.name] for module in modules]
