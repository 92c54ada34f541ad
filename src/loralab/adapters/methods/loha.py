"""LoHa (Hyeon-Woo et al. 2022, arXiv:2108.06098): a Hadamard product of two updates.

    ΔW = s · (B1 A1) ⊙ (B2 A2),   s = alpha / rank

The rank of ΔW may reach rank², for the parameters of twice the rank.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from loralab.adapters.abilities import Abilities
from loralab.adapters.methods._common import NO_KERNEL
from loralab.adapters.site import Site, TargetParams, wrap
from loralab.registry import register


class LohaParams(TargetParams):
    """The params of LoHa."""

    rank: int = Field(8, gt=0)
    alpha: float = Field(8, gt=0, description="the update is scaled by alpha / rank")
    rank_dropout: float = Field(0.0, ge=0, lt=1)
    module_dropout: float = Field(0.0, ge=0, lt=1)


@register(
    "PEFT method", "loha", LohaParams, able=Abilities(nf4=NO_KERNEL, int8=NO_KERNEL)
)
def loha(params: LohaParams, site: Site) -> Any:
    """Return the base with LoHa on it."""
    from peft import LoHaConfig

    return wrap(
        site,
        LoHaConfig(
            target_modules=site.targets,
            r=params.rank,
            alpha=params.alpha,  # type: ignore[arg-type]  # a float works
            rank_dropout=params.rank_dropout,
            module_dropout=params.module_dropout,
        ),
    )
