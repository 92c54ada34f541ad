r"""A table as Markdown, LaTeX, CSV and HTML; each escapes all that is not its own.

Markdown is GitHub's: every character that could start markup has a backslash, `<` and
`&` are entities. LaTeX needs `booktabs` and nothing else; a row never begins with `[`
or `*`, which `\\` before it would read as its argument.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from html import escape

from loralab.evaluation.intervals import Interval
from loralab.reporting.tables import Align, Cell, Table, csv_headers, format_cell

_MARKDOWN = {"<": "&lt;", ">": "&gt;", "&": "&amp;"} | {
    mark: f"\\{mark}" for mark in r"\|`*_[]~$#"
}
_LATEX = {
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
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "·": r"\textperiodcentered{}",
} | {
    mark: f"${command}$"
    for mark, command in {
        "−": "-",
        "±": r"\pm",
        "×": r"\times",
        "∞": r"\infty",
        "≤": r"\le",
        "≥": r"\ge",
        "≈": r"\approx",
        "→": r"\rightarrow",
        "←": r"\leftarrow",
        "Δ": r"\Delta",
        "α": r"\alpha",
        "β": r"\beta",
        "λ": r"\lambda",
        "µ": r"\mu",
        "μ": r"\mu",
        "σ": r"\sigma",
        "²": "^2",
        "³": "^3",
        "°": r"^\circ",
    }.items()
}
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
_LETTER: dict[Align, str] = {"left": "l", "right": "r", "centre": "c"}


def _lines(text: str) -> list[str]:
    """Return the lines of a text; what cannot be shown becomes U+FFFD."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text).splitlines()


def _escape(text: str, marks: dict[str, str], newline: str) -> str:
    lines = ["".join(marks.get(c, c) for c in line) for line in _lines(text)]
    return newline.join(lines)


def escape_markdown(text: str) -> str:
    """Return a text that Markdown shows as it is; line ends become ``<br>``."""
    return _escape(text, _MARKDOWN, "<br>")


def _paragraph(text: str) -> str:
    """Return a text as a paragraph that Markdown takes for no list and no code."""
    escaped = escape_markdown(text.strip())
    return re.sub(r"^(\d*)([-+.)])", r"\1\\\2", escaped)


def escape_latex(text: str) -> str:
    """Return a text that LaTeX shows as it is; line ends become spaces."""
    parted = re.sub(r"-(?=-)", "-\0", " ".join(_lines(text)))
    return "".join("{}" if c == "\0" else _LATEX.get(c, c) for c in parted)


def _latex_number(text: str) -> str:
    return "".join(c if c in "[]" else _LATEX.get(c, c) for c in text)


def escape_html(text: str) -> str:
    """Return a text that HTML shows as it is; line ends become ``<br>``."""
    return "<br>".join(escape(line) for line in _lines(text))


def _shown(
    table: Table, text: Callable[[str], str], number: Callable[[str], str] = str
) -> list[list[str]]:
    """Return the rows as they are shown, texts and numbers each escaped their way."""
    return [
        [
            (text if isinstance(cell, str) else number)(format_cell(cell, column))
            for cell, column in zip(row, table.columns, strict=True)
        ]
        for row in table.rows
    ]


def _padded(cells: list[str], widths: list[int], aligns: list[Align]) -> str:
    adjust = {"left": str.ljust, "right": str.rjust, "centre": str.center}
    parts = [
        adjust[align](cell, width)
        for cell, width, align in zip(cells, widths, aligns, strict=True)
    ]
    return f"| {' | '.join(parts)} |"


def to_markdown(table: Table) -> str:
    """Return the table in GitHub's Markdown: title, table, notes."""
    aligns = [table.aligned(i) for i in range(len(table.columns))]
    head = [escape_markdown(column.header) for column in table.columns]
    rows = _shown(table, escape_markdown)
    columns = zip(head, *rows, strict=True)
    widths = [max(3, *(len(cell) for cell in cells)) for cells in columns]
    rules = {
        "left": lambda n: ":" + "-" * (n - 1),
        "right": lambda n: "-" * (n - 1) + ":",
        "centre": lambda n: ":" + "-" * (n - 2) + ":",
    }
    rule = [rules[align](n) for align, n in zip(aligns, widths, strict=True)]
    lines = [_padded(row, widths, aligns) for row in (head, rule, *rows)]
    notes = "".join(f"\n{_paragraph(note)}\n" for note in table.notes)
    title = f"**{escape_markdown(table.title.strip())}**"
    return f"{title}\n\n" + "\n".join(lines) + f"\n{notes}"


def to_latex(table: Table) -> str:
    r"""Return a ``table`` float with ``\caption`` and notes; it needs ``booktabs``."""
    letters = "".join(_LETTER[table.aligned(i)] for i in range(len(table.columns)))
    head = " & ".join(escape_latex(column.header) for column in table.columns)
    shown = _shown(table, escape_latex, _latex_number)
    rows = [" & ".join(row) + r" \\" for row in shown]
    notes = [
        rf"\par\smallskip{{\footnotesize {escape_latex(note)}\par}}"
        for note in table.notes
    ]
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(table.title)}}}",
        rf"\begin{{tabular}}{{{letters}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        *notes,
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _csv_cells(cell: Cell, count: int) -> list[str | int | float | None]:
    if isinstance(cell, Interval):
        return [float(cell.value), float(cell.low), float(cell.high)]
    rest: list[str | int | float | None] = [None] * (count - 1)
    return [float(cell) if isinstance(cell, float) else cell, *rest]


def to_csv(table: Table) -> str:
    """Return the table with every digit; a column of intervals is three columns.

    Numbers are as Python writes them, so that reading gives the same float64; text is
    quoted, None is empty.
    """
    headers = csv_headers(table)
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow([name for names in headers for name in names])
    for row in table.rows:
        pairs = zip(row, headers, strict=True)
        parts = [_csv_cells(cell, len(names)) for cell, names in pairs]
        writer.writerow([cell for part in parts for cell in part])
    return out.getvalue()


def _html_header(table: Table, index: int) -> str:
    column = table.columns[index]
    unit = f' <span class="unit">({escape_html(column.unit)})</span>'
    text = escape_html(column.name) + (unit if column.unit else "")
    return f'<th scope="col" class="{table.aligned(index)}">{text}</th>'


def _html_row(table: Table, cells: list[str]) -> str:
    parts = []
    for index, cell in enumerate(cells):
        align = table.aligned(index)
        names_row = index == 0 and align == "left"
        tag, scope = ("th", ' scope="row"') if names_row else ("td", "")
        parts.append(f'<{tag}{scope} class="{align}">{cell}</{tag}>')
    return f"<tr>{''.join(parts)}</tr>"


def to_html(table: Table, number: str = "") -> str:
    """Return a ``figure`` with the table, its caption and its notes.

    Args:
        table: What to show.
        number: Stands before the title, such as ``Table 2.``.
    """
    head = "".join(_html_header(table, i) for i in range(len(table.columns)))
    body = "\n".join(_html_row(table, row) for row in _shown(table, escape_html))
    notes = "".join(f"<p>{escape_html(note)}</p>" for note in table.notes)
    strong = f"<strong>{escape_html(number)}</strong> " if number else ""
    return (
        '<figure class="table">\n<div class="scroll" tabindex="0">\n<table>\n'
        f"<caption><span>{strong}{escape_html(table.title)}</span></caption>\n"
        f"<thead>\n<tr>{head}</tr>\n</thead>\n<tbody>\n{body}\n</tbody>\n"
        "</table>\n</div>\n"
        + (f'<figcaption class="notes">{notes}</figcaption>\n' if notes else "")
        + "</figure>\n"
    )
