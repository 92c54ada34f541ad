"""BOFT (Liu et al. 2024, arXiv:2311.06243): a rotation as a product of sparse ones.

    h = (R_m … R_1 W) x,   each R_i block-diagonal after a butterfly permutation

A dense rotation from few parameters.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from loralab.adapters.abilities import Abilities
from loralab.adapters.methods._common import NO_KERNEL
from loralab.adapters.site import Site, TargetParams, wrap
from loralab.registry import register


class BoftParams(TargetParams):
    """The params of BOFT."""

    block_size: int = Field(4, gt=0, description="of the blocks; must divide in")
    butterfly_factors: int = Field(1, gt=0, description="m; 1 is OFT")
    dropout: float = Field(0.0, ge=0, lt=1)


@register(
    "PEFT method", "boft", BoftParams, able=Abilities(nf4=NO_KERNEL, int8=NO_KERNEL)
)
def boft(params: BoftParams, site: Site) -> Any:
    """Return the base with BOFT on it."""
    from peft import BOFTConfig

    return wrap(
        site,
        BOFTConfig(
            target_modules=site.targets,
            boft_block_size=params.block_size,
            boft_n_butterfly_factor=params.butterfly_factors,
            boft_dropout=params.dropout,
            fan_in_fan_out=site.conv1d,
        ),
    )
