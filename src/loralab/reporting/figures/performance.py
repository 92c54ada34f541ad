"""Performance against something that was varied, and against what it costs.

Curves of methods with their intervals, levels that do not depend on what was varied
(the adapters alone, the base without any), and places on its axis; or points of methods
at several sizes, joined by method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from loralab.reporting.figures.curves import Curve, check_curve, draw_curve, means
from loralab.reporting.figures.pareto import (
    Point,
    check_points,
    draw_point,
    ends,
    log_x,
    number_of,
)
from loralab.reporting.figures.parts import (
    POINTS_PER_INCH,
    check_label,
    check_some,
    empty_figure,
    freeze,
    legend_above,
)
from loralab.reporting.style import (
    COLUMN_HEIGHT,
    COLUMN_WIDTH,
    DASHES,
    INK,
    PALE_INK,
    THIN,
    look,
    style,
)

_TICKS = 8
_STEPS = (1, 2, 5, 10)
_APART = 1.8
"""Points of paper between methods of one size, so that their intervals stay apart."""
_ROOM = 0.1
"""Beside the outermost sizes for what stands apart, as a power of their ratio."""


def _check_places(places: Mapping[str, float]) -> None:
    for name, place in places.items():
        if not math.isfinite(place):
            raise ValueError(f"{name}: {place} is not finite")


def draw_performance(
    axes: Axes,
    curves: Sequence[Curve],
    x_label: str,
    y_label: str,
    levels: Mapping[str, float],
    places: Mapping[str, float],
) -> list[Line2D]:
    """Draw curves, levels and places on axes, and return the lines for a legend.

    Raises:
        ValueError: as `performance`.
    """
    check_some(curves, "curve")
    for curve in curves:
        check_curve(curve)
    _check_places({**levels, **places})
    for number, curve in enumerate(curves):
        draw_curve(axes, curve, number)
    found = means(axes)
    for number, (name, level) in enumerate(levels.items()):
        dash = DASHES[(number + 1) % len(DASHES)]
        look_of = {"color": INK, "linewidth": THIN, "linestyle": dash}
        found.append(axes.axhline(level, label=name, zorder=1, **look_of))
    for number, (name, place) in enumerate(places.items()):
        dash = DASHES[(number + 3) % len(DASHES)]
        look_of = {"color": PALE_INK, "linewidth": THIN, "linestyle": dash}
        found.append(axes.axvline(place, label=name, zorder=1, **look_of))
    whole = all(float(x).is_integer() for curve in curves for x in curve.x)
    axes.xaxis.set_major_locator(MaxNLocator(_TICKS, integer=whole, steps=_STEPS))
    axes.set_xlabel(check_label(x_label))
    axes.set_ylabel(check_label(y_label))
    return found


def performance(
    curves: Sequence[Curve],
    x_label: str,
    y_label: str,
    *,
    levels: Mapping[str, float] | None = None,
    places: Mapping[str, float] | None = None,
) -> Figure:
    """Draw performance against what was varied: tasks merged, or a threshold.

    Args:
        curves: At least one, with their intervals.
        x_label: With a unit in parentheses, such as ``merged tasks (count)``.
        y_label: Likewise.
        levels: Name -> a performance that no curve changes, as a level line.
        places: Name -> a place on the axis of x, as an upright line.

    Raises:
        ValueError: a label without a unit, no curve, one without an interval, a level
            or place that is not finite.
    """
    with style():
        figure = empty_figure(COLUMN_WIDTH, COLUMN_HEIGHT)
        axes = figure.add_subplot()
        legend_above(
            figure,
            draw_performance(
                axes, curves, x_label, y_label, levels or {}, places or {}
            ),
        )
        return freeze(figure)


def draw_efficiency(
    axes: Axes,
    points: Sequence[Point],
    groups: Sequence[str],
    x_label: str,
    y_label: str,
) -> None:
    """Draw points on axes, each group in the look of its number, joined by size.

    Where methods have one size they stand a little apart, by a distance on paper.

    Raises:
        ValueError: as `efficiency`.
    """
    check_points(points, x_log=True)
    sizes = [_size(point) for point in points]
    apart = _APART if len(set(sizes)) < len(sizes) else 0.0
    for number, group in enumerate(groups):
        shift = apart * (number - (len(groups) - 1) / 2)
        where = axes.transData + ScaledTranslation(
            shift / POINTS_PER_INCH, 0.0, axes.figure.dpi_scale_trans
        )
        own = sorted((p for p in points if p.group == group), key=_size)
        axes.plot(
            [_size(point) for point in own],
            [number_of(point.y) for point in own],
            color=look(number).colour,
            linestyle=look(number).dash,
            linewidth=THIN,
            zorder=2,
            transform=where,
        )
        for point in own:
            draw_point(axes, point, number, True, where)
    log_x(axes, points, _ROOM)
    # moved marks count for no limits of their own
    axes.update_datalim([(_size(p), y) for p in points for y in ends(p.y)])
    axes.autoscale_view(scalex=False)
    axes.set_xlabel(check_label(x_label))
    axes.set_ylabel(check_label(y_label))


def _size(point: Point) -> float:
    return number_of(point.x)


def keys(groups: Sequence[str]) -> list[Line2D]:
    """Return a line with a marker for each group, for a legend."""
    return [
        Line2D([], [], label=group, **look(number).line)
        for number, group in enumerate(groups)
    ]


def efficiency(points: Sequence[Point], x_label: str, y_label: str) -> Figure:
    """Draw performance against size (rank, parameters, bytes) on a logarithmic axis.

    Points of one group are one method at several sizes. `pareto` names points and
    draws the front instead.

    Args:
        points: Each with a group, and an interval in x or in y.
        x_label: With a unit in parentheses.
        y_label: Likewise.

    Raises:
        ValueError: a label without a unit, no points, one without an interval, a size
            that has no logarithm.
    """
    groups = list(dict.fromkeys(point.group for point in points))
    with style():
        figure = empty_figure(COLUMN_WIDTH, COLUMN_HEIGHT)
        draw_efficiency(figure.add_subplot(), points, groups, x_label, y_label)
        legend_above(figure, keys(groups))
        return freeze(figure)
