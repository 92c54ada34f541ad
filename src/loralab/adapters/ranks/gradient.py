"""Rank by sensitivity: GoRA (arXiv:2502.12171).

Importance I of a module is the mean of |W ⊙ G| over its weights, G the gradient
averaged over calibration batches (eq. 5). Each module gets the share I / ΣI of a budget
that counts √(inputs + outputs) for a unit of rank (eq. 7), so

    rank ∝ I / √(inputs + outputs)

The paper bounds ranks by half and four times the reference rank; here the budget's own
minimum and maximum do. Its initialisation of B is not part of allocation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from loralab.adapters.apportionment import Module
from loralab.registry import Params, register


@register("rank strategy", "gradient", needs="gradient")
def gradient(
    params: Params,
    modules: Sequence[Module],
    statistics: Mapping[str, float],
    seed: int,
) -> list[float]:
    """Return importance by the root of a rank unit's parameters.

    Args:
        params: None.
        modules: The targeted modules.
        statistics: Mean |W ⊙ G| of each.
        seed: Not used.
    """
    return [statistics[m.name] / math.sqrt(m.cost) for m in modules]
