"""Apportionment: one budget, shared out over modules in whole ranks.

A rank unit of LoRA on a module costs inputs + outputs parameters (a column of A and a
row of B); counted in ranks it costs 1. From its least rank on, each module offers its
next unit at a worth, and the best offer that the rest of the budget can pay is taken,
until none can be paid:

* of weights w, the unit from rank r to r + 1 is worth w / (r + 1/2). That is Webster's
  (Sainte-Laguë's) method, here with prices: ranks proportional to weights, rounded
  to nearest. More weight at equal price and bounds never gets less rank, and a larger
  budget in ranks takes from nobody.
* of gains g₁ ≥ g₂ ≥ …, the unit from r to r + 1 is worth g_{r+1}: the best components
  of all modules together (EVA, arXiv:2410.07170, redistributes ranks so).

What is left over is less than the cheapest unit that could still be added.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from loralab.errors import AdapterError

WHERE = "rank allocation"
TIE_BITS = 40
"""Worth that agrees in so many bits is equal: a tie stays one in another scale."""


@dataclass(frozen=True)
class Module:
    """A linear module that gets an adapter.

    Attributes:
        name: Its path in the base model.
        kind: Of the family's patterns; ``other`` where no family is known.
        depth: Layer from the input on, those of a decoder after those of its encoder.
        inputs: Features in.
        outputs: Features out.
    """

    name: str
    kind: Literal["attention", "mlp", "other"]
    depth: int
    inputs: int
    outputs: int

    @property
    def cost(self) -> int:
        """Parameters of one rank unit of LoRA."""
        return self.inputs + self.outputs

    @property
    def width(self) -> int:
        """The most rank that an update of this module can have."""
        return min(self.inputs, self.outputs)


@dataclass(frozen=True)
class Budget:
    """What may be spent, and the bounds of each module.

    Attributes:
        amount: Of parameters, or of ranks summed over modules.
        unit: What `amount` counts.
        minimum: Least rank of a module (of one that is narrower, its width).
        maximum: Largest rank of a module, or None; its width holds always.

    Raises:
        AdapterError: bounds that no rank lies between.
    """

    amount: int
    unit: Literal["parameters", "rank"]
    minimum: int = 1
    maximum: int | None = None

    def __post_init__(self) -> None:
        if self.minimum < 1:
            raise AdapterError(
                f"minimum is {self.minimum}",
                where=WHERE,
                why="an adapted module has a rank of at least 1",
                fix="leave modules out with target_modules instead",
            )
        if self.maximum is not None and self.maximum < self.minimum:
            raise AdapterError(
                f"maximum {self.maximum} is below minimum {self.minimum}", where=WHERE
            )

    def price(self, module: Module) -> int:
        """Return what one rank unit of a module costs."""
        return module.cost if self.unit == "parameters" else 1

    def bounds(self, module: Module) -> tuple[int, int]:
        """Return the least and the largest rank of a module."""
        most = min(module.width, self.maximum or module.width)
        return min(self.minimum, most), most


def uniform_budget(modules: Sequence[Module], rank: int) -> Budget:
    """Return the parameters that one rank everywhere has."""
    return Budget(rank * sum(module.cost for module in modules), "parameters")


def spent(
    ranks: Mapping[str, int],
    modules: Sequence[Module],
    unit: Literal["parameters", "rank"] = "parameters",
) -> int:
    """Return what ranks cost, in parameters of LoRA or in ranks."""
    budget = Budget(0, unit)
    return sum(ranks[module.name] * budget.price(module) for module in modules)


def apportion(
    weights: Sequence[float], modules: Sequence[Module], budget: Budget
) -> list[int]:
    """Return ranks in proportion to weights, as near as a budget and bounds allow.

    Webster's method with prices (see the top of this file). Depends on the weights'
    ratios alone; equal worth goes to more weight, less rank, less depth, then by name,
    so the order of modules does not matter.

    Args:
        weights: How much rank each module should have, by any scale; [modules].
        modules: The targeted modules.
        budget: Met to within one unit of the cheapest module that can still grow.

    Raises:
        AdapterError: a weight is negative or not finite, all are 0, or the budget lies
            outside what the bounds allow.
    """
    check_weights(weights, modules)
    top = max(weights)
    shares = [weight / top for weight in weights]
    return _fill(
        lambda i, rank: (_rounded(shares[i] / (2 * rank + 1)), shares[i]),
        modules,
        budget,
        [budget.bounds(module) for module in modules],
    )


def _rounded(number: float) -> float:
    """Return a number rounded to `TIE_BITS` bits."""
    mantissa, exponent = math.frexp(number)
    return math.ldexp(round(math.ldexp(mantissa, TIE_BITS)), exponent - TIE_BITS)


def take_best(
    gains: Sequence[Sequence[float]], modules: Sequence[Module], budget: Budget
) -> list[int]:
    """Return ranks by which the best components of all modules are taken.

    Args:
        gains: What each component of each module is worth, falling; [modules][n]. A
            module never gets more rank than it has components.
        modules: The targeted modules.
        budget: As of `apportion`.

    Raises:
        AdapterError: as of `apportion`.
    """
    owners = [m for m, own in zip(modules, gains, strict=True) for _ in own]
    check_weights([gain for own in gains for gain in own], owners)
    bounds = []
    for own, module in zip(gains, modules, strict=True):
        low, high = budget.bounds(module)
        if len(own) < low:
            raise AdapterError(
                f"{module.name} has {len(own)} components, and its least rank is {low}",
                where=WHERE,
                fix="measure more components",
            )
        bounds.append((low, min(high, len(own))))
    return _fill(lambda i, rank: (gains[i][rank], 0), modules, budget, bounds)


def check_weights(weights: Sequence[float], modules: Sequence[Module]) -> None:
    """Refuse weights that say nothing.

    Raises:
        AdapterError: one is negative or not finite, or all are 0.
    """
    for weight, module in zip(weights, modules, strict=True):
        if not (math.isfinite(weight) and weight >= 0):
            raise AdapterError(
                f"the weight of {module.name} is {weight}",
                where=WHERE,
                why="a weight is a finite number of at least 0",
                fix="look at the calibration rows: a loss that overflows spoils them",
            )
    if not any(weights):
        raise AdapterError(
            "every weight is 0, so nothing says where rank should go",
            where=WHERE,
            fix="choose another strategy, or calibrate on rows that have gradients",
        )


def _fill(
    worth: Callable[[int, int], tuple[float, float]],
    modules: Sequence[Module],
    budget: Budget,
    bounds: Sequence[tuple[int, int]],
) -> list[int]:
    """Take the best unit that can be paid, until none can.

    Args:
        worth: (module, rank) -> what its next unit is worth, and what breaks a tie;
            never more for a larger rank.
        modules: Whose ranks are wanted.
        budget: What may be spent.
        bounds: Least and largest rank of each module.
    """
    prices = [budget.price(module) for module in modules]
    _check_amount(budget, prices, bounds)
    ranks = [low for low, _ in bounds]
    left = budget.amount - sum(map(int.__mul__, ranks, prices))

    def offer(i: int) -> tuple[float, float, int, int, str, int]:
        value, tie = worth(i, ranks[i])
        return -value, -tie, ranks[i], modules[i].depth, modules[i].name, i

    offers = [offer(i) for i, (low, high) in enumerate(bounds) if low < high]
    heapq.heapify(offers)
    while offers:
        i = heapq.heappop(offers)[-1]
        if prices[i] > left:  # nor later: what is left only shrinks
            continue
        ranks[i] += 1
        left -= prices[i]
        if ranks[i] < bounds[i][1]:
            heapq.heappush(offers, offer(i))
    return ranks


def _check_amount(
    budget: Budget, prices: Sequence[int], bounds: Sequence[tuple[int, int]]
) -> None:
    """Refuse a budget that no ranks within the bounds can meet."""
    least = sum(price * low for price, (low, _) in zip(prices, bounds, strict=True))
    most = sum(price * high for price, (_, high) in zip(prices, bounds, strict=True))
    unit = "parameters" if budget.unit == "parameters" else "ranks"
    if budget.amount < least:
        raise AdapterError(
            f"the budget is {budget.amount:,} {unit}, and the least ranks of "
            f"{len(prices)} modules take {least:,}",
            where=WHERE,
            fix="raise the budget, lower the minimum, or target fewer modules",
        )
    if budget.amount > most:
        raise AdapterError(
            f"the budget is {budget.amount:,} {unit}, and {len(prices)} modules can "
            f"have {most:,} at most",
            where=WHERE,
            why="a rank is bounded by the maximum, the narrower side of the module and "
            "what a strategy measured or caps",
            fix="lower the budget, or raise the maximum",
        )
