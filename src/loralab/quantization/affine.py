"""Affine quantization: integer codes, and a scale and a real zero for each group.

    W̃[o, i] = scale[o, l] · (code[o, i] − zero[o, l]),   l = i // group

A code has b = 2, 3, 4 or 8 bits. The zero is a real number, as in Q4_1, HQQ and
tinygemm, and not an integer as in GPTQ's files. So a change of W̃ that is constant
inside a group, ΔW[o, i] = δ[o, l], needs no new code (QA-LoRA, arXiv:2309.14717):

    zero' = zero − δ / scale

``minmax`` spans a group's extremes: scale = (max − min) / (2^b − 1) and zero =
−min / scale, hence |W − W̃| ≤ scale / 2. ``mse`` lowers ‖W − W̃‖²: it takes the best of
a few narrower spans, then alternates between the nearest codes and the scale and zero
that are the least-squares fit to those codes (a regression of w on its code). Each step
is taken only for the groups whose error falls, so it is never worse than ``minmax``.

Shapes: O = out_features, I = in_features, G = I / group, P = packed bytes of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from loralab.errors import QuantizationError, nearest

# bits -> (codes, bytes) of the smallest unit in which the codes fill the bytes
UNITS = {2: (4, 1), 3: (8, 3), 4: (2, 1), 8: (1, 1)}
SPANS = tuple(1 - 0.05 * step for step in range(1, 13))  # 0.95 … 0.40 of the extremes
FITS = 6  # further rounds of nearest codes and least squares change little

Grid = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class AffineWeight:
    """A quantized matrix.

    Attributes:
        codes: Packed codes, uint8 (O × P).
        scales: Step of each group, floating (O × G), above 0.
        zeros: The real code of the value 0, floating (O × G).
        bits: Bits of a code.
        group: Inputs of a group.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    bits: int
    group: int

    @property
    def shape(self) -> tuple[int, int]:
        """The matrix's O and I."""
        rows, groups = self.scales.shape
        return rows, groups * self.group

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zeros."""
        return sum(t.nbytes for t in (self.codes, self.scales, self.zeros))


def check_format(in_features: int, bits: int, group: int, where: str = "") -> None:
    """Refuse a format that cannot hold a matrix.

    Raises:
        QuantizationError: no such width, or groups that do not fill a row.
    """
    if bits not in UNITS:
        raise QuantizationError(
            f"{bits} bits are no width of a code",
            where=where,
            fix=f"choose from {', '.join(map(str, UNITS))}",
        )
    if group < 1 or in_features % group:
        raise QuantizationError(
            f"in_features {in_features} is no multiple of the group {group}",
            where=where,
            why="every group has its own scale and zero, and none may be cut",
            fix="choose a group that divides it, or leave the module out",
        )


def packed_width(count: int, bits: int) -> int:
    """Return the bytes that `count` codes take; the last unit is filled with zeros."""
    codes, size = UNITS[bits]
    return -(-count // codes) * size


def predicted_bytes(
    shape: tuple[int, int],
    bits: int,
    group: int,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Return the exact bytes of a quantized matrix, without any bias.

    Args:
        shape: O and I.
        bits: Bits of a code.
        group: Inputs of a group.
        dtype: Of scales and zeros.

    Raises:
        QuantizationError: the format cannot hold the matrix.
    """
    rows, count = shape
    check_format(count, bits, group)
    return rows * (packed_width(count, bits) + 2 * (count // group) * dtype.itemsize)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes along the last axis, the first code in the lowest bits.

    Args:
        codes: uint8 (… × I), each below 2^bits.
        bits: 2, 3, 4 or 8; three bits put 8 codes into 3 bytes.

    Returns:
        uint8 (… × P).
    """
    count, size = UNITS[bits]
    padded = functional.pad(codes, (0, -codes.shape[-1] % count))
    units = padded.reshape(*codes.shape[:-1], -1, count)
    packed = torch.zeros(
        *units.shape[:-1], size, dtype=torch.uint8, device=codes.device
    )
    for index in range(count):
        byte, offset = divmod(index * bits, 8)
        packed[..., byte] |= units[..., index] << offset
        if offset + bits > 8:  # the code reaches into the next byte
            packed[..., byte + 1] |= units[..., index] >> (8 - offset)
    return packed.flatten(-2)


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Return the first `count` codes of the last axis, uint8; undoes `pack`."""
    codes, size = UNITS[bits]
    units = packed.reshape(*packed.shape[:-1], -1, size)
    planes = []
    for index in range(codes):
        byte, offset = divmod(index * bits, 8)
        plane = units[..., byte] >> offset
        if offset + bits > 8:
            plane = plane | (units[..., byte + 1] << (8 - offset))
        planes.append(plane & (2**bits - 1))
    return torch.stack(planes, -1).flatten(-2)[..., :count]


def _least(dtype: torch.dtype) -> float:
    """Return the smallest scale: subnormal in `dtype`, but not where values are made.

    Those of fp16 begin at 6e-5, the step of 8 bits for weights of 0.004, and are normal
    in fp32.
    """
    info = torch.finfo(dtype)
    work = torch.finfo(torch.promote_types(dtype, torch.float32))
    return max(info.tiny * info.eps, work.tiny)


def _rounded(scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return scales in `dtype`, subnormals rounded up.

    They have few digits, and 2^b steps of one that is too small leave out much of a
    group's span.
    """
    least, tiny = _least(dtype), torch.finfo(dtype).tiny
    if least < tiny:
        up = (scales / least).ceil() * least
        scales = torch.where(scales < tiny, up, scales)
    return scales.to(dtype)


def _grid(low: torch.Tensor, high: torch.Tensor, bits: int, dtype: torch.dtype) -> Grid:
    """Return scales and zeros that span low … high, rounded to `dtype`.

    A group without a span that `dtype` can express (all weights equal, or nearly) gets
    the magnitude of its middle as its scale: never 0, since zeros are divided by it.
    """
    span, middle, tiny = high - low, (low + high) / 2, torch.finfo(dtype).tiny
    least, scales = _least(dtype), _rounded(span / (2**bits - 1), dtype)
    zeros = (-low / scales.to(low.dtype)).to(dtype)
    ulp = torch.finfo(low.dtype).eps * torch.maximum(low.abs(), high.abs())
    fits = (span > ulp.clamp(min=least)) & (scales >= least) & zeros.isfinite()
    flat = middle.abs().to(dtype)
    flat = torch.where(flat < tiny, torch.ones_like(flat), flat)
    at = (-middle / flat.to(low.dtype)).to(dtype)
    return torch.where(fits, scales, flat), torch.where(fits, zeros, at)


def _codes(w_OGg: torch.Tensor, grid: Grid, bits: int) -> torch.Tensor:
    """Return the nearest codes, in the dtype of the weights (O × G × g)."""
    scales, zeros = (t.to(w_OGg.dtype).unsqueeze(-1) for t in grid)
    return (w_OGg / scales + zeros).round_().clamp_(0, 2**bits - 1)


def _values(codes_OGg: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return scale · (code − zero), at least in fp32 (O × G × g)."""
    work = torch.promote_types(grid[0].dtype, torch.float32)
    scales, zeros = (t.to(work).unsqueeze(-1) for t in grid)
    return (codes_OGg - zeros) * scales


def _error(w_OGg: torch.Tensor, grid: Grid, bits: int) -> torch.Tensor:
    """Return each group's squared error (O × G)."""
    values = _values(_codes(w_OGg, grid, bits), grid)
    return (w_OGg - values).square_().sum(-1)


def _fitted(w_OGg: torch.Tensor, grid: Grid, bits: int) -> Grid:
    """Return the least-squares scales and zeros to the nearest codes of a grid."""
    codes = _codes(w_OGg, grid, bits)
    mean_code, mean_w = codes.mean(-1), w_OGg.mean(-1)
    about = codes - mean_code.unsqueeze(-1)
    scales = (about * w_OGg).sum(-1) / about.square().sum(-1)
    zeros = mean_code - mean_w / scales
    least = _least(grid[0].dtype)
    new = scales.to(grid[0].dtype), zeros.to(grid[1].dtype)
    good = new[1].isfinite() & new[0].isfinite() & (new[0] >= least)  # one code: 0 / 0
    return torch.where(good, new[0], grid[0]), torch.where(good, new[1], grid[1])


def _minmax(w_OGg: torch.Tensor, bits: int, dtype: torch.dtype) -> Grid:
    """Return the grid from each group's least to its greatest weight."""
    low, high = w_OGg.aminmax(dim=-1)
    return _grid(low, high, bits, dtype)


def _mse(w_OGg: torch.Tensor, bits: int, dtype: torch.dtype) -> Grid:
    """Return a grid of locally least squared error."""
    low, high = w_OGg.aminmax(dim=-1)
    middle, half = (low + high) / 2, (high - low) / 2
    best = _grid(low, high, bits, dtype)
    error = _error(w_OGg, best, bits)

    def better(new: Grid) -> None:
        nonlocal best, error
        found = _error(w_OGg, new, bits)
        falls = found < error
        best = (
            torch.where(falls, new[0], best[0]),
            torch.where(falls, new[1], best[1]),
        )
        error = torch.where(falls, found, error)

    for part in SPANS:
        better(_grid(middle - part * half, middle + part * half, bits, dtype))
    for _ in range(FITS):
        better(_fitted(w_OGg, best, bits))
    return best


CLIPPINGS: dict[str, Callable[[torch.Tensor, int, torch.dtype], Grid]] = {
    "minmax": _minmax,
    "mse": _mse,
}


def quantize(
    weight: torch.Tensor,
    bits: int,
    group: int = 32,
    clipping: str = "minmax",
    dtype: torch.dtype = torch.float32,
) -> AffineWeight:
    """Quantize a matrix to the nearest codes.

    Args:
        weight: Floating (O × I).
        bits: 2, 3, 4 or 8.
        group: Inputs that share a scale and a zero; divides I.
        clipping: ``minmax`` or ``mse``.
        dtype: Of scales and zeros. Codes are the nearest ones to the rounded grid.

    Raises:
        QuantizationError: the format cannot hold the matrix, or a weight is not finite.
    """
    check_format(weight.shape[1], bits, group)
    if clipping not in CLIPPINGS:
        raise QuantizationError(
            f"no clipping {clipping!r}", fix=nearest(clipping, CLIPPINGS)
        )
    if not weight.isfinite().all():
        raise QuantizationError("a weight is NaN or infinite")
    work = torch.promote_types(torch.promote_types(weight.dtype, dtype), torch.float32)
    w_OGg = weight.detach().to(work).reshape(len(weight), -1, group)
    scales, zeros = CLIPPINGS[clipping](w_OGg, bits, dtype)
    codes = _codes(w_OGg, (scales, zeros), bits).to(torch.uint8)
    return AffineWeight(pack(codes.flatten(1), bits), scales, zeros, bits, group)


def dequantize(weight: AffineWeight) -> torch.Tensor:
    """Return W̃ (O × I), in the dtype of its scales but at least in fp32."""
    codes = unpack(weight.codes, weight.bits, weight.shape[1])
    codes_OGg = codes.reshape(len(codes), -1, weight.group)
    return _values(codes_OGg, (weight.scales, weight.zeros)).flatten(1)
