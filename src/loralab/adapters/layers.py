"""The LoRA layers of an adapted model."""

from __future__ import annotations

from typing import Any

from loralab.models.numerics import Numerics


def lora_layers(model: Any) -> dict[str, Any]:
    """Return a PEFT model's LoRA layers, by the base's own names."""
    from peft.tuners.lora import LoraLayer

    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def keep_inputs(model: Any, numerics: Numerics) -> None:
    """Let LoRA layers take inputs as they are, where autocast gives them their dtype.

    PEFT casts each input to the dtype of A, fp32, and autocast casts it back: the same
    values, for 7 to 11 % of a step's time (LoRA on ViT-S, bf16). A variant such as DoRA
    takes norms in the input's dtype and so keeps the cast. To be called where every
    forward pass is under autocast.

    Args:
        model: A PEFT model.
        numerics: What it computes in.
    """
    for layer in lora_layers(model).values():
        if numerics.dtype != "fp32" and not layer.lora_variant:
            layer.cast_input_dtype_enabled = False
