"""The embedded classification sets: what is read, and what a run makes of it."""

from collections import Counter
from functools import cache

import pytest
from tests.cli import loralab

from loralab import compose, get_preprocessor, load_rows
from loralab.config.compose import describe, presets
from loralab.data.embedded import EMBEDDED_SETS, RATED, read_embedded

# rows in the source, and of each class
COUNTS = {
    "sms-spam": (4837, {"ham": 4199, "spam": 638}),
    "sentiment-movies": (10_043, {"negative": 5061, "positive": 4982}),
    "sentiment-tweets": (3362, {"negative": 1062, "positive": 2300}),
    "sentiment-products": (2943, {"negative": 1218, "positive": 1725}),
    "sentiment-news": (2788, {"negative": 1688, "positive": 1100}),
    "domain": (
        23_703,
        {"movies": 10_605, "tweets": 4200, "products": 3708, "news": 5190},
    ),
    "tweet-author": (6444, {"HillaryClinton": 3226, "realDonaldTrump": 3218}),
}
CLASSES = {"trec-6": 6, "reuters-r8": 8, "newsgroups-20": 20}
CLASSES |= {name: len(classes) for name, (_, classes) in COUNTS.items()}
NEW = sorted(set(COUNTS) - {"sms-spam"})


@cache
def raw(name):
    return list(read_embedded(name))


@cache
def loaded(name):
    config = compose(name, [])
    return load_rows(config.data, get_preprocessor(config.task))


def test_every_classification_set_is_tried_here():
    found = {n for n, s in EMBEDDED_SETS.items() if s.task == "text-classification"}
    assert found == set(CLASSES)


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_every_row_and_class_is_there(name):
    count, classes = COUNTS[name]
    assert len(raw(name)) == count
    assert Counter(row.columns["label"] for row in raw(name)) == classes


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_no_text_is_empty_and_every_row_says_where_it_stands(name):
    rows = raw(name)
    assert not any(row.problem for row in rows)
    assert all(row.columns["text"].strip() for row in rows)
    assert len({row.origin for row in rows}) == len(rows)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_its_experiment_has_all_classes_in_every_split_and_no_leak(name):
    splits = loaded(name).splits
    assert set(splits) == {"train", "validation", "test"}
    for split in splits.values():
        assert len(set(split["label"])) == CLASSES[name]
    texts = {split: set(rows["text"]) for split, rows in splits.items()}
    assert not texts["train"] & (texts["validation"] | texts["test"])
    assert not texts["validation"] & texts["test"]


@pytest.mark.parametrize("name", NEW)
def test_a_preset_says_how_many_distinct_rows_and_classes_there_are(name):
    about = describe(presets("data")[name])
    distinct = sum(loaded(name).sizes().values())
    assert about.startswith(f"Embedded: {distinct:,} ")
    assert f"{CLASSES[name]} classes" in about
    assert loaded(name).report.conflicts == 0


def test_neutral_sentences_are_left_out_of_sentiment_and_stand_in_domain():
    left_out = Counter(row.columns["label"] for row in raw("domain"))
    left_out.subtract({d: len(raw(f"sentiment-{d}")) for d in RATED})
    assert left_out == {"movies": 562, "tweets": 838, "products": 765, "news": 2402}
    kept = {row.columns["text"] for row in raw("sentiment-movies")}
    assert "Effective but too tepid biopic" in kept  # rated −0.6
    news = {row.columns["text"]: row.origin for row in raw("sentiment-news")}
    assert not any(x.startswith("Events include sprinting") for x in news)  # rated 0.15


def test_a_quoted_tweet_is_read_without_its_quotes():
    texts = [row.columns["text"] for row in raw("tweet-author")]
    assert any(x.startswith("Last night, Donald Trump said not pay") for x in texts)
    assert raw("tweet-author")[0].origin == "election-tweets-2016.tab:4"


def test_what_a_run_sees_is_shown():
    shown = loralab("data", "show", "sentiment-news", "--samples", 1)
    assert shown.code == 0, shown.err
    assert "37 duplicate rows dropped" in shown.out
    listed = loralab("data", "list").out
    assert all(name in listed for name in CLASSES)
