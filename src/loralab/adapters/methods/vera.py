"""VeRA (Kopiczko et al. 2024, arXiv:2310.11454): two random projections for all layers.

    h = W x + Λ_b B Λ_d A x,   A: rank × in,  B: out × rank,  drawn once and frozen

Only the diagonals Λ_b (out) and Λ_d (rank) are trained. A and B are as large as the
largest module needs; every module uses a part of them.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from loralab.adapters.abilities import Abilities
from loralab.adapters.site import Site, TargetParams, wrap
from loralab.registry import register


class VeraParams(TargetParams):
    """The params of VeRA."""

    rank: int = Field(256, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    d_initial: float = Field(0.1, gt=0, description="first value of Λ_d")


@register("PEFT method", "vera", VeraParams, able=Abilities())
def vera(params: VeraParams, site: Site) -> Any:
    """Return the base with VeRA on it."""
    from peft import VeraConfig

    return wrap(
        site,
        VeraConfig(
            target_modules=site.targets,
            r=params.rank,
            vera_dropout=params.dropout,
            d_initial=params.d_initial,
            fan_in_fan_out=site.conv1d,
        ),
    )
