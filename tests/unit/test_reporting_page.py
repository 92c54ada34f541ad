import re
from html.parser import HTMLParser

import pytest

from loralab.evaluation.intervals import Interval
from loralab.reporting import page as module
from loralab.reporting.figures import ForestRow, Strip, forest, strip
from loralab.reporting.page import (
    Callout,
    Details,
    FigurePart,
    Heading,
    TablePart,
    Text,
    page,
)
from loralab.reporting.tables import Column, Table

HOSTILE = "<script>alert('1')</script> & | _ \" </style> --> {{ 7 * 7 }} {% x %} `<b>`"


def a_table(title="A table"):
    rows = [["a", Interval(0.5, 0.4, 0.6)], ["b", None]]
    return Table(title, [Column("name"), Column("x", "share")], rows, ["note"])


def a_strip(name="a"):
    return strip([Strip(name, [0.1, 0.2], Interval(0.15, 0.1, 0.2))], "x (share)")


def a_forest():
    row = ForestRow("g", "l", Interval(0.1, 0.0, 0.2), "v", 3)
    return forest([row], "x (share)", zone=0.1)


def the_parts():
    return [
        Heading("First"),
        Text("One `code` line.\n\nAnother paragraph."),
        TablePart(a_table()),
        FigurePart(a_strip(), "Seeds.", "two dots"),
        FigurePart(a_strip(), "The same again.", "two dots"),
        FigurePart(a_forest(), "Differences.", "a forest"),
        Heading("Below", 3),
        Callout("warning", "Too little power."),
        Details("More", [Heading("Inner"), TablePart(a_table())]),
    ]


class Parsed(HTMLParser):
    VOID = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, attribute):
        return [a[attribute] for _, a in self.tags if attribute in a]

    def names(self):
        return [tag for tag, _ in self.tags]


@pytest.fixture(scope="module")
def text():
    return page("A report", the_parts(), "loralab, 3 runs")


def test_it_stands_alone(text):
    parsed = Parsed(text)
    assert parsed.open == []
    assert not {"script", "link", "img", "iframe", "object"} & set(parsed.names())
    assert "src" not in {name for _, attrs in parsed.tags for name in attrs}
    assert all(link.startswith("#") for link in parsed.all("href"))
    assert "://" not in text
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert len(text.encode()) < module.MOST_BYTES


def test_ids_are_unique_and_every_reference_has_one(text):
    parsed = Parsed(text)
    ids = parsed.all("id")
    assert len(ids) == len(set(ids))
    wanted = parsed.all("href") + re.findall(r"url\(([^)]*)\)", text)
    assert any("clip-path" in attrs for _, attrs in parsed.tags)
    assert {target.removeprefix("#") for target in wanted} <= set(ids)


def test_parts_are_numbered_and_headings_listed(text):
    parsed = Parsed(text)
    for number in ("Table 1.", "Table 2.", "Figure 1.", "Figure 3."):
        assert parsed.text.count(number) == 1
    links = parsed.all("href")
    assert links[:2] == ["#section-1", "#section-2"]
    assert parsed.text.count("Inner") == 1
    assert "<code>code</code>" in text
    assert text.count('role="img"') == 3
    assert 'aria-label="a forest"' in text
    assert "loralab, 3 runs" in parsed.text


def test_it_is_the_same_every_time(text):
    assert page("A report", the_parts(), "loralab, 3 runs") == text


def test_it_reads_in_light_dark_narrow_and_on_paper(text):
    for query in ("prefers-color-scheme: dark", "max-width", "print"):
        assert re.search(rf"@media[^{{]*{query}", text)
    assert 'name="viewport"' in text


def test_hostile_text_is_only_text():
    parts = [
        Heading(HOSTILE),
        Heading(HOSTILE),
        Text(HOSTILE),
        Callout("note", HOSTILE),
        Details(HOSTILE, [Text(HOSTILE)]),
        TablePart(
            Table(HOSTILE, [Column(HOSTILE, HOSTILE)], [[HOSTILE]], [HOSTILE]),
        ),
        FigurePart(a_strip(HOSTILE), HOSTILE, HOSTILE),
    ]
    parsed = Parsed(page(HOSTILE, parts, HOSTILE))
    assert parsed.open == []
    assert not {"script", "b"} & set(parsed.names())
    assert parsed.text.count("{{ 7 * 7 }} {% x %}") >= len(parts)
    assert parsed.text.count("<script>alert('1')</script> & | _") >= len(parts)
    assert parsed.all("aria-label")[-1] == HOSTILE


def test_what_is_no_part_of_a_page_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="no alternative text"):
        page("t", [FigurePart(a_strip(), "c", " ")], "x")
    with pytest.raises(ValueError, match="callout"):
        page("t", [Callout("shout", "c")], "x")
    with pytest.raises(ValueError, match="level"):
        page("t", [Heading("h", 1)], "x")
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match="second page"):
        page("t", [], "x")
