"""`compare`: several runs side by side, paired where they saw the same test rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loralab import registry
from loralab.errors import RunError
from loralab.evaluation.intervals import confusion_intervals, ratio_intervals
from loralab.runs import Run


def record(run: Run, split: str) -> dict[str, Any]:
    """Return what a run's files say of quality, size, time, rate and memory.

    Raises:
        RunError: the run is not complete, or the split was not evaluated.
    """
    content = run.read()
    result = run.evaluations().get(split)
    if content["status"] != "complete" or result is None:
        raise RunError(
            f"has no finished evaluation of {split} rows",
            where=str(run.path),
            fix="finish it with --resume, or run `loralab evaluate`",
        )
    metric = result["primary"]
    training = content["training"]
    return {
        "run": run.id,
        "task": content["task"],
        "base": content["base"]["path"],
        "metric": metric,
        "values": result["metrics"][metric],
        "majority": result.get("majority"),
        "rows": result["measured_rows"],
        "trainable": content["plan"]["trainable"],
        "adapter_bytes": content["adapter_bytes"],
        "seconds": training["seconds"],
        "tokens_per_second": training["tokens_per_second"],
        "peak_memory_bytes": content["peak_memory_bytes"],
        "confidence": result["confidence"],
        "resumed": bool(content["resumes"]),
    }


def _predictions(run: Run, split: str) -> dict[str, np.ndarray[Any, Any]]:
    import pyarrow.parquet as pq

    file = Path(run.path) / "eval" / f"predictions-{split}.parquet"
    table = pq.read_table(file)
    return {name: np.asarray(table[name].to_pylist()) for name in table.column_names}


def paired_difference(first: Run, second: Run, split: str) -> dict[str, Any] | None:
    """Return second minus first on the rows both saw, or None if they are not the same.

    The metric is the primary one; rows are the same when their keys are, in order.
    """
    one, two = _predictions(first, split), _predictions(second, split)
    if not np.array_equal(one["key"], two["key"]):
        return None
    config = first.config.evaluation
    settings = (config.confidence, config.resamples, config.seed)
    metric = first.evaluations()[split]["primary"]
    if "label" in one and "label" in two:
        labels = np.unique(np.concatenate([one["label"], two["label"]]))
        codes = {label: i for i, label in enumerate(labels.tolist())}
        encode = np.vectorize(codes.__getitem__, otypes=[np.int64])
        arms = (encode(two["adapter_label"]), encode(one["adapter_label"]))
        target = registry.get("metric", metric).target
        found = confusion_intervals(
            encode(one["label"]), arms, target, len(labels), *settings
        )
    elif np.array_equal(one["labels"], two["labels"]):
        sums = (two["adapter_nll"], one["adapter_nll"])
        found = ratio_intervals(sums, one["labels"].astype(np.float64), *settings)
    else:
        return None  # other tokens: cross-entropy per token is not comparable
    return {
        "first": first.id,
        "second": second.id,
        "metric": metric,
        **found[-1].as_dict(),
    }


def compare(runs: Sequence[Run], split: str = "test") -> dict[str, Any]:
    """Return a record of each run, and paired differences to the first one.

    Raises:
        RunError: a run is not complete.
    """
    records = [record(run, split) for run in runs]
    pairs = [paired_difference(runs[0], run, split) for run in runs[1:]]
    return {"records": records, "paired": [pair for pair in pairs if pair]}
