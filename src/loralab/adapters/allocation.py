"""Rank allocation: a strategy by name, modules and a budget to a rank for each.

A strategy (`loralab.adapters.ranks`) says how much rank each module deserves, and
`loralab.adapters.apportionment` makes whole ranks of it that meet the budget.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from loralab import registry
from loralab.adapters.apportionment import (
    WHERE,
    Budget,
    Module,
    apportion,
    check_weights,
    spent,
    take_best,
    uniform_budget,
)
from loralab.config.schema import Named
from loralab.errors import AdapterError
from loralab.models.architecture import FAMILIES, Facts
from loralab.registry import Entry

__all__ = [
    "Budget",
    "Module",
    "allocate",
    "apportion",
    "modules_of",
    "needs_of",
    "patterns",
    "spent",
    "take_best",
    "uniform_budget",
]


def modules_of(facts: Facts, model: Any, names: Sequence[str]) -> list[Module]:
    """Return what allocation needs to know of targeted modules.

    Args:
        facts: Of the base.
        model: The base, without adapter; on the meta device will do.
        names: Paths of linear modules, each in ``facts.linear``.
    """
    depths = _depths(facts)
    found = []
    for name in names:
        module = model.get_submodule(name)
        if name.rpartition(".")[2] in facts.conv1d:
            inputs, outputs = module.weight.shape
        else:
            inputs, outputs = module.in_features, module.out_features
        found.append(
            Module(name, _kind(name, facts), depths[name], int(inputs), int(outputs))
        )
    return found


def _kind(name: str, facts: Facts) -> Literal["attention", "mlp", "other"]:
    """Return the kind of block that a module is in, by the family's patterns."""
    family = FAMILIES.get(facts.model_type)
    if family is None:
        return "other"
    if re.fullmatch(rf"(?:.*\.)?(?:{'|'.join(family.attention)})", name):
        return "attention"
    if re.fullmatch(rf"(?:.*\.)?(?:{'|'.join(family.mlp)})", name):
        return "mlp"
    return "other"


def _depths(facts: Facts) -> dict[str, int]:
    """Return every linear module's layer: the first integer in its path.

    One outside the layers has the depth of what stands before it in the model.
    """
    depths: dict[str, int] = {}
    first = last = 0  # the first layer of this stack, and the one last seen
    for name in facts.linear:
        parts = name.split(".")
        if facts.encoder_decoder and "decoder" in parts and not first:
            first = last = last + 1
        index = next((int(part) for part in parts if part.isdigit()), None)
        last = last if index is None else first + index
        depths[name] = last
    return depths


def allocate(
    strategy: Named,
    modules: Sequence[Module],
    budget: Budget | None,
    statistics: Mapping[str, Any] | None,
    seed: int,
) -> dict[str, int]:
    """Return each module's rank.

    Args:
        strategy: Name and params of a rank strategy.
        modules: The targeted modules.
        budget: What may be spent. A strategy of fixed ranks is held to it, not changed
            by it; only such a one, or a control of it, does without: None.
        statistics: What `needs_of` names, measured on calibration rows: by module, a
            number (of ``eva`` the explained-variance ratios of its components).
        seed: Of strategies that draw, where their params give no other.

    Raises:
        AdapterError: statistics are missing or not numbers, the strategy cannot tell
            these modules apart, or ranks and budget do not fit each other.
    """
    if budget is None:
        budget = _own_budget(strategy, modules, seed)
    entry, params = _chosen(strategy)
    values = _values(strategy, modules, budget, statistics, seed)
    gives = entry.facts.get("gives", "weights")
    if gives == "ranks":
        _check_fixed(values, modules, budget)
        ranks = values
    elif gives == "gains":
        ranks = take_best(values, modules, _capped(budget, modules, entry, params))
    else:
        ranks = apportion(values, modules, budget)
    return {m.name: rank for m, rank in zip(modules, ranks, strict=True)}


def needs_of(strategy: Named) -> str:
    """Return which statistics a strategy, or what it is a control of, needs.

    Returns:
        ``""``, ``gradient``, ``eva`` or ``fisher``.
    """
    *_, innermost = _nested(strategy)
    return str(_chosen(innermost)[0].facts.get("needs", ""))


def is_fixed(strategy: Named) -> bool:
    """Return whether a strategy, or what it is a control of, says ranks themselves."""
    *_, innermost = _nested(strategy)
    return _chosen(innermost)[0].facts.get("gives") == "ranks"


def _chosen(strategy: Named) -> tuple[Entry, Any]:
    """Return a strategy and its params."""
    entry = registry.get("rank strategy", strategy.name)
    return entry, entry.schema.model_validate(strategy.params)


def _nested(strategy: Named) -> Iterator[Named]:
    """Yield a strategy, then what it is a control of, and so on."""
    yield strategy
    entry, params = _chosen(strategy)
    if entry.facts.get("needs") == "of":
        yield from _nested(params.of)


def _own_budget(strategy: Named, modules: Sequence[Module], seed: int) -> Budget:
    """Return what the fixed ranks at the bottom of a strategy cost."""
    *_, innermost = _nested(strategy)
    entry, params = _chosen(innermost)
    if entry.facts.get("gives") != "ranks":
        raise AdapterError(
            f"{innermost.name!r} needs a budget",
            where=WHERE,
            why="it says how ranks relate, not how large they are",
        )
    ranks = entry.target(params, modules, None, seed)
    total = sum(rank * m.cost for rank, m in zip(ranks, modules, strict=True))
    return Budget(total, "parameters")


def _values(
    strategy: Named,
    modules: Sequence[Module],
    budget: Budget,
    statistics: Mapping[str, Any] | None,
    seed: int,
) -> Any:
    """Return what a strategy gives: weights, gains or ranks; [modules]."""
    entry, params = _chosen(strategy)
    needs = entry.facts.get("needs", "")
    if needs == "of":
        inner = params.of
        if _chosen(inner)[0].facts.get("gives", "weights") == "weights":
            weights = _values(inner, modules, budget, statistics, seed)
            check_weights(weights, modules)
            statistics = {m.name: w for m, w in zip(modules, weights, strict=True)}
        else:  # the ranks it comes to stand for its weights
            statistics = allocate(inner, modules, budget, statistics, seed)
    elif needs:
        _check_measured(strategy.name, needs, statistics, modules)
    values = entry.target(params, modules, statistics, seed)
    if len(values) != len(modules):
        raise AdapterError(
            f"{strategy.name!r} gave {len(values)} values for {len(modules)} modules",
            where=WHERE,
            fix="a strategy returns one value a module, in their order",
        )
    return values


def _check_measured(
    name: str,
    needs: str,
    statistics: Mapping[str, Any] | None,
    modules: Sequence[Module],
) -> None:
    missing = [m.name for m in modules if m.name not in (statistics or {})]
    if missing:
        raise AdapterError(
            f"{name!r} needs {needs!r} statistics, and {missing[0]} has none",
            where=WHERE,
            why=f"they are missing for {len(missing)} of {len(modules)} modules",
            fix="calibrate the base on rows of the task first",
        )


def _check_fixed(
    ranks: Sequence[int], modules: Sequence[Module], budget: Budget
) -> None:
    """Hold given ranks to a budget's law: its bounds, and met to within one unit."""
    for rank, module in zip(ranks, modules, strict=True):
        low, high = budget.bounds(module)
        if not low <= rank <= high:
            raise AdapterError(
                f"{module.name} is given rank {rank}, outside {low} to {high}",
                where=WHERE,
                why=f"it is {module.inputs} × {module.outputs}, and the budget has "
                "its bounds",
            )
    prices = [budget.price(module) for module in modules]
    total = sum(map(int.__mul__, ranks, prices))
    growing = [
        price
        for price, rank, module in zip(prices, ranks, modules, strict=True)
        if rank < budget.bounds(module)[1]
    ]
    left = budget.amount - total
    if left < 0 or (growing and left >= min(growing)):
        unit = "parameters" if budget.unit == "parameters" else "ranks"
        raise AdapterError(
            f"the given ranks take {total:,} {unit}, and the budget is "
            f"{budget.amount:,}",
            where=WHERE,
            why="ranks that are given are never changed to fit",
            fix=f"change the ranks, set the budget to {total:,}, or leave it out",
        )


def _capped(
    budget: Budget, modules: Sequence[Module], entry: Entry, params: Any
) -> Budget:
    """Lower the largest rank to what a strategy's fact ``cap`` allows.

    The fact names a param: how many times the rank that the budget would give to every
    module alike.
    """
    if "cap" not in entry.facts:
        return budget
    alike = budget.amount / sum(budget.price(module) for module in modules)
    times = getattr(params, entry.facts["cap"])
    cap = math.ceil(round(times * alike, 9))  # 1.1 × 10 is 11, not 12
    most = min(cap, budget.maximum or cap)
    return replace(budget, maximum=max(most, budget.minimum))


def patterns(
    ranks: Mapping[str, int], alpha_over_rank: float
) -> tuple[dict[str, int], dict[str, float]]:
    r"""Return PEFT's ``rank_pattern`` and ``alpha_pattern``, at one scale everywhere.

    PEFT takes the first key that matches ``(.*\.)?(key)$`` from the start of a path; a
    key with ``^`` leaves nothing to match before it, so each is of one module only.

    Args:
        ranks: Path of a module in the base model -> rank.
        alpha_over_rank: The scale of every update, alpha / rank.
    """
    keys = {name: f"^{re.escape(name)}$" for name in ranks}
    return (
        {keys[name]: rank for name, rank in ranks.items()},
        {keys[name]: alpha_over_rank * rank for name, rank in ranks.items()},
    )
