"""FourierFT (Gao et al. 2024, arXiv:2405.03003): few coefficients of ΔW's spectrum.

ΔW = s · Re(IDFT2(F)),   F zero but at n_frequency places drawn once
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from loralab.adapters.abilities import Abilities
from loralab.adapters.methods._common import NO_KERNEL
from loralab.adapters.site import Site, TargetParams, wrap
from loralab.registry import register


class FourierftParams(TargetParams):
    """The params of FourierFT."""

    n_frequency: int = Field(1000, gt=0, description="trained coefficients a module")
    scaling: float = Field(150.0, gt=0)
    location_seed: int = Field(777, ge=0, description="of the places")


@register(
    "PEFT method",
    "fourierft",
    FourierftParams,
    able=Abilities(nf4=NO_KERNEL, int8=NO_KERNEL),
)
def fourierft(params: FourierftParams, site: Site) -> Any:
    """Return the base with FourierFT on it."""
    from peft import FourierFTConfig

    return wrap(
        site,
        FourierFTConfig(
            target_modules=site.targets,
            n_frequency=params.n_frequency,
            scaling=params.scaling,
            random_loc_seed=params.location_seed,
            fan_in_fan_out=site.conv1d,
        ),
    )
