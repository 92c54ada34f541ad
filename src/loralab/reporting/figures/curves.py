"""Learning curves: the mean over seeds, always with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from loralab.reporting.figures.parts import (
    check_label,
    check_some,
    empty_figure,
    freeze,
    legend_above,
)
from loralab.reporting.style import (
    BAND,
    COLUMN_HEIGHT,
    COLUMN_WIDTH,
    HAIR,
    look,
    style,
)

MOST_MARKERS = 12
"""Markers on one curve at most; more would hide it."""


@dataclass(frozen=True)
class Curve:
    """One curve over N places.

    Attributes:
        name: In the legend.
        x: Places, [N], ascending.
        mean: Over seeds, [N]; NaN where there is none, drawn as a gap.
        low: Lower bounds of the intervals, [N].
        high: Upper bounds, [N].
        seeds: How many seeds the mean and the interval come from.
        of: What they are, in the singular, where they are no seeds (orders of tasks).
    """

    name: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    seeds: int
    of: str = "seed"


def check_curve(curve: Curve) -> None:
    """Refuse what is no curve.

    Raises:
        ValueError: uneven lengths, no seeds, or no interval somewhere.
    """
    lengths = {len(part) for part in (curve.x, curve.mean, curve.low, curve.high)}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"curve {curve.name!r}: x, mean, low, high differ in length")
    if curve.seeds < 1:
        raise ValueError(f"curve {curve.name!r}: {curve.seeds} {curve.of}s")
    for mean, low, high in zip(curve.mean, curve.low, curve.high, strict=True):
        if not math.isnan(mean) and not low <= high:
            raise ValueError(
                f"curve {curve.name!r}: no interval [{low}, {high}] around {mean}"
            )


def _is_alone(curve: Curve, index: int) -> bool:
    """Tell whether a point has no neighbour, so that a band around it has no width."""
    around = [n for n in (index - 1, index + 1) if 0 <= n < len(curve.x)]
    missing = all(math.isnan(curve.mean[n]) for n in around)
    return missing and not math.isnan(curve.mean[index])


def draw_curve(axes: Axes, curve: Curve, number: int) -> None:
    """Draw a mean with its band in the look of this number."""
    seen = look(number)
    axes.fill_between(
        curve.x, curve.low, curve.high, color=seen.colour, alpha=BAND, linewidth=0
    )
    for bound in (curve.low, curve.high):
        axes.plot(curve.x, bound, color=seen.colour, linewidth=HAIR, alpha=0.5)
    alone = [n for n in range(len(curve.x)) if _is_alone(curve, n)]
    axes.vlines(
        [curve.x[n] for n in alone],
        [curve.low[n] for n in alone],
        [curve.high[n] for n in alone],
        color=seen.colour,
    )
    unit = curve.of if curve.seeds == 1 else f"{curve.of}s"
    axes.plot(
        curve.x,
        curve.mean,
        **seen.line,
        markevery=max(1, math.ceil(len(curve.x) / MOST_MARKERS)),
        label=f"{curve.name} ({curve.seeds} {unit})",
    )


def learning_curves(curves: Sequence[Curve], x_label: str, y_label: str) -> Figure:
    """Draw curves with their intervals as bands.

    Args:
        curves: At least one; their order is the legend's.
        x_label: With a unit in parentheses, such as ``training (steps)``.
        y_label: Likewise.

    Raises:
        ValueError: a label without a unit, a curve of uneven lengths or without an
            interval somewhere, no curve.
    """
    check_some(curves, "curve")
    for curve in curves:
        check_curve(curve)
    with style():
        figure = empty_figure(COLUMN_WIDTH, COLUMN_HEIGHT)
        axes = figure.add_subplot()
        for number, curve in enumerate(curves):
            draw_curve(axes, curve, number)
        axes.set_xlabel(check_label(x_label))
        axes.set_ylabel(check_label(y_label))
        legend_above(figure, means(axes))
        return freeze(figure)


def means(axes: Axes) -> list[Line2D]:
    """Return the lines of the means, which have markers and names."""
    return [line for line in axes.lines if line.get_marker() != "None"]
