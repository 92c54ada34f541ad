"""bitsandbytes' modules without content: as many bytes, and the same work a step.

bitsandbytes quantizes where there are weights, so its own modules have no quantized
form on the meta device. These have, for PEFT to stand on and a plan to rehearse and to
time: they dequantize in the forward and in the backward pass, by its own operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes.nn as bnb
import torch
from torch import nn
from torch.nn import functional

from loralab.quantization.formats._bitsandbytes import BLOCK, NESTED
from loralab.quantization.formats._files import Layout


class _Product(torch.autograd.Function):
    """x W̃ᵀ + bias, with W̃ made anew in both passes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        weight: Callable[[], torch.Tensor],
        keeps_x: bool,
    ) -> torch.Tensor:
        ctx.weight = weight
        if keeps_x:
            ctx.save_for_backward(x)
        return functional.linear(x, weight(), None if bias is None else bias.to(x))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return grad @ ctx.weight(), bias, None, None


def _fill(module: nn.Module, layout: Layout, bias: nn.Parameter | None) -> None:
    """Give a module the tensors of a layout, without content."""
    dtype, shape = layout["weight"]
    codes = torch.empty(shape, dtype=dtype, device="meta")
    module.weight = nn.Parameter(codes, requires_grad=False)
    module.register_parameter("bias", bias)
    for end, (dtype, shape) in layout.items():
        if end != "weight":
            made = torch.empty(shape, dtype=dtype, device="meta")
            module.register_buffer(end.removeprefix("weight.").replace(".", "_"), made)


class Linear4bit(bnb.Linear4bit):  # type: ignore[misc, name-defined]
    """NF4; known to PEFT, and to `quantized_as`, by its class.

    Args:
        shape: O and I.
        layout: What holds the matrix.
        bias: The bias, which is shared.
        compute: dtype of the product.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        layout: Layout,
        bias: nn.Parameter | None,
        compute: torch.dtype,
    ) -> None:
        rows, columns = shape
        super().__init__(columns, rows, False, compute, quant_type="nf4", device="meta")
        _fill(self, layout, bias)
        self.weight.compress_statistics = "weight.nested_absmax" in layout
        self.weight.quant_type = "nf4"

    def _dequantized(self) -> torch.Tensor:
        absmax = self.absmax
        if hasattr(self, "nested_absmax"):
            absmax = torch.ops.bitsandbytes.dequantize_blockwise(
                absmax, self.nested_absmax, self.nested_quant_map, NESTED, torch.float32
            )
        shape = (self.out_features, self.in_features)
        made: torch.Tensor = torch.ops.bitsandbytes.dequantize_4bit(
            self.weight, absmax, BLOCK, "nf4", shape, self.compute_dtype
        )
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product, in the dtype of x."""
        own = x.to(self.compute_dtype)
        made = _Product.apply(own, self.bias, self._dequantized, False)  # type: ignore[no-untyped-call]
        return made.to(x.dtype)  # type: ignore[no-any-return]


class Linear8bitLt(bnb.Linear8bitLt):  # type: ignore[misc, name-defined]
    """LLM.int8; bitsandbytes keeps x for the backward pass.

    Args:
        shape: O and I.
        layout: What holds the matrix.
        bias: The bias, which is shared.
    """

    def __init__(
        self, shape: tuple[int, int], layout: Layout, bias: nn.Parameter | None
    ) -> None:
        rows, columns = shape
        super().__init__(columns, rows, False, has_fp16_weights=False, device="meta")
        _fill(self, layout, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product, in the dtype of x."""

        def dequantized() -> torch.Tensor:
            rows = (self.SCB / 127).unsqueeze(1).to(x.dtype)
            return self.weight.to(x.dtype).mul_(rows)  # type: ignore[no-any-return]

        made: torch.Tensor = _Product.apply(x, self.bias, dequantized, True)  # type: ignore[no-untyped-call]
        return made
