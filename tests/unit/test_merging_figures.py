"""Figures of merging: what they are given is what stands on the paper, and it fits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection

from loralab.evaluation.intervals import Interval
from loralab.reporting.figures import (
    Curve,
    Decay,
    ForestRow,
    MergingPanels,
    Point,
    decay,
    efficiency,
    merging_panels,
    performance,
    save,
    similarity_map,
)
from loralab.reporting.figures.heat import without_diagonal
from loralab.reporting.style import look

SHARE, SIZE, COSINE = "accuracy (share)", "size (MB)", "similarity (cosine)"
TASKS, GAP = "merged tasks (count)", "difference (share)"
CURVES = [
    Curve("average", [1, 2, 3], [0.9, 0.7, 0.6], [0.8, 0.6, 0.5], [1, 0.8, 0.7], 10),
    Curve("opcm", [1, 2, 3], [0.9, 0.8, 0.7], [0.85, 0.75, 0.6], [0.95, 0.9, 0.8], 10),
]
CURVES = [replace(curve, of="order") for curve in CURVES]
POINTS = [
    Point("average 8", 1.0, Interval(0.5, 0.4, 0.6), "average"),
    Point("average 16", 2.0, Interval(0.6, 0.5, 0.7), "average"),
    Point("opcm 16", 2.0, Interval(0.7, 0.65, 0.75), "opcm"),
    Point("opcm 8", 1.0, Interval(0.55, 0.5, 0.65), "opcm"),
    Point("cat 32", 4.0, Interval(0.8, 0.75, 0.85), "cat"),
]
SIMILAR = [[1.0, 0.2, -0.1], [0.2, 1.0, 0.0], [-0.1, 0.0, 1.0]]
NAMES = ["first", "second", "third"]
ABLATIONS = [
    ForestRow("", "norm rule alone", Interval(0.04, 0.02, 0.06), "", 10),
    ForestRow("", "with projection", Interval(0.01, -0.01, 0.03), "", 10),
]
LEVELS = {"adapters alone": 0.95}
SPECTRA = [
    Decay("one", [2.0, 1.0, 0.5]),
    Decay("two", [1.0, 0.1]),
    Decay("sum", [3.0, 1.0, 0.5, 0.1, 1e-30], merged=True),
]
PANELS = MergingPanels(
    CURVES, SIMILAR, NAMES, POINTS, ABLATIONS, SHARE, COSINE, SIZE, GAP, LEVELS, 0.01
)
MAKERS = {
    "performance": lambda: performance(
        CURVES, TASKS, SHARE, levels=LEVELS, places={"suggested": 2.5}
    ),
    "efficiency": lambda: efficiency(POINTS, SIZE, SHARE),
    "similarity": lambda: similarity_map(SIMILAR, NAMES, COSINE),
    "decay": lambda: decay(SPECTRA),
    "panels": lambda: merging_panels(PANELS),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_same_data_give_the_same_bytes(kind, tmp_path):
    made = [save(MAKERS[kind](), tmp_path / str(n), "f") for n in range(2)]
    one, two = ([path.read_bytes() for path in paths] for paths in made)
    assert one == two
    assert one[0].startswith(b"%PDF-")
    assert b"/Type3" not in one[0]


@pytest.mark.parametrize("kind", MAKERS)
def test_all_that_is_drawn_is_on_the_paper(kind):
    figure = MAKERS[kind]()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert drawn.x0 >= 0
    assert drawn.y0 >= 0
    assert drawn.x1 <= width
    assert drawn.y1 <= height


def named(axes):
    return {line.get_label(): line for line in axes.lines}


def uprights(axes):
    parts = [c for c in axes.collections if isinstance(c, LineCollection)]
    return [np.asarray(s).tolist() for part in parts for s in part.get_segments()]


def test_performance_shows_means_bands_levels_and_places():
    figure = MAKERS["performance"]()
    (axes,) = figure.axes
    lines = named(axes)
    for number, curve in enumerate(CURVES):
        line = lines[f"{curve.name} (10 orders)"]
        assert list(line.get_ydata()) == curve.mean
        assert line.get_marker() == look(number).marker
    bands = [c for c in axes.collections if isinstance(c, PolyCollection)]
    assert len(bands) == len(CURVES)
    assert set(lines["adapters alone"].get_ydata()) == {0.95}
    assert set(lines["suggested"].get_xdata()) == {2.5}
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[-2:] == ["adapters alone", "suggested"]
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_points_of_a_method_are_joined_by_size_and_stand_apart_by_method():
    figure = MAKERS["efficiency"]()
    (axes,) = figure.axes
    joined = [line for line in axes.lines if len(line.get_xdata()) > 1]
    assert [list(line.get_xdata()) for line in joined] == [[1.0, 2.0], [1.0, 2.0]]
    assert list(joined[1].get_ydata()) == [0.55, 0.7]
    assert [[2.0, 0.65], [2.0, 0.75]] in uprights(axes)
    marks = [line for line in axes.lines if len(line.get_xdata()) == 1]
    at = {
        (line.get_xdata()[0], line.get_marker()): line.get_window_extent().x0
        for line in marks
    }
    one, other = (at[2.0, look(n).marker] for n in (0, 1))
    assert 1 < other - one < 6
    box = axes.get_window_extent()
    assert all(box.x0 < x < box.x1 for x in at.values())
    low, high = axes.get_ylim()
    assert low <= 0.4
    assert high >= 0.85


def test_methods_of_other_sizes_stand_where_they_are():
    points = [replace(point, x=float(n + 1)) for n, point in enumerate(POINTS)]
    (axes,) = efficiency(points, SIZE, SHARE).axes
    for line in (line for line in axes.lines if len(line.get_xdata()) == 1):
        x, _ = axes.transData.transform((line.get_xdata()[0], 0.5))
        box = line.get_window_extent()
        assert (box.x0 + box.x1) / 2 == pytest.approx(x, abs=0.5)


def test_the_diagonal_of_a_similarity_takes_no_colour():
    figure = MAKERS["similarity"]()
    axes = figure.axes[0]
    assert len(axes.patches) == len(NAMES)
    assert all(patch.get_hatch() for patch in axes.patches)
    norm = axes.collections[0].norm
    assert (norm.vmin, norm.vmax) == (-0.1, 0.2)
    shown = [text.get_text() for text in axes.texts]
    assert shown == ["0.200", "−0.100", "0.200", "0.000", "−0.100", "0.000"]
    assert math.isnan(without_diagonal(SIMILAR)[1][1])


def test_spectra_of_tasks_share_one_name_and_rounding_is_left_out():
    figure = MAKERS["decay"]()
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["tasks (2)", "sum"]
    (merged,) = [line for line in axes.lines if line.get_label() == "sum"]
    assert list(merged.get_xdata()) == [1, 2, 3, 4]
    assert list(merged.get_ydata()) == [3.0, 1.0, 0.5, 0.1]


def test_a_method_has_one_look_in_all_panels():
    figure = merging_panels(PANELS)
    tasks, similar, size, ablated = figure.axes[:4]
    assert [axes.get_title("left") for axes in figure.axes[:4]] == list("abcd")
    assert tasks.get_title("right") == "means over 10 orders"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["average", "opcm", "cat", "adapters alone"]
    above = named(tasks)["opcm (10 orders)"]
    below = [line for line in size.lines if list(line.get_ydata()) == [0.7]]
    assert {line.get_marker() for line in (above, *below)} == {look(1).marker}
    assert {line.get_color() for line in (above, *below)} == {look(1).colour}
    assert [t.get_text() for t in similar.get_yticklabels()] == NAMES
    assert [[0.02, 0], [0.06, 0]] in uprights(ablated)
    (zone,) = ablated.patches
    assert (zone.get_x(), zone.get_width()) == (-0.01, 0.02)


def test_panels_of_many_tasks_leave_numbers_out():
    many = [[0.1 * (x == y) for x in range(10)] for y in range(10)]
    panels = replace(PANELS, similarity=many, tasks=[f"t{n}" for n in range(10)])
    similar = merging_panels(panels).axes[1]
    assert not similar.texts
    assert [t.get_text() for t in merging_panels(PANELS).axes[1].texts]


def test_panels_of_many_methods_fit():
    """The legend grows, the panels keep their size and nothing lies on another."""
    curves = [replace(CURVES[0], name=f"method number {n}") for n in range(12)]
    names = [f"a task called {n}" for n in range(10)]
    many = [[0.01 * (x + y) for x in range(10)] for y in range(10)]
    panels = replace(PANELS, curves=curves, similarity=many, tasks=names)
    figure = merging_panels(panels)
    legend = figure.legends[0].get_window_extent()
    assert legend.y1 <= figure.bbox.y1
    boxes = [axes.get_tightbbox() for axes in figure.axes[:4]]
    for number, box in enumerate(boxes):
        assert not box.padded(-1).overlaps(legend)
        assert not any(box.padded(-1).overlaps(b.padded(-1)) for b in boxes[:number])


REFUSED = {
    "has no unit": lambda: performance(CURVES, "tasks", SHARE),
    "no curve to draw": lambda: performance([], TASKS, SHARE),
    "is not finite": lambda: performance(
        CURVES, TASKS, SHARE, levels={"alone": math.nan}
    ),
    "no interval in x or in y": lambda: efficiency(
        [Point("a", 1.0, 2.0, "m")], SIZE, SHARE
    ),
    "no logarithm": lambda: efficiency(
        [Point("a", 0.0, Interval(1, 0, 2), "m")], SIZE, SHARE
    ),
    "values must be": lambda: similarity_map(SIMILAR, NAMES[:2], COSINE),
    "no spectrum to draw": lambda: decay([]),
    "must descend": lambda: decay([Decay("a", [1.0, 2.0])]),
    "largest singular value": lambda: decay([Decay("a", [0.0, 0.0])]),
    "no row to draw": lambda: merging_panels(replace(PANELS, ablations=[])),
    "0 orders": lambda: performance([replace(CURVES[0], seeds=0)], TASKS, SHARE),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_drawn_is_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
