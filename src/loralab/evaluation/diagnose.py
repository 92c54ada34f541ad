"""Did the adapter beat its base, and if not, why: read from the run's own files.

Every check is a pure function of plain data (configuration, ``run.json``, events,
evaluations), and tells the figures in which it saw a usual cause.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loralab.config.compose import read_plain
from loralab.evaluation import diagnose_setup, diagnose_training
from loralab.evaluation.diagnose_artefact import of_artefact
from loralab.evaluation.diagnose_case import Case, Finding
from loralab.runs import Run

SEVERITIES = ("failure", "cause", "suspect", "note")
CHECKS = (
    *diagnose_training.CHECKS,
    *diagnose_setup.CHECKS,
    *diagnose_training.LATER,
)
EVEN_IF_BETTER = {"overfit", "still_falling", "rows_cut", "only_frequent_class"}
EVEN_IF_BETTER |= {"leaks_kept", "no_test_evaluation", "interval_unsure"}
"""Kinds that are told of an adapter that beat its base, too."""


@dataclass(frozen=True)
class Diagnosis:
    """What a run shows.

    Attributes:
        verdict: ``better``, ``worse``, ``not shown``, ``not measured``, or the
            status of a run that is not complete.
        measured: Split, rows, primary metric and its intervals; None: not measured.
        findings: The most severe first.
    """

    verdict: str
    measured: dict[str, Any] | None
    findings: list[Finding]


def findings_of(
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
    evaluations: Mapping[str, Mapping[str, Any]],
) -> list[Finding]:
    """Return the usual causes that a run's files show, the most severe first.

    Args:
        config: The resolved configuration.
        record: The content of ``run.json``, its status that of now.
        events: Those of ``metrics.jsonl``.
        evaluations: Split -> content of ``eval/<split>.json``.

    Returns:
        Where the adapter beat its base, only what could still be gained, or what makes
        the figures doubtful.
    """
    return _findings(_case(config, record, events, evaluations))


def diagnose(run: Run) -> Diagnosis:
    """Return whether a run's adapter beat its base, and the causes if not.

    Raises:
        RunError: the directory is no run, or a file of it is broken.
        ConfigError: its configuration cannot be read.
    """
    record = {**run.read(), "status": run.status}
    config = read_plain(run.path / "config.yaml")
    case = _case(config, record, run.events(), run.evaluations())
    measured = None
    if case.result:
        result, metric = case.result, case.result["primary"]
        measured = {
            "split": result["split"],
            "rows": result["measured_rows"],
            "metric": metric,
            "better": result["better"][metric],
            **result["metrics"][metric],
        }
    return Diagnosis(case.verdict, measured, _findings(case))


def _case(
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
    evaluations: Mapping[str, Mapping[str, Any]],
) -> Case:
    measured = [s for s in ("test", "validation", "train") if s in evaluations]
    return Case(
        config,
        record,
        [e for e in events if e["event"] == "log"],
        [e for e in events if e["event"] == "validation"],
        evaluations[measured[0]] if measured else {},
    )


def _findings(case: Case) -> list[Finding]:
    if case.record.get("kind") == "artefact":
        return of_artefact(case)
    found = [finding for check in CHECKS for finding in check(case)]
    if case.verdict == "better":
        found = [f for f in found if f.kind in EVEN_IF_BETTER]
    return sorted(found, key=lambda f: SEVERITIES.index(f.severity))
