"""LoKr (Yeh et al. 2024, arXiv:2309.14859): a Kronecker product with a low-rank factor.

ΔW = s · C ⊗ (B A),   s = alpha / rank
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from loralab.adapters.abilities import Abilities
from loralab.adapters.methods._common import NO_KERNEL
from loralab.adapters.site import Site, TargetParams, wrap
from loralab.registry import register


class LokrParams(TargetParams):
    """The params of LoKr."""

    rank: int = Field(8, gt=0)
    alpha: float = Field(8, gt=0, description="the update is scaled by alpha / rank")
    rank_dropout: float = Field(0.0, ge=0, lt=1)
    module_dropout: float = Field(0.0, ge=0, lt=1)
    decompose_both: bool = Field(False, description="C is of low rank, too")
    decompose_factor: int = Field(
        -1, ge=-1, description="size of C; -1 makes both factors as alike as possible"
    )


@register(
    "PEFT method", "lokr", LokrParams, able=Abilities(nf4=NO_KERNEL, int8=NO_KERNEL)
)
def lokr(params: LokrParams, site: Site) -> Any:
    """Return the base with LoKr on it."""
    from peft import LoKrConfig

    return wrap(
        site,
        LoKrConfig(
            target_modules=site.targets,
            r=params.rank,
            alpha=params.alpha,  # type: ignore[arg-type]  # a float works
            rank_dropout=params.rank_dropout,
            module_dropout=params.module_dropout,
            decompose_both=params.decompose_both,
            decompose_factor=params.decompose_factor,
        ),
    )
