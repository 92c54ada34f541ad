import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.text import Text

from loralab.evaluation.intervals import Interval
from loralab.reporting.figures import (
    Curve,
    ForestRow,
    Point,
    Strip,
    Zone,
    forest,
    heat_map,
    learning_curves,
    pareto,
    save,
    strip,
)
from loralab.reporting.figures.pareto import front
from loralab.reporting.figures.parts import log_tick
from loralab.reporting.style import COLOURS, RC, look

LOSS, STEPS, SHARE, SIZE = "loss (nats/token)", "steps (updates)", "x (share)", "s (MB)"
CURVES = [
    Curve("a_b $x$", [0, 10, 20], [3, 2, 1], [2.5, 1.5, 0.75], [3.5, 2.5, 1.25], 5),
    Curve("b", [0, 10, 20], [3, 2.5, 2], [2, 2, 1.5], [4, 3, 2.5], 1),
]
POINTS = [
    Point("small", 1.0, Interval(0.5, 0.4, 0.6), "float"),
    Point("large", 100.0, Interval(0.9, 0.85, 0.95), "int4"),
    Point("beaten", Interval(120.0, 110, 130), Interval(0.7, 0.65, 0.75), "int4"),
]
ROWS = [
    ForestRow("g", "up", Interval(0.04, 0.02, 0.06), "better", 5),
    ForestRow("g", "down", Interval(-0.04, -0.06, -0.02), "worse", 5),
    ForestRow("h", "open", Interval(0.01, -0.01, 0.03), "not shown", 3),
]
STRIPS = [Strip("a", [0.1, 0.2, 0.2, 0.3], Interval(0.2, 0.15, 0.25))]
CELLS = [[1.0, -0.5], [math.nan, 0.25]]


def makers():
    names = ["first", "second"]
    return {
        "curves": lambda: learning_curves(CURVES, STEPS, LOSS),
        "pareto": lambda: pareto(POINTS, SIZE, SHARE, "lower", "higher", x_log=True),
        "heat": lambda: heat_map(CELLS, names, names, "similarity (cosine)", 0.0),
        "forest": lambda: forest(ROWS, "gap (share)", zone=0.01, better="higher"),
        "strip": lambda: strip(STRIPS, SHARE),
    }


def segments(figure):
    """Return the ends of all straight lines that are no plot lines."""
    parts = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    return [np.asarray(s).tolist() for part in parts for s in part.get_segments()]


def written(figure):
    return [text.get_text() for text in figure.findobj(Text)]


@pytest.mark.parametrize("kind", makers())
def test_the_same_data_give_the_same_bytes(kind, tmp_path):
    make = makers()[kind]
    figure = make()
    first = save(figure, tmp_path / "one", "f")
    second = save(make(), tmp_path / "two", "f")
    again = save(figure, tmp_path / "three", "f", ("png", "svg", "pdf"))[::-1]
    contents = [[path.read_bytes() for path in made] for made in (first, second, again)]
    assert contents[0] == contents[1] == contents[2]
    pdf, svg, png = contents[0]
    assert pdf.startswith(b"%PDF-")
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    assert png.startswith(b"\x89PNG\r\n")
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == (
        ["f.pdf", "f.png", "f.svg"]
    )


def test_another_process_with_another_hash_seed_gives_the_same_bytes(tmp_path):
    root = Path(__file__).parents[2]
    code = (
        "import sys; sys.path[:0] = ['src', '.']\n"
        "from tests.unit.test_reporting_figures import makers, save\n"
        "save(makers()['pareto'](), sys.argv[1], 'f')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, tmp_path / seed],
            env={"PYTHONHASHSEED": seed},
            cwd=root,
            check=True,
        )
    for suffix in ("pdf", "svg", "png"):
        one, two = (tmp_path / seed / f"f.{suffix}" for seed in ("1", "2"))
        assert one.read_bytes() == two.read_bytes()


def test_curves_show_band_mean_and_seeds():
    figure = learning_curves(CURVES, STEPS, LOSS)
    bands = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
    assert len(bands) == len(CURVES)
    for band, curve in zip(bands, CURVES, strict=True):
        corners = {tuple(v) for v in band.get_paths()[0].vertices}
        for bound in (curve.low, curve.high):
            assert set(zip(curve.x, bound, strict=True)) <= corners
    means = [tuple(line.get_ydata()) for line in figure.axes[0].lines]
    assert {tuple(curve.mean) for curve in CURVES} <= set(means)
    assert {"a_b $x$ (5 seeds)", "b (1 seed)"} <= set(written(figure))


def test_a_point_alone_shows_its_interval():
    nan = math.nan
    curve = Curve("a", [0, 1, 2], [1, nan, 2], [0, nan, 1], [2, nan, 3], 3)
    ends = [[[0, 0], [0, 2]], [[2, 1], [2, 3]]]
    assert segments(learning_curves([curve], STEPS, LOSS)) == ends


def test_long_names_fit_the_figure():
    curves = [replace(CURVES[0], name=f"a rather long name {i}" * 2) for i in range(7)]
    figure = learning_curves(curves, STEPS, LOSS)
    legend = figure.legends[0].get_window_extent()
    assert legend.x1 <= figure.bbox.x1
    assert legend.y1 <= figure.bbox.y1
    assert legend.y0 >= figure.axes[0].get_window_extent().y1


def test_pareto_front_and_intervals():
    assert [p.name for p in front(POINTS, "lower", "higher")] == ["small", "large"]
    assert [p.name for p in front(POINTS, "higher", "higher")] == ["large", "beaten"]
    figure = pareto(POINTS, SIZE, SHARE, "lower", "higher", x_log=True)
    assert [[1.0, 0.4], [1.0, 0.6]] in segments(figure)
    assert [[110.0, 0.7], [130.0, 0.7]] in segments(figure)
    assert {"small", "large", "beaten", "float", "int4"} <= set(written(figure))
    (line,) = [x for x in figure.axes[0].lines if x.get_label() == "front"]
    assert list(line.get_xdata()) == [1.0, 100.0]
    assert line.get_drawstyle() == "steps-post"
    marks = {x.get_xdata()[0]: x for x in figure.axes[0].lines if len(x.get_xdata())}
    assert marks[120.0].get_alpha() < marks[100.0].get_alpha()


def test_a_zone_is_shaded_and_named():
    zone = Zone("A/A floor of small", Interval(0.5, 0.45, 0.55))
    figure = pareto(POINTS, SIZE, SHARE, "lower", "higher", zone=zone)
    (shaded,) = [p for p in figure.axes[0].patches if p.get_label() == zone.name]
    assert (shaded.get_y(), shaded.get_height()) == pytest.approx((0.45, 0.1))
    assert zone.name in written(figure)


def test_names_of_points_do_not_overlap():
    rng = np.random.default_rng(0)
    points = [
        Point(f"LoRA r={i}", float(x), Interval(float(y), y - 0.01, y + 0.01))
        for i, (x, y) in enumerate(rng.random((12, 2)))
    ]
    figure = pareto(points, SIZE, SHARE, "lower", "higher")
    figure.draw_without_rendering()
    names = {point.name for point in points}
    texts = [text for text in figure.axes[0].texts if text.get_text() in names]
    boxes = [Text.get_window_extent(text) for text in texts]  # without its arrow
    assert len(boxes) == len(points)
    inside = figure.bbox
    for number, box in enumerate(boxes):
        assert inside.x0 <= box.x0 < box.x1 <= inside.x1
        for other in boxes[:number]:
            assert not box.padded(-1).overlaps(other.padded(-1))


def test_heat_map_writes_numbers_and_hatches_what_is_missing():
    names = ["first", "second"]
    figure = heat_map(CELLS, names, names, "similarity (cosine)", centre=0.0)
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown == ["1.00", "−0.50", "0.25"]
    (patch,) = figure.axes[0].patches
    assert patch.get_hatch()
    assert patch.get_xy() == (0, 1)
    norm = figure.axes[0].collections[0].norm
    assert (norm.vmin, norm.vcenter, norm.vmax) == (-1.0, 0.0, 1.0)
    cells = [[Interval(0.5, 0.4, 0.6)]]
    figure = heat_map(cells, ["r"], ["c"], SHARE)
    assert "[0.40, 0.60]" in figure.axes[0].texts[0].get_text()


def test_forest_shows_all_of_a_row():
    figure = forest(ROWS, "gap (share)", zone=0.01, better="higher")
    for row, y in zip(ROWS, (-1, -2, -4), strict=True):
        ends = [[row.interval.low, y], [row.interval.high, y]]
        assert ends in segments(figure)
    shown = written(figure)
    for text in ("g", "h", "up", "not shown", "+0.040 [+0.020, +0.060]", "5", "3"):
        assert text in shown
    label = figure.axes[0].get_xlabel()
    assert "better →" in label
    assert "±0.01" in label
    (zone,) = figure.axes[0].patches
    assert (zone.get_x(), zone.get_width()) == (-0.01, 0.02)
    colours = [c.get_color()[0][:3].tolist() for c in figure.axes[0].collections]
    assert len({tuple(c) for c in colours}) == len(ROWS)


def test_forest_texts_stay_on_the_paper_and_apart():
    rows = [
        ForestRow(
            "A long name of a group, in bold", f"label {i} " * 4, r.interval, v, 5
        )
        for i, (r, v) in enumerate(
            zip(ROWS, ("x", "a long verdict " * 3, ""), strict=True)
        )
    ]
    figure = forest(rows, "gap (share)", better="lower")
    boxes = [t.get_window_extent() for t in figure.axes[0].texts if t.get_text()]
    axes = figure.axes[0].get_window_extent()
    for number, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.x1 <= axes.x0 or box.x0 >= axes.x1
        assert not any(box.padded(-2).overlaps(o.padded(-2)) for o in boxes[:number])


def test_strip_shows_every_value_and_the_interval():
    figure = strip(STRIPS, SHARE)
    dots, mean = figure.axes[0].lines
    assert list(dots.get_xdata()) == STRIPS[0].values
    places = set(zip(dots.get_xdata(), dots.get_ydata(), strict=True))
    assert len(places) == len(STRIPS[0].values)
    assert list(mean.get_xdata()) == [0.2]
    (line,) = segments(figure)
    assert [place[0] for place in line] == [0.15, 0.25]


WITHOUT_UNIT = {
    "curves": lambda bad: learning_curves(CURVES, STEPS, bad),
    "curves x": lambda bad: learning_curves(CURVES, bad, LOSS),
    "pareto": lambda bad: pareto(POINTS, bad, SHARE, "lower", "higher"),
    "heat": lambda bad: heat_map([[1.0]], ["r"], ["c"], bad),
    "forest": lambda bad: forest(ROWS, bad),
    "strip": lambda bad: strip(STRIPS, bad),
}


@pytest.mark.parametrize("bad", ["loss", "loss ()", "loss ( )", "(share)", "a (b) c"])
@pytest.mark.parametrize("kind", WITHOUT_UNIT)
def test_a_label_without_a_unit_is_refused(kind, bad):
    with pytest.raises(ValueError, match="has no unit"):
        WITHOUT_UNIT[kind](bad)


INF, NAN = math.inf, math.nan
REFUSED = {
    "no curve to draw": lambda: learning_curves([], STEPS, LOSS),
    "differ in length": lambda: learning_curves(
        [Curve("a", [0, 1], [1], [0], [2], 3)], STEPS, LOSS
    ),
    "no interval": lambda: learning_curves(
        [Curve("a", [0], [1], [NAN], [2], 3)], STEPS, LOSS
    ),
    "0 seeds": lambda: learning_curves(
        [Curve("a", [0], [1], [0], [2], 0)], STEPS, LOSS
    ),
    "no interval in x or in y": lambda: pareto(
        [Point("a", 1.0, 2.0)], SIZE, SHARE, "lower", "higher"
    ),
    "no logarithm": lambda: pareto(
        [Point("a", 0.0, Interval(1, 0, 2))], SIZE, SHARE, "lower", "higher", x_log=True
    ),
    "better is": lambda: pareto(POINTS, SIZE, SHARE, "down", "higher"),
    "values must be": lambda: heat_map([[1.0, 2.0]], ["r"], ["c"], SHARE),
    "is infinite": lambda: heat_map([[INF]], ["r"], ["c"], SHARE),
    "is not finite": lambda: forest(
        [ForestRow("", "a", Interval(0, -INF, 1), "", 1)], SHARE
    ),
    "wrong way round": lambda: strip([Strip("a", [1.0], Interval(0, 1, -1))], SHARE),
    "is not an Interval": lambda: strip([Strip("a", [1.0], 1.0)], SHARE),
    "not positive": lambda: forest(ROWS, SHARE, zone=0.0),
    "unknown formats": lambda: save(forest(ROWS, SHARE), Path(), "f", ("jpg",)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_drawn_is_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_series_differ_without_colour():
    looks = [look(i) for i in range(len(COLOURS))]
    assert len({(x.marker, str(x.dash)) for x in looks}) == len(looks)
    assert len({look(i) for i in range(280)}) == 280


def test_no_global_state_is_touched():
    import matplotlib

    before = dict(matplotlib.rcParams)
    makers()["curves"]()
    assert dict(matplotlib.rcParams) == before
    assert RC["text.parse_math"] is False


def test_log_ticks():
    ticks = [log_tick(x) for x in (0.01, 1.0, 500.0, 100_000.0, 1e6, 2e7, 5e-4)]
    assert ticks == ["0.01", "1", "500", "100,000", "10⁶", "2×10⁷", "5×10⁻⁴"]
