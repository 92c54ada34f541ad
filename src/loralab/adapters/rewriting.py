"""What a method makes of its base for good, before it trains.

QA-LoRA trains on a base that it quantized itself, and LoftQ on one that it rounded: the
trained update is a difference to those weights, not to the base's own. So the note of
such an adapter has a ``rewritten``: the method, the params that decide about the base,
and the modules. Whoever puts the plain LoRA on the base does the same to it first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from loralab import registry
from loralab.adapters.attach import attach
from loralab.config import PEFTConfig
from loralab.errors import AdapterError
from loralab.models.loaded import LoadedModel


def rewriting(config: PEFTConfig, patterns: Iterable[str]) -> dict[str, Any] | None:
    """Return what a note says of a base that a method rewrites; None if it does not.

    Args:
        config: Method and params.
        patterns: That the adapted modules were matched by.
    """
    params = registry.get("PEFT method", config.name).schema(**config.params)
    deciding = getattr(params, "rewrites", None)
    if deciding is None:
        return None
    told = {**deciding, "target_modules": sorted(patterns)}
    return {"name": config.name, "params": told}


def rewrite(loaded: LoadedModel, told: Mapping[str, Any]) -> None:
    """Do to a base what a method did to it: attach it, and take it off again.

    Args:
        loaded: The base as it was loaded; its model is changed in place.
        told: What `rewriting` returned.

    Raises:
        AdapterError: the method is not here, or cannot be put on this base.
    """
    try:
        config = PEFTConfig(**told)
    except ValueError as error:
        raise AdapterError(
            "what the base was made into cannot be read",
            where="rewritten",
            why=str(error).split("\n")[0],
        ) from None
    attach(loaded, config).model.unload()
