"""`evaluate`: a run's adapter against its base, on one split, paired, with intervals.

Writes ``eval/<split>.json`` and ``eval/predictions-<split>.parquet`` (one line a row:
what the base and the adapter said of it), so that any later comparison can be paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loralab.config import EvaluationConfig
from loralab.data.examples import DataPreprocessor, generates
from loralab.data.rows import load_rows
from loralab.errors import DataError, RunError
from loralab.evaluation.arms import Arm, Tell, answers_of, column, measure
from loralab.evaluation.calculator import (
    Chosen,
    MetricsCalculator,
    get_metrics_calculator,
)
from loralab.evaluation.classes import confusion, majority, per_class
from loralab.evaluation.intervals import Interval, score_intervals
from loralab.evaluation.scores import Answers, Scores, ratio_of
from loralab.inference.load import Loaded
from loralab.inference.open import open_merged, open_run
from loralab.runs import Run
from loralab.runs.files import atomic_file, write_json

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT_VERSION = 2
OnEvent = Callable[[dict[str, Any]], None]


def evaluate(
    run: Run,
    split: str = "test",
    *,
    config: EvaluationConfig | None = None,
    merged: Path | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Evaluate the adapter, or the stored model, of a run on a split of its data.

    Args:
        run: A finished run.
        split: ``train``, ``validation`` or ``test``.
        config: Base or not, metrics, confidence, resamples; by default the run's own.
        merged: The folder of a merged adapter that is measured instead of the run's
            own, with the run's head, on the run's rows.
        on_event: Told of progress.

    Returns:
        What is written to ``eval/<split>.json``; of a merged adapter in its folder, to
        ``eval/<run>/<split>.json``.

    Raises:
        RunError: no adapter, or the data is no longer that of the run; or the base was
            measured, and what is written without it would take its place.
        DataError: the split does not exist.
        AdapterError: what is merged is of another base.
    """
    if not merged and config and not config.base:
        _keep_the_base(run, split)
    adapter = open_merged(run, merged) if merged else open_run(run)
    rows = split_of(run, adapter, split)
    chosen = config or run.config.evaluation
    if run.read()["kind"] == "artefact":  # its base is a run of its own
        chosen = chosen.model_copy(update={"base": False})
    into = merged / "eval" / run.id if merged else None
    return evaluate_split(
        run, adapter, split, rows, chosen, into=into, on_event=on_event
    )


def _keep_the_base(run: Run, split: str) -> None:
    """Refuse to lose the half of a paired evaluation."""
    stands = run.evaluations().get(split)
    if stands and any("base" in arms for arms in stands["metrics"].values()):
        raise RunError(
            f"{split} rows were measured with the base, which would be lost",
            where=str(run.path / "eval" / f"{split}.json"),
            why="a run has one evaluation of a split, and differences are of its pairs",
            fix="measure with the base, too; or move the file away",
        )


def split_of(run: Run, adapter: Loaded, split: str) -> Dataset:
    """Return the checked rows of a split, as they were when the run was trained.

    Raises:
        RunError: the data is no longer that of the run.
        DataError: the split does not exist.
    """
    data = run.read()["data"]
    rows = load_rows(run.config.data, adapter.task, data.get("locks"))
    if rows.fingerprint != data["fingerprint"]:
        raise RunError(
            "the data has changed since this run was trained",
            where=str(run.path),
            fix="train again with --force, or restore the data",
        )
    if split not in rows.splits:
        raise DataError(f"the data has no {split} rows", fix=f"use {list(rows.splits)}")
    return rows.splits[split]


def metrics_of(task: DataPreprocessor, config: EvaluationConfig) -> list[Chosen]:
    """Return the metrics that were asked for, or the task's own."""
    asked: list[Chosen] = [metric.model_dump() for metric in config.metrics]
    return asked or list(task.metrics)


def evaluate_split(
    run: Run,
    adapter: Loaded,
    split: str,
    rows: Dataset,
    config: EvaluationConfig,
    *,
    into: Path | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Evaluate a loaded adapter, and its base, on checked rows; write the result.

    It is written to the run's ``eval/``, or into another folder.
    """
    task = adapter.task
    calculator = get_metrics_calculator(metrics_of(task, config), task.form)
    writes = generates(task) and bool(calculator.metrics)
    tell = tell_progress(split, on_event)
    arms, notes = measure(adapter, rows, config, writes, tell)
    answers = {
        name: answers_of(task, arm, rows) for name, arm in arms.items() if arm.answers
    }
    given = scores_of(calculator, answers, arms)
    result: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "split": split,
        "rows": len(rows),
        "measured_rows": len(arms["adapter"].rows),
        "form": task.form,
        "notes": notes,
        **config.model_dump(include={"confidence", "resamples"}),
        "primary": (*calculator.metrics, "cross_entropy")[0],
        "better": {**calculator.better, "cross_entropy": "lower"},
        "shares": [name for name in given[0] if _shares(given, name)],
        "seconds": {name: round(arm.seconds, 3) for name, arm in arms.items()},
        "metrics": summarize(given, list(arms), config, task),
        **_by_class(task, answers),
        **_by_group(task, calculator, answers),
    }
    folder = into or run.path / "eval"
    write_json(folder / f"{split}.json", result)
    with atomic_file(folder / f"predictions-{split}.parquet") as file:
        _write_predictions(str(file), task, rows, arms, answers)
    return result


def tell_progress(split: str, on_event: OnEvent | None) -> Tell:
    """Return a teller of an arm's progress as ``evaluating`` events."""

    def tell(arm: str, what: str, done: int, of: int) -> None:
        if on_event:
            at = {"split": split, "arm": arm, "what": what, "done": done, "of": of}
            on_event({"event": "evaluating", **at})

    return tell


def scores_of(
    calculator: MetricsCalculator,
    answers: Mapping[str, Answers],
    arms: Mapping[str, Arm],
) -> list[dict[str, Scores]]:
    """Return each arm's scores by metric, cross-entropy the last."""
    given: list[dict[str, Scores]] = []
    for name, arm in arms.items():
        own = calculator.scores(answers[name]) if name in answers else {}
        entropy = ratio_of(column(arm.nll), column(arm.labels))
        given.append({**own, "cross_entropy": entropy})
    return given


def _shares(given: Sequence[Mapping[str, Scores]], metric: str) -> bool:
    """Return whether a metric is the share of right rows, of every arm."""
    return all(arm[metric].proportion for arm in given)


def summarize(
    given: Sequence[Mapping[str, Scores]],
    arms: Sequence[str],
    config: EvaluationConfig,
    task: DataPreprocessor,
) -> dict[str, dict[str, dict[str, float]]]:
    """Return metric -> arm (``adapter``, ``base``, ``difference``) -> interval.

    The difference is adapter minus base, on the same rows.
    """
    found = score_intervals(given, config.confidence, config.resamples, config.seed)
    if generates(task):
        values = found["cross_entropy"][: len(arms)]
        found["perplexity"] = [
            Interval(math.exp(x.value), math.exp(x.low), math.exp(x.high))
            for x in values
        ]
    names = [*arms, "difference"]
    return {
        metric: {
            arm: interval.as_dict()
            for arm, interval in zip(names, intervals, strict=False)
        }
        for metric, intervals in found.items()
    }


def _by_class(task: Any, answers: Mapping[str, Answers]) -> dict[str, Any]:
    if task.form != "class":
        return {}
    said = answers["adapter"]
    return {
        "majority": majority(said.references),
        "per_class": per_class(task.labels, said.references, said.predictions),
        "confusion": confusion(task.labels, said.references, said.predictions),
    }


def _by_group(
    task: Any, calculator: MetricsCalculator, answers: Mapping[str, Answers]
) -> dict[str, Any]:
    """Return group -> metric -> arm -> value, where the task tells groups of rows."""
    if not hasattr(task, "group") or not answers:
        return {}
    of = [task.group(row) for row in answers["adapter"].rows]
    found: dict[str, Any] = {}
    for group in sorted(set(of)):
        mine = np.asarray([name == group for name in of])
        found[group] = {"rows": int(mine.sum())}
        for arm, said in answers.items():
            for metric, scores in calculator.scores(said).items():
                found[group].setdefault(metric, {})[arm] = scores.total(mine)
    return {"groups": found}


def shown(task: Any, values: Sequence[Any]) -> list[Any]:
    """Return answers as they are stored: class names, texts, or lists of tags."""
    if task.form == "class":
        return [task.labels[i] for i in values]
    return [list(v) if isinstance(v, (list, tuple)) else v for v in values]


def _write_predictions(
    file: str,
    task: DataPreprocessor,
    rows: Dataset,
    arms: Mapping[str, Arm],
    answers: Mapping[str, Answers],
) -> None:
    """Write one line a measured row; `key` identifies the row across runs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = arms["adapter"]
    measured = rows.select(first.rows)
    columns: dict[str, Any] = {
        "key": measured["key"][:],
        "origin": measured["origin"][:],
        "labels": np.asarray(first.labels, dtype=np.int64),
    }
    if answers:
        columns["reference"] = shown(task, answers["adapter"].references)
    for name, arm in arms.items():
        columns[f"{name}_nll"] = arm.nll
        if name in answers:
            columns[f"{name}_answer"] = shown(task, answers[name].predictions)
            columns[f"{name}_probability"] = [a.probability for a in arm.answers]
    pq.write_table(pa.table(columns), file)
