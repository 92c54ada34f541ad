from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loralab.config import DataConfig
from loralab.data.leaks import SPLITS, Checked, remove_duplicates
from loralab.data.rows import assign_splits
from loralab.errors import DataError

SOURCE = {"name": "file", "params": {"path": "rows.csv"}}

settings.register_profile("laws", deadline=None)  # the first example imports
settings.load_profile("laws")


@st.composite
def rows(draw, own_splits=True):
    inputs, answers = st.integers(0, 25), st.integers(0, 2)
    names = st.sampled_from([None, *SPLITS]) if own_splits else st.none()
    drawn = draw(st.lists(st.tuples(inputs, answers, names), min_size=1, max_size=60))
    return [
        Checked({"text": str(x), "label": y}, f"a.csv:{n}", split, f"{x}", f"{x}:{y}")
        for n, (x, y, split) in enumerate(drawn, 2)
    ]


@st.composite
def configs(draw):
    validation, test = draw(st.floats(0, 0.49)), draw(st.floats(0, 0.49))
    fractions = {"validation_fraction": validation, "test_fraction": test}
    return DataConfig(source=SOURCE, seed=draw(st.integers(0, 9)), **fractions)


def keys(splits):
    return {
        name: sorted(row.row_key for row in found) for name, found in splits.items()
    }


def inputs(splits):
    return [{row.input_key for row in found} for found in splits.values()]


def disjoint(sets):
    return sum(map(len, sets)) == len(set().union(*sets))


@given(rows(), configs())
def test_every_row_stands_in_one_split(found, config):
    splits = assign_splits(found, config)
    origins = [row.origin for split in splits.values() for row in split]
    assert sorted(origins) == sorted(row.origin for row in found)
    assert list(splits) == [name for name in SPLITS if name in splits]
    for row in found:
        if row.split in ("validation", "test"):
            assert row in splits[row.split]


@given(rows(own_splits=False), configs())
def test_splits_that_we_make_share_no_input(found, config):
    splits = assign_splits(found, config)
    assert disjoint(inputs(splits))
    assert remove_duplicates(splits, "drop")[1]["leaks"] == 0


@given(rows(), configs())
def test_after_dropping_no_input_stands_in_two_splits(found, config):
    kept, _ = remove_duplicates(assign_splits(found, config), "drop")
    assert disjoint(inputs(kept))
    assert all(len(set(names)) == len(names) for names in keys(kept).values())


@given(rows(), configs())
def test_dropping_is_done_once_and_counted(found, config):
    splits = assign_splits(found, config)
    kept, counts = remove_duplicates(splits, "drop")
    again, none = remove_duplicates(kept, "drop")
    assert again == kept
    assert none == {"duplicates": 0, "leaks": 0, "conflicts": counts["conflicts"]}
    dropped = counts["duplicates"] + counts["leaks"]
    assert sum(map(len, kept.values())) == len(found) - dropped


@given(rows(), configs())
def test_nothing_is_dropped_without_a_reason(found, config):
    splits = assign_splits(found, config)
    kept, _ = remove_duplicates(splits, "drop")
    assert set().union(*inputs(kept)) == {row.input_key for row in found}
    if "test" in splits:
        assert set(keys(kept)["test"]) == set(keys(splits)["test"])


@given(rows(), configs())
def test_the_policies_see_the_same_rows(found, config):
    splits = assign_splits(found, config)
    _, dropped = remove_duplicates(splits, "drop")
    kept, counts = remove_duplicates(splits, "keep")
    assert kept == splits
    assert counts == dropped
    if dropped["duplicates"] or dropped["leaks"]:
        with pytest.raises(DataError, match="repeats"):
            remove_duplicates(splits, "error")
    else:
        assert remove_duplicates(splits, "error")[0] == splits


@given(rows(), configs(), st.randoms(use_true_random=False))
def test_splits_do_not_depend_on_the_order_of_rows(found, config, random):
    shuffled = list(found)
    random.shuffle(shuffled)
    first, second = assign_splits(found, config), assign_splits(shuffled, config)
    assert keys(first) == keys(second)
    kept = [remove_duplicates(splits, "drop") for splits in (first, second)]
    assert keys(kept[0][0]) == keys(kept[1][0])
    assert kept[0][1] == kept[1][1]


@given(st.integers(1, 200), configs())
def test_sizes_are_the_fractions_where_inputs_differ(count, config):
    found = [Checked({}, f"a.csv:{i}", None, f"{i}", f"{i}") for i in range(count)]
    splits = assign_splits(found, config)
    sizes = {name: len(splits.get(name, [])) for name in SPLITS}
    test = round(config.test_fraction * count)
    validation = min(round(config.validation_fraction * count), count - test)
    train = count - test - validation
    assert sizes == {"train": train, "validation": validation, "test": test}


@given(rows(own_splits=False), configs())
def test_a_drawn_split_has_its_share_and_less_than_one_input_more(found, config):
    splits = assign_splits(found, config)
    most = max(Counter(row.input_key for row in found).values())
    for name in ("validation", "test"):
        wanted = round(getattr(config, f"{name}_fraction") * len(found))
        size = len(splits.get(name, []))
        assert size < wanted + most
        assert size >= wanted or "train" not in splits


@given(rows(), configs())
def test_a_split_that_the_source_has_is_not_drawn_from_train(found, config):
    splits = assign_splits(found, config)
    for name in ("validation", "test"):
        own = [row for row in found if row.split == name]
        if own:
            assert splits[name] == own
