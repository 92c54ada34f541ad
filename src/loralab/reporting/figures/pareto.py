"""Two goals at once: points, and the front of those that no other beats in both.

The front is drawn as steps: every place on its worse side is beaten by a point on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Transform

from loralab.evaluation.intervals import Interval
from loralab.reporting.figures.labels import Segment, place_labels
from loralab.reporting.figures.parts import (
    Better,
    check_better,
    check_interval,
    check_label,
    check_some,
    empty_figure,
    freeze,
    legend_above,
    log_axis,
)
from loralab.reporting.style import (
    COLUMN_HEIGHT,
    COLUMN_WIDTH,
    FULL,
    HAIR,
    INK,
    INTERVAL_LINE,
    MARK,
    PALE,
    PALE_INK,
    THIN,
    ZONE,
    look,
    style,
)

_LOG_MARGIN, _LEAST_LOG_MARGIN = 0.05, 1.01
"""Room beside the outermost points of a logarithmic axis: a power, and a factor."""


_THINNER, _LARGER = 0.7, 1.2
"""Intervals and marks of a plot with many, against one with few."""


@dataclass(frozen=True)
class Point:
    """One thing with two properties, at least one of them measured.

    Attributes:
        name: Written beside it.
        x: An `Interval`, or a number that is exact (bytes, parameters).
        y: Likewise.
        group: Points of one group share colour and marker, and a line in the legend.
    """

    name: str
    x: float | Interval
    y: float | Interval
    group: str = ""


@dataclass(frozen=True)
class Zone:
    """A range of y that is shaded: a reference, and what beside it may be noise.

    Attributes:
        name: In the legend.
        y: The reference, and where the zone begins and ends.
    """

    name: str
    y: Interval


def number_of(value: float | Interval) -> float:
    """Return the number that an axis shows."""
    return value.value if isinstance(value, Interval) else float(value)


def ends(value: float | Interval) -> tuple[float, float]:
    """Return where a value's interval begins and ends."""
    if isinstance(value, Interval):
        return value.low, value.high
    return float(value), float(value)


def front(points: Sequence[Point], x_better: Better, y_better: Better) -> list[Point]:
    """Return the points that no other beats, by value, with x ascending.

    A point is beaten by one that is as good in both and better in one; intervals do
    not count.
    """

    def goodness(point: Point) -> tuple[float, float]:
        x, y = number_of(point.x), number_of(point.y)
        return (x if x_better == "higher" else -x, y if y_better == "higher" else -y)

    def beaten(point: Point) -> bool:
        x, y = goodness(point)
        others = map(goodness, points)
        return any(a >= x and b >= y and (a, b) != (x, y) for a, b in others)

    kept = [point for point in points if not beaten(point)]
    return sorted(kept, key=lambda point: (number_of(point.x), number_of(point.y)))


def check_points(points: Sequence[Point], x_log: bool) -> None:
    """Refuse what cannot be drawn.

    Raises:
        ValueError: no points, one without an interval, or without a logarithm.
    """
    check_some(points, "point")
    for point in points:
        if not any(isinstance(value, Interval) for value in (point.x, point.y)):
            raise ValueError(f"point {point.name!r} has no interval in x or in y")
        for value in (point.x, point.y):
            low, high = ends(value)
            check_interval(Interval(number_of(value), low, high), point.name)
        if x_log and min(number_of(point.x), *ends(point.x)) <= 0:
            raise ValueError(f"point {point.name!r}: x ≤ 0 has no logarithm")


def draw_point(
    axes: Axes,
    point: Point,
    number: int,
    on_front: bool,
    where: Transform | None = None,
) -> None:
    """Draw a point and its intervals in the look of this number, pale off the front.

    Args:
        axes: Where.
        point: What.
        number: Of its look.
        on_front: Whether it is not pale.
        where: From data to paper, if not as the axes have it.
    """
    seen, alpha = look(number), FULL if on_front else PALE
    x, y = number_of(point.x), number_of(point.y)
    bar: dict[str, Any] = {
        "color": seen.colour,
        "alpha": alpha,
        "linewidth": INTERVAL_LINE * _THINNER,
        "transform": where or axes.transData,
    }
    if isinstance(point.x, Interval):
        axes.hlines(y, *ends(point.x), **bar)
    if isinstance(point.y, Interval):
        axes.vlines(x, *ends(point.y), **bar)
    axes.plot(
        [x],
        [y],
        marker=seen.marker,
        color=seen.colour,
        markersize=MARK * _LARGER,
        markeredgecolor="white",
        markeredgewidth=HAIR,
        linestyle="none",
        alpha=alpha,
        zorder=3,
        transform=where or axes.transData,
    )


def _bars(point: Point) -> list[Segment]:
    """Return a point's intervals as lines."""
    (left, right), (low, high) = ends(point.x), ends(point.y)
    x, y = number_of(point.x), number_of(point.y)
    return [((left, y), (right, y)), ((x, low), (x, high))]


def _steps(best: Sequence[Point], x_better: Better) -> list[Segment]:
    """Return the level and upright lines of the front."""
    places = [(number_of(point.x), number_of(point.y)) for point in best]
    found = []
    for start, end in pairwise(places):
        corner = (end[0], start[1]) if x_better == "lower" else (start[0], end[1])
        found += [(start, corner), (corner, end)]
    return found


def _draw_front(axes: Axes, best: Sequence[Point], x_better: Better) -> None:
    axes.step(
        [number_of(point.x) for point in best],
        [number_of(point.y) for point in best],
        where="post" if x_better == "lower" else "pre",
        color=PALE_INK,
        linewidth=THIN,
        zorder=1,
        label="front",
    )


def _name_axes(
    axes: Axes, labels: tuple[str, str], better: tuple[Better, Better]
) -> None:
    words = {"higher": "higher is better →", "lower": "← lower is better"}
    axes.set_xlabel(f"{check_label(labels[0])}\n{words[better[0]]}")
    axes.set_ylabel(f"{check_label(labels[1])}\n{words[better[1]]}")


def log_x(axes: Axes, points: Sequence[Point], margin: float = _LOG_MARGIN) -> None:
    """Make the axis of x logarithmic, with room beside the outermost points.

    Args:
        axes: Whose.
        points: What it must hold.
        margin: The room: a power of largest over smallest.
    """
    numbers = [number for point in points for number in ends(point.x)]
    low, high = min(numbers), max(numbers)
    beyond = max((high / low) ** margin, _LEAST_LOG_MARGIN)
    axes.set_xscale("log")
    axes.set_xlim(low / beyond, high * beyond)
    log_axis(axes.xaxis, low / beyond, high * beyond)


def _draw_zone(axes: Axes, zone: Zone) -> Any:
    """Draw a zone over the whole width; return it for the legend."""
    bounds = zone.y.low, zone.y.high
    return axes.axhspan(*bounds, color=ZONE, linewidth=0, zorder=0, label=zone.name)


def _legend(
    figure: Figure, axes: Axes, groups: Sequence[str], zones: Sequence[Any]
) -> None:
    handles: list[Any] = []
    for number, group in enumerate(groups):
        seen = look(number)
        mark: dict[str, Any] = {
            "marker": seen.marker,
            "color": seen.colour,
            "linestyle": "none",
        }
        handles += axes.plot([], [], label=group, **mark) if group else []
    handles += [line for line in axes.lines if line.get_label() == "front"]
    legend_above(figure, [*handles, *zones])


def pareto(
    points: Sequence[Point],
    x_label: str,
    y_label: str,
    x_better: Better,
    y_better: Better,
    *,
    x_log: bool = False,
    zone: Zone | None = None,
) -> Figure:
    """Draw points of two goals with their intervals, names and front.

    Args:
        points: Each with an interval in x, in y or in both; those that another beats
            in both are pale.
        x_label: With a unit in parentheses.
        y_label: Likewise.
        x_better: Which way is better.
        y_better: Likewise.
        x_log: Whether x is logarithmic.
        zone: Shaded behind the points.

    Raises:
        ValueError: a label without a unit, no points, a point without an interval, an
            x that has no logarithm, another direction.
    """
    check_points(points, x_log)
    for better in (x_better, y_better):
        check_better(better)
    groups = list(dict.fromkeys(point.group for point in points))
    with style():
        figure = empty_figure(COLUMN_WIDTH, COLUMN_HEIGHT)
        axes = figure.add_subplot()
        best = front(points, x_better, y_better)
        _draw_front(axes, best, x_better)
        for point in points:
            draw_point(axes, point, groups.index(point.group), point in best)
        if x_log:
            log_x(axes, points)
        _name_axes(axes, (x_label, y_label), (x_better, y_better))
        zones = [_draw_zone(axes, zone)] if zone else []
        _legend(figure, axes, groups, zones)
        freeze(figure)
        ink = [INK if point in best else PALE_INK for point in points]
        places = [(number_of(point.x), number_of(point.y)) for point in points]
        lines = [line for point in points for line in _bars(point)]
        lines += _steps(best, x_better)
        place_labels(axes, [point.name for point in points], places, lines, ink)
        return figure
