"""How the ranks of a training moved: a row a module, time from left to right."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from loralab.reporting.figures.parts import (
    POINTS_PER_INCH,
    check_some,
    empty_figure,
    freeze,
    text_width,
)
from loralab.reporting.style import (
    AXIS_HEIGHT,
    BAR_WIDTH,
    MARGIN,
    PLOT_WIDTH,
    SEQUENTIAL,
    SMALL,
    style,
)

_ROW, _HIGHEST = 0.15, 8.0
"""Inches of a row whose name is written, and of all rows at most."""

_ROUNDING = 1e-9
"""A quotient that is whole but for so much is whole."""

_GAP = 0.02
"""Share of the axes between them and the colour bar."""


@dataclass(frozen=True)
class RankHistory:
    """Ranks at N steps.

    Attributes:
        steps: Where ranks were written down, [N], ascending.
        end: The last step; the last ranks hold until then.
        ranks: Module -> its ranks, [N].
    """

    steps: Sequence[int]
    end: int
    ranks: Mapping[str, Sequence[int]]


def read_rank_history(events: Iterable[Mapping[str, Any]]) -> RankHistory:
    """Return the history in a run's events, which `Run.events` reads.

    Raises:
        ValueError: there is no ``ranks`` event.
    """
    listed = list(events)
    told = [event for event in listed if event["event"] == "ranks"]
    check_some(told, "rank")
    end = max(int(event.get("step", 0)) for event in listed)
    names = list(told[0]["ranks"])
    ranks = {name: [int(event["ranks"][name]) for event in told] for name in names}
    return RankHistory([int(event["step"]) for event in told], end, ranks)


def _short(names: Sequence[str]) -> list[str]:
    """Return paths without the parts that all of them begin with."""
    paths = [name.split(".") for name in names]
    same = 0
    while len(names) > 1 and len({tuple(path[: same + 1]) for path in paths}) == 1:
        same += 1
    return [".".join(path[same:]) for path in paths]


def _check(history: RankHistory) -> None:
    check_some(list(history.ranks), "rank")
    check_some(history.steps, "step")
    if any(one >= two for one, two in pairwise(history.steps)):
        raise ValueError("the steps of a rank history must ascend")
    if history.end < history.steps[-1]:
        raise ValueError(f"the history ends at {history.end}, before its last step")
    for name, ranks in history.ranks.items():
        if len(ranks) != len(history.steps):
            raise ValueError(f"{name}: ranks and steps differ in length")


def rank_history(history: RankHistory) -> Figure:
    """Draw each module's rank over the steps as a colour.

    Args:
        history: From `read_rank_history`.

    Raises:
        ValueError: no module, steps that do not ascend, uneven lengths.
    """
    _check(history)
    names = _short(list(history.ranks))
    height = min(_HIGHEST, _ROW * len(names))
    with style():
        widest = max(text_width(name, SMALL) for name in names) / POINTS_PER_INCH
        width = widest + MARGIN + PLOT_WIDTH + BAR_WIDTH
        figure = empty_figure(width, height + AXIS_HEIGHT)
        axes = figure.add_subplot()
        _draw(axes, history)
        shown = range(0, len(names), math.ceil(_ROW * len(names) / height - _ROUNDING))
        axes.set_yticks([y + 0.5 for y in shown], [names[y] for y in shown])
        axes.invert_yaxis()
        axes.set_xlabel("training (steps)")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(False)
        axes.tick_params(axis="y", length=0)
        axes.spines[:].set_visible(False)
        return freeze(figure)


def _draw(axes: Axes, history: RankHistory) -> None:
    cells = [list(ranks) for ranks in history.ranks.values()]
    edges = [*history.steps, history.end + 1]  # the last ranks hold at the last step
    most = max(1, *(rank for row in cells for rank in row))
    mesh = axes.pcolormesh(
        edges, range(len(cells) + 1), cells, cmap=SEQUENTIAL, vmin=0, vmax=most
    )
    bar = axes.figure.colorbar(mesh, ax=axes, pad=_GAP, aspect=20)
    bar.set_label("rank (triplets)")
    bar.locator = MaxNLocator(5, integer=True)
    bar.update_ticks()
    bar.outline.set_visible(False)
