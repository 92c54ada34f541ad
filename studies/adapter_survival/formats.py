"""The grids that an adapter is stored on: what a matrix becomes in each.

NF4 is bitsandbytes', affine codes are `loralab.quantization.affine`'s. Integer zeros,
as in GPTQ's files, are here as the negative control:

    W̃ = scale · (code − zero),   zero = round(−min / scale) in 0 … 15
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch import Tensor

from loralab.adapters.qalora import merged_zeros
from loralab.quantization.affine import AffineWeight, dequantize, pack, quantize

Rounded = Callable[[Tensor], Tensor]
"""From a float matrix (O × I) to the values it is stored as, fp32."""

GROUPS = (32, 64, 128)
INTEGER = "integer"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ZEROS = (*DTYPES, INTEGER)


def nf4(weight: Tensor) -> Tensor:
    """Return the values in NF4, blocks of 64, scales in fp32."""
    codes, state = quantize_4bit(
        weight.contiguous(), blocksize=64, quant_type="nf4", compress_statistics=False
    )
    values: Tensor = dequantize_4bit(codes, state)
    return values


def with_integer_zeros(weight: Tensor, group: int) -> AffineWeight:
    """Return 4-bit codes with a zero that is a code itself; 0 is in every range."""
    w_OGg = weight.reshape(len(weight), -1, group)
    low, high = w_OGg.amin(-1).clamp(max=0), w_OGg.amax(-1).clamp(min=0)
    scales = ((high - low) / 15).clamp(min=torch.finfo(weight.dtype).tiny)
    zeros = (-low / scales).round().clamp(0, 15)
    codes = (w_OGg / scales.unsqueeze(-1)).round() + zeros.unsqueeze(-1)
    packed = pack(codes.clamp(0, 15).to(torch.uint8).flatten(1), 4)
    return AffineWeight(packed, scales, zeros, 4, group)


def packed(weight: Tensor, bits: int, group: int, zeros: str) -> AffineWeight:
    """Return codes, scales and zeros of a kind of `ZEROS`; scales as the zeros."""
    if zeros == INTEGER:
        return with_integer_zeros(weight, group)
    return quantize(weight, bits, group, dtype=DTYPES[zeros])


def affine(weight: Tensor, bits: int, group: int, zeros: str) -> Tensor:
    """Return the values on affine codes."""
    return dequantize(packed(weight, bits, group, zeros)).float()


def name_of(bits: int, group: int, zeros: str) -> str:
    """Return a grid's name."""
    return f"int{bits} g{group}, {zeros} zeros"


def grids(groups: tuple[int, ...] = GROUPS) -> dict[str, Rounded]:
    """Return name -> rounding of every grid for these groups."""
    found: dict[str, Rounded] = {"NF4": nf4}
    kinds = [(4, group, "fp32") for group in groups]
    kinds += [(4, groups[0], zeros) for zeros in ("fp16", "bf16")]
    kinds += [(4, group, INTEGER) for group in groups]
    kinds += [(8, group, "fp32") for group in groups]
    for bits, group, zeros in kinds:
        rounding = partial(affine, bits=bits, group=group, zeros=zeros)
        found[name_of(bits, group, zeros)] = rounding
    return found


def shifted(
    weight: Tensor, delta_OG: Tensor, group: int, zeros: str
) -> tuple[Tensor, Tensor]:
    """Return the values without and with a QA-LoRA merged into the zeros.

    Args:
        weight: The float weight (O × I).
        delta_OG: ΔW of each group (O × I/group).
        group: Inputs of a group, of the quantization and of the adapter.
        zeros: How they are stored, of `ZEROS`.
    """
    before = packed(weight, 4, group, zeros)
    new = merged_zeros(before.zeros, before.scales, delta_OG)
    if zeros == INTEGER:
        new = new.round().clamp(0, 15)
    after = replace(before, zeros=new)
    return dequantize(before).float(), dequantize(after).float()
