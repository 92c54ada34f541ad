"""Metrics chosen by name, computed on the answers of one or two arms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from loralab import registry
from loralab.config.schema import Named
from loralab.errors import ConfigError, ConfigErrors, nearest
from loralab.evaluation.intervals import Interval, score_intervals
from loralab.evaluation.scores import Answers, Scores
from loralab.registry import Entry, Params

FORMS = ("class", "tags", "text")

Chosen = str | Named | Mapping[str, Any]
"""A metric's name, or ``{name, params}`` as a configuration or a dictionary."""


def forms(entry: Entry) -> tuple[str, ...]:
    """Return the forms of answer that a metric can judge."""
    found = entry.facts["answers"]
    return (found,) if isinstance(found, str) else tuple(found)


def metrics_for(form: str) -> list[str]:
    """Return the names of the metrics that can judge a form of answer."""
    found = registry.entries("metric").items()
    return [name for name, entry in found if form in forms(entry)]


def _parts(chosen: Chosen) -> tuple[str, Mapping[str, Any]]:
    if isinstance(chosen, str):
        return chosen, {}
    if isinstance(chosen, Named):
        return chosen.name, chosen.params
    if "name" not in chosen or set(chosen) - {"name", "params"}:
        what = f"{dict(chosen)!r} is no metric"
        raise ConfigError(what, fix="write {name: NAME, params: {...}}")
    return chosen["name"], chosen.get("params", {})


def _params(entry: Entry, given: Mapping[str, Any]) -> Params:
    """Return a metric's params, judged by its schema; all problems at once."""
    try:
        return entry.schema.model_validate(dict(given))
    except ValidationError as error:
        problems = []
        for detail in error.errors(include_url=False):
            key = ".".join(str(part) for part in detail["loc"])
            where = f"metric {entry.name}: params.{key}" if key else entry.name
            if detail["type"] == "extra_forbidden":
                what = f"unknown key; {nearest(key, entry.schema.model_fields)}"
            else:
                what = f"{detail['input']!r}: {detail['msg']}"
            problems.append(ConfigError(what, where=where))
        raise ConfigErrors(problems) from None


def _labels(chosen: Sequence[tuple[Entry, Params]]) -> list[str]:
    """Return names; with the params that are not default where a name comes twice."""
    times = Counter(entry.name for entry, _ in chosen)
    labels = []
    for entry, params in chosen:
        said = params.model_dump(exclude_defaults=True) if times[entry.name] > 1 else {}
        inside = ", ".join(f"{key}={value}" for key, value in said.items())
        labels.append(f"{entry.name}({inside})" if inside else entry.name)
    if len(set(labels)) < len(labels):
        (twice, _), *_ = Counter(labels).most_common(1)
        raise ConfigError(f"metric {twice!r} stands twice", fix="remove one of them")
    return labels


class MetricsCalculator:
    """Some metrics, ready to be computed on answers of one form.

    Args:
        chosen: Names, or ``{name, params}``.

    Attributes:
        metrics: Label -> (registered metric, its params). The label is the name, with
            the params that are not default where a name comes twice.

    Raises:
        ConfigError: no such metric, wrong params, or the same metric twice.
    """

    def __init__(self, chosen: Sequence[Chosen]) -> None:
        made = []
        for one in chosen:
            name, given = _parts(one)
            entry = registry.get("metric", name)
            made.append((entry, _params(entry, given)))
        self.metrics = dict(zip(_labels(made), made, strict=True))

    @property
    def better(self) -> dict[str, str]:
        """Label -> ``higher`` or ``lower``."""
        return {
            label: entry.facts["better"] for label, (entry, _) in self.metrics.items()
        }

    def scores(self, answers: Answers) -> dict[str, Scores]:
        """Return each metric's sums over rows.

        Raises:
            ConfigError: a metric cannot judge this form, needs what the answers lack,
                or gave another number of rows.
        """
        found = {}
        for label, (entry, params) in self.metrics.items():
            _check(entry, answers.form)
            needs = entry.facts.get("needs")
            if needs and getattr(answers, needs) is None:
                raise ConfigError(f"metric {label!r} needs the answers' {needs}")
            scores = found[label] = entry.target(params, answers)
            rows = len(answers.predictions)
            if scores.sums.shape[0] != rows:
                got = scores.sums.shape[0]
                raise ConfigError(f"metric {label!r} gave {got} rows of {rows}")
        return found

    def calculate(
        self,
        answers: Answers,
        other: Answers | None = None,
        confidence: float = 0.95,
        resamples: int = 2000,
        seed: int = 0,
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Return metric -> ``answers``, ``other``, ``difference`` -> value, low, high.

        Args:
            answers: Of one arm.
            other: Of a second arm to the same rows; the difference is the first minus
                this one, paired.
            confidence: Of the intervals.
            resamples: Bootstrap draws over rows.
            seed: Of the draws.

        Raises:
            ConfigError: see `scores`.
        """
        if not self.metrics:
            return {}
        arms = [self.scores(one) for one in (answers, other) if one is not None]
        found = score_intervals(arms, confidence, resamples, seed)
        return {name: _by_arm(intervals) for name, intervals in found.items()}


def _by_arm(intervals: Sequence[Interval]) -> dict[str, dict[str, float]]:
    arms = ("answers", "other", "difference")
    return {arm: one.as_dict() for arm, one in zip(arms, intervals, strict=False)}


def _check(entry: Entry, form: str) -> None:
    if form not in forms(entry):
        raise ConfigError(
            f"metric {entry.name!r} cannot judge answers of form {form!r}",
            why=f"it judges {' and '.join(forms(entry))}",
            fix=f"choose among: {', '.join(metrics_for(form))}",
        )


def get_metrics_calculator(
    names_or_configs: Sequence[Chosen], form: str
) -> MetricsCalculator:
    """Return a calculator of metrics that can judge answers of this form.

    Args:
        names_or_configs: Names, or ``{name, params}``.
        form: ``class``, ``tags`` or ``text``.

    Raises:
        ConfigError: no such form or metric, wrong params, or a metric that cannot
            judge the form; the message lists those that can.
    """
    if form not in FORMS:
        what = f"no such form of answers: {form!r}"
        raise ConfigError(what, fix=nearest(form, FORMS))
    calculator = MetricsCalculator(names_or_configs)
    for entry, _ in calculator.metrics.values():
        _check(entry, form)
    return calculator
