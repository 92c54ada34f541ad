"""OFT (Qiu et al. 2023, arXiv:2306.07280): rotations instead of differences.

    h = W R x,   R block-diagonal and orthogonal, by Cayley's transform of a skew matrix

The angles between neurons stay as they are.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from loralab.adapters.abilities import Abilities
from loralab.adapters.site import Site, TargetParams, wrap
from loralab.registry import register


class OftParams(TargetParams):
    """The params of OFT."""

    block_size: int = Field(32, gt=0, description="of R's blocks; must divide in")
    module_dropout: float = Field(0.0, ge=0, lt=1)


@register("PEFT method", "oft", OftParams, able=Abilities())
def oft(params: OftParams, site: Site) -> Any:
    """Return the base with OFT on it."""
    from peft import OFTConfig

    return wrap(
        site,
        OFTConfig(
            target_modules=site.targets,
            r=0,
            oft_block_size=params.block_size,
            module_dropout=params.module_dropout,
            fan_in_fan_out=site.conv1d,
        ),
    )
