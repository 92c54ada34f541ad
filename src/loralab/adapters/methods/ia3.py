"""IA³ (Liu et al. 2022, arXiv:2205.05638): activations are rescaled by learnt vectors.

h = (W x) ⊙ l,   and in the last layer of a feed-forward block  h = W (x ⊙ l)
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from loralab.adapters.abilities import Abilities
from loralab.adapters.site import Site, TargetParams, wrap
from loralab.models.architecture import FAMILIES, match_targets, peft_targets
from loralab.registry import register


class Ia3Params(TargetParams):
    """The params of IA³."""

    target_modules: str | list[str] = Field(
        "all-linear", description="attention, qv, mlp, all-linear, or a list of names"
    )


def _feedforward(site: Site) -> list[str]:
    """Return the targeted modules that end a feed-forward block."""
    family = FAMILIES.get(site.loaded.facts.model_type)
    if family is None:
        return []
    last = match_targets(family.mlp[-1:], site.loaded.facts)
    ends = {name for names in last.values() for name in names}
    return [name for name in site.names if name in ends]


@register("PEFT method", "ia3", Ia3Params, able=Abilities())
def ia3(params: Ia3Params, site: Site) -> Any:
    """Return the base with IA³ on it."""
    from peft import IA3Config

    ends = _feedforward(site)
    return wrap(
        site,
        IA3Config(
            target_modules=site.targets,
            feedforward_modules=peft_targets([_exact(name) for name in ends]),
            fan_in_fan_out=site.conv1d,
        ),
    )


def _exact(name: str) -> str:
    return name.replace(".", r"\.")
