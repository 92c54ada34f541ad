r"""A matrix that is only ever seen some rows at a time: its quantiles, its factors.

An entry-wise function of updates has full rank and out × in entries, which are never
held. What is asked of it is made in passes over blocks of its rows.

*Order statistics.* The bits of a non-negative float64, read as an integer, are in the
order of the numbers. So the k-th smallest magnitude is found digit by digit (a radix
selection): a pass counts the 2¹⁶ values that the 16 leading bits can have, which is a
grid of 32 bins an octave; the next picks out the one bin that holds the k-th and takes
the order statistic among its values. It is exact. Where that bin holds more than
`HELD` values (entries that are all alike), further passes count further digits instead,
four at the most.

*Factors.* The randomized range finder (Halko, Martinsson & Tropp 2011, algorithms 4.4
and 5.1), with Ω Gaussian, k = rank + oversampling columns, q power iterations and QR
in between:

    Y = MΩ;   q times: Y = M·orth(Mᵀ·orth(Y));   Q = orth(Y)
    K = QᵀM,   M ≈ Q·K, its truncated SVD
    ‖M − Q·K‖² = ‖M‖² − ‖K‖²                                        Q is orthonormal

2q + 3 passes. The last one sums the left side entry by entry, which knows the error to
rounding where the right side would only know it to √ε·‖M‖. Q·K is orthogonal to what
is left of M, so that the error of truncating K adds to it exactly. If k reaches
min(out, in), Q holds all of M's range and the result is the truncated SVD itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from loralab.lowrank.update import Update, orthonormal, truncated

Blocks = Callable[[], Iterable[Tensor]]
"""Yields the blocks of rows of one matrix, [h, in] each, the same at every call."""

HELD = 1 << 20
"""Most values that `kth_smallest` holds at once beside a block: 8 MB."""

SHIFTS = (47, 31, 15, 0)
"""Where the digits of the 63 bits of a non-negative float64 end."""


def kth_smallest(blocks: Blocks, k: int) -> float:
    """Return the k-th smallest magnitude of all entries, exactly.

    As `torch.kthvalue` of the whole matrix' absolute values.

    Args:
        blocks: The matrix, without NaN.
        k: From 1 to the number of entries.
    """
    low, end = 0, 63
    for shift in SHIFTS:
        counts = _digits(blocks, low, end, shift)
        sums = counts.cumsum(0)
        digit = int(torch.searchsorted(sums, k))
        inside = int(counts[digit])
        k -= int(sums[digit]) - inside
        low, end = low + (digit << shift), shift
        if inside <= HELD:
            break
    if not end:
        return float(torch.tensor(low).view(torch.float64))
    found = torch.cat([bits[_within(bits, low, end)] for bits in _bits(blocks)])
    return float(found.kthvalue(k).values.view(torch.float64))


def _bits(blocks: Blocks) -> Iterable[Tensor]:
    """Yield the magnitudes of each block as integers of the same order, int64 [n]."""
    for block in blocks():
        yield block.double().abs().flatten().view(torch.int64)


def _within(bits: Tensor, low: int, end: int) -> Tensor:
    """Return which numbers agree with `low` in all bits from `end` on."""
    return (bits >> end) == (low >> end)


def _digits(blocks: Blocks, low: int, end: int, shift: int) -> Tensor:
    """Return how often each digit follows the bits that are known, [2^(end−shift)]."""
    size = 1 << (end - shift)
    counts = torch.zeros(size, dtype=torch.int64)
    for bits in _bits(blocks):
        chosen = bits[_within(bits, low, end)] if low or end < 63 else bits
        digits = (chosen >> shift) & (size - 1)
        counts += torch.bincount(digits, minlength=size).cpu()
    return counts


def factorised(
    blocks: Blocks,
    shape: tuple[int, int],
    rank: int,
    generator: torch.Generator,
    *,
    oversample: int,
    power: int,
) -> Update:
    """Return factors of rank at most `rank` of a matrix, and exactly what they lose.

    Memory: a block, and (2·out + 2·in)·(rank + oversample) values.

    Args:
        blocks: The matrix; all in the dtype that the algebra is to be done in.
        shape: (out, in).
        rank: At least 0.
        generator: On the CPU; draws Ω.
        oversample: Columns of Ω beyond the rank.
        power: Power iterations q; each halves the decay that the spectrum must have.

    Returns:
        The update; ``lost`` is ‖M − update‖_F².
    """
    width = min(rank + oversample, *shape)
    Ω = torch.randn(shape[1], width, generator=generator, dtype=torch.float64)
    Y = _times(blocks, Ω, shape[0])
    for _ in range(power if width < min(shape) else 0):
        Z = orthonormal(_transposed(blocks, orthonormal(Y)[0]))[0]
        Y = _times(blocks, Z, shape[0])
    Q = orthonormal(Y)[0]
    along = _transposed(blocks, Q)  # Kᵀ
    R, T = orthonormal(along)
    return truncated(Update(Q, T.T, R, _residue(blocks, Q, along)), rank)


def _times(blocks: Blocks, X: Tensor, out: int) -> Tensor:
    """Return M·X, [out, k].

    It is written where it stays: small pieces kept between large ones that are let go
    would leave holes, and a process of several times the size.
    """
    Y, start = X.new_empty(0, 0), 0
    for block in blocks():
        if not start:
            X = X.to(block)
            Y = X.new_empty(out, X.shape[1])
        torch.mm(block, X, out=Y[start : start + len(block)])
        start += len(block)
    return Y


def _transposed(blocks: Blocks, Q: Tensor) -> Tensor:
    """Return Mᵀ·Q, [in, k]."""
    total, start = Q.new_zeros(()), 0
    for block in blocks():
        total = total + block.T @ Q[start : start + len(block)]
        start += len(block)
    return total


def _residue(blocks: Blocks, Q: Tensor, along: Tensor) -> float:
    """Return ‖M − Q·alongᵀ‖_F²."""
    total, start = 0.0, 0
    for block in blocks():
        rest = block - Q[start : start + len(block)] @ along.T
        total += float(rest.double().square().sum())
        start += len(block)
    return total
