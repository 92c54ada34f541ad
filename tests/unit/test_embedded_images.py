"""The embedded image sets: what is read, and what a run makes of it."""

from collections import Counter
from itertools import islice

import pytest
from tests.cli import loralab

from loralab import compose, get_preprocessor, load_rows
from loralab.data.embedded import EMBEDDED_SETS, FASHION, read_embedded
from loralab.data.images import read
from loralab.data.packages import PACKAGES, missing


def test_every_image_set_is_tried_here():
    found = {n for n, s in EMBEDDED_SETS.items() if s.task == "image-classification"}
    assert found == {"mnist-5k", "digits", "fashion-mnist", "cifar-10"}


def test_mnist_has_five_hundred_of_each_digit():
    rows = list(read_embedded("mnist-5k"))
    found = Counter(row.columns["label"] for row in rows)
    assert found == dict.fromkeys(range(10), 500)
    pixels = read(rows[0].columns["image"])
    assert pixels.shape == (28, 28, 1)
    assert pixels.min() == 0 and pixels.max() > 250
    ink = {row.columns["label"]: read(row.columns["image"]).mean() for row in rows}
    assert ink[0] > 1.5 * ink[1], "a nought has more ink than a one"


def test_digits_have_ink_from_paper_to_black():
    rows = list(read_embedded("digits"))
    assert len(rows) == 1797
    assert {row.columns["label"] for row in rows} == set(range(10))
    pixels = read(rows[0].columns["image"])
    assert pixels.shape == (8, 8, 1)
    assert (pixels.min(), pixels.max()) == (0, 239)  # 15 of 16


def test_a_run_sees_distinct_digits_in_both_splits():
    config = compose("vit-lora", ["data=mnist-5k", "task.params.size=28"])
    rows = load_rows(config.data, get_preprocessor(config.task))
    assert rows.report.malformed == 0
    assert sum(rows.sizes().values()) + rows.report.duplicates == 5000
    train, test = (set(rows.splits[name]["pixels"]) for name in ("train", "test"))
    assert len(train) == rows.sizes()["train"]
    assert not train & test


FASHION_PACKAGE = PACKAGES["dataset-fashion-mnist"]


@pytest.mark.skipif(
    bool(missing(FASHION_PACKAGE)), reason="a Debian package that is not fetched here"
)
def test_fashion_has_its_own_test_split():
    rows = read_embedded("fashion-mnist")
    first = list(islice(rows, 1000))
    assert {row.split for row in first} == {"train"}
    assert {row.columns["label"] for row in first} == set(FASHION)
    assert first[0].columns["label"] == "ankle boot"
    assert read(first[0].columns["image"]).shape == (28, 28, 1)
    rest = Counter(row.split for row in rows)
    assert rest == {"train": 59_000, "test": 10_000}


@pytest.mark.skipif(bool(missing(PACKAGES["bigbench"])), reason="358 MB, not fetched")
def test_cifar_has_a_thousand_of_each_class():
    rows = list(read_embedded("cifar-10"))
    found = Counter(row.columns["label"] for row in rows)
    assert set(found.values()) == {1000} and len(found) == 10
    assert rows[0].columns["label"] == "airplane"
    assert read(rows[0].columns["image"]).shape == (32, 32, 3)


def test_what_is_not_there_cannot_be_fetched():
    said = loralab("data", "fetch", "cifar-1O")
    assert said.code == 2
    assert "nearest: cifar-10" in said.err
    assert all(name in loralab("data", "list").out for name in EMBEDDED_SETS)
