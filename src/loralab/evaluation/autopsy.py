"""What truncation costs in the task's own metric: truncated against whole, paired.

Energy kept is a statement of weights, not of answers. So both adapters answer the same
rows through the same code, and the difference has an interval over rows.
"""

from __future__ import annotations

from typing import Any

from loralab.adapters.autopsy import Autopsy, adapter_folder, truncated
from loralab.adapters.resize import put_factors
from loralab.data.examples import generates
from loralab.errors import AdapterError
from loralab.evaluation.arms import answers_of, measure
from loralab.evaluation.calculator import get_metrics_calculator
from loralab.evaluation.evaluate import (
    OnEvent,
    metrics_of,
    scores_of,
    split_of,
    summarize,
    tell_progress,
)
from loralab.inference.load import load_adapter
from loralab.lowrank.budget import Budget
from loralab.lowrank.files import StoredAdapter, read_adapter
from loralab.runs import Run

FORMAT_VERSION = 1


def evaluate_truncated(
    run: Run,
    found: Autopsy,
    split: str = "test",
    *,
    budget: Budget | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Measure the truncated adapter of a run beside the whole one, on the same rows.

    The base is loaded once; after the whole adapter has answered, its layers are given
    the truncated factors in place. The settings are those of the run's evaluation.

    Args:
        run: A finished run.
        found: The autopsy of its adapter.
        split: ``train``, ``validation`` or ``test``.
        budget: Of the autopsy's two; by default the one counted in ranks.
        on_event: Told of progress.

    Returns:
        ``metrics``: metric -> ``truncated``, ``whole`` and ``difference`` (truncated
        minus whole) -> value, low, high; ``ranks``, ``total_rank``, ``parameters`` and
        ``energy`` of the truncated one; ``relative_errors`` by module.

    Raises:
        AdapterError: the autopsy is of another adapter.
        RunError: no adapter, or the data is no longer that of the run.
        DataError: the split does not exist.
    """
    folder = adapter_folder(run)
    if folder.resolve() != found.folder.resolve():
        raise AdapterError(
            f"the autopsy is of {found.folder}, not of this run", where=str(folder)
        )
    chosen = budget or found.by_rank
    made, errors = truncated(read_adapter(folder), chosen.ranks)
    return {
        "format": FORMAT_VERSION,
        "run": run.id,
        "split": split,
        "keep": found.keep,
        "ranks": chosen.ranks,
        "total_rank": chosen.total_rank,
        "whole_rank": found.total_rank,
        "parameters": chosen.parameters,
        "whole_parameters": found.parameters,
        "energy": chosen.energy,
        "relative_errors": errors,
        **_measured(run, made, split, on_event),
    }


def _measured(
    run: Run, cut: StoredAdapter, split: str, on_event: OnEvent | None
) -> dict[str, Any]:
    """Return the metrics of the whole adapter and of the cut one, on one base."""
    adapter = load_adapter(run)
    task, rows = adapter.task, split_of(run, adapter, split)
    config = run.config.evaluation.model_copy(update={"base": False})
    calculator = get_metrics_calculator(metrics_of(task, config), task.form)
    writes = generates(task) and bool(calculator.metrics)
    tell = tell_progress(split, on_event)
    whole = measure(adapter, rows, config, writes, tell)[0]["adapter"]
    put_factors(adapter.model, cut.factors)
    arms = {
        "truncated": measure(adapter, rows, config, writes, tell)[0]["adapter"],
        "whole": whole,
    }
    answers = {
        name: answers_of(task, arm, rows) for name, arm in arms.items() if arm.answers
    }
    given = scores_of(calculator, answers, arms)
    return {
        "measured_rows": len(whole.rows),
        **config.model_dump(include={"confidence", "resamples"}),
        "primary": (*calculator.metrics, "cross_entropy")[0],
        "better": {**calculator.better, "cross_entropy": "lower"},
        "metrics": summarize(given, list(arms), config, task),
    }
