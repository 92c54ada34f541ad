"""What a PEFT method can do, known before anything is trained.

A method declares its abilities where it is registered. Each cell is empty, which means
it can, or the reason why it cannot; a plan that needs what it cannot is refused with
that reason. ``loralab methods`` prints the table, and a test tries every cell.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from loralab import registry
from loralab.config import PEFTConfig
from loralab.errors import AdapterError

WORDS = {
    "merge": "be merged into the base's weights",
    "nf4": "stand on a 4-bit base",
    "int8": "stand on an 8-bit base",
    "affine": "stand on a base of affine codes",
    "encoder": "adapt an encoder",
    "decoder": "adapt a language model",
    "vision": "adapt a vision transformer",
    "checkpointing": "be trained with activation checkpointing",
    "packing": "be trained on packed rows",
    "ddp": "be trained by several processes",
    "fsdp": "be trained by several processes that share the tensors out",
    "vllm": "be served by vLLM",
}


@dataclass(frozen=True)
class Abilities:
    """What a method can do: an empty text, or the reason why it cannot.

    Attributes:
        merge: Become part of the base's own weights, so that inference costs nothing.
        nf4: Stand on a base of 4 bits (bitsandbytes).
        int8: Stand on a base of 8 bits (bitsandbytes).
        affine: Stand on a base of affine codes, of 4 or 8 bits.
        encoder: Adapt an encoder such as BERT.
        decoder: Adapt a language model.
        vision: Adapt a vision transformer.
        checkpointing: Be trained with activation checkpointing.
        packing: Be trained on several rows in one sequence.
        ddp: Be trained by several processes, each with the whole model.
        fsdp: Be trained by several processes, each with rows of every tensor.
        vllm: Be served by vLLM as an adapter.
    """

    merge: str = ""
    nf4: str = ""
    int8: str = ""
    affine: str = "PEFT has no layer of this method for affine codes"
    encoder: str = ""
    decoder: str = ""
    vision: str = ""
    checkpointing: str = ""
    packing: str = ""
    ddp: str = ""
    fsdp: str = ""
    vllm: str = "vLLM serves LoRA adapters only"


def abilities_of(name: str, params: dict[str, Any]) -> Abilities:
    """Return what a method can do with these params."""
    entry = registry.get("PEFT method", name)
    able: Abilities = entry.facts["able"]
    limits = getattr(entry.schema(**params), "limits", {})
    return replace(able, **limits)


def is_native(config: PEFTConfig) -> bool:
    """Tell whether a method changes the base, or trains tensors of it.

    Then plain PEFT on the plain base is not what was trained.
    """
    entry = registry.get("PEFT method", config.name)
    params = entry.schema(**config.params)
    return bool(getattr(params, "native", entry.facts.get("native", False)))


OTHERS = "`loralab methods` lists the methods that can"


def require(config: PEFTConfig, need: str, where: str, fix: str = OTHERS) -> None:
    """Refuse a method that cannot do what a configuration asks of it.

    Args:
        config: The method and its params.
        need: A field of `Abilities`.
        where: The key that asks for it.
        fix: What to do.

    Raises:
        AdapterError: it cannot; the reason is said.
    """
    reason = getattr(abilities_of(config.name, config.params), need)
    if reason:
        raise AdapterError(
            f"{config.name} cannot {WORDS[need]}",
            where=where,
            why=reason,
            fix=fix,
        )


@dataclass(frozen=True)
class Row:
    """One line of the table of methods.

    Attributes:
        method: Its name, with the params that make it a variant of its own.
        params: Those params.
        able: What it can do.
    """

    method: str
    params: dict[str, Any]
    able: Abilities

    def cells(self) -> dict[str, str]:
        """Return ability -> reason, or an empty text."""
        return asdict(self.able)


def table() -> list[Row]:
    """Return every method, and its variants with other abilities, by name."""
    found = []
    for name, entry in registry.entries("PEFT method").items():
        for params in ({}, *entry.facts.get("variants", ())):
            shown = " ".join(f"{k}={v}".lower() for k, v in params.items())
            found.append(
                Row(f"{name} {shown}".strip(), params, abilities_of(name, params))
            )
    return found
