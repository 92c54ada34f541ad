"""The page of the study of merging: every number on it comes from its results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from studies.continual_merging.analyse import CONFIDENCE, analysed, read_found
from studies.continual_merging.plan import OWN, SUGGESTED, TUNED

from loralab.errors import RunError
from loralab.evaluation.intervals import Interval
from loralab.reporting.figures import (
    Curve,
    ForestRow,
    MergingPanels,
    Point,
    merging_panels,
    save,
)
from loralab.reporting.renderers import to_markdown
from loralab.reporting.tables import Cell, Column, Table, format_interval, format_number
from loralab.runs.files import write_json, write_text

Record = dict[str, Any]
ALPHA = 1 - CONFIDENCE
DIGITS = 3
CURVES = ("norm rule alone", "c-task-arithmetic", "opcm code", "opcm stable")
POINTS = ("norm rule alone", "opcm code", "ties", "tsv-m", "iso-c", "core-space")
ABLATED = (0.0, 0.5, 1.0)
"""Arms and thresholds that the figure shows; more would hide one another."""
NO_OTHERS = (
    f"In brackets: {CONFIDENCE:.0%} over test rows of these tasks (and, where orders "
    "are named, over orders); nothing is said of adapters trained with other seeds, or "
    "of other tasks."
)


def interval(one: Record) -> Interval:
    """Return a record's interval."""
    return Interval(one["value"], one["low"], one["high"])


def share(name: str, *, signed: bool = False) -> Column:
    """Return a column of numbers without an interval, to `DIGITS` decimals."""
    return Column(name, digits=DIGITS, signed=signed)


def rank_name(rank: int | None) -> str:
    """Return a rank as it is shown."""
    return "exact" if rank is None else str(rank)


def family(found: Record, name: str) -> list[Record]:
    """Return the comparisons of a family."""
    return [one for one in found["comparisons"] if one["family"] == name]


def verdict(one: Record) -> str:
    """Return what a comparison shows, after Holm's correction."""
    if one["p_holm"] >= ALPHA:
        return "no difference shown"
    return "better" if one["value"] > 0 else "worse"


# ---- tables ----


def adapter_table(found: Record) -> Table:
    """Return the adapters: rank, base, alone."""
    rows: list[list[Cell]] = [
        [
            task,
            found["ranks"][task],
            *found["drawn"][task],
            found["base"][task],
            accuracy,
        ]
        for task, accuracy in found["alone"].items()
    ]
    names = "task", "rank", "test rows", "of", "base, with its head", "adapter alone"
    title = "Accuracy of the base and of every adapter alone, each with its own head"
    columns = [*(Column(name) for name in names[:4]), *map(share, names[4:])]
    return Table(title, columns, rows)


def joint_table(found: Record) -> Table:
    """Return all methods in the order of the file, as published and tuned."""
    against = {
        (f, one["first"]): one
        for f in ("own scale", "tuned scale")
        for one in family(found, f)
    }
    rows: list[list[Cell]] = []
    for row in found["joint"]:
        if row["rank"] is not None:
            continue
        one = against.get((f"{row['scale']} scale", row["arm"]))
        rows.append(
            [
                row["arm"],
                row["scale"],
                row["factor"],
                interval(row["accuracy"]),
                row["normalised"],
                row["worst"],
                row["cross_entropy"],
                interval(one) if one else None,
                one["p_holm"] if one else None,
                verdict(one) if one else None,
            ]
        )
    columns = [Column("method"), Column("scale"), Column("factor")]
    columns += [Column("accuracy"), share("normalised"), share("worst task")]
    columns += [Column("cross-entropy", "nats/label", digits=DIGITS)]
    columns += [Column("difference", signed=True), Column("p (Holm)"), Column("shows")]
    notes = [
        "Own scale: as the method gives it, against average. Tuned: ‖merged‖ chosen on "
        f"validation rows, against {found['study']['reference']} tuned alike, which is "
        "the sum of the updates at its best scale.",
        NO_OTHERS,
    ]
    return Table("All tasks at once, exact rank", columns, rows, notes)


def rank_table(found: Record) -> Table:
    """Return what a fixed output rank costs."""
    rows: list[list[Cell]] = []
    for row in found["joint"]:
        if row["rank"] is None:
            continue
        name, rank = row["arm"], row["rank"]
        of_sum = {x["first"]: x for x in family(found, f"rank {rank}")}
        of_exact = {x["first"]: x for x in family(found, f"rank {rank}, or exact")}
        one, other = of_exact.get(name), of_sum.get(name)
        rows.append(
            [
                name,
                rank,
                row["parameters"],
                row["lost"],
                interval(row["accuracy"]),
                interval(one) if one else None,
                one["p_holm"] if one else None,
                interval(other) if other else None,
                other["p_holm"] if other else None,
            ]
        )
    reference = found["study"]["reference"]
    columns = [Column("method"), Column("rank"), Column("parameters")]
    columns += [share("energy lost"), Column("accuracy")]
    columns += [Column("less exact", signed=True), Column("p (Holm) of it")]
    columns += [Column(f"less {reference}", signed=True), Column("p (Holm)")]
    title = "At a fixed output rank, tuned scale, cut layer by layer"
    return Table(title, columns, rows, [NO_OTHERS])


def continual_table(found: Record) -> Table:
    """Return the continual methods over their orders."""
    rows: list[list[Cell]] = []
    for row in found["continual"]:
        of = family(found, f"continual, {row['scale']} scale")
        one = next((x for x in of if x["first"] == row["arm"]), None)
        rows.append(
            [
                row["arm"],
                row["scale"],
                row["orders"],
                interval(row["accuracy"]),
                row["order_std"],
                row["bwt_mingle"],
                row["bwt_fusion_bench"],
                row["forgetting"],
                row["worst"],
                row["normalised"],
                interval(one) if one else None,
                one["p_holm"] if one else None,
                verdict(one) if one else None,
            ]
        )
    columns = [Column("method"), Column("scale"), Column("orders"), Column("ACC")]
    columns += [share("std over orders"), share("BWT, MINGLE", signed=True)]
    columns += [share("BWT, FusionBench", signed=True), share("forgetting")]
    columns += [share("worst task"), share("normalised")]
    columns += [Column("difference", signed=True), Column("p (Holm)"), Column("shows")]
    whole = max((row["whole_orders"] for row in found["continual"]), default=0)
    notes = [
        f"Against {found['study']['reference']} at the same kind of scale, in the same "
        f"orders. Forgetting is of {whole} orders, where every cell was measured.",
        NO_OTHERS,
    ]
    return Table("One task after the other", columns, rows, notes)


def sweep_table(found: Record) -> Table:
    """Return the ablation of the threshold."""
    of = {one["first"]: one for one in family(found, "threshold")}
    rows: list[list[Cell]] = []
    for row in found["sweep"]:
        one = of.get(row["arm"])
        rows.append(
            [
                row["arm"],
                row["orders"],
                interval(row["accuracy"]),
                interval(one) if one else None,
                one["p_holm"] if one else None,
                verdict(one) if one else None,
            ]
        )
    columns = [Column("arm"), Column("orders"), Column("ACC")]
    columns += [Column("difference", signed=True), Column("p (Holm)"), Column("shows")]
    suggested = format_number(found["analysis"]["suggested_threshold"], 2)
    notes = [
        f"Against {found['study']['reference']}. {SUGGESTED} is {suggested}, a "
        "heuristic from the similarity of the adapters.",
        NO_OTHERS,
    ]
    return Table("Projection: mode and threshold", columns, rows, notes)


def tables(found: Record) -> dict[str, Table]:
    """Return the tables by name; one without rows is left out."""
    made = {
        "adapters": adapter_table(found),
        "joint": joint_table(found),
        "ranks": rank_table(found),
        "continual": continual_table(found),
        "threshold": sweep_table(found),
    }
    return {name: table for name, table in made.items() if table.rows}


# ---- words ----


def listed(comparisons: Sequence[Record], word: str) -> str:
    """Return the names that a verdict is of."""
    names = [one["first"] for one in comparisons if verdict(one) == word]
    return ", ".join(names) or "none"


def sentences(found: Record) -> Iterator[str]:
    """Yield what the results say, in words."""
    reference, tasks = found["study"]["reference"], len(found["alone"])
    mean = format_number(float(np.mean(list(found["alone"].values()))), 3)
    base = format_number(float(np.mean(list(found["base"].values()))), 3)
    yield (
        f"{tasks} adapters of one base, merged. Alone, each on its own task, they "
        f"reach a mean accuracy of {mean}; the base with the same heads {base}."
    )
    for name, against in (
        ("own scale", "average"),
        ("tuned scale", f"{reference}, tuned alike"),
        ("continual, own scale", reference),
        ("continual, tuned scale", f"{reference}, tuned alike"),
        ("threshold", reference),
    ):
        own = family(found, name)
        if not own:
            continue
        best = max(own, key=lambda one: float(one["value"]))
        yield (
            f"**{name[0].upper()}{name[1:]}**, {len(own)} against {against}: better "
            f"after Holm's correction: {listed(own, 'better')}; worse: "
            f"{listed(own, 'worse')}. Largest difference: {best['first']} "
            f"{format_interval(interval(best), signed=True)}."
        )
    for rank in found["study"]["ranks"]:
        own = family(found, f"rank {rank}, or exact")
        if own:
            values = [one["value"] for one in own]
            yield (
                f"**Output rank {rank}** changes accuracy by "
                f"{format_number(max(values), 3, signed=True)} to "
                f"{format_number(min(values), 3, signed=True)} against the "
                f"same method at exact rank; better: {listed(own, 'better')}; worse: "
                f"{listed(own, 'worse')}."
            )
    heuristic = family(found, "heuristic")
    if heuristic:
        yield (
            "**The suggested threshold** against fixed ones: better in "
            f"{sum(verdict(one) == 'better' for one in heuristic)}, worse in "
            f"{sum(verdict(one) == 'worse' for one in heuristic)} of "
            f"{len(heuristic)} comparisons."
        )


def tuning_sentence(found: Record) -> str:
    """Say how scales were chosen."""
    norms = ", ".join(format_number(n, 1) for n in found["study"]["norms"])
    size = found["study"]["sizes"][found["size"]]
    return (
        f"Every method had the same budget of tuning: {len(found['study']['norms'])} "
        f"sizes of the merged update ({norms} times the mean norm of the tasks' "
        f"updates) on {size['tuning_rows']} validation rows a task, once, at exact "
        "rank; test rows choose nothing. Accuracy is the mean over tasks; each task is "
        "answered by its own head. The sum of the updates is one direction: average, "
        "task arithmetic and the norm rule are the same update at different scales, "
        "so tuned they are one arm."
    )


# ---- the figure ----


def curves(found: Record) -> list[Curve]:
    """Return accuracy on the tasks merged so far, with the range over whole orders."""
    made = []
    for row in found["continual"]:
        if row["arm"] in CURVES and row["scale"] == OWN and row["curves"]:
            of = np.array(row["curves"])
            x = list(range(1, of.shape[1] + 1))
            ends = of.min(0).tolist(), of.max(0).tolist()
            mean = of.mean(0).tolist()
            made.append(Curve(row["arm"], x, mean, *ends, len(of), "order"))
    return made


def cosines(found: Record) -> list[list[float]]:
    """Return the cosine of every pair of updates."""
    count = len(found["alone"])
    made = np.full((count, count), np.nan)
    for pair in found["analysis"]["pairs"]:
        made[pair["one"], pair["other"]] = pair["cosine"]
        made[pair["other"], pair["one"]] = pair["cosine"]
    cells: list[list[float]] = made.tolist()
    return cells


def points(found: Record) -> list[Point]:
    """Return accuracy against the parameters of the merged adapter, tuned."""
    return [
        Point(
            rank_name(row["rank"]),
            float(row["parameters"]),
            interval(row["accuracy"]),
            row["arm"],
        )
        for row in found["joint"]
        if row["scale"] == TUNED and row["arm"] in POINTS and row["parameters"]
    ]


def ablations(found: Record) -> list[ForestRow]:
    """Return projection against the norm rule alone."""
    return [
        ForestRow("", one["first"], interval(one), verdict(one), one["orders"])
        for one in family(found, "threshold")
        if one["first"].endswith(tuple(f" {at}" for at in ABLATED))
    ]


def figure(found: Record, file: Path) -> None:
    """Draw the main figure."""
    group = found["study"]["sizes"][found["size"]]["group"]
    made = merging_panels(
        MergingPanels(
            curves=curves(found),
            similarity=cosines(found),
            tasks=[task.removeprefix(f"{group}-") for task in found["alone"]],
            points=points(found),
            ablations=ablations(found),
            performance="mean accuracy (share)",
            similar="cosine of updates (1)",
            size="merged adapter (parameters)",
            difference=f"less {found['study']['reference']} (share)",
            levels={"adapters alone": float(np.mean(list(found["alone"].values())))},
        )
    )
    save(made, file.parent, file.name, ("svg",))


def page(found: Record) -> str:
    """Return the README."""
    here = found["environment"]
    parts = [
        "# Merging adapters one after the other, and all at once",
        found["study"]["question"].strip(),
        *sentences(found),
        tuning_sentence(found),
        "![performance, similarity, size, ablations](figures/merging.svg)",
        "a: accuracy on the tasks merged so far, mean and range over orders. b: cosine "
        "of the updates. c: accuracy against the parameters of the merged adapter, at "
        "ranks and exact. d: projection less the norm rule alone.",
        *(to_markdown(table) for table in tables(found).values()),
    ]
    if found["left_out"]:
        parts.append(f"Left out, for want of sketches: {', '.join(found['left_out'])}.")
    commits = ", ".join(f"`{commit}`" for commit in found["commits"])
    parts.append(
        f"{found['measurements']} measurements in {format_number(found['minutes'], 0)} "
        f"minutes at {commits} with torch {here['packages']['torch']} and PEFT "
        f"{here['packages']['peft']} by `python -m studies.continual_merging.measure "
        f"run {found['size']}`; adapters by `studies/continual_merging/adapters.yaml`."
    )
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def write(found: Record, folder: Path) -> None:
    """Write page, tables and figure into a folder."""
    write_text(folder / "README.md", page(found))
    for name, table in tables(found).items():
        write_text(folder / "tables" / f"{name}.md", to_markdown(table))
    figure(found, folder / "figures" / "merging")


def write_results(work: Path, size: str, folder: Path) -> None:
    """Analyse a size; write results, measurements, tables, page and figure.

    Raises:
        RunError: not all of it is measured yet.
    """
    stands = read_found(work, size)
    if left := len(stands.missing):
        raise RunError(
            f"{left} measurements are left",
            where=str(work),
            fix=f"go on: python -m studies.continual_merging.measure run {size}",
        )
    found = analysed(stands)
    write_json(folder / "results.json", found)
    raw = (work / f"{size}.jsonl").read_text(encoding="utf-8")
    write_text(folder / "measurements.jsonl", raw)
    write(json.loads(json.dumps(found)), folder)
