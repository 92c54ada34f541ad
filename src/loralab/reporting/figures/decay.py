"""Singular values of tasks and of what was merged of them, on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from loralab.reporting.figures.parts import (
    check_some,
    empty_figure,
    freeze,
    legend_above,
    log_axis,
)
from loralab.reporting.style import (
    COLUMN_HEIGHT,
    COLUMN_WIDTH,
    HAIR,
    HALF,
    PALE_INK,
    look,
    style,
)

_DECADES = 6
"""Values smaller than the largest by more than this are left out."""
_TICKS, _MOST_MARKERS = 8, 12
_STEPS = (1, 2, 5, 10)


@dataclass(frozen=True)
class Decay:
    """The singular values of one update.

    Attributes:
        name: In the legend; tasks share one line of it.
        sigma: Descending, none negative, one of them not zero.
        merged: Whether it is a merge of the tasks, or a task.
    """

    name: str
    sigma: Sequence[float]
    merged: bool = False


def _check(spectra: Sequence[Decay]) -> None:
    check_some(spectra, "spectrum")
    for spectrum in spectra:
        values = list(spectrum.sigma)
        if not values or values != sorted(values, reverse=True) or values[-1] < 0:
            raise ValueError(f"{spectrum.name}: singular values must descend to ≥ 0")
        if not (math.isfinite(values[0]) and values[0] > 0):
            raise ValueError(f"{spectrum.name}: a largest singular value {values[0]}")


def _draw(axes: Axes, sigma: Sequence[float], floor: float, **look_of: object) -> None:
    shown = [value for value in sigma if value >= floor]
    axes.plot(range(1, len(shown) + 1), shown, **look_of)  # type: ignore[arg-type]


def decay(spectra: Sequence[Decay]) -> Figure:
    """Draw spectra against the number of the direction, tasks pale, merges in colour.

    Args:
        spectra: At least one.

    Raises:
        ValueError: nothing to draw, values that do not descend, a zero update.
    """
    _check(spectra)
    tasks = [spectrum for spectrum in spectra if not spectrum.merged]
    merges = [spectrum for spectrum in spectra if spectrum.merged]
    top = max(spectrum.sigma[0] for spectrum in spectra)
    floor = top / 10**_DECADES
    with style():
        figure = empty_figure(COLUMN_WIDTH, COLUMN_HEIGHT)
        axes = figure.add_subplot()
        for number, task in enumerate(tasks):
            name = f"tasks ({len(tasks)})" if not number else None
            pale = {"color": PALE_INK, "alpha": HALF, "linewidth": 2 * HAIR}
            _draw(axes, task.sigma, floor, label=name, **pale)
        for number, merge in enumerate(merges):
            every = math.ceil(len(merge.sigma) / _MOST_MARKERS)
            drawn = {**look(number).line, "label": merge.name, "markevery": every}
            _draw(axes, merge.sigma, floor, **drawn)
        shown = [s for spectrum in spectra for s in spectrum.sigma if s >= floor]
        axes.set_yscale("log")
        log_axis(axes.yaxis, min(shown) / 2, top)
        axes.xaxis.set_major_locator(MaxNLocator(_TICKS, integer=True, steps=_STEPS))
        axes.set_xlabel("direction (number, largest first)")
        axes.set_ylabel("singular value of ΔW (norm)")
        legend_above(
            figure,
            [line for line in axes.lines if not str(line.get_label()).startswith("_")],
        )
        return freeze(figure)
