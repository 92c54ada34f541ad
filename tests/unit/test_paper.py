"""A paper's numbers: where they stand, how they are rounded, what may be claimed."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loralab.errors import PaperError
from loralab.evaluation.intervals import Interval
from loralab.reporting.paper import claims
from loralab.reporting.paper.catalogue import _paths, numbers
from loralab.reporting.paper.draft import read
from loralab.reporting.paper.numbers import AGGREGATES, Figure, figure, write
from loralab.reporting.paper.path import Hit, find
from loralab.reporting.paper.provenance import runs_and_commits
from loralab.reporting.paper.references import resolve
from loralab.reporting.paper.sources import Library, Source
from loralab.reporting.tables import MINUS, interval_decimals

ROOT = Path(__file__).parents[2]
LIBRARY = Library(ROOT)
FINITE = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-5)


def shown(text, library=LIBRARY, labels=None):
    draft = read(f"{{{{ {text} }}}}")
    return resolve(library, draft.references[0], labels or {}).shown


def parsed(text):
    return float(text.replace(MINUS, "-").replace(",", ""))


# --- paths

KEYS = st.text("abc d-_", min_size=1, max_size=4).map(str.strip).filter(bool)
DOCUMENTS = st.recursive(
    FINITE | st.integers(-9, 9) | KEYS | st.none(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.lists(st.fixed_dictionaries({"arm": KEYS, "x": inner}), max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=40)
@given(DOCUMENTS)
def test_every_path_that_is_listed_leads_to_one_number(document):
    for path, _ in _paths(document, "$"):
        (hit,) = find(document, path)
        assert isinstance(hit.value, int | float)
        node = document
        for step in hit.steps:
            node = node[step]
        assert node is hit.value


def test_a_path_chooses_by_values_places_and_order():
    document = {
        "cells": [
            {"grid": "int4 g32, fp32", "at": 0.01, "kept": 1},
            {"grid": "NF4", "at": None, "kept": 2},
            {"grid": "NF4", "at": 0.5, "kept": 3},
        ],
        "seeds": {"5": 7},
    }
    for path, values in {
        '$.cells[grid="int4 g32, fp32"].kept': [1],
        "$.cells[grid=NF4].kept": [2, 3],
        "$.cells[grid=NF4][at=null].kept": [2],
        "$.cells[grid!=NF4].kept": [1],
        "$.cells[at=0.010].kept": [1],
        "$.cells[kept>1].at": [None, 0.5],
        "$.cells[0].kept": [1],
        "$.cells[*].kept": [1, 2, 3],
        "$.seeds.5": [7],
        "$.seeds[*]": [7],
    }.items():
        assert [hit.value for hit in find(document, path)] == values, path


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("$.cels", "nearest: cells"),
        ("$.cells.kept", "[key=value]"),
        ("$.cells[grid=NF5]", "there is grid = NF4"),
        ("$.cells[gird=NF4]", "nearest: grid"),
        ("$.cells[3]", "1 entries"),
        ("$.cells[0].kept.more", "no key 'more'"),
        ("$.cells[0]kept", "cannot read"),
        ("$.cells[0].kept[*]", "not a list"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_there_is(path, said):
    with pytest.raises(PaperError) as caught:
        find({"cells": [{"grid": "NF4", "kept": 1}]}, path)
    assert said in str(caught.value)


# --- rounding


@given(FINITE, st.floats(1e-4, 1e4), st.floats(1e-4, 1e4))
def test_an_interval_fixes_the_digits_of_all_three(value, below, above):
    interval = Interval(value, value - below, value + above)
    text = write(Figure(value, interval.low, interval.high, whole=True), [])
    middle, low, high = text.replace("[", "").replace("]", "").replace(",", "").split()
    decimals = interval_decimals(interval)
    for one, exact in ((middle, value), (low, interval.low), (high, interval.high)):
        assert len(one.partition(".")[2]) == decimals
        assert abs(parsed(one) - exact) <= 0.5 * 10.0**-decimals * (1 + 1e-6)
    alone = write(Figure(value, interval.low, interval.high), [])
    assert parsed(alone) == parsed(middle)


@example(0.99999)  # rounds up to another power of ten
@example(-9.9996)
@example(999.96)
@given(FINITE)
def test_a_number_without_an_interval_has_three_figures(value):
    text = write(Figure(value), [])
    if float(value).is_integer():
        assert parsed(text) == value
    else:
        assert parsed(text) == pytest.approx(value, rel=5.1e-3)
        digits = text.partition("e")[0].replace(MINUS, "").replace(".", "").lstrip("0")
        assert abs(value) >= 999.5 or len(digits) <= 3


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=6))
def test_a_mean_shows_no_more_than_its_records_agree_on(values):
    figures = [Figure(value) for value in values]
    mean = AGGREGATES["mean"](figures)
    text = write(mean, [])
    assert parsed(text) == pytest.approx(mean.value, abs=max(values) - min(values) + 1)
    if max(values) - min(values) > 1 and "." in text:
        assert len(text.partition(".")[2]) <= 1
    assert len(text.partition(".")[2]) <= 4
    whole = write(AGGREGATES["spread"](figures), [])
    assert whole.startswith(f"{text} (")


def test_forms():
    assert write(Figure(0.0468), ["percent"]) == "4.68\N{NO-BREAK SPACE}%"
    assert write(Figure(0.02), []) == "0.02"
    assert write(Figure(3.576e-07), []) == f"3.58e{MINUS}07"
    assert write(Figure(338690.0), []) == "338,690"
    assert write(Figure(0.5), ["signed"]) == "+0.5"
    assert write(Figure(3185.34), ["figures", "2"]) == "3200"
    assert write(Figure(0.0121), ["p"]) == "=\N{NO-BREAK SPACE}0.012"
    assert write(Figure(0.0121), ["p", "bare"]) == "0.012"
    assert write(Figure(2e-9), ["p", "bare"]) == "<\N{NO-BREAK SPACE}0.001"
    assert write(Figure("0.21.2"), []) == "0.21.2"
    for bad in (["precent"], ["p", "percent"], ["figures"]):
        with pytest.raises(PaperError):
            write(Figure(0.5), bad)
    with pytest.raises(PaperError):
        write(Figure(1.5), ["p"])
    with pytest.raises(PaperError):
        write(Figure("text"), ["percent"])
    with pytest.raises(PaperError):
        figure({"a": True}, Hit(("a",), True))


# --- references to the committed studies


def test_every_kind_of_reference_reads_the_committed_file():
    study = json.loads((ROOT / "studies/adaptive_rank/analysis.json").read_text())
    one = next(
        c
        for c in study["controls"]
        if (c["data"], c["arm"]) == ("trec-6", "shuffled-gradient")
    )
    found = find(study, "$.controls[data=trec-6][arm=shuffled-gradient].difference")
    assert found[0].value == one["difference"]
    expected = write(figure(study, found[0]), ["signed"])
    assert shown("adaptive_rank trec-6/shuffled-gradient difference") == expected
    value = shown("adaptive_rank trec-6/shuffled-gradient difference.value")
    assert expected.startswith(value)
    assert shown("count adaptive_rank $.runs") == str(len(study["runs"]))
    arms = [a["seconds"] for a in study["arms"]]
    most = shown("most adaptive_rank */* seconds")
    assert parsed(most) == pytest.approx(max(arms), rel=5e-3)
    assert shown("adaptive_rank_smollm2 gradient seeds") == "3"
    peft = "adalora_eval_loss $.environment.packages.peft"
    assert (
        shown(peft)
        == json.loads((ROOT / "studies/adalora_eval_loss/results.json").read_text())[
            "environment"
        ]["packages"]["peft"]
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adaptive_rnk trec-6/eva value", "nearest: adaptive_rank"),
        ("adaptive_rank trec-6/evaa value", "trec-6/eva"),
        ("adaptive_rank eva value", "DATA/ARM"),
        ("adaptive_rank trec-6/eva vlaue", "nearest: value"),
        ("adaptive_rank trec-6/uniform-8 difference", "compared with nothing"),
        ("adaptive_rank */eva p", "leads to 2 numbers"),
        ("adaptive_rank $.arms[0]", "an object with"),
        ("adaptive_rank", "needs a source and an address"),
        ("adapter_survival trec-6/x value", "$.key[name=value]"),
        ("runs/none-0123456789 test/accuracy adapter", "no run"),
        ("benchmarks/results/none.json $.a", "cannot be read"),
        ("literal 0.05", "the reason"),
        ("figure nothing", "no figure 'nothing'"),
        ("claim adaptive_rank trec-6/eva best", "better, worse"),
        ("count better continual_merging $.comparisons", "higher or lower"),
    ],
)
def test_an_unknown_reference_says_what_is_known(text, said):
    with pytest.raises(PaperError) as caught:
        shown(text)
    assert said in str(caught.value)


def test_all_that_is_listed_can_be_written():
    found = numbers(LIBRARY, "adaptive_rank_smollm2")
    listed = [(one.reference.text, one.shown) for one in found]
    assert ("adaptive_rank_smollm2 chatterbot/gradient seeds", "3") in listed
    assert len(listed) > 100
    for text, value in listed[::17]:
        assert shown(text) == value


def test_a_number_knows_its_runs_and_commits():
    source = LIBRARY.study("adaptive_rank_smollm2")
    path = "$.comparisons[arm=gradient].difference"
    told = runs_and_commits(source, find(source.document, path)[0])
    pair = ("gradient", "uniform-8")
    runs = [r for r in source.document["runs"] if r["arm"] in pair]
    assert told["runs"] == [r["run"] for r in runs]
    assert set(told["commits"]) == {r["commit"] for r in runs}


# --- claims

VERDICTS = {"inconclusive": "undecided"}


@pytest.mark.parametrize("study", ["adaptive_rank", "adaptive_rank_smollm2"])
def test_only_the_studys_own_verdict_can_be_claimed(study):
    source = LIBRARY.study(study)
    for hit in find(source.document, "$.comparisons[*]"):
        verdict = VERDICTS.get(hit.value["verdict"], hit.value["verdict"])
        for word in ("better", "worse", "equivalent", "undecided"):
            assert claims.holds(source, hit, word) == (word == verdict)
        weak = verdict in ("undecided", "equivalent")
        assert claims.holds(source, hit, "not-shown") == weak


@given(
    st.floats(-1, 1),
    st.floats(1e-3, 1),
    st.floats(0, 1),
    st.sampled_from(["lower", "higher"]),
)
def test_a_claim_needs_an_interval_without_zero_and_a_small_p(value, half, p, better):
    record = {"value": value, "low": value - half, "high": value + half, "p_holm": p}
    source = Source("s", "s.json", "", {"better": better, "all": [record]})
    (hit,) = find(source.document, "$.all[0]")
    above, below = value - half > 0 and p < 0.05, value + half < 0 and p < 0.05
    assert claims.holds(source, hit, "higher") == above
    assert claims.holds(source, hit, "lower") == below
    assert claims.holds(source, hit, "better") == (
        above if better == "higher" else below
    )
    assert claims.holds(source, hit, "not-shown") == (not above and not below)
    if not above:
        with pytest.raises(PaperError, match="claimed to be higher, and is not"):
            claims.check(source, hit, "higher", None)


def test_a_claim_about_another_reference_is_refused():
    text = "claim adaptive_rank trec-6/shuffled-gradient worse than"
    assert shown(f"{text} gradient") == "worse"
    with pytest.raises(PaperError, match="against 'gradient'"):
        shown(f"{text} uniform-8")


def test_a_claim_about_several_needs_all_of_them():
    assert shown("claim adaptive_rank $.comparisons not-shown")
    with pytest.raises(PaperError, match="is claimed to be undecided"):
        shown("claim adaptive_rank $.controls undecided")


# --- the draft


@pytest.mark.parametrize(
    "prose",
    [
        "by 0.26 nats",
        "a gain of 12 %",
        "12% more",
        "12 percent",
        "of −3.5",
        "(p < 0.01)",
        "p = .03",
        "$p < 0.01$",
        "$0.83$",
        "$0.83 \\pm 0.02$",
        "[0.12, 0.43]",
        "[1, 3] nats",
        "[1 – 3]",
        "a rate of 3e-4",
        "338,690 parameters",
        "| gradient | 0.45 |",
        "a footnote[^1]\n\n[^1]: of 0.5",
        "**0.5**",
        "![A gain of 0.5](f.svg)",
        ": Table of 0.5 nats",
        "version 0.21.2",
        "a ` tick, 0.5\n\nand ` another",
    ],
)
def test_a_number_typed_in_prose_is_found(prose):
    found = read(f"# Head\n\n{prose}\n").typed
    assert found
    assert all(spot.line >= 3 for spot in found)


@pytest.mark.parametrize(
    "prose",
    [
        "five seeds, 40 steps, rank 8, in 2024, and uniform-16",
        "`alpha=0.5` and `rate 3e-4`",
        "```\nloss 0.5\n```",
        "$\\alpha = 0.5$ and $$r = 0.25 d$$",
        "## Version 1.5",
        "[@hu2022, p. 3.5]",
        "[text](https://host.org/1.5/a) <https://host.org/2.5>",
        "![A figure](f-0.5.svg){#fig:a width=62.5%}",
        "<!-- 0.5 -->",
        '{{ literal 0.05 "the level" }}',
        "SmolLM2-135M and all-MiniLM-L6-v2",
        "(a, b) and [see 1]",
        "Holm (1979), others (2019, 2020)",
        "a $x +\ny = 0.5$ b",
    ],
)
def test_what_is_no_result_is_free(prose):
    assert read(f"{prose}\n").typed == ()


def test_only_the_abstract_of_the_front_matter_is_prose():
    front = (
        "---\ntitle: T\nversion: 1.5\nabstract: |\n  It is 0.5.\nfontsize: 9.5pt\n---\n"
    )
    (spot,) = read(front).typed
    assert (spot.text, spot.line) == ("0.5", 5)


def test_a_draft_knows_its_lines_citations_images_and_labels():
    text = (
        "See @one and [@two, p. 3; -@three], not me@home.org or `@four`.\n\n"
        "{{ a b }} and $x = {{ c d }}$ in `{{ e }}`\n\n"
        "![First](f.svg){#fig:first}\n\n![Second](g.svg){#fig:second width=50%}\n\n"
        "Text ![inline](h.svg)\n\n| a |\n|---|\n| b |\n\n: Caption {#tbl:one}\n"
    )
    draft = read(text)
    assert [spot.text for spot in draft.citations] == ["one", "two", "three"]
    assert [(r.text, r.line, r.maths) for r in draft.references] == [
        ("a b", 3, False),
        ("c d", 3, True),
    ]
    assert [spot.text for spot in draft.images] == ["f.svg", "g.svg", "h.svg"]
    assert {
        k: v.replace("\N{NO-BREAK SPACE}", " ") for k, v in draft.labels.items()
    } == {
        ("figure", "first"): "Figure 1",
        ("figure", "second"): "Figure 2",
        ("table", "one"): "Table 1",
    }
    assert [s.line for s in read("{{ a\nb }} $x_{y_{z}}$\n{{ open").stray] == [3]


@given(st.floats(1e-12, 1e12), st.booleans())
def test_what_is_written_is_markup_of_the_same_number(value, maths):
    document = {"x": value}
    library = Library(ROOT)
    text = "$y = {{ studies/x $.x }}$" if maths else "{{ studies/x $.x }}"
    reference = read(text).references[0]
    source = Source("x", "x.json", "", document)
    library.study = lambda name: source
    found = resolve(library, reference, {})
    plain = found.written.replace(" × 10^", "e").replace("\\times 10^{", "e")
    plain = plain.replace("^", "").replace("}", "")
    assert math.isclose(parsed(plain), value, rel_tol=6e-3)
