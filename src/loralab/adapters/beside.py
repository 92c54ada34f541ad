"""LoRA beside a base of affine codes: y = W̃ x + s · B A x, with nothing merged.

PEFT knows no layer for an `AffineLinear`; once told, it takes this one.
"""

from __future__ import annotations

from typing import Any, NoReturn

from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import nn

from loralab.errors import AdapterError
from loralab.quantization.linear import AffineLinear


class LoraBesideAffine(Linear):
    """PEFT's LoRA on an `AffineLinear`; the codes cannot take it in."""

    def _get_in_out_features(self, module: nn.Module) -> tuple[Any, Any]:
        return module.in_features, module.out_features  # PEFT's own would warn

    def merge(
        self, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> NoReturn:
        """Refuse.

        Raises:
            AdapterError: always; PEFT would change a copy of W̃ and say nothing.
        """
        raise AdapterError(
            "LoRA cannot be merged into affine codes",
            why="a code has no place for it; qa-lora merges into the zeros",
            fix="merge into the float base, then quantize; or keep it beside the base",
        )


def register(model: nn.Module, config: Any) -> None:
    """Tell PEFT of the layer if the model has affine modules and it is to be LoRA."""
    if not isinstance(config, LoraConfig) or config._custom_modules:
        return
    if any(isinstance(module, AffineLinear) for module in model.modules()):
        config._register_custom_module({AffineLinear: LoraBesideAffine})
