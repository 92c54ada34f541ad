"""A table as data; Markdown, LaTeX, CSV and HTML of it live in `renderers`.

What is shown is rounded, what is stored is not: the CSV holds every digit, the other
three say no more digits than an interval carries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, TypeAlias

from loralab.evaluation.intervals import Interval
from loralab.runs.files import write_text

Align: TypeAlias = Literal["left", "right", "centre"]
Cell: TypeAlias = str | int | float | Interval | None

NOTHING = "–"
MINUS = "−"
FIGURES = 4
"""Significant figures of a number without an interval."""
WIDTH_FIGURES = 2
"""Significant figures that an interval's width is shown with."""
MOST_DECIMALS = 6
"""More decimals than these are written with an exponent."""
GROUPED_FROM = 10_000
"""Whole numbers from here on have their thousands set apart."""


@dataclass(frozen=True)
class Column:
    """How one column is named and shown.

    Attributes:
        name: Its header.
        unit: Shown in parentheses after the name; empty for text.
        digits: Decimals; by default from the interval's width, or four significant
            figures where there is none.
        align: By default right for numbers, left for text.
        signed: Whether numbers carry a sign, as differences should.
    """

    name: str
    unit: str = ""
    digits: int | None = None
    align: Align | None = None
    signed: bool = False

    @property
    def header(self) -> str:
        """The name, with the unit in parentheses."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class Table:
    """A table: what it shows, its columns, its rows, what must be said below it.

    Attributes:
        title: One sentence.
        columns: At least one.
        rows: Each with one cell a column: text, number, `Interval`, or None for
            "there is none".
        notes: One sentence each.

    Raises:
        ValueError: no column, a row of another length, a cell of another type, or two
            columns whose names would be the same in a CSV file.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError(f"table {self.title!r} has no column")
        for number, row in enumerate(self.rows):
            where = f"table {self.title!r}, row {number}"
            if len(row) != len(self.columns):
                count = f"{len(row)} cells for {len(self.columns)} columns"
                raise ValueError(f"{where}: {count}")
            for cell in row:
                if not isinstance(cell, str | int | float | Interval | None):
                    raise ValueError(
                        f"{where}: a cell is a {type(cell).__name__}; it must be "
                        "text, a number, an Interval or None"
                    )
        names = list(chain.from_iterable(csv_headers(self)))
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"table {self.title!r}: columns named alike: {twice}")

    def column(self, index: int) -> list[Cell]:
        """Return a column's cells."""
        return [row[index] for row in self.rows]

    def aligned(self, index: int) -> Align:
        """Return how a column is aligned: as asked, else by what it holds."""
        if asked := self.columns[index].align:
            return asked
        cells = [cell for cell in self.column(index) if cell is not None]
        number = cells and not any(isinstance(cell, str) for cell in cells)
        return "right" if number else "left"


UNITS = {
    "cross_entropy": "nats/label",
    "perplexity": "1",
    "bleu": "points",
    "chrf": "points",
}
"""Units of metrics; every other one is a share."""


def unit_of(metric: str) -> str:
    """Return the unit that a metric is shown with."""
    return UNITS.get(metric, "share")


def label_of(metric: str) -> str:
    """Return what an axis says of a metric."""
    return f"{metric.replace('_', '-')} ({unit_of(metric)})"


def csv_headers(table: Table) -> list[list[str]]:
    """Return each column's names in a CSV file: three where it holds an interval."""
    found = []
    for index, column in enumerate(table.columns):
        names = [column.name]
        if any(isinstance(cell, Interval) for cell in table.column(index)):
            names += [f"{column.name} low", f"{column.name} high"]
        unit = f" ({column.unit})" if column.unit else ""
        found.append([name + unit for name in names])
    return found


def _minus(text: str) -> str:
    return text.replace("-", MINUS)


def _special(value: float, signed: bool) -> str:
    if math.isnan(value):
        return "NaN"
    return f"{'+' if signed and value > 0 else MINUS if value < 0 else ''}∞"


def format_number(
    value: float, digits: int | None = None, *, signed: bool = False
) -> str:
    """Return a number as it is shown, with a true minus sign.

    Args:
        value: An int keeps all its digits (grouped from 10,000 on), a float has
            `digits` decimals or four significant figures.
        digits: Decimals.
        signed: Whether a positive number carries a plus.
    """
    sign = "+" if signed else ""
    if isinstance(value, int):
        comma = "," if abs(value) >= GROUPED_FROM else ""
        return _minus(f"{value:{sign}{comma}d}")
    if not math.isfinite(value):
        return _special(value, signed)
    form = f".{digits}f" if digits is not None else f".{FIGURES}g"
    text = f"{value:{sign}{form}}"
    return _minus(_unsigned_zero(text))


def _unsigned_zero(text: str) -> str:
    """Return the text; a zero that was rounded to has no sign."""
    return text if float(text) else text.lstrip("+-")


def interval_decimals(interval: Interval) -> int | None:
    """Return the decimals that show an interval's width in two significant figures.

    None where the width says nothing: it is zero or not finite.
    """
    width = interval.high - interval.low
    if not (math.isfinite(width) and width > 0):
        return None
    return max(0, WIDTH_FIGURES - 1 - math.floor(math.log10(width)))


def format_interval(
    interval: Interval, digits: int | None = None, *, signed: bool = False
) -> str:
    """Return ``0.812 [0.790, 0.833]``, with as many digits as the width carries.

    Args:
        interval: Value and interval.
        digits: Decimals; by default from the width (`interval_decimals`).
        signed: Whether positive numbers carry a plus, as in a difference.
    """
    numbers = (interval.value, interval.low, interval.high)
    decimals = interval_decimals(interval) if digits is None else digits
    if digits is None and decimals is not None and decimals > MOST_DECIMALS:
        largest = max(abs(n) for n in numbers if math.isfinite(n))
        figures = max(0, math.floor(math.log10(largest)) + decimals)
        sign = "+" if signed else ""
        texts = [_minus(f"{n:{sign}.{figures}e}") for n in numbers]
    else:
        # no commas between thousands: a comma parts low from high
        texts = [format_number(float(n), decimals, signed=signed) for n in numbers]
    value, low, high = texts
    return f"{value} [{low}, {high}]"


def format_cell(cell: Cell, column: Column) -> str:
    """Return a cell as it is shown, not yet escaped for any format."""
    if cell is None:
        return NOTHING
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Interval):
        return format_interval(cell, column.digits, signed=column.signed)
    return format_number(cell, column.digits, signed=column.signed)


def write_table(table: Table, folder: Path, name: str) -> list[Path]:
    """Write ``name.md``, ``.tex``, ``.csv`` and ``.html``, each atomically.

    Args:
        table: What to write.
        folder: Made if it is missing.
        name: Without a suffix.

    Returns:
        The paths written.
    """
    from loralab.reporting import renderers

    make: dict[str, Callable[[Table], str]] = {
        "md": renderers.to_markdown,
        "tex": renderers.to_latex,
        "csv": renderers.to_csv,
        "html": renderers.to_html,
    }
    paths = []
    for suffix, render in make.items():
        path = Path(folder) / f"{name}.{suffix}"
        write_text(path, render(table))
        paths.append(path)
    return paths
