"""The study as data: what `study.yaml` may say, and the measurements that follow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from loralab.errors import ConfigError, ConfigErrors
from loralab.evaluation.continual import orders
from loralab.evaluation.multitask import Cells
from loralab.merging.method import Method, method
from loralab.registry import Strict

STUDY = Path(__file__).parent / "study.yaml"
SUGGESTED: Literal["suggested"] = "suggested"
OWN, TUNED = "own", "tuned"
"""Scales: what the method gives, and what was best on validation rows."""
BASE, ALONE = "base", "alone"
"""Arms without a merge: no update, and each task's own adapter."""


class Arm(Strict):
    """A merge method with its parameters.

    Attributes:
        method: Its name.
        params: Of its own schema.
        needs_inputs: Whether it needs sketches beside the adapters; it is left out
            where an adapter has none.
        orders: Fewer orders than the size says, where merging takes long.
        last_only: Whether nothing but the end of an order is measured; likewise.
    """

    method: str
    params: dict[str, Any] = Field(default_factory=dict)
    needs_inputs: bool = False
    orders: int | None = None
    last_only: bool = False


class Sweep(Strict):
    """An ablation of one parameter, by mode.

    Attributes:
        method: A continual one with ``mode`` and ``alpha_threshold``.
        modes: Of it.
        thresholds: Shares, or ``suggested`` for the one that the analysis suggests.
    """

    method: str
    modes: tuple[str, ...]
    thresholds: tuple[float | Literal["suggested"], ...]


class Size(Strict):
    """How much is measured.

    Attributes:
        group: Of `adapters.yaml`.
        tasks: Of how many of the group, its first ones; by default all.
        rows: Test rows of a task.
        tuning_rows: Validation rows of a task.
        orders: Of the continual methods, if there are more than four tasks.
        whole_orders: Of how many all a[t, i], i ≤ t, are measured.
        tuned_orders: Of the same methods at their tuned scale.
        sweep_orders: Of the ablation.
        without: Arms of the study that this size leaves out.
    """

    group: str
    tasks: int | None = None
    rows: int
    tuning_rows: int
    orders: int
    whole_orders: int
    tuned_orders: int
    sweep_orders: int
    without: tuple[str, ...] = ()


class Study(Strict):
    """The whole study; see `study.yaml`."""

    question: str
    norms: tuple[float, ...]
    ranks: tuple[int, ...]
    limit_minutes: float
    reference: str
    joint: dict[str, Arm]
    continual: dict[str, Arm]
    sweep: Sweep
    sizes: dict[str, Size]

    def of_size(self, size: str) -> Study:
        """Return the study without the arms that a size leaves out."""
        out = self.sizes[size].without
        if unknown := set(out) - set(self.merged) | {self.reference} & set(out):
            raise ConfigError(f"no arm to leave out: {sorted(unknown)}", where=size)
        joint = {name: arm for name, arm in self.joint.items() if name not in out}
        rest = {name: arm for name, arm in self.continual.items() if name not in out}
        return self.model_copy(update={"joint": joint, "continual": rest})

    @property
    def merged(self) -> dict[str, Arm]:
        """All arms but those of the sweep."""
        return {**self.joint, **self.continual}

    def swept(self, suggested: float | None) -> dict[str, Arm]:
        """Return the arms of the sweep; without a suggestion, those of fixed ones."""
        found = {}
        for mode in self.sweep.modes:
            for at in self.sweep.thresholds:
                if at == SUGGESTED and suggested is None:
                    continue
                value = suggested if at == SUGGESTED else at
                params = {"mode": mode, "alpha_threshold": value}
                name = f"{self.sweep.method} {mode} {at}"
                found[name] = Arm(method=self.sweep.method, params=params)
        return found


@dataclass(frozen=True)
class Measurement:
    """One thing that is measured, once.

    Attributes:
        arm: Name.
        method: Name and params as JSON: arms that are alike share a measurement.
        split: ``test`` or ``validation``.
        scale: `OWN`, `TUNED`, or ‖merged‖ over the mean norm of the tasks' updates.
        rank: That the merged update is cut to; None is exact.
        order: Number of the order; 0 is that of the file.
        cells: Of the matrix.
    """

    arm: str
    method: str
    split: str = "test"
    scale: str | float = OWN
    rank: int | None = None
    order: int = 0
    cells: Cells = "last"

    @property
    def key(self) -> str:
        """What tells it from others: neither the arm's name does, nor the cells."""
        return json.dumps([self.method, self.split, self.scale, self.rank, self.order])

    def cells_of(self, tasks: int) -> int:
        """Return how many (merge, task) pairs are measured."""
        whole = tasks * (tasks + 1) // 2
        return {"last": tasks, "ends": 2 * tasks - 1, "seen": whole}[self.cells]


def read_study(path: Path = STUDY) -> Study:
    """Return the study of a file."""
    return Study.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def told(arm: Arm) -> str:
    """Return an arm's method as JSON, with all params: defaults are named too."""
    params = method(arm.method, **arm.params).params.model_dump(mode="json")
    return json.dumps([arm.method, params], sort_keys=True)


def method_of(told_method: str) -> Method:
    """Return the method of `told`."""
    name, params = json.loads(told_method)
    return method(name, **params)


def check_methods(study: Study, suggested: float | None) -> None:
    """Refuse a study whose methods are not all there, before anything is measured.

    Raises:
        ConfigErrors: methods that do not exist, or have no such parameters; all at
            once, each with the arm that names it.
    """
    problems = []
    for name, arm in {**study.merged, **study.swept(suggested)}.items():
        try:
            method(arm.method, **arm.params)
        except ConfigError as error:
            problems.append(ConfigError(str(error), where=f"arm {name!r}"))
    if study.reference not in study.continual:
        problems.append(ConfigError("no continual arm", where="reference"))
    if problems:
        raise ConfigErrors(problems)


def orders_of(size: Size, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the orders of the tasks: that of the file, then those of the study."""
    drawn = orders(len(names), size.orders)[: size.orders]
    return [tuple(names), *(tuple(names[i] for i in order) for order in drawn)]


def measurements(
    study: Study, size: Size, tasks: int, suggested: float | None
) -> list[Measurement]:
    """Return everything that is measured, each once, and what it needs before it."""
    count = len(orders_of(size, [str(i) for i in range(tasks)])) - 1
    wanted = [
        Measurement(BASE, BASE),
        Measurement(ALONE, ALONE),
        *_joint(study),
        *_continual(study, size, count),
        *_sweep(study, size, suggested, count),
    ]
    found: dict[str, Measurement] = {}
    for one in wanted:
        found.setdefault(one.key, one)  # the first has the most cells
    return list(found.values())


def _joint(study: Study) -> Iterator[Measurement]:
    """Yield what one merge in the order of the file serves, arm by arm."""
    for name, arm in study.merged.items():
        for norm in study.norms:
            yield Measurement(name, told(arm), "validation", norm)
        yield Measurement(name, told(arm))
        for rank in (None, *study.ranks):
            yield Measurement(name, told(arm), scale=TUNED, rank=rank)


def _continual(study: Study, size: Size, count: int) -> Iterator[Measurement]:
    for name, arm in study.continual.items():
        for order in range(1, min(count, arm.orders or count) + 1):
            cells: Cells = "seen" if order <= size.whole_orders else "ends"
            cells = "last" if arm.last_only else cells
            yield Measurement(name, told(arm), order=order, cells=cells)
            if order <= size.tuned_orders:
                yield Measurement(name, told(arm), scale=TUNED, order=order)


def _sweep(
    study: Study, size: Size, suggested: float | None, count: int
) -> Iterator[Measurement]:
    for name, arm in study.swept(suggested).items():
        for order in range(1, min(size.sweep_orders, count) + 1):
            yield Measurement(name, told(arm), order=order)
