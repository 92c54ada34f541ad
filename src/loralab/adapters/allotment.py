"""`allot`: the ranks that a configuration asks for, module by module.

A strategy is pure; here it gets what it stands on: the modules of the built model, the
budget, and statistics measured on the base where it needs them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from loralab.adapters.allocation import (
    Budget,
    Module,
    allocate,
    is_fixed,
    modules_of,
    needs_of,
    patterns,
    spent,
)
from loralab.adapters.calibration import Batches, Statistics, measure
from loralab.adapters.ranks_config import RanksConfig
from loralab.adapters.site import Site
from loralab.config.schema import RankStrategyConfig
from loralab.errors import AdapterError
from loralab.registry import Params

MOST = 64
"""Components of a module's inputs that are measured where no maximum is set."""


@dataclass(frozen=True)
class Allotment:
    """Ranks, and how they came about.

    Attributes:
        ranks: Module -> rank.
        params: The method's params, with these ranks as patterns.
        record: Strategy, budget asked and met, seconds, ranks; for the run's file.
    """

    ranks: dict[str, int]
    params: Params
    record: dict[str, Any]


def allot(site: Site, params: Any, batches: Batches | None) -> Allotment | None:
    """Return the ranks of a method's params, or None if all are the same.

    Args:
        site: The base and its targeted modules.
        params: Of the method; ``ranks`` names a strategy.
        batches: Training batches, for a strategy that looks at them. On a base without
            weights its ranks are unknown, and counted as uniform.

    Raises:
        AdapterError: a strategy needs batches and has none, or the budget is out of
            its bounds.
    """
    wanted = getattr(params, "ranks", None)
    if wanted is None:
        return None
    began = time.perf_counter()
    modules = modules_of(site.loaded.facts, site.model, site.names)
    strategy = RankStrategyConfig(name=wanted.name, params=wanted.params)
    budget = budget_of(wanted, modules, params.rank)
    need, known = needs_of(strategy), True
    statistics: Statistics | None = None
    if need and next(site.model.parameters()).is_meta:
        strategy, known = RankStrategyConfig(name="uniform"), False
    elif need:
        statistics = _measured(need, site, wanted, batches)
    ranks = allocate(strategy, modules, budget, statistics, wanted.seed)
    changed = _settings(ranks, params)
    record = {
        "strategy": wanted.name,
        "params": wanted.params,
        "statistic": need,
        "known": known,
        "unit": wanted.unit,
        "budget": budget.amount if budget else None,
        "met": spent(ranks, modules, wanted.unit),
        "parameters": spent(ranks, modules),
        "seconds": round(time.perf_counter() - began, 3),
        "ranks": ranks,
    }
    return Allotment(ranks, params.model_copy(update=changed), record)


def _settings(ranks: dict[str, int], params: Any) -> dict[str, Any]:
    """Return the params that give each module its rank, and all of them one scale.

    The largest rank is the plain one: what serves adapters sizes its buffers by it.
    """
    scale, most = params.alpha / params.rank, max(ranks.values())
    rank_pattern, alpha_pattern = patterns(ranks, scale)
    alpha = scale * most
    if params.rslora:  # alpha / √rank is to be equal
        scale = params.alpha / params.rank**0.5
        alpha_pattern = {key: scale * r**0.5 for key, r in rank_pattern.items()}
        alpha = scale * most**0.5
    return {
        "rank": most,
        "alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
    }


def budget_of(wanted: RanksConfig, modules: list[Module], rank: int) -> Budget | None:
    """Return what may be spent; None where ranks are fixed and no budget is given."""
    amount = wanted.budget
    if amount is None and is_fixed(wanted):
        return None
    if amount is None:
        each = (
            sum(m.cost for m in modules)
            if wanted.unit == "parameters"
            else (len(modules))
        )
        amount = rank * each
    return Budget(amount, wanted.unit, wanted.minimum, wanted.maximum)


def _measured(
    need: str, site: Site, wanted: RanksConfig, batches: Batches | None
) -> Statistics:
    if batches is None:
        raise AdapterError(
            f"{wanted.name} needs the {need} statistic of training rows",
            where="peft.params.ranks",
            fix="train an experiment, or pass batches to attach",
        )
    return measure(need, site.loaded, site.names, batches, wanted.maximum or MOST)
