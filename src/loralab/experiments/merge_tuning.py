"""Weights of a merge, chosen on validation rows.

    merged(w) = method(w₁ΔW₁, …, w_TΔW_T),   w* = argmin_w (1/T) Σ_t CE_t(merged(w))

with CE_t the cross-entropy (nats a label) on rows of task t's validation split. What is
tried is drawn by Optuna, evenly in log w; equal weights of 1 are always tried first, so
that what is chosen is no worse than they are **on these rows**. It is the best of
several there, so its own cross-entropy there is too good: measure it on test rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

from loralab.errors import MergeError
from loralab.evaluation.multitask import MultiTaskEvaluator
from loralab.experiments.space import Axis, Point, Space
from loralab.lowrank.files import AdapterFolder
from loralab.merging.merge import merge
from loralab.merging.method import Method
from loralab.merging.state.fit import check_fit
from loralab.registry import get
from loralab.runs import Run

Free = Literal["weights", "scale"]
"""What is free: a weight for each task, or one for all."""
LOW, HIGH = 0.1, 3.0
"""Weights that are tried. Sums of many tasks want a third or less of each, and one task
among many is rarely worth more than thrice its update."""


@dataclass(frozen=True)
class Trial:
    """One choice of weights, and what it gave on the validation rows.

    Attributes:
        weights: One a task.
        cross_entropy: Mean over tasks, nats a label.
        accuracy: Of each task.
    """

    weights: tuple[float, ...]
    cross_entropy: float
    accuracy: tuple[float, ...]


@dataclass(frozen=True)
class Tuned:
    """What was tried.

    Attributes:
        names: Of the tasks.
        rows: Of each task that were drawn, at most.
        trials: In their order; the first has weights of 1.
    """

    names: tuple[str, ...]
    rows: int
    trials: tuple[Trial, ...]

    @property
    def plain(self) -> Trial:
        """Weights of 1."""
        return self.trials[0]

    @property
    def best(self) -> Trial:
        """The least cross-entropy; the first of several."""
        return min(self.trials, key=lambda trial: trial.cross_entropy)

    def record(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return {**asdict(self), "best": asdict(self.best)}


def tune(
    method: Method,
    runs: Sequence[Run],
    trials: int,
    *,
    free: Free = "weights",
    rows: int = 200,
    seed: int = 0,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> Tuned:
    """Try weights, and return what each gave.

    Args:
        method: The merge method.
        runs: One a task: their validation rows are known.
        trials: How many choices, that of weights of 1 not counted.
        free: A weight for each task, or one for all.
        rows: How many validation rows of a task are drawn; all where there are less.
        seed: Of Optuna, and of the draw of rows.
        on_event: Is told each trial.

    Raises:
        ConfigError: Optuna is not installed.
        AdapterError: adapters of different bases, or a task whose rows cannot be
            measured with the others'.
        MergeError: less than one trial, or an adapter is there twice.
    """
    if trials < 1:
        raise MergeError(f"{trials} trials choose nothing", fix="--tune 20")
    keys = [f"w{number}" for number in range(len(runs) if free == "weights" else 1)]
    axes = tuple(Axis(key, low=LOW, high=HIGH, log=True) for key in keys)
    optuna = get("sampler", "optuna")
    params = optuna.schema.model_validate({"trials": trials, "seed": seed})
    sampler = optuna.target(params, Space(axes, ()))
    check_fit([AdapterFolder.open(run.require_adapter()) for run in runs])
    evaluator = MultiTaskEvaluator(runs, rows, "validation", seed)
    sources = evaluator.sources()

    def tried(weights: tuple[float, ...]) -> Trial:
        said = evaluator.measure(merge(method, sources, weights))
        loss = fmean(scores.cross_entropy for scores in said.values())
        made = Trial(weights, loss, tuple(s.accuracy for s in said.values()))
        done = {"done": len(found) + 1, "of": trials + 1}
        on_event({"event": "merging", "what": "trying weights", **done})
        return made

    found: list[Trial] = []
    found.append(tried((1.0,) * len(runs)))
    while (point := sampler.ask()) is not None:
        found.append(tried(_weights(point, len(runs))))
        sampler.tell(point, found[-1].cross_entropy)
    return Tuned(tuple(evaluator.tasks), rows, tuple(found))


def _weights(point: Point, count: int) -> tuple[float, ...]:
    """Return the weights of a point; the one of all, where it is one."""
    found = tuple(float(text.partition("=")[2]) for text in point)
    return found if len(found) == count else found * count
