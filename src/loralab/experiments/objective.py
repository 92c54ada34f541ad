"""What trials are chosen by: a metric on validation rows, never on test rows."""

from __future__ import annotations

from typing import Any

from loralab import registry
from loralab.config import ExperimentConfig
from loralab.data.examples import get_preprocessor
from loralab.errors import ConfigError, nearest
from loralab.runs import Run

CROSS_ENTROPY = "cross_entropy"


def key_of(metric: str) -> str:
    """Return what a validation event calls a metric."""
    return "eval_loss" if metric == CROSS_ENTROPY else f"eval_{metric}"


def better(metric: str) -> str:
    """Return whether a metric is better ``higher`` or ``lower``."""
    if metric == CROSS_ENTROPY:
        return "lower"
    return str(registry.get("metric", metric).facts["better"])


def check_objective(config: ExperimentConfig, metric: str) -> None:
    """Refuse a metric that the validations of this experiment do not measure.

    Raises:
        ConfigError: they do not, or there are no validation rows.
    """
    known = [CROSS_ENTROPY, *get_preprocessor(config.task).metrics[:1]]
    if metric not in known:
        raise ConfigError(
            f"validation rows are not measured by {metric!r}",
            fix=nearest(metric, known),
        )


def measured(event: dict[str, Any], metric: str) -> float | None:
    """Return the metric of a validation event."""
    value = event.get(key_of(metric))
    return None if value is None else float(value)


def objective(run: Run, metric: str) -> float | None:
    """Return a complete run's metric on validation rows, at the step that was kept.

    None where there were no validation rows.
    """
    kept = run.read()["training"]["best_step"]
    found = {
        event["step"]: measured(event, metric)
        for event in run.events()
        if event["event"] == "validation"
    }
    if not found:
        return None
    return found.get(kept, found[max(found)])
