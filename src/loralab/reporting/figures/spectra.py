"""Spectra of an adapter's updates: what each module has used of its rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from loralab.reporting.figures.parts import (
    POINTS_PER_INCH,
    check_some,
    empty_figure,
    freeze,
    log_axis,
    text_width,
)
from loralab.reporting.style import (
    AXIS_HEIGHT,
    BLACK,
    BLUE,
    COLUMN_HEIGHT,
    COLUMN_WIDTH,
    DASHES,
    LINE,
    MARGIN,
    MARK,
    PLOT_WIDTH,
    ROW_HEIGHT,
    SEQUENTIAL,
    SMALL,
    THIN,
    VERMILION,
    ZONE,
    style,
)
from loralab.units import percent

MOST_NAMES = 40
"""Rows that are named at most; of more, every second, third, … is."""
_DECADES = 4
"""Singular values smaller than the largest by more than this look alike."""
_BAR_PAD = 0.02
"""Between map and bar, of the width."""
_TOP, _NOTE_AT = 1.03, 0.04
"""Where the axis of the share ends, and how high the note stands."""


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of one module's update.

    Attributes:
        name: Of the module.
        sigma: Singular values, descending; at least one.
        kept: How many of them the budget keeps.
    """

    name: str
    sigma: Sequence[float]
    kept: int


def _check(spectra: Sequence[Spectrum], curve: Sequence[float], keep: float) -> None:
    check_some(spectra, "spectrum")
    for spectrum in spectra:
        values = list(spectrum.sigma)
        if not values or values != sorted(values, reverse=True) or values[-1] < 0:
            raise ValueError(f"{spectrum.name}: singular values must descend to ≥ 0")
        if not math.isfinite(values[0]):
            raise ValueError(f"{spectrum.name}: a singular value is not finite")
        if not 0 <= spectrum.kept <= len(values):
            raise ValueError(
                f"{spectrum.name}: {spectrum.kept} of {len(values)} are kept"
            )
    if not any(spectrum.sigma[0] for spectrum in spectra):
        raise ValueError("all updates are zero")
    if list(curve) != sorted(curve) or len(curve) < 2 or curve[0] != 0:
        raise ValueError("the energy curve must rise from 0")
    if not 0 < keep <= 1:
        raise ValueError(f"keep is a share, not {keep}")


def _draw_spectra(axes: Axes, spectra: Sequence[Spectrum]) -> None:
    """Draw a row a module, coloured by σ; a step line divides what is kept."""
    widest = max(len(spectrum.sigma) for spectrum in spectra)
    top = max(spectrum.sigma[0] for spectrum in spectra)
    cells = np.full((len(spectra), widest), np.nan)
    for row, spectrum in enumerate(spectra):
        cells[row, : len(spectrum.sigma)] = spectrum.sigma
    smallest = min(x for spectrum in spectra for x in spectrum.sigma if x)
    low = min(max(smallest, top / 10**_DECADES), top / 2)
    scale = LogNorm(low, top, clip=True)
    colours = matplotlib.colormaps[SEQUENTIAL]
    axes.set_facecolor(ZONE)
    mesh = axes.pcolormesh(np.ma.masked_invalid(cells), cmap=colours, norm=scale)
    edges = np.repeat([spectrum.kept for spectrum in spectra], 2)
    heights = np.repeat(np.arange(len(spectra) + 1), 2)[1:-1]
    for colour, width in (("white", LINE + THIN), (VERMILION, LINE)):
        axes.plot(edges, heights, color=colour, linewidth=width, clip_on=False)
    every = math.ceil(len(spectra) / MOST_NAMES)
    named = range(0, len(spectra), every)
    axes.set_yticks([row + 0.5 for row in named], [spectra[row].name for row in named])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlim(0, widest)
    axes.set_ylim(len(spectra), 0)
    axes.set_xlabel("direction (rank; line: kept)")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    bar = axes.figure.colorbar(mesh, ax=axes, aspect=25, pad=_BAR_PAD)
    bar.set_label("singular value of ΔW (norm)")
    log_axis(bar.ax.yaxis, low, top)
    bar.outline.set_visible(False)


def _draw_curve(axes: Axes, curve: Sequence[float], kept: int, keep: float) -> None:
    """Draw the share of the energy over the sum of ranks, and where the budget is."""
    axes.plot(range(len(curve)), curve, color=BLUE)
    axes.axhline(keep, color=BLACK, linewidth=THIN, linestyle=DASHES[2])
    axes.vlines(kept, 0, curve[kept], color=VERMILION)
    axes.plot([kept], [curve[kept]], "o", color=VERMILION, markersize=MARK)
    note = f"{kept:,} of {len(curve) - 1:,} keep {percent(curve[kept])}"
    late = kept > (len(curve) - 1) / 2
    axes.annotate(
        note,
        (kept, _NOTE_AT),
        xytext=(-4 if late else 4, 0),
        textcoords="offset points",
        ha="right" if late else "left",
        fontsize=SMALL,
        color=VERMILION,
    )
    axes.set_ylim(0, _TOP)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("directions of all modules (sum of ranks)")
    axes.set_ylabel("energy Σσ² (share)")


def spectra_map(
    spectra: Sequence[Spectrum], curve: Sequence[float], keep: float
) -> Figure:
    """Draw the spectra as a map, module × direction, and the energy they add up to.

    The numbers are those of one adapter, exact: there is nothing to put an interval on.

    Args:
        spectra: At least one, from the top.
        curve: Share of the energy that the best k directions keep, for k = 0, 1, ….
        keep: The share that was asked for; the budget is the sum of what is kept.

    Raises:
        ValueError: nothing to draw, values that do not descend, a curve that falls.
    """
    _check(spectra, curve, keep)
    kept = sum(spectrum.kept for spectrum in spectra)
    if kept >= len(curve):
        raise ValueError(f"{kept} directions are kept, and the curve ends before")
    rows = min(len(spectra), MOST_NAMES)
    names = max(text_width(spectrum.name, SMALL) for spectrum in spectra)
    left = names / POINTS_PER_INCH + MARGIN
    with style():
        figure = empty_figure(
            left + COLUMN_WIDTH + PLOT_WIDTH,
            max(COLUMN_HEIGHT, rows * ROW_HEIGHT + AXIS_HEIGHT),
        )
        both = figure.subplots(1, 2, width_ratios=(COLUMN_WIDTH, PLOT_WIDTH + left))
        _draw_spectra(both[0], spectra)
        _draw_curve(both[1], curve, kept, keep)
        return freeze(figure)
