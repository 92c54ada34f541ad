"""What a study's run directories say: the only thing that its analysis reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loralab.errors import RunError
from loralab.evaluation.compare import row_scores
from loralab.evaluation.statistics.seeds import ratio_values
from loralab.experiments.cells import Cell
from loralab.experiments.study import Study
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
        seconds: Of the training; since the last resume, if it was resumed.
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
        _budgets(content),
        float(content["training"]["seconds"]),
        _curve(run),
        _record(run, content, result),
    )


def _budgets(content: dict[str, Any]) -> dict[str, float]:
    """Return what was spent.

    Where ranks change, the parameters at the end; of a training that stopped early the
    steps that it took, and so many of the planned examples.
    """
    plan, training = content["plan"], content["training"]
    spent = {name: plan[name] for name in BUDGETS}
    spent["trainable"] = training.get("trainable", plan["trainable"])
    if training["steps"] < plan["steps"]:
        spent |= {name: training[name] for name in ("steps", "tokens")}
        spent["examples"] = plan["examples"] * training["steps"] / plan["steps"]
    return {name: float(value) for name, value in spent.items()}


def _record(run: Run, content: dict[str, Any], result: dict[str, Any]) -> Any:
    here = content["environment"]
    return {
        "run": run.id,
        "commit": here["git_commit"],
        **{name: here[name] for name in ("threads", "cpu", "gpu")},
        "rows": result["measured_rows"],
        **{n: content["training"].get(n) for n in ("most_trainable", "flops")},
        "adapter_bytes": content["adapter_bytes"],
        "peak_memory_bytes": content["peak_memory_bytes"],
        "evaluation_seconds": sum(result["seconds"].values()),
        "resumed": bool(content["resumes"]),
        "caution": content["data"].get("caution"),
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
    done = [cell for cell in study.finals() if cell.status == "complete"]
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


def values_of(readings: Sequence[Reading]) -> Floats:
    """Return the metric by seed and row, [S, E]; by seed, [S], where rows have none.

    The mean over rows is the metric of the seed, exactly.
    """
    above = [one.above for one in readings]
    below = readings[0].below
    shared = below is not None and all(
        one.below is not None and np.array_equal(one.below, below) for one in readings
    )
    if below is None or not shared or any(part is None for part in above):
        return np.array([one.value for one in readings])
    return ratio_values(np.stack([part for part in above if part is not None]), below)


class Runs:
    """The readings of a study, by data set and arm.

    Args:
        study: The study.
        readings: Of its final runs.

    Attributes:
        all: The readings.
    """

    def __init__(self, study: Study, readings: Sequence[Reading]) -> None:
        self.study, self.all = study, readings
        offsets = {arm: offset for arm, (_, offset) in study.config.everything.items()}
        self._by: dict[tuple[str, str], dict[int, Reading]] = {}
        for one in readings:
            place = one.cell.seed - offsets[one.cell.arm]
            self._by.setdefault((one.cell.data, one.cell.arm), {})[place] = one

    def of(self, data: str, arm: str) -> list[Reading]:
        """Return an arm's readings, by seed."""
        found = self._by.get((data, arm), {})
        return [found[place] for place in sorted(found)]

    def differences(self, data: str, arm: str, reference: str) -> Floats:
        """Return arm minus reference where both have ended, [S, E] or [S]."""
        one, two = self._by.get((data, arm), {}), self._by.get((data, reference), {})
        shared = sorted(one.keys() & two.keys())
        if not shared:
            return np.empty(0)
        both = [one[i] for i in shared] + [two[i] for i in shared]
        values = values_of(both)  # one denominator for both arms
        return np.asarray(values[: len(shared)] - values[len(shared) :])
