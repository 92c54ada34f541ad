"""`evaluate`: a run's adapter against its base, on one split, paired, with intervals.

Writes ``eval/<split>.json`` and ``eval/predictions-<split>.parquet`` (one line a row:
what the base and the adapter said of it), so that any later comparison can be paired.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loralab import registry
from loralab.config import EvaluationConfig
from loralab.data.examples import DataPreprocessor, Examples
from loralab.data.rows import load_rows
from loralab.data.tasks.text_classification import TextClassification
from loralab.errors import DataError, RunError
from loralab.evaluation.intervals import (
    Interval,
    confusion_intervals,
    ratio_intervals,
    wilson,
)
from loralab.evaluation.metrics.macro_f1 import f1_by_class
from loralab.evaluation.predict import Predictions, predict
from loralab.inference.load import LoadedAdapter, load_adapter
from loralab.runs import Run
from loralab.runs.files import atomic_file, write_json

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT_VERSION = 1
OnEvent = Callable[[dict[str, Any]], None]
Arms = dict[str, Predictions]


def evaluate(
    run: Run,
    split: str = "test",
    *,
    config: EvaluationConfig | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Evaluate the adapter of a run on a split of its data.

    Args:
        run: A finished run.
        split: ``train``, ``validation`` or ``test``.
        config: Base or not, confidence, resamples; by default the run's own.
        on_event: Told of progress.

    Returns:
        What is written to ``eval/<split>.json``.

    Raises:
        RunError: no adapter, or the data is no longer that of the run.
        DataError: the split does not exist.
    """
    adapter = load_adapter(run)
    rows = load_rows(run.config.data, adapter.task)
    if rows.fingerprint != run.read()["data"]["fingerprint"]:
        raise RunError(
            "the data has changed since this run was trained",
            where=str(run.path),
            fix="train again with --force, or restore the data",
        )
    if split not in rows.splits:
        raise DataError(f"the data has no {split} rows", fix=f"use {list(rows.splits)}")
    chosen = config or run.config.evaluation
    return evaluate_split(
        run, adapter, split, rows.splits[split], chosen, on_event=on_event
    )


def evaluate_split(
    run: Run,
    adapter: LoadedAdapter,
    split: str,
    rows: Dataset,
    config: EvaluationConfig,
    *,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Evaluate a loaded adapter, and its base, on checked rows; write the result."""
    listed = list(rows)
    examples = adapter.task(listed, adapter.base.processor)
    arms, seconds = _measure(adapter, examples, config, split, on_event)
    result: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "split": split,
        "rows": len(listed),
        "measured_rows": len(arms["adapter"].rows),
        "notes": examples.notes,
        "confidence": config.confidence,
        "resamples": config.resamples,
        "primary": (*adapter.task.metrics, "cross_entropy")[0],
        "seconds": seconds,
        "metrics": summarize(adapter.task, examples, arms, config),
    }
    predicted = arms["adapter"].predicted
    if isinstance(adapter.task, TextClassification) and predicted is not None:
        result["majority"] = _majority(examples)
        result["per_class"] = per_class(adapter.task, examples, predicted)
    write_json(run.path / "eval" / f"{split}.json", result)
    with atomic_file(run.path / "eval" / f"predictions-{split}.parquet") as file:
        _write_predictions(str(file), adapter.task, listed, arms)
    return result


def _measure(
    adapter: LoadedAdapter,
    examples: Examples,
    config: EvaluationConfig,
    split: str,
    on_event: OnEvent | None,
) -> tuple[Arms, dict[str, float]]:
    arms: Arms = {}
    seconds: dict[str, float] = {}
    for arm in ("adapter", "base") if config.base else ("adapter",):

        def tell(done: int, of: int, arm: str = arm) -> None:
            if on_event:
                at = {"split": split, "arm": arm, "done": done, "of": of}
                on_event({"event": "evaluating", **at})

        def run_arm(tell: Any = tell) -> Predictions:
            size = config.per_device_eval_batch_size
            return predict(adapter.model, adapter.base, examples, size, tell)

        start = time.perf_counter()
        if arm == "base":
            with adapter.model.disable_adapter():
                arms[arm] = run_arm()
        else:
            arms[arm] = run_arm()
        seconds[arm] = round(time.perf_counter() - start, 3)
    return arms, seconds


def summarize(
    task: DataPreprocessor, examples: Examples, arms: Arms, config: EvaluationConfig
) -> dict[str, dict[str, dict[str, float]]]:
    """Return metric -> arm (``adapter``, ``base``, ``difference``) -> interval.

    The difference is adapter minus base, on the same rows.
    """
    settings = (config.confidence, config.resamples, config.seed)
    names = [*arms, "difference"] if len(arms) == 2 else list(arms)
    found: dict[str, list[Interval]] = {}
    if isinstance(task, TextClassification):
        true = np.asarray(examples.labels)
        said = tuple(p.predicted for p in arms.values() if p.predicted is not None)
        for name in task.metrics:
            metric = registry.get("metric", name).target
            found[name] = confusion_intervals(
                true, said, metric, len(task.labels), *settings
            )
        for i, predicted in enumerate(said):
            right = int((predicted == true).sum())
            found["accuracy"][i] = wilson(right, len(true), config.confidence)
    first = next(iter(arms.values()))
    sums = tuple(p.nll for p in arms.values())
    found["cross_entropy"] = ratio_intervals(sums, first.labels, *settings)
    if examples.token_level:
        values = found["cross_entropy"][: len(arms)]
        found["perplexity"] = [
            Interval(math.exp(x.value), math.exp(x.low), math.exp(x.high))
            for x in values
        ]
    return {
        metric: {
            arm: interval.as_dict()
            for arm, interval in zip(names, intervals, strict=False)
        }
        for metric, intervals in found.items()
    }


def _majority(examples: Examples) -> float:
    """Return the accuracy of always saying the most frequent class."""
    return float(np.bincount(examples.labels).max() / len(examples))


def per_class(
    task: TextClassification, examples: Examples, predicted: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Return support, precision, recall and F1 of each class."""
    count = len(task.labels)
    confusion = np.zeros((count, count))
    np.add.at(confusion, (np.asarray(examples.labels), predicted), 1)
    right = np.diag(confusion)
    with np.errstate(invalid="ignore"):
        precision, recall = right / confusion.sum(0), right / confusion.sum(1)
    f1 = f1_by_class(confusion)
    return [
        {
            "label": label,
            "support": int(confusion[i].sum()),
            "precision": _number(precision[i]),
            "recall": _number(recall[i]),
            "f1": _number(f1[i]),
        }
        for i, label in enumerate(task.labels)
    ]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _write_predictions(
    file: str, task: DataPreprocessor, rows: list[dict[str, Any]], arms: Arms
) -> None:
    """Write one line a measured row; `key` identifies the row across runs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = next(iter(arms.values()))
    measured = [rows[i] for i in first.rows]
    columns: dict[str, Any] = {
        "key": [row["key"] for row in measured],
        "origin": [row["origin"] for row in measured],
        "labels": first.labels.astype(np.int64),
    }
    if isinstance(task, TextClassification):
        columns["label"] = [row["label"] for row in measured]
    for arm, said in arms.items():
        columns[f"{arm}_nll"] = said.nll
        if isinstance(task, TextClassification) and said.predicted is not None:
            columns[f"{arm}_label"] = [task.labels[i] for i in said.predicted]
            columns[f"{arm}_probability"] = said.probability
    pq.write_table(pa.table(columns), file)
