"""Every seed as a dot: what two runs that differ in nothing but the seed differ by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loralab.evaluation.intervals import Interval
from loralab.reporting.figures.parts import (
    POINTS_PER_INCH,
    check_interval,
    check_label,
    check_some,
    empty_figure,
    freeze,
    no_spines,
)
from loralab.reporting.style import (
    AXIS_HEIGHT,
    COLUMN_WIDTH,
    DOT,
    HAIR,
    INTERVAL_LINE,
    MARK,
    STRIP_HEIGHT,
    look,
    style,
)

_DOTS_AT, _INTERVAL_AT = 0.14, -0.24
"""Where dots and interval stand above and below a group's line, in rows."""
_DOTS_REACH = 0.24
"""How far above and below their line dots may stand, in rows."""
_PLOT_SHARE = 0.7
"""Of the figure's width: near enough to tell which dots would touch."""


@dataclass(frozen=True)
class Strip:
    """One group of single values.

    Attributes:
        name: Its label.
        values: One a seed, [k]; up to about 20 stay apart.
        interval: Their mean with its interval.
    """

    name: str
    values: Sequence[float]
    interval: Interval


def _apart(values: Sequence[float], near: float) -> list[int]:
    """Return for each value a level 0, 1, −1, 2, … where it touches no earlier dot."""
    placed: list[tuple[float, int]] = []
    levels = [0] * len(values)
    for index in sorted(range(len(values)), key=lambda i: values[i]):
        taken = {level for x, level in placed if abs(values[index] - x) <= near}
        level = next(n for n in _alternating(len(values)) if n not in taken)
        placed.append((values[index], level))
        levels[index] = level
    return levels


def _alternating(count: int) -> list[int]:
    return [0, *(sign * n for n in range(1, count + 1) for sign in (1, -1))]


def _draw(axes: Axes, group: Strip, number: int, y: float, near: float) -> None:
    seen = look(number)
    levels = _apart(group.values, near)
    highest = max(map(abs, levels)) or 1
    step = min(DOT / POINTS_PER_INCH / STRIP_HEIGHT, _DOTS_REACH / highest)
    axes.plot(
        group.values,
        [y + _DOTS_AT + level * step for level in levels],
        linestyle="none",
        marker=seen.marker,
        markersize=DOT,
        color=seen.colour,
        markeredgecolor="white",
        markeredgewidth=HAIR / 2,
        clip_on=False,
    )
    low, high = group.interval.low, group.interval.high
    at = y + _INTERVAL_AT
    axes.hlines(at, low, high, color=seen.colour, linewidth=INTERVAL_LINE)
    axes.plot([group.interval.value], [at], "|", color=seen.colour, markersize=2 * MARK)


def strip(groups: Sequence[Strip], label: str) -> Figure:
    """Draw every value as a dot, and below them the mean with its interval.

    Args:
        groups: At least one, drawn from the top.
        label: Of the values, with a unit in parentheses.

    Raises:
        ValueError: a label without a unit, a value that is not finite, a group without
            values or without an interval.
    """
    check_some(groups, "group")
    for group in groups:
        check_some(group.values, f"value of {group.name!r}")
        check_interval(group.interval, group.name)
        if not all(math.isfinite(value) for value in group.values):
            raise ValueError(f"{group.name}: a value is not finite")
    numbers = [n for group in groups for n in (*group.values, *_bounds(group))]
    near = DOT / POINTS_PER_INCH / (COLUMN_WIDTH * _PLOT_SHARE)
    with style():
        height = AXIS_HEIGHT + STRIP_HEIGHT * len(groups)
        figure = empty_figure(COLUMN_WIDTH, height)
        axes = figure.add_subplot()
        for number, group in enumerate(groups):
            touching = near * (max(numbers) - min(numbers))
            _draw(axes, group, number, -number, touching)
        axes.set_yticks(range(0, -len(groups), -1), [group.name for group in groups])
        axes.set_ylim(-len(groups) + 0.5, 0.5)
        axes.set_xlabel(check_label(label))
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        no_spines(axes, "left")
        return freeze(figure)


def _bounds(group: Strip) -> tuple[float, float]:
    return group.interval.low, group.interval.high
