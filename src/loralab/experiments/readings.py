"""What a study's run directories say: the only thing that its analysis reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loralab.errors import RunError
from loralab.evaluation.compare import row_scores
from loralab.experiments.study import Cell, Study
from loralab.runs import Run

Floats = NDArray[np.float64]

BUDGETS = ("trainable", "tokens", "steps", "examples")


@dataclass(frozen=True)
class Reading:
    """A finished run of a study.

    Attributes:
        cell: Where it stands in the study.
        value: The primary metric on test rows.
        better: ``higher`` or ``lower``.
        above: Numerator of each row, [E], where the metric is a ratio of sums over
            rows (cross-entropy a token, accuracy); else None.
        below: Denominator of each row, [E].
        keys: Of the rows, in order.
        budgets: What was spent, by name; counted on the built model.
        seconds: Of the training.
        curve: (step, validation cross-entropy) of every validation.
        record: More of ``run.json``, for the tables.
    """

    cell: Cell
    value: float
    better: str
    above: Floats | None
    below: Floats | None
    keys: tuple[str, ...]
    budgets: dict[str, float]
    seconds: float
    curve: list[tuple[int, float]]
    record: dict[str, Any]


def read_cell(study: Study, cell: Cell, split: str = "test") -> Reading:
    """Read the run of a complete cell.

    Raises:
        RunError: the run is gone, unfinished, or has not measured the metric.
    """
    run = study.run_of(cell)
    content, result = run.read(), run.evaluations().get(split)
    metric = study.config.metric
    if content["status"] != "complete" or not result:
        raise RunError(
            f"has no finished evaluation of {split} rows",
            where=str(run.path),
            fix="continue with `loralab study run`",
        )
    if metric not in result["metrics"]:
        known = ", ".join(result["metrics"])
        raise RunError(
            f"did not measure {metric}",
            where=str(run.path),
            fix=f"set `metric` to one of: {known}, or evaluation.metrics",
        )
    keys, sums = row_scores(run, split, metric)
    above, below = sums or (None, None)
    return Reading(
        cell,
        float(result["metrics"][metric]["adapter"]["value"]),
        str(result["better"][metric]),
        above,
        below,
        keys,
        {name: float(content["plan"][name]) for name in BUDGETS},
        float(content["training"]["seconds"]),
        _curve(run),
        _record(run, content, result),
    )


def _record(run: Run, content: dict[str, Any], result: dict[str, Any]) -> Any:
    here = content["environment"]
    return {
        "run": run.id,
        "commit": here["git_commit"],
        **{name: here[name] for name in ("threads", "cpu", "gpu")},
        "rows": result["measured_rows"],
        "adapter_bytes": content["adapter_bytes"],
        "peak_memory_bytes": content["peak_memory_bytes"],
        "evaluation_seconds": sum(result["seconds"].values()),
    }


def _curve(run: Run) -> list[tuple[int, float]]:
    return [
        (int(event["step"]), float(event["eval_loss"]))
        for event in run.events()
        if event["event"] == "validation"
    ]


def read_all(study: Study) -> list[Reading]:
    """Read every complete final run, in the order of the cells.

    Raises:
        RunError: there is none, or runs of a data set saw different test rows.
    """
    done = [c for c in study.cells() if c.stage == "final" and c.status == "complete"]
    if not done:
        raise RunError(
            "no final run has ended yet",
            where=str(study.path),
            fix="run it with `loralab study run`",
        )
    found = [read_cell(study, cell) for cell in done]
    for data in study.config.choices:
        _check_rows([one for one in found if one.cell.data == data])
    return found


def _check_rows(readings: Sequence[Reading]) -> None:
    for one in readings[1:]:
        if one.keys != readings[0].keys:
            raise RunError(
                f"{one.record['run']} and {readings[0].record['run']} were measured on "
                "different test rows, so they cannot be paired",
                where=one.cell.data,
                fix="give all arms the same data.seed and data.max_rows",
            )
