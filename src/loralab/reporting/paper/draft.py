"""A draft as data: its references, its typed numbers, citations and figures, by line.

A draft is pandoc's Markdown. What stands between double braces is a reference:

    {{ [AGGREGATE] SOURCE ADDRESS [FORM …] }}      a number
    {{ claim SOURCE ADDRESS WORD [than NAME] [as "text"] }}
    {{ count WORD SOURCE ADDRESS }}                how many comparisons carry the word
    {{ literal 0.05 "why it is no result" }}       a number that no run measured
    {{ figure NAME }}, {{ table NAME }}            of {#fig:NAME} and {#tbl:NAME}

Prose is what is left when code, maths, headings, comments, links, attributes, citations
and references are taken away (abstract and captions stay in). In prose nothing may look
like a result that was typed: a number with a decimal point or an exponent, a
percentage, a p value, an interval, a whole number with its thousands set apart. Maths
that names nothing (no letter but p) is prose, so that dollars hide no number. Small
whole numbers and years are free.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

_BLANK = re.compile(r"[^\n]")
FRONT = re.compile(r"\A---\n.*?\n(?:---|\.\.\.)\n", re.DOTALL)
_ABSTRACT = re.compile(r"^abstract:[^\n]*\n(?:[ \t]+[^\n]*\n|\n)*", re.MULTILINE)
_CODE = re.compile(
    r"^(?P<fence>```+|~~~+)[^\n]*\n.*?^(?P=fence)[^\n]*$"
    r"|<!--.*?-->"
    r"|(?P<tick>`+)(?!`)(?:(?!\n\s*\n).)+?(?<!`)(?P=tick)(?!`)",
    re.DOTALL | re.MULTILINE,
)
_REFERENCE = re.compile(r"\{\{(?P<words>(?:(?!\{\{|\}\}).)*)\}\}", re.DOTALL)
_STRAY = re.compile(r"\{\{")
_WORD = re.compile(r'(?:[^\s"]|"[^"]*")+')
_MATHS = re.compile(
    r"\$\$(?P<display>.+?)\$\$|(?<![\\$])\$(?=\S)(?P<inline>(?:(?!\n\s*\n)[^$])*?\S)\$(?!\d)",
    re.DOTALL,
)
_APART = re.compile(
    r"^#{1,6} [^\n]*$"  # headings
    r"|(?<=\])\([^()\s]*(?:\s+\"[^\"]*\")?\)"  # targets of links and images
    r"|<?\bhttps?://[^\s>)\]]+>?"
    r"|\{[#.:][^{}\n]*\}"  # attributes
    r"|\[[^\[\]]*@[^\[\]]*\]",  # citations
    re.MULTILINE,
)
_CITED = re.compile(r"(?<![\w@.])-?@\{?(?P<key>\w[\w:.#$%&+?<>~/-]*\w|\w)")
_IMAGE = re.compile(
    r"!\[(?P<caption>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<target>[^)\s]+)"
    r"(?:\s+\"[^\"]*\")?\)(?:\{(?P<attributes>[^}]*)\})?",
    re.DOTALL,
)
_CAPTION = re.compile(r"^(?:Table)?: +(?P<text>\S[^\n]*(?:\n[^\n]+)*)", re.MULTILINE)
_NAME = re.compile(r"#(?:fig|tbl):(?P<name>[\w-]+)")
_SIGN, _POINT = r"[-+−±]?", r"\d[\d,]*\.\d+"
_YEAR = r"\s*(?:19|20)\d\d\s*"
_TYPED = re.compile(
    rf"(?![\[(]{_YEAR}[,;–]{_YEAR}[\])])"
    rf"[\[(]\s*{_SIGN}\d+(?:\.\d+)?\s*(?:,|;|–|…|\.\.\.?)\s*{_SIGN}\d+(?:\.\d+)?\s*[\])]"
    rf"|\b[pP]\s*(?:[=<>≤≥≈]|\\[lg]eq?\b)\s*{_SIGN}\.?\d[\d.]*"
    rf"|(?<![\w.]){_SIGN}\d[\d,.]*(?:\s|\\,|~)*(?:\\?%|percent\b|per cent\b)"
    rf"|(?<![\w.])(?:{_SIGN}{_POINT}|[-+−]?\.\d+)(?:[eE][-+−]?\d+)?"
    rf"|(?<![\w.]){_SIGN}\d+[eE][-+−]?\d+\b"
    r"|(?<![\w.])\d{1,3}(?:,\d{3})+\b"
)
_NAMELESS = re.compile(
    r"\\(?:pm|mp|times|cdot|approx|sim|leq?|geq?|ll|gg|text|mathrm|percent|to)\b"
    r"|\b[pP]\b"
)


@dataclass(frozen=True)
class Reference:
    """Something between double braces.

    Attributes:
        text: Its words, with single spaces: what the lock knows it by.
        words: The same, quotes kept.
        start: Its place in the draft.
        end: Behind its closing braces.
        line: Counted from 1.
        maths: Whether it stands in maths.
    """

    text: str
    words: tuple[str, ...]
    start: int
    end: int
    line: int
    maths: bool


@dataclass(frozen=True)
class Spot:
    """Something that was found in a draft.

    Attributes:
        text: What it is: a typed number, a citation's key, a figure's target.
        line: Counted from 1.
    """

    text: str
    line: int


@dataclass(frozen=True)
class Draft:
    """What a draft holds; `read` makes it.

    Attributes:
        text: All of it.
        references: In their order.
        stray: Double braces that open and do not close.
        typed: Numbers in prose that should be references.
        citations: Keys of a bibliography.
        images: Targets of figures.
        labels: Name of a labelled figure or table -> what to call it: ``Figure 1``.
    """

    text: str
    references: tuple[Reference, ...]
    stray: tuple[Spot, ...]
    typed: tuple[Spot, ...]
    citations: tuple[Spot, ...]
    images: tuple[Spot, ...]
    labels: dict[tuple[str, str], str]


def read(text: str) -> Draft:
    """Return what a draft's text holds."""
    starts = [0, *accumulate(len(line) for line in text.splitlines(keepends=True))]

    def line(at: int) -> int:
        return sum(start <= at for start in starts)

    marked = _CODE.sub(_blank, text)
    maths = [match.span() for match in _MATHS.finditer(marked)]
    references = []
    for match in _REFERENCE.finditer(marked):
        words = tuple(_WORD.findall(match["words"]))
        inside = any(start <= match.start() < end for start, end in maths)
        place = match.start(), match.end(), line(match.start())
        references.append(Reference(" ".join(words), words, *place, inside))
    bare = _REFERENCE.sub(_blank, marked)

    def spots(found: Iterator[re.Match[str]], group: str | int = 0) -> tuple[Spot, ...]:
        return tuple(Spot(m[group], line(m.start(group))) for m in found)

    no_maths = _MATHS.sub(_blank, bare)
    body = FRONT.sub(_blank, no_maths)
    return Draft(
        text,
        tuple(references),
        spots(_STRAY.finditer(bare)),
        spots(_TYPED.finditer(_prose(bare))),
        spots(_CITED.finditer(_cited_in(no_maths)), "key"),
        spots(_IMAGE.finditer(body), "target"),
        _labels(body),
    )


def typed_in(text: str) -> str:
    """Return the first number that prose must not have typed; empty without one."""
    match = _TYPED.search(_prose(text))
    return match[0].strip() if match else ""


def _blank(match: re.Match[str]) -> str:
    """Return as much space, so that places and lines stay."""
    return _BLANK.sub(" ", match[0])


def _front(match: re.Match[str]) -> str:
    """Blank the front matter, all but its abstract."""
    blank = list(_blank(match))
    for inner in _ABSTRACT.finditer(match[0]):
        blank[inner.start() : inner.end()] = inner[0]
    return "".join(blank)


def _maths(match: re.Match[str]) -> str:
    """Blank maths that names something; a lone number in dollars stays."""
    inside = match["display"] or match["inline"]
    named = re.search(r"[^\W\d_]", _NAMELESS.sub("", inside))
    return _blank(match) if named else match[0]


def _prose(text: str) -> str:
    text = _MATHS.sub(_maths, text)
    return _APART.sub(_blank, FRONT.sub(_front, text))


def _cited_in(text: str) -> str:
    """Return the text in which an ``@key`` is a citation: no addresses of the web."""
    text = FRONT.sub(_front, text)
    return re.sub(r"\]\([^)\s]*\)|<?\bhttps?://\S+|\{[#.:][^{}\n]*\}", _blank, text)


def _labels(text: str) -> dict[tuple[str, str], str]:
    """Return what figures and tables are called, numbered as the document will be.

    An image alone in its paragraph with a caption is a figure, a paragraph that begins
    with a colon is a table's caption: as pandoc has it.
    """
    found: dict[tuple[str, str], str] = {}
    for kind, word, named in (
        ("figure", "Figure", _figures(text)),
        ("table", "Table", (m["text"] for m in _CAPTION.finditer(text))),
    ):
        for number, attributes in enumerate(named, 1):
            if label := _NAME.search(attributes):
                found[kind, label["name"]] = f"{word}\N{NO-BREAK SPACE}{number}"
    return found


def _figures(text: str) -> Iterator[str]:
    for match in _IMAGE.finditer(text):
        before, after = text[: match.start()], text[match.end() :]
        alone = before.endswith(("\n\n", "\n \n")) and re.match(
            r"[ \t]*\n\s*\n?", after
        )
        if alone and match["caption"].strip():
            yield match["attributes"] or ""
