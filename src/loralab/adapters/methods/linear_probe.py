"""A linear probe: only the new head is trained, on frozen features.

The baseline that tells what an adapter adds to the base's own features.
"""

from __future__ import annotations

from typing import Any

from loralab.adapters.abilities import Abilities
from loralab.adapters.methods._common import NO_ADAPTER
from loralab.adapters.site import Site
from loralab.errors import AdapterError
from loralab.registry import Params, register

ABLE = Abilities(
    affine="", decoder="a language model's head is no new one", vllm=NO_ADAPTER
)


@register("PEFT method", "linear-probe", Params, able=ABLE, over="nothing", native=True)
def linear_probe(params: Params, site: Site) -> Any:
    """Return the base with its new head trained.

    Raises:
        AdapterError: the base has no new head.
    """
    if not site.modules_to_save:
        raise AdapterError(
            "there is no new head that a linear probe could train",
            where="peft.name",
            why="the base brings the head of this task along",
            fix="choose another method",
        )
    from loralab.adapters.selection import Selection

    return Selection(site.model, site.head())
