"""`compare`: several runs side by side, paired where they saw the same test rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loralab import registry
from loralab.data.examples import get_preprocessor
from loralab.errors import RunError
from loralab.evaluation.calculator import get_metrics_calculator
from loralab.evaluation.evaluate import metrics_of
from loralab.evaluation.intervals import score_intervals
from loralab.evaluation.scores import Answers, Floats, Scores, ratio_of
from loralab.runs import Run

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def record(run: Run, split: str) -> dict[str, Any]:
    """Return what a run's files say of quality, size, and how it was made.

    Raises:
        RunError: the run is not complete, or the split was not evaluated.
    """
    content = run.read()
    result = run.evaluations().get(split)
    ended = content["status"] == "complete"
    if not ended or result is None:
        raise RunError(
            f"has no finished evaluation of {split} rows",
            where=str(run.path),
            fix=f"measure it: `loralab compare … --split {split} --quality`"
            if ended
            else "finish it first: it is " + content["status"],
        )
    metric = result["primary"]
    return {
        "run": run.id,
        "name": content["name"],
        "kind": content["kind"],
        "task": content["task"],
        "base": content["base"]["path"],
        "split": result["split"],
        "metric": metric,
        "better": result["better"][metric],
        "values": result["metrics"][metric],
        "majority": result.get("majority"),
        "new_head": bool(
            content["base"].get("new_modules", result.get("majority") is not None)
        ),
        "rows": result["measured_rows"],
        "confidence": result["confidence"],
        "caution": content.get("data", {}).get("caution"),
        "parameters": content["base"]["parameters"],
        **(_stored if content["kind"] == "artefact" else _trained)(content),
    }


def _trained(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an adapter's run says of its size and its training."""
    training = content["training"]
    return {
        "trainable": content["plan"]["trainable"],
        "adapter_bytes": content["adapter_bytes"],
        "weight_bytes": content["base"]["parameters"]
        * BYTES[content["numerics"]["dtype"]],
        "seconds": training["seconds"],
        "tokens_per_second": training["tokens_per_second"],
        "peak_memory_bytes": content["peak_memory_bytes"],
        "resumed": bool(content["resumes"]),
    }


def _stored(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an artefact's run says of its format, size and route."""
    made = content["artefact"]
    keys = ("storage", "engine", "route", "bytes", "of_fp32", "of_fp16", "made_of")
    return {key: made[key] for key in keys} | {
        "kept": made["survival"] and made["survival"]["kept"],
        "parity": content.get("parity"),
    }


def _predictions(run: Run, split: str) -> dict[str, list[Any]]:
    import pyarrow.parquet as pq

    file = Path(run.path) / "eval" / f"predictions-{split}.parquet"
    columns: dict[str, list[Any]] = pq.read_table(file).to_pydict()
    return columns


def _answers(columns: dict[str, list[Any]], form: str, names: list[str]) -> Answers:
    """Return the adapter's answers; classes are numbered by their place in `names`."""
    found = [columns["reference"], columns["adapter_answer"]]
    if form == "class":
        found = [[names.index(name) for name in values] for values in found]
    return Answers(form, found[0], found[1], classes=len(names))


def _class_names(*tables: dict[str, list[Any]]) -> list[str]:
    wanted = ("reference", "adapter_answer")
    return sorted({name for table in tables for key in wanted for name in table[key]})


def _scores(
    run: Run, columns: dict[str, list[Any]], form: str, metric: str, names: list[str]
) -> Scores:
    """Return a metric's numbers of each row, from the stored predictions."""
    if metric == "cross_entropy":
        return ratio_of(
            np.asarray(columns["adapter_nll"]), np.asarray(columns["labels"])
        )
    task = get_preprocessor(run.config.task)
    chosen = metrics_of(task, run.config.evaluation)
    place = list(get_metrics_calculator(chosen, form).metrics).index(metric)
    only = get_metrics_calculator([chosen[place]], form)
    (found,) = only.scores(_answers(columns, form, names)).values()
    return found


def row_scores(
    run: Run, split: str, metric: str
) -> tuple[tuple[str, ...], tuple[Floats, Floats] | None]:
    """Return the keys of a run's rows, and a metric's numerator and denominator, [E].

    None in place of the two where the metric is no ratio of sums over rows (macro-F1).
    """
    columns = _predictions(run, split)
    keys = tuple(columns["key"])
    form = run.evaluations()[split]["form"]
    if metric in registry.names("metric"):
        if "needs" in registry.get("metric", metric).facts:
            return keys, None  # more than the stored answers
    elif metric != "cross_entropy":
        return keys, None
    names = _class_names(columns) if form == "class" else []
    scores = _scores(run, columns, form, metric, names)
    if not scores.ratio:
        return keys, None
    return keys, (scores.sums[:, 0], scores.sums[:, 1])


def _why_not(
    one: Mapping[str, list[Any]],
    two: Mapping[str, list[Any]],
    metrics: Sequence[str],
    split: str,
) -> str:
    """Return why what two runs said is not compared row by row; empty if it can be."""
    found = []
    if metrics[0] != metrics[1]:
        found.append(f"other metrics ({metrics[0]}, {metrics[1]})")
    if sorted(one["key"]) != sorted(two["key"]):
        found.append(f"other {split} rows")
    elif one["key"] != two["key"]:
        found.append(f"the same {split} rows in another order")
    elif metrics[0] == metrics[1] == "cross_entropy" and one["labels"] != two["labels"]:
        found.append("other tokens, and cross-entropy is one of tokens")
    name, _, _ = metrics[0].partition("(")  # without the params of its label
    entry = registry.get("metric", name) if registry.known("metric", name) else None
    if not found and entry and "needs" in entry.facts:
        found.append(f"{metrics[0]} takes more than the answers that are stored")
    return ", ".join(found)


def paired_difference(first: Run, second: Run, split: str) -> dict[str, Any]:
    """Return second minus first on the rows both saw, or ``why`` it cannot be told.

    The metric is the primary one; rows are the same when their keys are, in order.
    The interval is of the first run's confidence.
    """
    both = {"first": first.id, "second": second.id}
    one, two = _predictions(first, split), _predictions(second, split)
    results = [run.evaluations()[split] for run in (first, second)]
    metric, form = results[0]["primary"], results[0]["form"]
    if why := _why_not(one, two, [result["primary"] for result in results], split):
        return {**both, "why": why}
    config, confidence = first.config.evaluation, results[0]["confidence"]
    names = _class_names(one, two) if form == "class" else []
    given = [{metric: _scores(first, x, form, metric, names)} for x in (two, one)]
    found = score_intervals(given, confidence, config.resamples, config.seed)
    return {
        **both,
        "metric": metric,
        "better": results[0]["better"][metric],
        "confidence": confidence,
        **found[metric][-1].as_dict(),
    }


def compare(runs: Sequence[Run], split: str = "test") -> dict[str, Any]:
    """Return a record of each run, and differences to the first one.

    Returns:
        ``records``; ``paired`` differences; ``unpaired``: why others are not told.

    Raises:
        RunError: a run is not complete.
    """
    records = [record(run, split) for run in runs]
    pairs = [paired_difference(runs[0], run, split) for run in runs[1:]]
    return {
        "records": records,
        "paired": [pair for pair in pairs if "why" not in pair],
        "unpaired": [pair for pair in pairs if "why" in pair],
    }
