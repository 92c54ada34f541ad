"""BitFit (Ben Zaken et al. 2022, arXiv:2106.10199): only biases are trained.

h = W x + b,   with b trained, of linear and normalisation layers alike
"""

from __future__ import annotations

from typing import Any

from loralab.adapters.abilities import Abilities
from loralab.adapters.methods._common import NO_ADAPTER
from loralab.adapters.site import Site
from loralab.registry import Params, register

ROUNDED = "bitsandbytes casts the biases of its layers to the dtype it computes in"


@register(
    "PEFT method",
    "bitfit",
    Params,
    able=Abilities(nf4=ROUNDED, int8=ROUNDED, affine="", vllm=NO_ADAPTER),
    over="biases",
    native=True,
)
def bitfit(params: Params, site: Site) -> Any:
    """Return the base with its biases trained, and a new head."""
    from loralab.adapters.selection import Selection

    names = [f"{name}.bias" for name in site.names]
    return Selection(site.model, [*names, *site.head()])
