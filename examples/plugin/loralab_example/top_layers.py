"""The last layers of the base are trained whole, all others are frozen.

A method that leaves no adapter beside the weights: `Selection` trains tensors of the
model itself, and only those are saved. For one of PEFT's see custom_peft_method.py.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field

from loralab import Params, register
from loralab.adapters.abilities import Abilities
from loralab.adapters.selection import Selection
from loralab.adapters.site import Site

WHOLE = "it trains whole tensors of the base, which must be float"


class TopLayersParams(Params):
    """How many layers."""

    layers: int = Field(1, gt=0, description="layers that are trained, from the top")


@register(
    "PEFT method",
    "top-layers",
    TopLayersParams,
    able=Abilities(nf4=WHOLE, int8=WHOLE, affine=WHOLE),
    over="nothing",  # it has no target modules to match
    native=True,  # it is read back by attaching it again, not by PEFT
)
def top_layers(params: TopLayersParams, site: Site) -> Any:
    """Return the base with its last layers, and a new head, trained."""
    names = [name for name, _ in site.model.named_parameters()]
    depths = {n: int(m[1]) for n in names if (m := re.search(r"\.(\d+)\.", n))}
    first = max(depths.values()) + 1 - params.layers
    chosen = [name for name in names if depths.get(name, -1) >= first]
    return Selection(site.model, [*chosen, *site.head()])
