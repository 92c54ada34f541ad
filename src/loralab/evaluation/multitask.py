"""`MultiTaskEvaluator`: merged updates of one base, measured on all their tasks.

    W ← W₀ + L·C·Rᵀ          one product a layer, fp32, in place
    measure every task       each with its own head and its own rows
    W ← W₀                   copied back: the base is what it was, to the bit

The base is loaded once and a task's rows are encoded and batched once, so a measurement
is its forward passes. **A task's head travels with it**: what an adapter saved in full
(``modules_to_save``) is put on whatever is merged. The base alone is the update of no
layer, an adapter alone the update of one adapter; both come through the same door.

All is computed in fp32, whatever the adapters were trained in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from loralab.errors import AdapterError
from loralab.evaluation.scores import Floats
from loralab.evaluation.task_rows import Task, base_of, load_task, names_of
from loralab.lowrank.files import AdapterFolder
from loralab.lowrank.update import Update
from loralab.merging.merge import merge
from loralab.merging.method import Method
from loralab.merging.sequence import after_each
from loralab.models.forward import supervised_logits
from loralab.runs import Run

Cells = Literal["seen", "all", "ends", "last"]
"""Which cells of the matrix are measured: ``seen`` i ≤ t; ``all``; ``ends``, the
diagonal and the last row, which is all that ACC and BWT need; ``last``, that row."""


@dataclass(frozen=True, eq=False)
class TaskScores:
    """What was said of one task's rows.

    Attributes:
        right: Share of a row's labels that were the most probable, [E] float64; of a
            classifier 1 or 0.
        nll: Negative log-likelihood of a row's labels, nats, [E] float64.
        labels: Number of labels of a row, [E] float64; 1 of a classifier.
        of: Rows of the split that these were drawn from.
    """

    right: Floats
    nll: Floats
    labels: Floats
    of: int

    @property
    def accuracy(self) -> float:
        """Share of labels that were the most probable."""
        return float((self.right * self.labels).sum() / self.labels.sum())

    @property
    def cross_entropy(self) -> float:
        """Nats a label."""
        return float(self.nll.sum() / self.labels.sum())

    @property
    def standard_error(self) -> float:
        """Of the accuracy, as an estimate of all rows like these.

        A row of more labels weighs more, so the accuracy is a ratio of two sums
        (Cochran 1977, chapter 6); of a classifier it is the mean of the rows.
        """
        apart = self.labels * (self.right - self.accuracy) / self.labels.mean()
        return float(apart.std(ddof=1) / len(apart) ** 0.5)

    @property
    def subsample_error(self) -> float:
        """Of the accuracy, as an estimate of the whole split's: 0 if it was all of it.

        √((1 − E/of)/E)·s, the finite population correction (Cochran 1977, eq. 2.15).
        """
        left_out = 1 - len(self.right) / self.of
        return float(self.standard_error * left_out**0.5)


@dataclass(frozen=True, eq=False)
class Matrix:
    """What one method gave in one order.

    Attributes:
        order: Names of the tasks, as they were merged.
        cells: (t, i), both from 0, -> what the merge of the first t + 1 tasks gave on
            task number i of the order.
    """

    order: tuple[str, ...]
    cells: Mapping[tuple[int, int], TaskScores]

    @property
    def accuracy(self) -> Floats:
        """a[t, i] for `continual.py`, [T, T] float64; NaN where not measured."""
        return self._of("accuracy")

    @property
    def cross_entropy(self) -> Floats:
        """The same in nats a label."""
        return self._of("cross_entropy")

    def _of(self, what: str) -> Floats:
        found = np.full((len(self.order), len(self.order)), np.nan)
        for cell, scores in self.cells.items():
            found[cell] = getattr(scores, what)
        return found

    @property
    def last(self) -> dict[str, TaskScores]:
        """What the merge of all tasks gave on each."""
        end = len(self.order) - 1
        return {name: self.cells[end, i] for i, name in enumerate(self.order)}


class MultiTaskEvaluator:
    """Trained adapters of one base, and the rows that merges of them are measured on.

    Args:
        runs: Finished runs of plain LoRA on one float base, one a task.
        rows: How many rows of a task are drawn; all of them where the split has less.
        split: ``train``, ``validation`` or ``test``.
        seed: Of the draw.

    Attributes:
        base: As it was loaded, in fp32, with some task's head.
        tasks: Name -> task, in the order of the runs.

    Raises:
        AdapterError: adapters of different bases, heads of different kinds, an adapter
            that is not plain LoRA, or a module that the base does not have.
        RunError: no adapter, or the data is no longer that of the run.
        DataError: the split does not exist.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        rows: int = 200,
        split: str = "test",
        seed: int = 0,
    ) -> None:
        self.base = base_of(runs[0])
        self.base.model.requires_grad_(False)
        self.tasks: dict[str, Task] = {}
        for name, run in zip(names_of(runs), runs, strict=True):
            self.tasks[name] = load_task(name, run, self.base, rows, split, seed)
        self._before = {
            module: _weight(self.base.model, module, shape).clone()
            for task in self.tasks.values()
            for module, shape in task.source.shapes.items()
        }

    def sources(self, names: Sequence[str] = ()) -> list[AdapterFolder]:
        """Return the adapters of tasks, in the order of the names; by default all."""
        return [self.tasks[name].source for name in names or self.tasks]

    def measure(
        self, updates: Mapping[str, Update], tasks: Sequence[str] = ()
    ) -> dict[str, TaskScores]:
        """Return what the base with an update gives on tasks, each with its own head.

        Args:
            updates: Module path in the base -> ΔW; {} is the base alone.
            tasks: By default all.

        Raises:
            AdapterError: a module that no adapter updates.
        """
        with self._applied(updates):
            return {name: self._said(self.tasks[name]) for name in tasks or self.tasks}

    def alone(self, tasks: Sequence[str] = ()) -> dict[str, TaskScores]:
        """Return what each task's own adapter gives on it."""
        found: dict[str, TaskScores] = {}
        for name in tasks or self.tasks:
            source = self.tasks[name].source
            own = {module: source.factors(module).update() for module in source.shapes}
            found |= self.measure(own, [name])
        return found

    def continual(
        self,
        method: Method,
        order: Sequence[str],
        cells: Cells = "seen",
        scale: float = 1.0,
    ) -> Matrix:
        """Return the matrix of merging tasks one after the other.

        Args:
            method: A continual one is folded; a joint one merges anew each time.
            order: Names of the tasks.
            cells: Which are measured.
            scale: What every merged update is multiplied with before it is measured;
                what later ones are made of is not.
        """
        found: dict[tuple[int, int], TaskScores] = {}
        last = len(order) - 1
        for t, updates in self._rows(method, order, cells):
            first = t if cells == "ends" and t < last else 0
            columns = range(first, len(order) if cells == "all" else t + 1)
            scaled = {module: update * scale for module, update in updates.items()}
            said = self.measure(scaled, [order[i] for i in columns])
            found |= {(t, i): said[order[i]] for i in columns}
        return Matrix(tuple(order), found)

    def _rows(
        self, method: Method, order: Sequence[str], cells: Cells
    ) -> Iterator[tuple[int, dict[str, Update]]]:
        """Yield the rows of a matrix that are measured, and their merged updates."""
        sources = self.sources(order)
        if cells == "last":
            yield len(order) - 1, merge(method, sources)
            return
        yield from enumerate(after_each(method, sources))

    @contextmanager
    def _applied(self, updates: Mapping[str, Update]) -> Iterator[None]:
        """Let the base's weights be W₀ + ΔW for a while."""
        if unknown := sorted(set(updates) - set(self._before)):
            raise AdapterError(
                f"{unknown[0]} is a module that none of the adapters updates",
                fix="merge the adapters of this evaluator",
            )
        model = self.base.model
        try:
            for module, update in updates.items():
                weight = _weight(model, module, update.shape)
                left = (update.L @ update.C).to(weight)
                torch.addmm(
                    self._before[module], left, update.R.T.to(weight), out=weight
                )
            yield
        finally:
            for module in updates:
                before = self._before[module]
                out, inner = before.shape
                _weight(model, module, (out, inner)).copy_(before)

    @torch.inference_mode()
    def _said(self, task: Task) -> TaskScores:
        """Run the model as it stands over a task's rows."""
        _wear(self.base.model, task.head)
        size = len(task.drawn)
        right, nll, labels = np.zeros(size), np.zeros(size), np.zeros(size)
        for batch in task.batches:
            logits_NC, truth_N, where_N = supervised_logits(
                self.base.model, batch, self.base
            )
            loss_N = cross_entropy(logits_NC, truth_N, reduction="none")
            hit_N = logits_NC.argmax(-1) == truth_N
            row_N = task.rows[where_N.cpu().numpy()]
            np.add.at(nll, row_N, loss_N.cpu().double().numpy())  # mps has no float64
            np.add.at(right, row_N, hit_N.cpu().double().numpy())
            np.add.at(labels, row_N, 1)
        return TaskScores(right / np.maximum(labels, 1), nll, labels, task.of)


def _wear(model: Any, head: Mapping[str, Tensor]) -> None:
    """Put a task's head on the model; its shapes may differ from the last one's."""
    for name, tensor in head.items():
        module, _, leaf = name.rpartition(".")
        parameter = nn.Parameter(tensor, requires_grad=False)
        setattr(model.get_submodule(module), leaf, parameter)


def _weight(model: Any, module: str, shape: tuple[int, int]) -> Tensor:
    """Return the float weight of a module as out × in, a view that can be written.

    Raises:
        AdapterError: there is none of this shape.
    """
    try:
        found = model.get_submodule(module)
    except AttributeError:
        raise AdapterError(
            f"the base has no module {module}", fix="name the base it was trained on"
        ) from None
    weight: Tensor = found.weight.detach()
    if isinstance(found, nn.Embedding) or type(found).__name__ == "Conv1D":
        weight = weight.T  # they store in × out
    weight = weight.flatten(1)  # a convolution's kernel is part of its inputs
    if tuple(weight.shape) != tuple(shape):
        raise AdapterError(
            f"{module} is {tuple(weight.shape)} in the base and {tuple(shape)} in the "
            "update"
        )
    return weight
