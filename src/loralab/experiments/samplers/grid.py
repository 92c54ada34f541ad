"""Every combination of the listed values."""

from __future__ import annotations

from loralab.experiments.samplers._listed import Listed
from loralab.experiments.space import Space
from loralab.experiments.space import grid as points_of
from loralab.registry import Params, register


@register("sampler", "grid")
def grid(params: Params, space: Space) -> Listed:
    """Return the sampler of the whole grid."""
    return Listed(points_of(space))
