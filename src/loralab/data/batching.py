"""Batches without waste: packs for token-level tasks, rows of like length for others.

The rows of an optimizer step are a random sample. Within the step they are sorted by
length and cut into groups that are padded apart; the loss is a sum over labels, so its
gradient is the one of the unsorted step. (Sorting across steps, as length-grouped
samplers do, saves a little more padding and biases the steps: where length tells the
class, as in SMS spam, it costs accuracy.)

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

MULTIPLE = 8
"""Widths are rounded up to it: fewer shapes, so fewer kernels to build and cache."""


def overhead_of(device: str) -> int:
    """Return what one more forward pass costs on a device, in padded positions."""
    return 128 if device == "cpu" else 4096


def width(tokens: int) -> int:
    """Return the padded width of a group whose longest unit has `tokens`."""
    return -(-tokens // MULTIPLE) * MULTIPLE


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

    Units are shuffled and cut into steps of ``batch × accumulation``; within a step
    they are sorted by length, longest first, and cut into micro-batches.

    Args:
        lengths: Tokens of each unit.
        batch: Units of a micro-batch.
        accumulation: Micro-batches of an optimizer step.
        seed: With `epoch` the only source of randomness.
        epoch: From 0.
    """
    import numpy as np

    order = np.random.default_rng([seed, epoch]).permutation(len(lengths)).tolist()
    step = batch * accumulation
    found: list[list[int]] = []
    for start in range(0, len(order), step):
        rows = sorted(order[start : start + step], key=lambda i: (-lengths[i], i))
        found += [rows[k : k + batch] for k in range(0, len(rows), batch)]
    return found


def length_groups(lengths: Sequence[int], overhead: int) -> list[list[int]]:
    """Cut a micro-batch into groups to pad apart, at the least cost.

    The cost of a group is rows × padded width + `overhead`; the best cut of the sorted
    rows is found by dynamic programming.

    Args:
        lengths: Tokens of each unit.
        overhead: What one more group costs, in positions.

    Returns:
        Indices into `lengths`, by group, longest first.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    best: list[tuple[int, int]] = [(0, 0)]  # (cost of the first k rows, last cut)
    for end in range(1, len(order) + 1):
        best.append(
            min(
                (
                    best[cut][0] + (end - cut) * width(lengths[order[cut]]) + overhead,
                    cut,
                )
                for cut in range(end)
            )
        )
    groups, end = [], len(order)
    while end:
        groups.append(order[best[end][1] : end])
        end = best[end][1]
    return groups[::-1]


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
        widest = -(-lengths[batches[-1][0]] // MULTIPLE) * MULTIPLE if batches else 0
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

    size = width(max(sum(len(examples.input_ids[i]) for i in unit) for unit in batch))
    shape = (len(batch), size)
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
        where_BT[b, at:] = torch.arange(size - at)
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


def padded_share(
    lengths: Sequence[int], batches: Sequence[Sequence[int]], overhead: int
) -> float:
    """Return the share of all positions of the batches that hold padding."""
    held = 0
    for batch in batches:
        sizes = [lengths[i] for i in batch]
        for group in length_groups(sizes, overhead):
            held += len(group) * width(sizes[group[0]])
    return 1 - sum(lengths) / held if held else 0.0
