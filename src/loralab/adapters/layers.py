"""The LoRA layers of an adapted model."""

from __future__ import annotations

from typing import Any


def lora_layers(model: Any) -> dict[str, Any]:
    """Return a PEFT model's LoRA layers, by the base's own names."""
    from peft.tuners.lora import LoraLayer

    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
