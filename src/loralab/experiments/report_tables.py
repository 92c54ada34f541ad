"""The tables of a study's analysis; every number is read from it."""

from __future__ import annotations

from typing import Any

from loralab.evaluation.intervals import Interval
from loralab.reporting.tables import Cell, Column, Table, unit_of

Analysis = dict[str, Any]


def read_interval(found: dict[str, Any] | None) -> Interval | None:
    """Return an interval that an analysis holds; None where it holds none."""
    if found is None:
        return None
    return Interval(found["value"], found["low"], found["high"])


def tables(analysis: Analysis) -> dict[str, Table]:
    """Return the tables of an analysis, by name."""
    found = {"arms": _arms_table(analysis)}
    if analysis["comparisons"]:
        found["comparisons"] = _comparisons_table(analysis, "comparisons", "Arms")
    if analysis["controls"]:
        found["controls"] = _comparisons_table(analysis, "controls", "Controls")
    if analysis["over_tasks"]:
        found["over-tasks"] = _over_tasks_table(analysis)
    if analysis["noise"]:
        found["noise"] = _noise_table(analysis)
        found["floor"] = _floor_table(analysis)
    if analysis["tuning"]:
        found["tuning"] = _tuning_table(analysis)
    if analysis["failed"]:
        found["failed"] = _failed_table(analysis)
    found["runs"] = _runs_table(analysis)
    return found


def _arms_table(analysis: Analysis) -> Table:
    metric = analysis["study"]["metric"]
    columns = [
        Column("data"),
        Column("arm"),
        Column("seeds"),
        Column(metric, unit_of(metric)),
        Column("trained parameters"),
        Column("adapter size", "bytes"),
        Column("training", "s", digits=1),
    ]
    rows: list[list[Cell]] = [
        [
            one["data"],
            one["arm"],
            one["seeds"],
            read_interval(one["interval"]) or one["value"],
            int(one["trainable"]),
            int(one["adapter_bytes"]),
            one["seconds"],
        ]
        for one in analysis["arms"]
    ]
    claims = {one["interval"]["claim"] for one in analysis["arms"] if one["interval"]}
    notes = [f"Intervals ({_share(analysis)}): {claim}." for claim in sorted(claims)]
    return Table(f"Arms on test rows, {metric}", columns, rows, notes)


def _share(analysis: Analysis) -> str:
    return f"{100 * (1 - analysis['study']['alpha']):g} %"


def _comparisons_table(analysis: Analysis, key: str, title: str) -> Table:
    metric = analysis["study"]["metric"]
    unit = unit_of(metric)
    columns = [
        Column("data"),
        Column("arm"),
        Column("against"),
        Column("pairs"),
        Column("difference", unit, signed=True),
        Column("verdict"),
        Column("p", digits=4),
        Column("p, flips", digits=4),
        Column("p, TOST", digits=4),
        Column("matters", unit),
        Column("seen", unit),
    ]
    rows = [_comparison(one) for one in analysis[key]]
    power = f"{100 * analysis['study']['power']:g} %"
    notes = [
        f"Better is {analysis['better']}. p: corrected for all planned comparisons "
        f"(Holm); a verdict needs it below {analysis['study']['alpha']:g}. flips: the "
        "sign-flip test over seeds, a cross-check, with the least it can give. TOST: "
        "two one-sided tests against the difference that matters, corrected too; below "
        "that level the arms are equivalent.",
        f"seen: the smallest true difference that such runs see with {power} power; "
        "where it exceeds what matters, inconclusive says nothing (too few seeds).",
    ]
    return Table(f"{title} against their reference, paired", columns, rows, notes)


def _comparison(one: dict[str, Any]) -> list[Cell]:
    flips = one.get("permutation")
    return [
        one["data"],
        one["arm"],
        one["reference"],
        f"{one['seeds']} of {one['planned']}",
        read_interval(one.get("difference")),
        said(one),
        one["p_holm"],
        flips and f"{flips['p_value']:.4f} (≥ {flips['smallest']:.2g})",
        one["p_equivalence_holm"],
        one["smallest_difference"],
        one.get("detectable"),
    ]


def _over_tasks_table(analysis: Analysis) -> Table:
    columns = [
        Column("arm"),
        Column("against"),
        Column("data sets"),
        Column("seeds"),
        Column("probability of improvement", "share"),
        Column(""),
    ]
    rows: list[list[Cell]] = [
        [
            one["arm"],
            one["reference"],
            one["tasks"],
            one["seeds"],
            read_interval(one["probability_of_improvement"]),
            "interval too narrow: few seeds" if one["undercovers"] else "",
        ]
        for one in analysis["over_tasks"]
    ]
    notes = [
        "How likely a run of the arm beats a run of its reference, mean over data sets."
    ]
    return Table("Over all data sets", columns, rows, notes)


def said(one: dict[str, Any]) -> str:
    """Return a verdict in words, with what limits it."""
    word = str(one["verdict"])
    if one["negligible"]:
        word += ", but less than matters"
    if word == "inconclusive" and (one.get("why") or one["underpowered"]):
        word += f" ({one.get('why') or 'too few seeds'})"
    if one["seeds"] < one["planned"]:
        word += f", on {one['seeds']} of {one['planned']} pairs"
    if "held" in one:
        word += {True: "; holds", False: "; DOES NOT HOLD", None: "; not shown"}[
            one["held"]
        ]
    return word


def _noise_table(analysis: Analysis) -> Table:
    metric = analysis["study"]["metric"]
    unit = unit_of(metric)
    columns = [
        Column("data"),
        Column("arm"),
        Column("seeds"),
        Column(f"mean {metric}", unit),
        Column("sd between seeds", unit),
        Column("two runs differ at most", unit),
        Column("two halves differ, median", unit),
    ]
    rows: list[list[Cell]] = [
        [
            one["data"],
            one["arm"],
            one["seeds"],
            one["mean"],
            read_interval(one["sd"]),
            one["largest_pair"],
            one["median_halves"],
        ]
        for one in analysis["noise"]
    ]
    title = "A/A: runs that differ in nothing but the seed"
    return Table(title, columns, rows)


def _floor_table(analysis: Analysis) -> Table:
    """Return what differences the noise hides, by the number of seeds."""
    unit = unit_of(analysis["study"]["metric"])
    seeds = list(analysis["noise"][0]["half_width"])
    columns = [
        Column("data"),
        Column("arm"),
        *(Column(f"±, {m} seeds", unit) for m in seeds),
        *(Column(f"seen, {m} pairs", unit) for m in seeds),
    ]
    rows: list[list[Cell]] = [
        [
            one["data"],
            one["arm"],
            *(one["half_width"][m] for m in seeds),
            *(one["detectable"][m] for m in seeds),
        ]
        for one in analysis["noise"]
    ]
    power = f"{100 * analysis['study']['power']:g} %"
    notes = [
        f"±: half-width of the {_share(analysis)} interval of a difference between two "
        "arms with so many seeds each, unpaired; a smaller difference may be noise.",
        f"seen: the true difference that so many pairs of runs see with {power} power, "
        "if pairing removes nothing of the noise.",
    ]
    return Table("The noise floor of a comparison", columns, rows, notes)


def _tuning_table(analysis: Analysis) -> Table:
    metric = analysis["tuning"][0]["metric"]
    columns = [
        Column("data"),
        Column("arm"),
        Column("point"),
        Column(f"validation {metric}", unit_of(metric)),
        Column("chosen"),
    ]
    rows: list[list[Cell]] = [
        [
            one["data"],
            one["arm"],
            " ".join(trial["point"]),
            trial["value"],
            "chosen" if trial["point"] == one["chosen"] else "",
        ]
        for one in analysis["tuning"]
        for trial in one["trials"]
    ]
    return Table(
        "Tuning: the same grid and trials for every arm, by validation rows",
        columns,
        rows,
    )


def _failed_table(analysis: Analysis) -> Table:
    names = ("data", "arm", "seed", "stage", "point", "error")
    columns = [Column(name) for name in names]
    rows: list[list[Cell]] = [
        [
            one["data"],
            one["arm"],
            one["seed"],
            one["stage"],
            " ".join(one["point"]),
            one["error"],
        ]
        for one in analysis["failed"]
    ]
    return Table("Runs that failed, left out of every number above", columns, rows)


def _runs_table(analysis: Analysis) -> Table:
    metric = analysis["study"]["metric"]
    columns = [
        Column("data"),
        Column("arm"),
        Column("seed"),
        Column("run"),
        Column(metric, unit_of(metric)),
        Column("steps"),
        Column("tokens"),
        Column("training", "s", digits=1),
        Column("resumed"),
    ]
    rows: list[list[Cell]] = [
        [
            one["data"],
            one["arm"],
            one["seed"],
            one["run"],
            one["value"],
            int(one["steps"]),
            int(one["tokens"]),
            one["seconds"],
            "time since then" if one["resumed"] else "",
        ]
        for one in analysis["runs"]
    ]
    return Table("Every run", columns, rows)
