"""Batches without waste: packs for token-level tasks, rows of like length for others.

The rows of an optimizer step are a random sample. Within the step they are sorted by
length and cut into groups that are padded apart; the loss is a sum over labels, so its
gradient is the one of the unsorted step. (Sorting across steps, as length-grouped
samplers do, saves a little more padding and biases the steps: where length tells the
class, as in SMS spam, it costs accuracy.)

Everything here is a pure function of its arguments, so the order of batches is the same
after a resume, and the rows of an optimizer step do not depend on how the step is split
into micro-batches.

Shape suffixes: B units of the batch, T tokens of the longest unit, S tokens that a
decoder writes, N labels of the batch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loralab.data.examples import IGNORE, Examples

if TYPE_CHECKING:
    import torch

    from loralab.data.pixels import Draw

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
    """A batch sampler whose order is a function of seed and epoch alone.

    Of several processes each takes every so-manieth micro-batch of a step, so together
    they see the rows that one process would, with as many more micro-batches a step.
    Where the last step has none left for some, theirs are empty: all have as many.
    """

    lengths: Sequence[int]
    batch_size: int
    accumulation: int
    seed: int
    epoch: int = 0
    drop_last: bool = False
    processes: int = 1
    process: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; the trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // (self.batch_size * self.processes))

    def __iter__(self) -> Iterator[list[int]]:
        a_step = self.accumulation * self.processes
        order = epoch_order(
            self.lengths, self.batch_size, a_step, self.seed, self.epoch
        )
        order += [[] for _ in range(-len(order) % self.processes)]
        return iter(order[self.process :: self.processes])


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


def _padded(rows: Sequence[Any], fill: int) -> torch.Tensor:
    """Return rows of different lengths as one tensor, filled at the right."""
    import torch

    found = torch.full((len(rows), width(max(map(len, rows)))), fill)
    for i, row in enumerate(rows):
        found[i, : len(row)] = torch.as_tensor(row)
    return found


def _collate_packs(
    examples: Examples, batch: Sequence[Sequence[int]], pad_id: int
) -> dict[str, torch.Tensor]:
    """Collate packs of examples whose labels are the tokens that follow."""
    import numpy as np
    import torch

    lengths = examples.lengths
    ids = [np.concatenate([examples.input_ids[i] for i in unit]) for unit in batch]
    ids_BT = _padded(ids, pad_id)
    labels_BT, owner_BT = torch.full_like(ids_BT, IGNORE), torch.full_like(ids_BT, -1)
    where_BT = torch.zeros_like(ids_BT)
    for b, unit in enumerate(batch):
        at = 0
        for i in unit:
            end = at + lengths[i]
            labels_BT[b, at : end - 1] = torch.as_tensor(examples.labels[i][1:])
            owner_BT[b, at:end] = i
            where_BT[b, at:end] = torch.arange(end - at)
            at = end
        where_BT[b, at:] = torch.arange(ids_BT.shape[1] - at)
    found = {"input_ids": ids_BT, **_supervised(labels_BT, owner_BT)}
    if examples.capacity is None:
        return {**found, "attention_mask": (owner_BT >= 0).long()}
    return {**found, "position_ids": where_BT}


def _supervised(labels: torch.Tensor, owner: torch.Tensor) -> dict[str, torch.Tensor]:
    """Keep of labels [B, S] and their owners what is supervised, and say where."""
    places = labels.flatten().ne(IGNORE).nonzero().squeeze(1)
    return {
        "labels": labels.flatten()[places],
        "example": owner.flatten()[places],
        "places": places,
    }


def _collate_whole(
    examples: Examples, chosen: Sequence[int], draw: Draw | None
) -> dict[str, torch.Tensor]:
    """Collate what has no tokens to pad: features, or images."""
    import torch

    owner_B = torch.tensor(chosen)
    labels_B = torch.tensor([examples.labels[i] for i in chosen])
    if examples.features is not None:
        inputs = {"features": examples.features[owner_B]}
    else:
        assert examples.pixels is not None
        inputs = {"pixel_values": examples.pixels.batch(chosen, draw)}
    return {**inputs, "labels": labels_B, "example": owner_B}


def positions(examples: Examples, made: Mapping[str, torch.Tensor]) -> int:
    """Return what a batch costs: its tokens with the padding, or those of its images.

    Args:
        examples: What the batch was made of.
        made: What `collate` returned.
    """
    if examples.features is not None:
        lengths = examples.lengths
        return sum(lengths[i] for i in made["example"].tolist())
    if examples.pixels is not None:
        return len(made["pixel_values"]) * examples.pixels.tokens
    return made["input_ids"].numel()


def collate(
    examples: Examples,
    batch: Sequence[Sequence[int]],
    pad_id: int,
    draw: Draw | None = None,
) -> dict[str, torch.Tensor]:
    """Return the tensors of a batch of units, padded at the right.

    Args:
        examples: What the units are of.
        batch: The units' examples.
        pad_id: The token that padding is written with; of no meaning for images.
        draw: Seed and epoch that images are augmented by; None: they are not.

    Returns:
        ``input_ids`` [B, T] int64, or of images ``pixel_values`` [B, 3, H, W] fp32, of
        which no mask is told, or ``features`` [B, D] where these are known; what is
        supervised: ``labels`` [N] int64, ``example`` [N] (the example each belongs to)
        and, where tokens are supervised, ``places`` [N] (where in the flattened
        [B, T], or [B, S] of the decoder; under ``next-token`` the label is the id of
        the token after it); under ``span`` N is 2B: first, last, first, last …; under
        ``sequence`` also ``targets`` [B, S]; and
        either ``attention_mask`` [B, T] or, under packing, ``position_ids`` [B, T] that
        restart with every example and with the padding, so that attention keeps
        them apart (transformers derives the block mask when no mask is given).
    """
    import torch

    if examples.supervision == "next-token":
        return _collate_packs(examples, batch, pad_id)
    chosen = [unit[0] for unit in batch]
    if examples.features is not None or examples.pixels is not None:
        return _collate_whole(examples, chosen, draw)
    ids = [examples.input_ids[i] for i in chosen]
    ids_BT = _padded(ids, pad_id)
    lengths_B = torch.tensor([len(x) for x in ids])
    found = {
        "input_ids": ids_BT,
        "attention_mask": (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long(),
    }
    if examples.token_type_ids is not None:
        types = [examples.token_type_ids[i] for i in chosen]
        found["token_type_ids"] = _padded(types, 0)
    given = [examples.labels[i] for i in chosen]
    owner_B = torch.tensor(chosen)
    if examples.supervision == "example":
        return {**found, "labels": torch.tensor(given), "example": owner_B}
    if examples.supervision == "span":
        owner = owner_B.repeat_interleave(2)
        return {**found, "labels": torch.tensor(given).flatten(), "example": owner}
    if examples.supervision == "token":
        labels_BS = torch.full_like(ids_BT, IGNORE)
        for b, row in enumerate(given):
            labels_BS[b, : len(row)] = torch.as_tensor(row)
    else:
        labels_BS = _padded(given, IGNORE)
        found["targets"] = labels_BS
    return {**found, **_supervised(labels_BS, owner_B[:, None].expand(labels_BS.shape))}


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
