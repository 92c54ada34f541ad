"""The figures of a study's analysis; every number is read from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from loralab.evaluation.intervals import Interval
from loralab.evaluation.statistics.seeds import t_interval
from loralab.experiments.report_tables import Analysis, read_interval, said
from loralab.reporting.tables import label_of, unit_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from loralab.reporting.figures.pareto import Zone

LEAST_FOR_A_BAND = 2
"""Runs from which a curve has an interval."""


def figures(analysis: Analysis) -> dict[str, Figure]:
    """Return the figures of an analysis, by name; those that it has the runs for."""
    found = {}
    for name, draw in (
        ("differences", _forest),
        ("seeds", _strips),
        ("map", _heat_map),
    ):
        figure = draw(analysis)
        if figure is not None:
            found[name] = figure
    for data in dict.fromkeys(one["data"] for one in analysis["runs"]):
        for name, draw_for in (("pareto", _pareto), ("curves", _curves)):
            figure = draw_for(analysis, data)
            if figure is not None:
                found[f"{name}-{data}"] = figure
    return found


def _compared(analysis: Analysis) -> list[dict[str, Any]]:
    every = [*analysis["comparisons"], *analysis["controls"]]
    return [one for one in every if "difference" in one]


def _forest(analysis: Analysis) -> Figure | None:
    from loralab.reporting.figures.forest import ForestRow, forest

    rows = [
        ForestRow(
            one["data"],
            f"{one['arm']} − {one['reference']}",
            Interval(*(one["difference"][k] for k in ("value", "low", "high"))),
            said(one),
            one["seeds"],
        )
        for one in sorted(_compared(analysis), key=lambda one: str(one["data"]))
    ]
    if not rows:
        return None
    margins = {one["smallest_difference"] for one in _compared(analysis)}
    zone = margins.pop() if len(margins) == 1 else None
    label = f"difference of {label_of(analysis['study']['metric'])}"
    return forest(rows, label, zone=zone, better=analysis["better"])


def _strips(analysis: Analysis) -> Figure | None:
    """Draw every seed, as a difference from its group's mean: the A/A noise."""
    from loralab.reporting.figures.strips import Strip, strip

    groups = []
    for one in analysis["noise"]:
        key = (one["data"], one["arm"])
        values = np.array([r["value"] for r in analysis["runs"] if _is(r, key)])
        values = values - values.mean()
        interval = t_interval(values, 1 - analysis["study"]["alpha"])
        name = one["data"] if len(analysis["study"]["arms"]) == 1 else " · ".join(key)
        groups.append(Strip(f"{name}, {len(values)} seeds", values.tolist(), interval))
    if not groups:
        return None
    metric = analysis["study"]["metric"].replace("_", "-")
    unit = unit_of(analysis["study"]["metric"])
    return strip(groups, f"{metric} − mean over seeds ({unit})")


def _is(run: dict[str, Any], key: tuple[str, str]) -> bool:
    return (run["data"], run["arm"]) == key


def _heat_map(analysis: Analysis) -> Figure | None:
    from loralab.reporting.figures.heat import heat_map

    rows = list(dict.fromkeys(one["data"] for one in analysis["comparisons"]))
    columns = list(dict.fromkeys(one["arm"] for one in analysis["comparisons"]))
    if len(rows) * len(columns) < 4:
        return None
    known = {
        (one["data"], one["arm"]): read_interval(one.get("difference"))
        for one in analysis["comparisons"]
    }
    values = [[known.get((r, c)) or float("nan") for c in columns] for r in rows]
    label = f"difference of {label_of(analysis['study']['metric'])}"
    return heat_map(values, rows, columns, label, centre=0)


def _pareto(analysis: Analysis, data: str) -> Figure | None:
    """Draw quality against trained parameters, where arms differ in them."""
    of = [a for a in analysis["arms"] if a["data"] == data and a["interval"]]
    if len({one["trainable"] for one in of}) < 2:
        return None
    costs = {one["arm"]: float(one["trainable"]) for one in of}
    return quality_against(analysis, data, costs, "trained parameters (count)")


def quality_against(
    analysis: Analysis, data: str, costs: Mapping[str, float], label: str
) -> Figure:
    """Draw the metric of arms against what they cost, and the A/A floor behind them.

    Args:
        analysis: Which.
        data: Of which data set.
        costs: Arm -> its cost; an arm without interval is left out.
        label: Of the cost, with its unit.
    """
    from loralab.reporting.figures.pareto import Point, pareto

    points = [
        Point(one["arm"], costs[one["arm"]], interval, data)
        for one in analysis["arms"]
        if one["data"] == data and one["arm"] in costs
        if (interval := read_interval(one["interval"])) is not None
    ]
    y_label, better = label_of(analysis["study"]["metric"]), analysis["better"]
    zone = _floor_zone(analysis, data)
    return pareto(points, label, y_label, "lower", better, x_log=True, zone=zone)


def _floor_zone(analysis: Analysis, data: str) -> Zone | None:
    """Return the A/A noise floor around the baseline's mean, to be shaded.

    It reaches as far as two arms with as many seeds each may differ by noise (95 %);
    None where the analysis has no floor for so many.
    """
    from loralab.reporting.figures.pareto import Zone

    baseline = analysis["study"]["baseline"]
    for one in analysis["noise"]:
        if (one["data"], one["arm"]) == (data, baseline):
            half = one["half_width"].get(str(one["seeds"]))
            if half is not None:
                mean = one["mean"]
                around = Interval(mean, mean - half, mean + half)
                return Zone(f"A/A floor of {baseline}", around)
    return None


def _curves(analysis: Analysis, data: str) -> Figure | None:
    """Draw validation cross-entropy over steps, mean and interval over seeds."""
    from loralab.reporting.figures.curves import Curve, learning_curves

    curves = []
    for arm in dict.fromkeys(one["arm"] for one in analysis["runs"]):
        runs = [one["curve"] for one in analysis["runs"] if _is(one, (data, arm))]
        steps = {tuple(step for step, _ in curve) for curve in runs}
        if len(runs) < LEAST_FOR_A_BAND or len(steps) != 1 or len(*steps) < 2:
            continue
        by_step = np.array([[value for _, value in curve] for curve in runs]).T
        bands = [t_interval(v, 1 - analysis["study"]["alpha"]) for v in by_step]
        curves.append(
            Curve(
                arm,
                [float(step) for step in next(iter(steps))],
                [band.value for band in bands],
                [band.low for band in bands],
                [band.high for band in bands],
                len(runs),
            )
        )
    if not curves:
        return None
    y_label = "validation cross-entropy (nats/label)"
    return learning_curves(curves, "training (steps)", y_label)
