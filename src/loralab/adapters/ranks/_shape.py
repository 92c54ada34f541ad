"""What strategies by shape share: they look at a module's place, not at data."""

from __future__ import annotations

from collections.abc import Sequence

from loralab.adapters.apportionment import WHERE, Module
from loralab.errors import AdapterError


def positions(modules: Sequence[Module]) -> list[float]:
    """Return each module's place in depth: 0 in the first layer, 1 in the last."""
    depths = [module.depth for module in modules]
    first, last = min(depths), max(depths)
    return [(depth - first) / max(last - first, 1) for depth in depths]


def heavier(kind: str, ratio: float, modules: Sequence[Module]) -> list[float]:
    """Return `ratio` for modules of a kind, 1 for all others."""
    weights = [ratio if module.kind == kind else 1.0 for module in modules]
    return told_apart(weights, f"all or none of the targeted modules are of {kind}")


def told_apart(weights: list[float], otherwise: str) -> list[float]:
    """Return weights that differ.

    Raises:
        AdapterError: they are all equal: the strategy would be `uniform` under a name
            that says otherwise.
    """
    if min(weights) == max(weights):
        raise AdapterError(
            "every module would get the same rank",
            where=WHERE,
            why=otherwise,
            fix="target other modules (all-linear), or choose `uniform`",
        )
    return weights
