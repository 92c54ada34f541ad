"""A matrix of values as coloured cells, each with its number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from loralab.evaluation.intervals import Interval
from loralab.reporting.figures.parts import (
    POINTS_PER_INCH,
    check_interval,
    check_label,
    check_some,
    empty_figure,
    freeze,
    text_width,
)
from loralab.reporting.style import (
    AXIS_HEIGHT,
    BAR_WIDTH,
    CELL_HEIGHT,
    CELL_PAD,
    CELL_WIDTH,
    DIVERGING,
    HATCH,
    INK,
    LEVEL_NAMES,
    MARGIN,
    PALE_INK,
    SEQUENTIAL,
    SMALL,
    TEXT,
    TITLE_LINE,
    ZONE,
    style,
)
from loralab.reporting.tables import format_number

HeatCell: TypeAlias = float | Interval
_DARK = 0.5
"""Colours of less luminance than this carry white numbers."""
_SPLIT = 40
"""Numbers are written so finely that their range has this many steps at least."""
_SLANT = 35
"""Degrees that long column names are turned by."""


_LUMA = (0.2126, 0.7152, 0.0722)
"""How bright red, green and blue are (ITU-R BT.709)."""

_MOST_WRITTEN = 6
"""Rows of a panel whose cells have room for numbers."""

_BAR_PAD = 0.02
"""Between map and bar, of the width."""


def _number(cell: HeatCell) -> float:
    return cell.value if isinstance(cell, Interval) else float(cell)


def _decimals(numbers: Sequence[float]) -> int:
    """Return the decimals that split the range of the numbers finely enough."""
    spread = max(numbers) - min(numbers) if numbers else 0.0
    return max(0, math.ceil(math.log10(_SPLIT / spread))) if spread else 2


def _whole(cells: Sequence[Sequence[HeatCell]]) -> bool:
    """Return whether all cells that are known count something."""
    known = [c for row in cells for c in row if not math.isnan(_number(c))]
    return all(isinstance(cell, int) for cell in known)


def _texts(cells: Sequence[Sequence[HeatCell]]) -> list[list[str]]:
    """Return each cell's text, an interval on a second line."""
    known = [n for row in cells for c in row if not math.isnan(n := _number(c))]
    digits = 0 if _whole(cells) else _decimals(known)

    def shown(cell: HeatCell) -> str:
        number = _number(cell)
        text = "" if math.isnan(number) else format_number(number, digits)
        if not isinstance(cell, Interval):
            return text
        low, high = (format_number(n, digits) for n in (cell.low, cell.high))
        return f"{text}\n[{low}, {high}]"

    return [[shown(cell) for cell in row] for row in cells]


def _scale(numbers: Sequence[float], centre: float | None) -> Normalize:
    finite = [number for number in numbers if not math.isnan(number)] or [0.0]
    low, high = min(finite), max(finite)
    if centre is None:
        reach = 0.0 if high > low else abs(low) / 2 or 1.0
        return Normalize(low - reach, high + reach)
    reach = max(centre - low, high - centre) or 1
    return TwoSlopeNorm(centre, centre - reach, centre + reach)


def _ink(colours: Colormap, share: float) -> str:
    red, green, blue, _ = colours(share)
    luminance = sum(w * c for w, c in zip(_LUMA, (red, green, blue), strict=True))
    return "white" if luminance < _DARK else INK


def _draw(
    axes: Axes, cells: Sequence[Sequence[HeatCell]], scale: Normalize, written: bool
) -> Axes:
    """Draw the cells and return the axes of the colour bar."""
    diverging = isinstance(scale, TwoSlopeNorm)
    colours = matplotlib.colormaps[DIVERGING if diverging else SEQUENTIAL]
    numbers = [[_number(cell) for cell in row] for row in cells]
    mesh = axes.pcolormesh(
        numbers, cmap=colours, norm=scale, edgecolors="white", linewidth=1
    )
    for y, (row, texts) in enumerate(zip(numbers, _texts(cells), strict=True)):
        for x, (number, text) in enumerate(zip(row, texts, strict=True)):
            if math.isnan(number):
                look: dict[str, Any] = {
                    "facecolor": ZONE,
                    "edgecolor": PALE_INK,
                    "linewidth": 0,
                }
                axes.add_patch(Rectangle((x, y), 1, 1, hatch=HATCH, **look))
                continue
            if not written:
                continue
            ink = _ink(colours, float(scale(number)))
            place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SMALL}
            axes.text(x + 0.5, y + 0.5, text, color=ink, **place)
    bar = axes.figure.colorbar(mesh, ax=axes, shrink=1.0, pad=_BAR_PAD, aspect=20)
    return bar.ax


def _size(texts: Sequence[Sequence[str]], columns: Sequence[str]) -> tuple[float, bool]:
    """Return a cell's width in inches, and whether the columns' names must slant."""
    widest = max(text_width(text, SMALL) for row in texts for text in row)
    width = max(CELL_WIDTH, widest / POINTS_PER_INCH + CELL_PAD)
    names = max(text_width(name, SMALL) for name in columns) / POINTS_PER_INCH
    if names <= LEVEL_NAMES:
        width = max(width, names + CELL_PAD)
    return width, names + CELL_PAD > width


def _check(
    values: Sequence[Sequence[HeatCell]], rows: Sequence[str], columns: Sequence[str]
) -> None:
    check_some(rows, "row")
    check_some(columns, "column")
    if [len(row) for row in values] != [len(columns)] * len(rows):
        shape = f"{len(rows)} × {len(columns)}"
        raise ValueError(f"values must be {shape}, as rows and columns are named")
    for name, row in zip(rows, values, strict=True):
        for cell in row:
            if isinstance(cell, Interval):
                check_interval(cell, name)
            elif math.isinf(cell):
                raise ValueError(f"{name}: a value is infinite")


def heat_map(
    values: Sequence[Sequence[HeatCell]],
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    centre: float | None = None,
    title: str = "",
) -> Figure:
    """Draw a matrix of numbers as colours, with the numbers in the cells.

    Args:
        values: [rows, columns]; a NaN cell is hatched, an `Interval` shows its bounds.
            Numbers that are all of type int are shown without decimals.
        rows: Names, from the top.
        columns: Names, from the left.
        label: Of the values, with a unit in parentheses.
        centre: Where two colours meet, for values with a meaningful middle; without
            it one colour grows lighter.
        title: One or more lines above the map; the figure is as wide as they are.

    Raises:
        ValueError: a label without a unit, values of another shape, an infinite value.
    """
    _check(values, rows, columns)
    numbers = [_number(cell) for row in values for cell in row]
    texts = _texts(values)
    with style():
        width, slant = _size(texts, columns)
        lines = 2 if any("\n" in text for row in texts for text in row) else 1
        names = max(text_width(name, SMALL) for name in (*rows, *columns))
        margin = names / POINTS_PER_INCH + MARGIN
        height = CELL_HEIGHT * (1 + lines) / 2 * len(rows)
        figure = empty_figure(
            max(
                margin + width * len(columns) + BAR_WIDTH,
                text_width(title) / POINTS_PER_INCH + MARGIN,
            ),
            height
            + (margin if slant else AXIS_HEIGHT)
            + len(title.splitlines()) * TITLE_LINE,
        )
        axes = figure.add_subplot()
        if title:
            figure.suptitle(title, fontsize=TEXT)
        bar = _draw(axes, values, _scale(numbers, centre), written=True)
        _name_axes(axes, rows, columns, slant)
        _name_bar(bar, check_label(label), _whole(values))
        return freeze(figure)


def draw_tasks(
    axes: Axes, values: Sequence[Sequence[float]], names: Sequence[str], label: str
) -> None:
    """Draw tasks × tasks on axes that are one panel of a figure.

    Cells have their numbers where there is room, and names always slant.

    Raises:
        ValueError: as `heat_map`.
    """
    _check(values, names, names)
    numbers = [number for row in values for number in row]
    written = len(names) <= _MOST_WRITTEN
    bar = _draw(axes, values, _scale(numbers, None), written)
    _name_axes(axes, names, names, slant=True)
    _name_bar(bar, check_label(label), whole=False)


def similarity_map(
    values: Sequence[Sequence[float]], names: Sequence[str], label: str
) -> Figure:
    """Draw how similar tasks are to each other, tasks × tasks.

    The diagonal is hatched: a task is like itself, and its 1 would take all colour
    from the rest. One colour that grows lighter, so that a grey print says the same.

    Args:
        values: [tasks, tasks]; the diagonal is not read, NaN is hatched too.
        names: Of the tasks.
        label: Of the values, with a unit in parentheses.

    Raises:
        ValueError: as `heat_map`.
    """
    return heat_map(without_diagonal(values), names, names, label)


def without_diagonal(values: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return a square matrix with NaN on its diagonal."""
    return [
        [math.nan if x == y else value for x, value in enumerate(row)]
        for y, row in enumerate(values)
    ]


def _name_bar(bar: Axes, label: str, whole: bool) -> None:
    bar.set_ylabel(label)
    bar.yaxis.set_major_locator(MaxNLocator(5, integer=whole))
    bar.spines["outline"].set_visible(False)


def _name_axes(
    axes: Axes, rows: Sequence[str], columns: Sequence[str], slant: bool
) -> None:
    axes.set_yticks([y + 0.5 for y in range(len(rows))], rows)
    turn: dict[str, Any] = {
        "rotation": _SLANT,
        "ha": "right",
        "rotation_mode": "anchor",
    }
    axes.set_xticks(
        [x + 0.5 for x in range(len(columns))], columns, **(turn if slant else {})
    )
    axes.invert_yaxis()
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
