"""Points drawn independently (Bergstra & Bengio 2012), the same for the same seed."""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field

from loralab.experiments.samplers._listed import Listed
from loralab.experiments.space import Axis, Point, Space
from loralab.registry import Params, register

DRAWS_PER_TRIAL = 100
"""How often a point that came before is drawn anew, on average, before giving up."""


class RandomParams(Params):
    """How many points, and which."""

    trials: int = Field(20, gt=0)
    seed: int = Field(0, ge=0)


def draw(axis: Axis, rng: np.random.Generator) -> str:
    """Return one value of an axis, as an override."""
    if axis.listed:
        return axis.at(axis.values[int(rng.integers(len(axis.values)))])
    if axis.whole and not axis.log:
        low, high = math.ceil(axis.low), math.floor(axis.high)
        return axis.at(int(rng.integers(low, high + 1)))
    if axis.log:
        value = math.exp(rng.uniform(math.log(axis.low), math.log(axis.high)))
    else:
        value = rng.uniform(axis.low, axis.high)
    return axis.at(axis.number(value))


@register("sampler", "random", RandomParams)
def random(params: RandomParams, space: Space) -> Listed:
    """Return a sampler of `trials` different points; fewer if there are no more."""
    rng = np.random.default_rng(params.seed)
    found: dict[Point, None] = {}
    for _ in range(DRAWS_PER_TRIAL * params.trials):
        found[tuple(draw(axis, rng) for axis in space.axes)] = None
        if len(found) == params.trials:
            break
    return Listed(found)
