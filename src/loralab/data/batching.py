"""Batches without waste: packs for token-level tasks, rows of like length for others.

Everything here is a pure function of its arguments, so the order of batches is the same
after a resume, and the rows of an optimizer step do not depend on how the step is split
into micro-batches.

Shape suffixes: B units of the batch, T tokens of the longest unit.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loralab.data.examples import IGNORE, Examples

if TYPE_CHECKING:
    import torch

WINDOW = 50
"""Steps among which rows are sorted by length: large enough to save padding, small
enough to keep the order random."""

MULTIPLE = 8
"""Widths are rounded up to it: fewer shapes, so fewer kernels to build and cache."""


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Fill bins of `capacity` tokens, best fit decreasing; return examples by bin.

    Never splits an example; one longer than the capacity gets a bin of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens left, bin), sorted
    for i in order:
        at = bisect_left(free, (lengths[i], -1))
        if at == len(free):
            bins.append([i])
            left, where = capacity - lengths[i], len(bins) - 1
        else:
            left, where = free.pop(at)
            bins[where].append(i)
            left -= lengths[i]
        insort(free, (left, where))
    return bins


def units(examples: Examples) -> list[list[int]]:
    """Return what a batch is made of: packs of examples, or single ones."""
    if examples.capacity is None:
        return [[i] for i in range(len(examples))]
    return pack(examples.lengths, examples.capacity)


def unit_lengths(examples: Examples, of: Sequence[Sequence[int]]) -> list[int]:
    """Return the tokens of each unit."""
    lengths = examples.lengths
    return [sum(lengths[i] for i in unit) for unit in of]


def epoch_order(
    lengths: Sequence[int], batch: int, accumulation: int, seed: int, epoch: int
) -> list[list[int]]:
    """Return the micro-batches of an epoch, as indices of units.

    Units are shuffled, sorted by length within windows, cut into steps of
    ``batch × accumulation``, and the steps shuffled; a short last step stays last.

    Args:
        lengths: Tokens of each unit.
        batch: Units of a micro-batch.
        accumulation: Micro-batches of an optimizer step.
        seed: With `epoch` the only source of randomness.
        epoch: From 0.
    """
    import numpy as np

    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(len(lengths)).tolist()
    step = batch * accumulation
    steps: list[list[int]] = []
    for start in range(0, len(shuffled), WINDOW * step):
        window = shuffled[start : start + WINDOW * step]
        window.sort(key=lambda i: -lengths[i])
        steps += [window[k : k + step] for k in range(0, len(window), step)]
    short = [steps.pop()] if steps and len(steps[-1]) < step else []
    ordered = [steps[i] for i in rng.permutation(len(steps))] + short
    return [s[k : k + batch] for s in ordered for k in range(0, len(s), batch)]


@dataclass
class EpochBatches:
    """A batch sampler whose order is a function of seed and epoch alone."""

    lengths: Sequence[int]
    batch_size: int
    accumulation: int
    seed: int
    epoch: int = 0
    drop_last: bool = False

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; the trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(
            epoch_order(
                self.lengths, self.batch_size, self.accumulation, self.seed, self.epoch
            )
        )


def evaluation_order(
    lengths: Sequence[int], batch: int, max_tokens: int = 2048
) -> list[list[int]]:
    """Return batches of like length, of at most `batch` units and `max_tokens`.

    The bound on tokens (padding included) bounds the logits that are held at a time; a
    unit that is longer goes alone.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    for i in order:
        widest = lengths[batches[-1][0]] if batches else 0
        room = batches and (len(batches[-1]) + 1) * widest <= max_tokens
        if room and len(batches[-1]) < batch:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def collate(
    examples: Examples, batch: Sequence[Sequence[int]], pad_id: int
) -> dict[str, torch.Tensor]:
    """Return the tensors of a batch of units.

    Returns:
        ``input_ids`` [B, T] int64, padded right; ``labels`` [B] (class indices) or
        [B, T] (at t the id of token t+1, `IGNORE` where none is supervised);
        ``example`` [B] or [B, T], the example each label belongs to; and either
        ``attention_mask`` [B, T] or, under packing, ``position_ids`` [B, T] that
        restart with every example and with the padding, so that attention keeps
        them apart (transformers derives the block mask when no mask is given).
    """
    import torch

    width = max(sum(len(examples.input_ids[i]) for i in unit) for unit in batch)
    width = -(-width // MULTIPLE) * MULTIPLE
    shape = (len(batch), width)
    ids_BT = torch.full(shape, pad_id)
    where_BT = torch.zeros(shape, dtype=torch.long)
    labels_BT = torch.full(shape, IGNORE)
    example_BT = torch.full(shape, -1)
    for b, unit in enumerate(batch):
        at = 0
        for i in unit:
            tokens = examples.input_ids[i]
            end = at + len(tokens)
            ids_BT[b, at:end] = torch.tensor(tokens)
            where_BT[b, at:end] = torch.arange(len(tokens))
            example_BT[b, at:end] = i
            if examples.token_level:
                labels_BT[b, at : end - 1] = torch.tensor(examples.labels[i][1:])
            at = end
        where_BT[b, at:] = torch.arange(width - at)
    found: dict[str, Any] = {"input_ids": ids_BT}
    if examples.capacity is None:
        found["attention_mask"] = (example_BT >= 0).long()
    else:
        found["position_ids"] = where_BT
    if examples.token_level:
        return {**found, "labels": labels_BT, "example": example_BT}
    first = torch.tensor([unit[0] for unit in batch])
    labels_B = torch.tensor([examples.labels[unit[0]] for unit in batch])
    return {**found, "labels": labels_B, "example": first}


def padded_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Return the share of all positions of the batches that hold padding."""
    widths = [-(-max(lengths[i] for i in b) // MULTIPLE) * MULTIPLE for b in batches]
    held = sum(len(b) * width for b, width in zip(batches, widths, strict=True))
    return 1 - sum(lengths) / held if held else 0.0
