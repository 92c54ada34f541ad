"""A report as one HTML file that needs nothing else: no script, no font, no network.

Parts are data; `page.html` beside this file holds the frame and the style sheet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Literal, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from loralab.reporting.renderers import to_html
from loralab.reporting.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BYTES = 5_000_000
"""A page larger than this is refused: it would be slow to open and to mail."""
CALLOUTS = ("note", "good", "warning", "bad")


@dataclass(frozen=True)
class Heading:
    """A heading; those outside of `Details` stand in the table of contents.

    Attributes:
        text: What it says.
        level: 2 for a chapter, 3 or 4 below.
    """

    text: str
    level: Literal[2, 3, 4] = 2


@dataclass(frozen=True)
class Text:
    """Paragraphs, parted by empty lines; `backticks` mark code, nothing else is markup.

    Attributes:
        text: What it says.
    """

    text: str


@dataclass(frozen=True)
class TablePart:
    """A table, numbered by its place.

    Attributes:
        table: What to show.
    """

    table: Table


@dataclass(frozen=True)
class FigurePart:
    """A figure, numbered by its place.

    Attributes:
        figure: Made by `loralab.reporting.figures`.
        caption: Below it.
        alt: What it shows, for those who do not see it; must not be empty.
    """

    figure: Figure
    caption: str
    alt: str


@dataclass(frozen=True)
class Callout:
    """A paragraph that must not be overlooked.

    Attributes:
        kind: ``note``, ``good``, ``warning`` or ``bad``; also written out.
        text: As in `Text`.
    """

    kind: Literal["note", "good", "warning", "bad"]
    text: str


@dataclass(frozen=True)
class Details:
    """Parts that are folded away; open in print.

    Attributes:
        summary: The line that stays.
        parts: What is folded.
    """

    summary: str
    parts: Sequence[Part]


Part: TypeAlias = Heading | Text | TablePart | FigurePart | Callout | Details


@dataclass(frozen=True)
class _Entry:
    """A line of the table of contents."""

    anchor: str
    text: Markup
    level: int


@dataclass
class _Numbers:
    """What has been numbered so far on one page."""

    tables: Iterator[int] = field(default_factory=lambda: count(1))
    figures: Iterator[int] = field(default_factory=lambda: count(1))
    headings: Iterator[int] = field(default_factory=lambda: count(1))
    contents: list[_Entry] = field(default_factory=list)
    depth: int = 0


def _prose(text: str) -> Markup:
    """Return escaped text, what stands in backticks as code."""
    halves = re.split(r"`([^`\n]+)`", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(half) if index % 2 else escape(half)
        for index, half in enumerate(halves)
    )


def _paragraphs(text: str) -> Markup:
    blocks = [block.strip() for block in re.split(r"\n\s*\n", text) if block.strip()]
    return Markup("\n").join(Markup("<p>{}</p>").format(_prose(b)) for b in blocks)


def _heading(part: Heading, numbers: _Numbers) -> Markup:
    if part.level not in (2, 3, 4):
        raise ValueError(f"heading {part.text!r}: level {part.level} is not 2, 3 or 4")
    anchor = f"section-{next(numbers.headings)}"
    if not numbers.depth:
        numbers.contents.append(_Entry(anchor, _prose(part.text), part.level))
    html = Markup('<h{0} id="{1}">{2}</h{0}>')
    return html.format(part.level, anchor, _prose(part.text))


def _figure(part: FigurePart, numbers: _Numbers) -> Markup:
    from loralab.reporting.svg import inline_svg

    if not part.alt.strip():
        raise ValueError(f"figure {part.caption!r} has no alternative text")
    number = next(numbers.figures)
    svg = Markup(inline_svg(part.figure, f"figure-{number}-", part.alt))
    html = Markup(
        '<figure class="plot">\n<div class="scroll card" tabindex="0">{}</div>\n'
        "<figcaption><strong>Figure {}.</strong> {}</figcaption>\n</figure>"
    )
    return html.format(svg, number, _prose(part.caption))


def _table(part: TablePart, numbers: _Numbers) -> Markup:
    return Markup(to_html(part.table, f"Table {next(numbers.tables)}."))


def _callout(part: Callout) -> Markup:
    if part.kind not in CALLOUTS:
        raise ValueError(f"callout {part.kind!r} is none of {', '.join(CALLOUTS)}")
    html = Markup('<aside class="callout {}">\n<p class="kind">{}</p>\n{}\n</aside>')
    return html.format(part.kind, part.kind.capitalize(), _paragraphs(part.text))


def _details(part: Details, numbers: _Numbers) -> Markup:
    numbers.depth += 1
    inner = _parts(part.parts, numbers)
    numbers.depth -= 1
    html = Markup("<details>\n<summary>{}</summary>\n{}\n</details>")
    return html.format(_prose(part.summary), inner)


def _part(part: Part, numbers: _Numbers) -> Markup:
    if isinstance(part, Heading):
        return _heading(part, numbers)
    if isinstance(part, Text):
        return _paragraphs(part.text)
    if isinstance(part, TablePart):
        return _table(part, numbers)
    if isinstance(part, FigurePart):
        return _figure(part, numbers)
    if isinstance(part, Callout):
        return _callout(part)
    return _details(part, numbers)


def _parts(parts: Sequence[Part], numbers: _Numbers) -> Markup:
    return Markup("\n").join([_part(part, numbers) for part in parts])


def page(title: str, parts: Sequence[Part], generated_by: str) -> str:
    """Return a whole HTML document; the same parts give the same text.

    Args:
        title: Of the page.
        parts: From the top; tables and figures are numbered in this order.
        generated_by: What made the page, from what: version, commit, runs.

    Raises:
        ValueError: a figure without alternative text, an unknown callout or level, or
            a page over 5 MB.
    """
    environment = Environment(
        loader=PackageLoader("loralab.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    numbers = _Numbers()
    body = _parts(parts, numbers)
    text = environment.get_template("page.html").render(
        title=title, body=body, contents=numbers.contents, generated_by=generated_by
    )
    if (size := len(text.encode())) > MOST_BYTES:
        raise ValueError(
            f"page {title!r} has {size:,} bytes, more than {MOST_BYTES:,}; move "
            "figures to a second page"
        )
    return text
