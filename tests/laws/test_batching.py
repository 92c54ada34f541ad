from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralab.data.batching import (
    MULTIPLE,
    EpochBatches,
    collate,
    epoch_order,
    evaluation_order,
    length_groups,
    pack,
    padded_share,
    unit_lengths,
    units,
)
from loralab.data.examples import IGNORE, Examples

LENGTHS = st.lists(st.integers(1, 60), max_size=80)
SOME = st.lists(st.integers(1, 60), min_size=1, max_size=80)
SEED, EPOCH = st.integers(0, 2**32), st.integers(0, 50)
CAPACITY = st.none() | st.integers(1, 40)
PAD = 7

settings.register_profile("laws", deadline=None)  # the first example imports
settings.load_profile("laws")


def random_lengths(seed, count):
    return np.random.default_rng(seed).integers(1, 200, count).tolist()


def flat(batches):
    return [i for batch in batches for i in batch]


def width(length):
    return -(-length // MULTIPLE) * MULTIPLE


@st.composite
def token_examples(draw):
    ids = draw(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=20)))
    labels = [
        [x if keep else IGNORE for x, keep in zip(one, draw(masks(one)), strict=True)]
        for one in ids
    ]
    return Examples(ids, labels, list(range(len(ids))), "next-token", draw(CAPACITY))


def masks(one):
    return st.lists(st.booleans(), min_size=len(one), max_size=len(one))


@given(LENGTHS, st.integers(1, 60))
def test_packs_hold_every_example_once_and_no_more_than_fits(lengths, capacity):
    bins = pack(lengths, capacity)
    assert sorted(flat(bins)) == list(range(len(lengths)))
    for one in bins:
        assert len(one) == 1 or sum(lengths[i] for i in one) <= capacity
    assert bins == pack(lengths, capacity)


@given(LENGTHS, st.integers(1, 60))
def test_no_two_packs_could_have_been_one(lengths, capacity):
    held = sorted(sum(lengths[i] for i in one) for one in pack(lengths, capacity))
    assert len(held) < 2 or held[0] + held[1] > capacity


@given(SOME, st.integers(1, 9), st.integers(1, 9), SEED, EPOCH)
def test_an_epoch_holds_every_unit_once(lengths, batch, accumulation, seed, epoch):
    order = epoch_order(lengths, batch, accumulation, seed, epoch)
    assert sorted(flat(order)) == list(range(len(lengths)))
    assert all(1 <= len(one) <= batch for one in order)
    assert all(len(one) == batch for one in order[:-1])
    assert order == epoch_order(lengths, batch, accumulation, seed, epoch)


@settings(max_examples=20)
@given(SEED)
def test_epochs_and_seeds_have_orders_of_their_own(seed):
    lengths = random_lengths(seed, 200)
    orders = [epoch_order(lengths, 4, 1, seed, epoch) for epoch in (0, 1)]
    orders.append(epoch_order(lengths, 4, 1, seed + 1, 0))
    assert orders[0] != orders[1] != orders[2] != orders[0]


def steps(lengths, batch, accumulation, seed, epoch):
    order = epoch_order(lengths, batch, accumulation, seed, epoch)
    cut = range(0, len(order), accumulation)
    return [set(flat(order[k : k + accumulation])) for k in cut]


@given(SOME, SEED, EPOCH)
def test_steps_do_not_depend_on_how_they_are_cut(lengths, seed, epoch):
    whole = steps(lengths, 8, 1, seed, epoch)
    assert steps(lengths, 4, 2, seed, epoch) == whole
    assert steps(lengths, 1, 8, seed, epoch) == whole
    assert all(len(step) == 8 for step in whole[:-1])


def cost(groups, lengths, overhead):
    return sum(
        len(one) * width(max(lengths[i] for i in one)) + overhead for one in groups
    )


@given(LENGTHS, st.integers(0, 300))
def test_length_groups_hold_every_row_once_the_longest_first(lengths, overhead):
    groups = length_groups(lengths, overhead)
    assert sorted(flat(groups)) == list(range(len(lengths)))
    found = [lengths[i] for i in flat(groups)]
    assert found == sorted(lengths, reverse=True)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(0, 300))
def test_no_cut_of_a_batch_costs_less(lengths, overhead):
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    inner = range(1, len(order))
    cheapest = min(
        cost(
            [order[a:b] for a, b in pairwise((0, *cuts, len(order)))], lengths, overhead
        )
        for count in range(len(order))
        for cuts in combinations(inner, count)
    )
    assert cost(length_groups(lengths, overhead), lengths, overhead) == cheapest


@given(SOME, st.integers(1, 9), st.integers(0, 300), SEED)
def test_the_padded_share_is_that_of_the_tensors(lengths, batch, overhead, seed):
    order = epoch_order(lengths, batch, 1, seed, 0)
    ids = [[1] * length for length in lengths]
    examples = Examples(ids, [0] * len(ids), list(range(len(ids))))
    held = 0
    for one in order:
        for group in length_groups([lengths[i] for i in one], overhead):
            made = collate(examples, [[one[i]] for i in group], PAD)
            held += made["input_ids"].numel()
    found = padded_share(lengths, order, overhead)
    assert found == pytest.approx(1 - sum(lengths) / held)


@given(SOME, st.integers(1, 9), st.integers(1, 9), SEED)
def test_the_sampler_is_the_order_of_its_epoch(lengths, batch, accumulation, seed):
    sampler = EpochBatches(lengths, batch, accumulation, seed)
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        assert list(sampler) == epoch_order(lengths, batch, accumulation, seed, epoch)
        assert len(list(sampler)) == len(sampler)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 300))
def test_evaluation_holds_every_unit_once_within_its_bounds(lengths, batch, tokens):
    order = evaluation_order(lengths, batch, tokens)
    assert sorted(flat(order)) == list(range(len(lengths)))
    for one in order:
        held = len(one) * width(max(lengths[i] for i in one))
        assert 1 <= len(one) <= batch
        assert len(one) == 1 or held <= tokens


@given(token_examples())
def test_units_hold_every_example_once(examples):
    made = units(examples)
    assert sorted(flat(made)) == list(range(len(examples)))
    assert sum(unit_lengths(examples, made)) == examples.tokens
    if examples.capacity is None:
        assert made == [[i] for i in range(len(examples))]


@given(token_examples())
def test_collated_tokens_stand_where_their_example_says(examples):
    made = units(examples)
    if not made:
        return
    batch = collate(examples, made, PAD)
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    ids, places = batch["input_ids"], batch["places"].tolist()
    assert ids.shape == (len(made), width(max(unit_lengths(examples, made))))
    supervised = dict(zip(places, batch["labels"].tolist(), strict=True))
    owners = dict(zip(places, batch["example"].tolist(), strict=True))
    for b, unit in enumerate(made):
        at = 0
        for i in unit:
            size = len(examples.input_ids[i])
            assert ids[b, at : at + size].tolist() == examples.input_ids[i]
            for k in range(size):
                place = b * ids.shape[1] + at + k
                # the next token of its own example; the last predicts nothing
                following = [*examples.labels[i][1:], IGNORE][k]
                assert supervised.get(place, IGNORE) == following
                assert owners.get(place, i) == i
                if examples.capacity is not None:
                    assert batch["position_ids"][b, at + k] == k
            at += size
        assert (ids[b, at:] == PAD).all()
    assert len(places) == examples.supervised == len(supervised)


@given(token_examples())
def test_either_a_mask_or_positions_tell_examples_apart(examples):
    made = units(examples)
    if not made:
        return
    batch = collate(examples, made, PAD)
    assert ("attention_mask" in batch) == (examples.capacity is None)
    assert ("position_ids" in batch) == (examples.capacity is not None)
    sizes = unit_lengths(examples, made)
    if examples.capacity is None:
        assert batch["attention_mask"].sum(1).tolist() == sizes
        return
    starts = (batch["position_ids"] == 0).sum()
    padded = sum(size < batch["input_ids"].shape[1] for size in sizes)
    assert starts == len(examples) + padded


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=20), min_size=1))
def test_labels_of_a_classifier_are_one_a_row(ids):
    classes = [len(one) % 3 for one in ids]
    examples = Examples(ids, classes, list(range(len(ids))))
    order = flat(evaluation_order(examples.lengths, 4))
    batch = collate(examples, [[i] for i in order], PAD)
    assert batch["labels"].tolist() == [classes[i] for i in order]
    assert batch["example"].tolist() == order
    assert batch["attention_mask"].sum(1).tolist() == [len(ids[i]) for i in order]


@pytest.mark.parametrize("capacity", [None, 16])
def test_a_label_is_the_next_token(capacity):
    labels = [[IGNORE, 2, 3], [4, 5]]
    examples = Examples([[1, 2, 3], [4, 5]], labels, [0, 1], "next-token", capacity)
    batch = collate(examples, units(examples), PAD)
    ids = batch["input_ids"].flatten()[batch["places"]].tolist()
    pairs = list(zip(ids, batch["labels"].tolist(), strict=True))
    assert pairs == [(1, 2), (2, 3), (4, 5)]


def test_a_label_of_a_tagged_word_is_at_its_own_token():
    labels = [[IGNORE, 1, IGNORE], [0, 2]]
    examples = Examples([[5, 6, 9], [7, 8]], labels, [0, 1], "token")
    batch = collate(examples, [[1], [0]], PAD)
    ids = batch["input_ids"].flatten()[batch["places"]].tolist()
    assert ids == [7, 8, 6]
    assert batch["labels"].tolist() == [0, 2, 1]
    assert batch["example"].tolist() == [1, 1, 0]


def test_a_span_has_two_labels_in_order():
    examples = Examples([[5, 6, 9], [7, 8]], [[1, 2], [0, 0]], [0, 1], "span")
    batch = collate(examples, [[1], [0]], PAD)
    assert batch["labels"].tolist() == [0, 0, 1, 2]
    assert batch["example"].tolist() == [1, 1, 0, 0]
    assert examples.supervised == 4


def test_a_decoder_is_supervised_on_every_token_of_its_target():
    examples = Examples([[5, 6, 9], [7]], [[1, 2], [3]], [0, 1], "sequence")
    batch = collate(examples, [[0], [1]], PAD)
    assert batch["labels"].tolist() == [1, 2, 3]
    assert batch["example"].tolist() == [0, 0, 1]
    assert batch["targets"][:, :2].tolist() == [[1, 2], [3, IGNORE]]
    assert examples.lengths == [5, 2]


def test_the_text_of_a_pair_is_told_where_it_is_known():
    examples = Examples([[5, 6], [7]], [0, 1], [0, 1], token_type_ids=[[0, 1], [0]])
    batch = collate(examples, [[0], [1]], PAD)
    assert batch["token_type_ids"][:, :2].tolist() == [[0, 1], [0, 0]]
