"""A forest plot: differences with their intervals, and what each of them shows.

From the left: groups and labels, intervals over a line at zero and over the zone that
is too small to matter, then the numbers, the verdict and the number of seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loralab.evaluation.intervals import Interval
from loralab.reporting.figures.parts import (
    POINTS_PER_INCH,
    Better,
    check_better,
    check_interval,
    check_label,
    check_some,
    empty_figure,
    freeze,
    no_spines,
    text_width,
)
from loralab.reporting.style import (
    AXIS_HEIGHT,
    BLUE,
    COLUMN_GAP,
    GAP,
    INDENT,
    INTERVAL_LINE,
    MARGIN,
    MARK,
    NOTE_HEIGHT,
    PALE_INK,
    PLOT_WIDTH,
    ROW_HEIGHT,
    SMALL,
    TEXT,
    THIN,
    VERMILION,
    ZONE,
    style,
)
from loralab.reporting.tables import format_interval

BETTER_COLOUR, WORSE_COLOUR, OPEN_COLOUR = BLUE, VERMILION, PALE_INK


_BELOW, _ABOVE = 0.4, 1.5
"""Room under the last line and over the first, in lines."""


@dataclass(frozen=True)
class ForestRow:
    """One difference.

    Attributes:
        group: Rows of one group stand together under its name; empty for none.
        label: What is compared.
        interval: The difference, in the axis' unit.
        verdict: What it shows, in a word or two.
        seeds: How many seeds it comes from.
    """

    group: str
    label: str
    interval: Interval
    verdict: str
    seeds: int


@dataclass(frozen=True)
class _Line:
    """A line of the figure: a group's name, or a row."""

    header: str = ""
    row: ForestRow | None = None


def _lines(rows: Sequence[ForestRow]) -> list[_Line]:
    found = []
    for group, members in groupby(rows, key=lambda row: row.group):
        found += [_Line(header=group)] if group else []
        found += [_Line(row=row) for row in members]
    return found


def _colour(row: ForestRow, better: Better | None) -> str:
    if not row.interval.excludes_zero:
        return OPEN_COLOUR
    if better is None:
        return BLUE
    won = (row.interval.low > 0) == (better == "higher")
    return BETTER_COLOUR if won else WORSE_COLOUR


def _right_columns(rows: Sequence[ForestRow]) -> dict[str, list[str]]:
    return {
        "difference": [format_interval(row.interval, signed=True) for row in rows],
        "verdict": [row.verdict for row in rows],
        "seeds": [str(row.seeds) for row in rows],
    }


def draw_interval(axes: Axes, row: ForestRow, y: int, better: Better | None) -> None:
    """Draw a difference and its interval, filled where it excludes zero."""
    interval, colour = row.interval, _colour(row, better)
    axes.hlines(y, interval.low, interval.high, color=colour, linewidth=INTERVAL_LINE)
    axes.plot(
        [interval.value],
        [y],
        marker="s",
        markersize=MARK,
        color=colour,
        markerfacecolor=colour if interval.excludes_zero else "white",
        linestyle="none",
    )


def _draw_row(axes: Axes, row: ForestRow, y: int, better: Better | None) -> None:
    draw_interval(axes, row, y, better)
    indent = INDENT if row.group else 0.0
    _beside(axes, row.label, y, -1, indent)


def _beside(
    axes: Axes, text: str, y: float, side: int, offset: float, **look: Any
) -> None:
    """Write a text left (−1) or right (1) of the axes, `offset` points further on."""
    left = axes.get_window_extent().x0 * POINTS_PER_INCH / axes.figure.dpi
    shift = offset + (MARGIN * POINTS_PER_INCH - left if side < 0 else 0.0)
    axes.annotate(
        text,
        (0.0 if side < 0 else 1.0, y),
        xycoords=axes.get_yaxis_transform(),
        xytext=(shift, 0.0),
        textcoords="offset points",
        va="center_baseline",
        annotation_clip=False,
        **look,
    )


def _draw_columns(axes: Axes, lines: Sequence[_Line]) -> None:
    rows = [line.row for line in lines if line.row is not None]
    places = [-n for n, line in enumerate(lines) if line.row is not None]
    at = COLUMN_GAP
    for name, texts in _right_columns(rows).items():
        width = max(text_width(text, TEXT) for text in (name, *texts))
        for y, text in zip((1, *places), (name, *texts), strict=True):
            look: dict[str, Any] = (
                {"color": PALE_INK, "fontsize": SMALL} if y == 1 else {}
            )
            right = name != "verdict"
            ha = {"ha": "right" if right else "left"}
            _beside(axes, text, y, 1, at + (width if right else 0.0), **look, **ha)
        at += width + COLUMN_GAP


def _margins(rows: Sequence[ForestRow]) -> tuple[float, float]:
    """Return what stands left and right of the axes, in inches."""
    labels = [text_width(row.label) + (INDENT if row.group else 0.0) for row in rows]
    heads = [text_width(row.group, weight="bold") for row in rows]
    columns = _right_columns(rows)
    widths = [max(map(text_width, (name, *texts))) for name, texts in columns.items()]
    right = sum(widths) + COLUMN_GAP * len(widths)
    left = max(*labels, *heads) + COLUMN_GAP
    return left / POINTS_PER_INCH + MARGIN, right / POINTS_PER_INCH + MARGIN


def _notes(label: str, zone: float | None, better: Better | None) -> str:
    text = check_label(label)
    if better is not None:
        text += "\nbetter →" if better == "higher" else "\n← better"
    if zone is not None:
        text += f"\nshaded: within ±{zone:g}, too small to matter"
    return text


def _empty_axes(
    rows: Sequence[ForestRow], lines: int, notes: int
) -> tuple[Figure, Axes]:
    left, right = _margins(rows)
    below = AXIS_HEIGHT + NOTE_HEIGHT * notes
    plot = ROW_HEIGHT * (lines + 1)
    width, height = left + PLOT_WIDTH + right, plot + below + MARGIN
    figure = empty_figure(width, height, constrained=False)
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=below / height,
        top=1 - MARGIN / height,
    )
    axes = figure.add_subplot()
    axes.set_ylim(-lines + _BELOW, _ABOVE)
    axes.set_yticks([])
    no_spines(axes, "left")
    return figure, axes


def forest(
    rows: Sequence[ForestRow],
    label: str,
    zone: float | None = None,
    better: Better | None = None,
) -> Figure:
    """Draw differences with their intervals, verdicts and seeds.

    A filled mark is an interval that excludes zero: blue if better, vermilion if worse.

    Args:
        rows: From the top; those of one group must stand together.
        label: Of the differences, with a unit in parentheses.
        zone: The smallest difference of interest: ± this is shaded.
        better: Which way is better; None where neither is.

    Raises:
        ValueError: a label without a unit, no rows, an interval that is not finite, a
            zone that is not positive, another `better`.
    """
    check_some(rows, "row")
    for row in rows:
        check_interval(row.interval, f"{row.group} {row.label}".strip())
    if zone is not None and not zone > 0:
        raise ValueError(f"the smallest difference of interest is {zone}, not positive")
    if better is not None:
        check_better(better)
    with style():
        note, lines = _notes(label, zone, better), _lines(rows)
        figure, axes = _empty_axes(rows, len(lines), note.count("\n"))
        if zone is not None:
            axes.axvspan(-zone, zone, color=ZONE, linewidth=0, zorder=0)
        axes.axvline(0, color=PALE_INK, linewidth=THIN, zorder=1)
        for number, line in enumerate(lines):
            if line.row is None:
                _beside(axes, line.header, -number, -1, 0.0, fontweight="bold")
            else:
                _draw_row(axes, line.row, -number, better)
        _draw_columns(axes, lines)
        axes.set_xlabel(note, labelpad=GAP)
        return freeze(figure)
