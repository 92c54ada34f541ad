"""Laws that every metric obeys: found by name, so a new metric obeys them too."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loralab import registry
from loralab.evaluation.calculator import forms
from loralab.evaluation.intervals import score_intervals
from loralab.evaluation.scores import Answers, mean_of, ratio_of

settings.register_profile("laws", deadline=None)  # the first example imports
settings.load_profile("laws")

RANGES = {"mcc": (-1, 1), "bleu": (0, 100), "chrf": (0, 100)}
CONSENT = {"pass-at-k": {"allow_execution": True}}
SLOW = {"pass-at-k"}  # starts a process a row

CLASSES = 4
TAGS = st.sampled_from(["O", "B-X", "I-X", "E-X", "S-Y", "I-Y"])
WORDS = st.sampled_from(["the", "cat", "Cat!", "é", "7", "#### 8", "-7.0", "", "x y"])
TEXT = st.lists(WORDS, max_size=6).map(" ".join)
ROW = {
    "prompt": "def f():\n",
    "test": "def check(f): assert f() == 1",
    "entry_point": "f",
}


@st.composite
def class_rows(draw):
    chances = draw(st.lists(st.integers(1, 50), min_size=CLASSES, max_size=CLASSES))
    ranked = sorted(range(CLASSES), key=lambda i: -chances[i])
    best = chances[ranked[0]] / sum(chances)
    return draw(st.integers(0, CLASSES - 1)), ranked[0], best, ranked


@st.composite
def text_rows(draw):
    wanted = [*draw(st.lists(TEXT, max_size=2)), f"{draw(TEXT)} #### 7"]
    return wanted, draw(st.one_of(TEXT, st.sampled_from(wanted)))


@st.composite
def tag_rows(draw):
    true = draw(st.lists(TAGS, max_size=6))
    return true, [draw(st.one_of(TAGS, st.just(tag))) for tag in true]


@st.composite
def program_rows(draw):
    bodies = ["return 1", "return 0", "1 +"]
    samples = draw(st.lists(st.sampled_from(bodies), min_size=1, max_size=3))
    return [], samples[0], samples


def answers(form, rows):
    columns = [list(column) for column in zip(*rows, strict=True)]
    if form == "class":
        true, said, best, ranked = columns
        chances = np.array(best)
        return Answers(form, true, said, (), CLASSES, chances, ranked)
    if len(columns) == 3:
        true, said, samples = columns
        return Answers(form, true, said, [ROW] * len(rows), samples=samples)
    return Answers(form, *columns)


def row_of(name):
    if name in SLOW:
        return program_rows()
    (form, *_) = forms(registry.get("metric", name))
    return {"class": class_rows, "tags": tag_rows, "text": text_rows}[form]()


def scores(name, rows):
    entry = registry.get("metric", name)
    (form, *_) = forms(entry)
    return entry.target(entry.schema(**CONSENT.get(name, {})), answers(form, rows))


def total(made):
    return np.asarray(made.sums.sum(0), dtype=float)


def examples(name):
    return settings(max_examples=5 if name in SLOW else 60)


NAMES = registry.names("metric")


@pytest.mark.parametrize("name", NAMES)
def test_the_value_of_added_sums_is_that_of_all_rows_together(name):
    @examples(name)
    @given(st.lists(row_of(name), min_size=2, max_size=7), st.data())
    def law(rows, data):
        cut = data.draw(st.integers(1, len(rows) - 1))
        whole, one, two = (scores(name, x) for x in (rows, rows[:cut], rows[cut:]))
        added = whole.value(total(one) + total(two))
        assert float(added) == pytest.approx(float(whole.value(total(whole))), abs=1e-9)

    law()


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_stays_in_its_range_and_does_not_ask_for_an_order(name):
    low, high = RANGES.get(name, (0, 1))

    @examples(name)
    @given(st.lists(row_of(name), min_size=1, max_size=7), st.data())
    def law(rows, data):
        made = scores(name, rows)
        found = float(made.value(total(made)))
        assert low - 1e-9 <= found <= high + 1e-9
        other = scores(name, data.draw(st.permutations(rows)))
        assert float(other.value(total(other))) == pytest.approx(found, abs=1e-9)

    law()


@pytest.mark.parametrize("name", NAMES)
def test_values_of_many_draws_are_those_of_each(name):
    @examples(name)
    @given(st.lists(row_of(name), min_size=1, max_size=5), st.integers(0, 99))
    def law(rows, seed):
        made = scores(name, rows)
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), (2, 3))
        flat = counts.reshape(6, -1).astype(float)
        totals = np.asarray(flat @ made.sums)
        each = [float(made.value(one)) for one in totals]
        many = made.value(totals.reshape(2, 3, -1))
        assert many.shape == (2, 3)
        np.testing.assert_allclose(many.ravel(), each, rtol=1e-12, atol=1e-12)

    law()


def perfect(name, row):
    if name in SLOW:
        return [], "return 1", ["return 1"] * len(row[2])
    (form, *_) = forms(registry.get("metric", name))
    if form == "class":
        others = [i for i in range(CLASSES) if i != row[0]]
        return row[0], row[0], 1.0, [row[0], *others]
    if form == "tags":
        return [*row[0], "B-X"], [*row[0], "B-X"]
    long = "a fine text of some words #### 7"  # n-grams of every order
    return [*row[0], long], long


@pytest.mark.parametrize("name", NAMES)
def test_perfect_answers_have_the_best_value(name):
    low, high = RANGES.get(name, (0, 1))
    better = registry.get("metric", name).facts["better"]
    best = {"higher": high, "lower": low}[better]

    @examples(name)
    @given(st.lists(row_of(name), min_size=1, max_size=6))
    def law(rows):
        rows = [perfect(name, row) for row in rows]
        if name == "mcc":  # undefined with one class only
            rows += [perfect(name, [0]), perfect(name, [1])]
        made = scores(name, rows)
        assert float(made.value(total(made))) == pytest.approx(best, abs=1e-4)

    law()


@given(st.lists(st.tuples(st.floats(0, 9), st.integers(0, 5)), min_size=1, max_size=20))
def test_a_ratio_is_that_of_the_sums(rows):
    above, below = np.array(rows, dtype=float).T
    made = ratio_of(above, below)
    expected = above.sum() / below.sum() if below.sum() else 0
    assert float(made.value(total(made))) == pytest.approx(expected)


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30),
    st.integers(0, 2**32),
    st.floats(0.6, 0.99),
)
def test_intervals_repeat_hold_their_value_and_turn_around(rows, seed, confidence):
    first, second = np.array(rows, dtype=float).T
    arms = [
        {"m": mean_of(x), "p": mean_of(x, proportion=True)} for x in (first, second)
    ]
    found = score_intervals(arms, confidence, 200, seed)
    assert score_intervals(arms, confidence, 200, seed) == found
    turned = score_intervals(arms[::-1], confidence, 200, seed)
    for name, (one, two, gap) in found.items():
        assert turned[name][:2] == [two, one]
        back = turned[name][2]
        expected = (-gap.value, -gap.high, -gap.low)
        assert (back.value, back.low, back.high) == pytest.approx(expected, abs=1e-12)
        for x in (one, two, gap):
            assert x.low <= x.high
    for x in found["p"][:2]:
        assert 0 <= x.low <= x.value + 1e-12 <= x.high + 2e-12 <= 1 + 3e-12
