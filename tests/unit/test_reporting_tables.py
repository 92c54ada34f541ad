import csv
import io
import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralab.evaluation.intervals import Interval
from loralab.reporting.renderers import (
    escape_latex,
    to_csv,
    to_html,
    to_latex,
    to_markdown,
)
from loralab.reporting.tables import (
    Column,
    Table,
    csv_headers,
    format_interval,
    format_number,
    interval_decimals,
    write_table,
)

HOSTILE = '<script>a & b | c_d \\ e\nf "g" % $h$ #i {j} ~k ^l [m] *n* `o` --p'
TABLE = Table(
    "Accuracy & <size> of_all",
    [
        Column("method"),
        Column("accuracy", "share"),
        Column("gap", "share", signed=True),
        Column("size", "MB", digits=1),
        Column("rows", align="centre"),
    ],
    [
        [HOSTILE, Interval(0.8123, 0.79, 0.8331), None, 1 / 3, 123456],
        ["b", None, Interval(-0.012, -0.0199, 0.0031), 2.0, 7],
    ],
    ["1. a note_", HOSTILE],
)

letters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
texts = st.text(letters, max_size=12)
numbers = st.floats(width=64) | st.integers()
intervals = st.lists(st.floats(allow_nan=False), min_size=3, max_size=3).map(
    lambda three: Interval(three[0], min(three[1:]), max(three[1:]))
)
cells = st.none() | texts | numbers | intervals


@st.composite
def tables(draw):
    width = draw(st.integers(1, 4))
    units, signs = st.sampled_from(["", "MB", "|"]), st.booleans()
    columns = [
        Column(f"{draw(texts)}{i}.", draw(units), signed=draw(signs))
        for i in range(width)
    ]
    row = st.lists(cells, min_size=width, max_size=width)
    rows = draw(st.lists(row, max_size=4))
    return Table(draw(texts), columns, rows, draw(st.lists(texts, max_size=2)))


def read(table):
    return list(csv.reader(io.StringIO(to_csv(table), newline=""), strict=True))


def split_markdown(line):
    """Split a row as GitHub does: at the bars that no backslash guards."""
    assert line.startswith("| ")
    assert line.endswith(" |")
    return re.findall(r"((?:\\.|[^|\\])*)\|", line[1:])


@given(tables())
def test_csv_reads_back_to_the_exact_numbers(table):
    head, *rows = read(table)
    headers = csv_headers(table)
    assert head == [name for names in headers for name in names]
    assert len(rows) == len(table.rows)
    for found, row in zip(rows, table.rows, strict=True):
        found = iter(found)
        for cell, names in zip(row, headers, strict=True):
            got = [next(found) for _ in names]
            if isinstance(cell, Interval):
                assert [float(x) for x in got] == [cell.value, cell.low, cell.high]
            elif isinstance(cell, float):
                assert float(got[0]) == cell or math.isnan(cell)
            elif isinstance(cell, int):
                assert int(got[0]) == cell
            else:
                assert got[0] == (cell or "")


@given(tables())
def test_markdown_has_as_many_cells_in_each_row(table):
    lines = to_markdown(table).split("\n")
    start = 2
    block = lines[start : start + 2 + len(table.rows)]
    assert {len(split_markdown(line)) for line in block} == {len(table.columns)}
    assert lines[start - 1] == lines[start + len(block)] == ""


@given(tables())
def test_html_and_latex_are_well_formed(table):
    parsed = Parsed()
    parsed.feed(to_html(table))
    assert parsed.open == []
    assert parsed.tags.count("tr") == 1 + len(table.rows)
    latex = to_latex(table)
    body = latex.split("\\midrule\n")[1].split("\\bottomrule")[0].split("\n")[:-1]
    assert len(body) == len(table.rows)
    for line in body:
        assert line.endswith(r" \\")
        assert len(re.findall(r"(?<!\\)&", line)) == len(table.columns) - 1
        assert not line.startswith(("[", "*"))


class Parsed(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_digits_come_from_the_width():
    assert format_interval(Interval(0.8123, 0.79, 0.8331)) == "0.812 [0.790, 0.833]"
    assert format_interval(Interval(12.3, 5, 19.9)) == "12 [5, 20]"
    assert format_interval(Interval(12345.6, 12000, 13000)) == "12346 [12000, 13000]"
    assert format_interval(Interval(0.5, 0.5, 0.5)) == "0.5 [0.5, 0.5]"
    tiny = Interval(1.23e-8, 1.1e-8, 1.4e-8)
    assert format_interval(tiny) == "1.23e−08 [1.10e−08, 1.40e−08]"
    assert format_interval(Interval(0.1, 0, 0.2), digits=4) == "0.1000 [0.0000, 0.2000]"
    assert interval_decimals(Interval(1.0, 1.0, math.inf)) is None


def test_differences_carry_signs_and_zero_none():
    gap = Interval(-0.0001, -0.02, 0.0031)
    assert format_interval(gap, signed=True) == "0.000 [−0.020, +0.003]"
    assert format_number(3, signed=True) == "+3"
    assert format_number(-123456) == "−123,456"
    assert format_number(-math.inf) == "−∞"
    assert format_number(math.nan) == "NaN"
    assert format_number(-1e-9, 2) == "0.00"


def test_markdown():
    lines = to_markdown(TABLE).splitlines()
    assert lines[0] == r"**Accuracy &amp; &lt;size&gt; of\_all**"
    rule = split_markdown(lines[3])
    sides = [(x.strip()[0] == ":", x.strip()[-1] == ":") for x in rule]
    left, right, centre = (True, False), (False, True), (True, True)
    assert sides == [left, right, right, right, centre]
    cells = [cell.strip() for cell in split_markdown(lines[4])]
    assert cells[1:] == ["0.812 [0.790, 0.833]", "–", "0.3", "123,456"]
    assert r"&lt;script&gt;a &amp; b \| c\_d \\ e<br>f" in cells[0]
    assert r"1\. a note\_" in lines


def test_latex_escapes_all_that_is_special():
    specials = {
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
    }
    assert escape_latex("".join(specials)) == "".join(specials.values())
    assert escape_latex("--method") == "-{}-method"
    assert escape_latex("a\nb") == "a b"
    text = to_latex(TABLE)
    assert r"\caption{Accuracy \& \textless{}size\textgreater{} of\_all}" in text
    assert r"\begin{tabular}{lrrrc}" in text
    assert "0.812 [0.790, 0.833] & -- & 0.3 & 123,456" in text
    assert "$-$0.012 [$-$0.020, +0.003]" in text
    bare = re.sub(r"\\[&%$#_{}]", "", text.split("\n", 1)[1])
    assert not re.search(r"[%#_~]", bare)


def test_html():
    parsed = Parsed()
    text = to_html(TABLE, "Table 1.")
    parsed.feed(text)
    assert "script" not in parsed.tags
    assert "<script>a & b | c_d \\ e" in parsed.text
    assert '<th scope="row"' in text
    assert "Table 1." in parsed.text


def test_all_four_are_written(tmp_path):
    paths = write_table(TABLE, tmp_path / "new", "main")
    assert [path.suffix for path in paths] == [".md", ".tex", ".csv", ".html"]
    assert sorted(paths) == sorted((tmp_path / "new").iterdir())
    before = [path.read_bytes() for path in paths]
    assert [p.read_bytes() for p in write_table(TABLE, tmp_path / "new", "main")] == (
        before
    )


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        ([], [], "no column"),
        ([Column("a")], [["x", "y"]], "2 cells for 1 columns"),
        ([Column("a"), Column("a")], [], "named alike"),
        ([Column("a"), Column("a low")], [[Interval(0, 0, 1), 1]], "named alike"),
        ([Column("a")], [[[1]]], "a cell is a list"),
    ],
)
def test_what_is_no_table_is_refused(columns, rows, message):
    with pytest.raises(ValueError, match=message):
        Table("t", columns, rows)
