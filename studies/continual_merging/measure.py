"""The study of merging, measured: one line a measurement, and what stands is skipped.

    ledger   what is left, counted, and the minutes that this machine takes for it
    run      measure what is left; stopped at any point, it goes on there
    page     results.json and README.md from what was measured

The scale of every method, joint or continual, is tuned alike: ‖merged‖ over the mean
norm of the tasks' updates is tried at the same few values, on validation rows, at exact
rank, in the order of the file. The factor that was best by mean accuracy then holds on
test rows, at every rank and in every order. Test rows choose nothing.

    python -m studies.continual_merging.measure ledger evidence
    python -m studies.continual_merging.measure run evidence
    python -m studies.continual_merging.measure page evidence

A second argument is the folder of the adapters' runs (``runs/continual_merging``).
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from studies.continual_merging.plan import (
    ALONE,
    BASE,
    OWN,
    TUNED,
    Measurement,
    method_of,
    orders_of,
)
from studies.continual_merging.session import WORK, Record, Session, open_session
from studies.continual_merging.train import RUNS

from loralab.errors import LoralabError
from loralab.evaluation.multitask import Matrix, MultiTaskEvaluator, TaskScores
from loralab.lowrank.update import Update, frobenius, svd, truncated
from loralab.merging.merge import layers
from loralab.runs.environment import git_commit

HERE = Path(__file__).parent
PRIMARY = "evidence"
"""The size whose page stands here; that of another stands in a folder of its own."""


def tell(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


# ---- one measurement ----


def norm_of(updates: Mapping[str, Update]) -> float:
    """Return ‖ΔW‖_F over all layers."""
    return math.hypot(*(frobenius(one) for one in updates.values()))


def best_norm(session: Session, told_method: str) -> float:
    """Return the candidate with the best mean accuracy on validation rows.

    Of several that are best it is the smallest.
    """
    of: dict[float, float] = {}
    for norm in session.study.norms:
        key = Measurement("", told_method, "validation", norm).key
        of[norm] = float(np.mean(session.done[key]["matrix"][-1]))
    return max(sorted(of), key=lambda norm: of[norm])


def factor_of(session: Session, one: Measurement) -> float:
    """Return what the merged update is multiplied with."""
    if one.scale == OWN:
        return 1.0
    norm = best_norm(session, one.method) if one.scale == TUNED else float(one.scale)
    size = norm_of(session.merged(one.method))
    return norm * session.mean_norm() / size if size else 1.0


def stored(updates: Mapping[str, Update]) -> tuple[int, float]:
    """Return the parameters of a merged adapter, and the share that was left out.

    Parameters are rank × (in + out) of the directions that are more than rounding; the
    share is of ‖ΔW‖², by what factorising and cutting lost.
    """
    parameters, kept, lost = 0, 0.0, 0.0
    for one in updates.values():
        sigma = svd(one.C)[1]
        parameters += sigma.numel() * sum(one.shape)
        kept += float(sigma.square().sum())
        lost += one.lost
    return parameters, lost / (kept + lost) if kept + lost else 0.0


def record_of(matrix: Matrix) -> Record:
    """Return a matrix as JSON, with the rows of its last merge bit by bit."""

    def plain(values: Any) -> list[list[float | None]]:
        return [[None if math.isnan(x) else x for x in row] for row in values]

    return {
        "tasks": list(matrix.order),
        "matrix": plain(matrix.accuracy.tolist()),
        "cross_entropy": plain(matrix.cross_entropy.tolist()),
        "rows": {name: len(said.right) for name, said in matrix.last.items()},
        "right": {name: bits(said) for name, said in matrix.last.items()},
    }


def bits(said: TaskScores) -> str:
    """Return which rows were right, a bit each, in hex."""
    return np.packbits(said.right.astype(bool)).tobytes().hex()


def at_end(scores: Mapping[str, TaskScores]) -> Matrix:
    """Return scores as the last row of a matrix."""
    end = len(scores) - 1
    return Matrix(tuple(scores), {(end, i): s for i, s in enumerate(scores.values())})


def measured(session: Session, one: Measurement) -> Record:
    """Measure one thing."""
    evaluator = session.test if one.split == "test" else session.validation
    if one.method == BASE:
        return record_of(at_end(evaluator.measure({})))
    if one.method == ALONE:
        return record_of(at_end(evaluator.alone()))
    factor = factor_of(session, one)
    if one.scale == TUNED and one.rank is None and math.isclose(factor, 1):
        return last_row(session.done[replace(one, scale=OWN).key])
    if one.order:
        order = orders_of(session.study.sizes[session.size], session.names)[one.order]
        matrix = evaluator.continual(method_of(one.method), order, one.cells, factor)
        return {"factor": factor, **record_of(matrix)}
    updates = {m: u * factor for m, u in session.merged(one.method).items()}
    if one.rank is not None:
        updates = {m: truncated(u, one.rank) for m, u in updates.items()}
    parameters, lost = stored(updates)
    about = {"factor": factor, "parameters": parameters, "lost": lost}
    return {**about, **record_of(at_end(evaluator.measure(updates)))}


def last_row(record: Record) -> Record:
    """Return a measurement as one of the last row alone: it is not measured twice."""
    skipped = ("key", "arm", "seconds", "commit")
    found = {name: value for name, value in record.items() if name not in skipped}
    for name in ("matrix", "cross_entropy"):
        *rows, last = record[name]
        found[name] = [*([None] * len(row) for row in rows), last]
    return found


# ---- the ledger ----


@dataclass(frozen=True)
class Entry:
    """What one kind of measurement takes.

    Attributes:
        kind: Name.
        count: Measurements that are left.
        rows: Rows that are run through the model.
        measuring: Minutes of it.
        merging: Minutes of merging.
    """

    kind: str
    count: int
    rows: int
    measuring: float
    merging: float


def kind_of(one: Measurement) -> str:
    """Return which part of the study a measurement belongs to."""
    if one.split == "validation":
        return "tuning"
    if one.order:
        return "continual"
    return "joint"


def rate(evaluator: MultiTaskEvaluator) -> float:
    """Return rows a second, over the rows of all tasks."""
    start = time.perf_counter()
    said = evaluator.measure({})
    return sum(len(one.right) for one in said.values()) / (time.perf_counter() - start)


def merge_seconds(session: Session, told_method: str) -> float:
    """Return the seconds of merging all tasks: one layer of every shape, times it."""
    method = method_of(told_method)
    seconds: dict[tuple[int, int], float] = {}
    total = 0.0
    for layer in layers(session.test.sources(), inputs=method.reads_inputs):
        if layer.shape not in seconds:
            start = time.perf_counter()
            method.merged(layer)
            seconds[layer.shape] = time.perf_counter() - start
        total += seconds[layer.shape]
    return total


def steps(session: Session, one: Measurement) -> float:
    """Return how many merges of all tasks a measurement is worth.

    A continual method is folded once. A joint one merges 1, 2, … T tasks anew, each
    taken to cost its share of all.
    """
    if one.cells == "last" or method_of(one.method).continual:
        return 1.0
    return (len(session.names) + 1) / 2


def ledger(session: Session) -> list[Entry]:
    """Return what is left, by kind, at the rates measured here and now."""
    speed, left = rate(session.test), session.left
    told = {one.method for one in left if one.method not in (BASE, ALONE)}
    seconds = {BASE: 0.0, ALONE: 0.0} | {m: merge_seconds(session, m) for m in told}
    size = session.study.sizes[session.size]
    of = {"test": size.rows, "validation": size.tuning_rows}
    found, merged = [], set()
    for kind in ("tuning", "joint", "continual"):
        own = [one for one in left if kind_of(one) == kind]
        rows = sum(one.cells_of(len(session.names)) * of[one.split] for one in own)
        merging = 0.0
        for one in own:  # in the order of the file one merge serves all of a method
            if one.order or one.method not in merged:
                merging += seconds[one.method] * steps(session, one)
            if not one.order:
                merged.add(one.method)
        found.append(Entry(kind, len(own), rows, rows / speed / 60, merging / 60))
    return found


def tell_ledger(session: Session) -> None:
    """Print the ledger."""
    study, entries = session.study, ledger(session)
    size = study.sizes[session.size]
    tell(
        f"{len(session.names)} tasks, {size.rows} test and {size.tuning_rows} "
        f"validation rows each; {len(study.merged)} methods, each tuned over "
        f"{len(study.norms)} scales on validation rows"
    )
    for one in entries:
        tell(
            f"{one.kind:10} {one.count:5} measurements {one.rows:9,} rows "
            f"{one.measuring:6.1f} min measuring {one.merging:6.1f} min merging"
        )
    minutes = sum(one.measuring + one.merging for one in entries)
    rows = sum(one.rows for one in entries)
    speed = rows / sum(one.measuring for one in entries) / 60 if rows else 0.0
    tell(f"in all {minutes:.0f} min, at {speed:.0f} rows/s; {len(session.done)} stand")
    if minutes > study.limit_minutes:
        tell(f"more than {study.limit_minutes:g} min: lower rows or orders, or stop it")


# ---- all of it ----


def run(session: Session) -> None:
    """Measure what is left, each appended when it is there."""
    left = session.left
    for number, one in enumerate(left, 1):
        start = time.perf_counter()
        found = measured(session, one)
        seconds = round(time.perf_counter() - start, 2)
        about = {"key": one.key, "arm": one.arm, "seconds": seconds}
        line = {**about, "commit": git_commit(), **found}
        with session.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        session.done[one.key] = line
        last = [x for x in found["matrix"][-1] if x is not None]
        tell(
            f"{number:4}/{len(left)} {one.arm:28} {one.split:10} {one.scale!s:6} "
            f"rank {one.rank or 'exact'!s:5} order {one.order:2} "
            f"{np.mean(last):.3f}  {seconds:6.1f} s"
        )


def main(given: Sequence[str] | None = None) -> None:
    """Tell the ledger, measure, or write results and page."""
    asked = list(sys.argv[1:] if given is None else given)
    if len(asked) not in (2, 3) or asked[0] not in ("ledger", "run", "page"):
        raise SystemExit(__doc__)
    try:
        if asked[0] == "page":
            from studies.continual_merging.page import write_results

            place = HERE if asked[1] == PRIMARY else HERE / asked[1]
            write_results(WORK, asked[1], place)
            return
        session = open_session(asked[1], Path(asked[2]) if len(asked) > 2 else RUNS)
        tell_ledger(session)
        if asked[0] == "run":
            run(session)
    except LoralabError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
