"""The main figure of a study of merging: four panels at the width of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loralab.reporting.figures.curves import Curve
from loralab.reporting.figures.forest import ForestRow, draw_interval
from loralab.reporting.figures.heat import draw_tasks, without_diagonal
from loralab.reporting.figures.pareto import Point
from loralab.reporting.figures.parts import (
    check_interval,
    check_label,
    check_some,
    empty_figure,
    freeze,
    legend_above,
    no_spines,
)
from loralab.reporting.figures.performance import (
    draw_efficiency,
    draw_performance,
    keys,
)
from loralab.reporting.style import (
    PAGE_WIDTH,
    PALE_INK,
    PANEL_HEIGHT,
    SMALL,
    TEXT,
    THIN,
    ZONE,
    style,
)


@dataclass(frozen=True)
class MergingPanels:
    """What the four panels show.

    Attributes:
        curves: Performance against the number of merged tasks, one a method.
        similarity: [tasks, tasks]; the diagonal is not read.
        tasks: Names of the tasks.
        points: Performance against size; the group is the method.
        ablations: Differences with intervals, from the top.
        performance: Label of the performance, with a unit in parentheses.
        similar: Label of the similarity.
        size: Label of the size.
        difference: Label of the ablations' differences.
        levels: Name -> a performance that no method changes.
        zone: The smallest difference of interest: ± this is shaded.
    """

    curves: Sequence[Curve]
    similarity: Sequence[Sequence[float]]
    tasks: Sequence[str]
    points: Sequence[Point]
    ablations: Sequence[ForestRow]
    performance: str
    similar: str
    size: str
    difference: str
    levels: Mapping[str, float] = field(default_factory=dict)
    zone: float | None = None


def _draw_ablations(
    axes: Axes, rows: Sequence[ForestRow], label: str, zone: float | None
) -> None:
    check_some(rows, "row")
    if zone is not None:
        axes.axvspan(-zone, zone, color=ZONE, linewidth=0, zorder=0)
    axes.axvline(0, color=PALE_INK, linewidth=THIN, zorder=1)
    for number, row in enumerate(rows):
        check_interval(row.interval, row.label)
        draw_interval(axes, row, -number, better="higher")
    axes.set_yticks(range(0, -len(rows), -1), [row.label for row in rows])
    axes.set_ylim(-len(rows) + 0.5, 0.5)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(check_label(label))
    no_spines(axes, "left")


def _means_over(curves: Sequence[Curve]) -> str:
    """Return what the means are over: ``means over 10 orders``, or each count."""
    counts = dict.fromkeys(
        f"{c.seeds} {c.of}{'' if c.seeds == 1 else 's'}" for c in curves
    )
    return f"means over {' or '.join(counts)}"


def merging_panels(given: MergingPanels) -> Figure:
    """Draw performance by tasks, similarity, performance by size, and ablations.

    A method has one look in all panels, and one line in the legend above them.

    Raises:
        ValueError: a label without a unit, an empty panel, a value without an interval.
    """
    methods = [curve.name for curve in given.curves]
    groups = list(dict.fromkeys([*methods, *(point.group for point in given.points)]))
    with style():
        figure = empty_figure(PAGE_WIDTH, 2 * PANEL_HEIGHT)
        (tasks, similar), (size, ablated) = figure.subplots(2, 2)
        lines = draw_performance(
            tasks,
            given.curves,
            "merged tasks (count)",
            given.performance,
            given.levels,
            {},
        )
        draw_tasks(
            similar, without_diagonal(given.similarity), given.tasks, given.similar
        )
        draw_efficiency(size, given.points, groups, given.size, given.performance)
        _draw_ablations(ablated, given.ablations, given.difference, given.zone)
        for letter, axes in zip("abcd", (tasks, similar, size, ablated), strict=True):
            axes.set_title(letter, loc="left", fontweight="bold", fontsize=TEXT)
        tasks.set_title(
            _means_over(given.curves), loc="right", fontsize=SMALL, color=PALE_INK
        )
        legend_above(figure, [*keys(groups), *lines[len(methods) :]])
        return freeze(figure)
