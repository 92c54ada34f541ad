"""What is open while the study is measured: its adapters, and what stands already."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studies.continual_merging.plan import (
    Measurement,
    Study,
    check_methods,
    measurements,
    method_of,
    read_study,
)
from studies.continual_merging.train import RUNS, adapters

from loralab.errors import RunError
from loralab.evaluation.multitask import MultiTaskEvaluator
from loralab.lowrank.factors import frobenius_norm
from loralab.lowrank.update import Update
from loralab.merging.analysis.analyzer import MergingAnalyzer
from loralab.merging.merge import merge
from loralab.runs import Run
from loralab.runs.environment import environment
from loralab.runs.files import write_json, write_text

WORK = Path("runs") / "continual_merging_measured"
ROW_SEED = 0
"""Of the rows that are drawn; the same for every method."""
Updates = dict[str, Update]
Record = dict[str, Any]


@dataclass
class Session:
    """What is open while measuring.

    Attributes:
        study: What is asked.
        size: Name of the size.
        test: Merged updates on test rows.
        validation: The same on validation rows.
        file: Where measurements are appended.
        suggested: The threshold that the analysis suggests.
        done: Key -> what stands.
    """

    study: Study
    size: str
    test: MultiTaskEvaluator
    validation: MultiTaskEvaluator
    file: Path
    suggested: float
    done: dict[str, Record] = field(default_factory=dict)
    _last: tuple[str, Updates] = ("", {})

    @property
    def names(self) -> list[str]:
        """The tasks, in the order of the file."""
        return list(self.test.tasks)

    @property
    def all(self) -> list[Measurement]:
        """Everything that is measured, done or not."""
        size = self.study.sizes[self.size]
        return measurements(self.study, size, len(self.names), self.suggested)

    @property
    def left(self) -> list[Measurement]:
        """What is not measured yet."""
        return [one for one in self.all if one.key not in self.done]

    def merged(self, told_method: str) -> Updates:
        """Return the merge of all tasks in the order of the file; the last is kept."""
        if self._last[0] != told_method:
            method = method_of(told_method)
            self._last = (told_method, merge(method, self.test.sources()))
        return self._last[1]

    def mean_norm(self) -> float:
        """Return the mean over tasks of ‖ΔW‖ over all layers."""
        norms = [
            math.hypot(*(frobenius_norm(source.factors(m)) for m in source.shapes))
            for source in self.test.sources()
        ]
        return math.fsum(norms) / len(norms)


def read_lines(file: Path) -> dict[str, Record]:
    """Return what stands; a half last line of a killed run is dropped for good."""
    if not file.is_file():
        return {}
    whole = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            whole.append(json.loads(line))
        except ValueError:
            break
    write_text(file, "".join(json.dumps(one) + "\n" for one in whole))
    return {one["key"]: one for one in whole}


def open_session(
    size: str, runs_dir: Path = RUNS, work: Path = WORK, study: Study | None = None
) -> Session:
    """Open the adapters of a size, and check the study against them.

    Raises:
        LoralabError: methods or adapters that are missing, or measurements of others.
    """
    study = (study or read_study()).of_size(size)
    asked = study.sizes[size]
    check_methods(study, None)
    runs = [one.run(runs_dir) for one in adapters(asked.group)[: asked.tasks]]
    check_runs(runs)
    test = MultiTaskEvaluator(runs, asked.rows, "test", ROW_SEED)
    validation = MultiTaskEvaluator(runs, asked.tuning_rows, "validation", ROW_SEED)
    study, left_out = without_inputs(study, test)
    found = MergingAnalyzer(test.sources()).report()
    check_methods(study, found.suggested_threshold)
    told = {
        "size": size,
        "study": study.model_dump(mode="json"),
        "left_out": left_out,
        "adapters": {s.name: [s.path.parent.name, s.digest] for s in test.sources()},
        "ranks": {s.name: s.config["r"] for s in test.sources()},
        "drawn": {n: [len(t.drawn), t.of] for n, t in test.tasks.items()},
    }
    analysis = found.record()
    analysis.pop("layers")
    opened = {"environment": environment(), **told, "analysis": analysis}
    file = work / f"{size}.jsonl"
    check_header(file.with_suffix(".json"), json.loads(json.dumps(opened)), told)
    threshold = found.suggested_threshold
    return Session(study, size, test, validation, file, threshold, read_lines(file))


def check_runs(runs: Iterable[Run]) -> None:
    """Refuse adapters that are not there, all at once."""
    missing = [run.id for run in runs if not run.adapter.is_dir()]
    if missing:
        raise RunError(
            f"no adapter in {', '.join(missing)}",
            fix="train them: python -m studies.continual_merging.train GROUP",
        )


def without_inputs(
    study: Study, evaluator: MultiTaskEvaluator
) -> tuple[Study, list[str]]:
    """Return the study without arms that need sketches, where there are none."""
    there = all(
        source.inputs(module) is not None
        for source in evaluator.sources()
        for module in source.shapes
    )
    out = [n for n, a in study.joint.items() if a.needs_inputs and not there]
    joint = {name: arm for name, arm in study.joint.items() if name not in out}
    return study.model_copy(update={"joint": joint}), out


def check_header(file: Path, opened: Record, told: Mapping[str, Any]) -> None:
    """Write what is measured beside the measurements, or refuse another's."""
    if not file.is_file():
        write_json(file, opened)
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    other = [key for key in told if before.get(key) != opened[key]]
    if other:
        raise RunError(
            f"these measurements are of another {', '.join(other)}",
            where=str(file),
            fix="move the file and its .jsonl away, and measure anew",
        )
