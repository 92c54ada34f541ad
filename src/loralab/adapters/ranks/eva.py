"""Rank by explained variance of the inputs: EVA (arXiv:2410.07170).

Of each module's inputs on calibration rows come the explained-variance ratios of their
principal components. The components of all modules are sorted together, and the best
are taken until the budget is spent; how many are a module's own is its rank. No module
gets more than `rho` times the uniform rank. So does PEFT's ``get_eva_state_dict``; its
budget counts ranks and it may leave a module with none, here each keeps the least.
Modules with the same input (query, key, value) have the same ratios.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from loralab.adapters.apportionment import Module
from loralab.registry import Params, register


class EvaParams(Params):
    """How far a rank may rise."""

    rho: float = Field(2.0, ge=1, le=1000, description="largest rank ÷ uniform rank")


@register("rank strategy", "eva", EvaParams, needs="eva", gives="gains", cap="rho")
def eva(
    params: EvaParams,
    modules: Sequence[Module],
    statistics: Mapping[str, Sequence[float]],
    seed: int,
) -> list[list[float]]:
    """Return the ratios of each module's components, falling.

    Args:
        params: The cap.
        modules: The targeted modules.
        statistics: Explained-variance ratios; a module needs as many components as the
            rank it may come to.
        seed: Not used.
    """
    return [sorted(statistics[module.name], reverse=True) for module in modules]
