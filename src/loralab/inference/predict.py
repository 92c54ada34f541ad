"""Predictions, streamed: logits live for one batch, only what was read off is kept.

Cross-entropy is always that of the logits, −log softmax(logits)[label], never a loss
that a model or method adds something to.

Shape suffixes: E rows, N labels of a batch, C classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loralab.data.batching import collate, evaluation_order, unit_lengths, units
from loralab.data.examples import Examples, ReadingTask
from loralab.models.forward import supervised_logits
from loralab.models.loaded import LoadedModel

Progress = Callable[[int, int], None]
"""Called with (batches done, batches in all)."""

Finish = Callable[[int, list[Any]], Any]
"""From a row's number and the readings of all its examples to what is kept of it."""


@dataclass(frozen=True)
class Predictions:
    """What a model said of each row.

    Attributes:
        rows: Row numbers that were measured, ascending, [E].
        nll: Summed negative log-likelihood of a row's labels, nats, [E] float64.
        labels: Number of labels of a row (tokens; 1 for a classifier), [E] float64.
        answers: What `finish` returned for each row; None where nothing is read.
    """

    rows: NDArray[np.int64]
    nll: NDArray[np.float64]
    labels: NDArray[np.float64]
    answers: list[Any] | None

    @property
    def cross_entropy(self) -> float:
        """Nats per label."""
        return float(self.nll.sum() / self.labels.sum())


def predict(
    model: Any,
    base: LoadedModel,
    examples: Examples,
    batch_size: int,
    *,
    task: ReadingTask | None = None,
    finish: Finish | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Run a model over examples.

    Args:
        model: The PEFT model (under `disable_adapter()` it is the base).
        base: Processor, head and numerics.
        examples: Encoded rows.
        batch_size: Rows, or packs, at a time at most.
        task: Reads the logits of each example; None: only the likelihood is kept.
        finish: Makes of a row's readings what is kept; called once a row.
        progress: Told of every batch.
    """
    import torch
    from torch.nn.functional import cross_entropy

    groups = units(examples)
    order = evaluation_order(unit_lengths(examples, groups), batch_size)
    nll, labels = np.zeros(len(examples)), np.zeros(len(examples))
    reader = _Reader(examples, task, finish)
    was_training = model.training
    model.eval()
    for done, batch in enumerate(order, 1):
        chosen = [groups[i] for i in batch]
        with torch.inference_mode():
            logits, truth, where = _forward(model, base, examples, chosen)
            loss = cross_entropy(logits, truth, reduction="none")
        np.add.at(nll, where, loss.cpu().double().numpy())  # mps has no float64
        np.add.at(labels, where, 1)
        if task is not None:
            reader.read(logits.cpu().numpy(), where)
        del logits, loss  # or they live on beside those of the next batch
        if progress:
            progress(done, len(order))
    model.train(was_training)
    rows, which = np.unique(np.asarray(examples.row), return_inverse=True)
    return Predictions(
        rows,
        np.bincount(which, weights=nll).astype(np.float64),
        np.bincount(which, weights=labels).astype(np.float64),
        [reader.kept[row] for row in rows.tolist()] if task is not None else None,
    )


def _forward(
    model: Any, base: LoadedModel, examples: Examples, batch: Sequence[Sequence[int]]
) -> tuple[Any, Any, NDArray[np.int64]]:
    """Return logits, labels, and the example that each belongs to."""
    made = collate(examples, batch, base.pad_id)
    moved = {name: t.to(base.numerics.device) for name, t in made.items()}
    logits, truth, owner = supervised_logits(model, moved, base)
    return logits, truth, owner.cpu().numpy()


class _Reader:
    """Gathers the readings of a row's examples, until they are all there."""

    def __init__(
        self, examples: Examples, task: ReadingTask | None, finish: Finish | None
    ) -> None:
        self._examples, self._task = examples, task
        self._finish = finish or (lambda _, readings: readings)
        self._left: dict[int, int] = defaultdict(int)
        self._readings: dict[int, dict[int, Any]] = defaultdict(dict)
        self.kept: dict[int, Any] = {}
        for row in examples.row:
            self._left[row] += 1

    def read(self, logits_NC: NDArray[np.float32], owner_N: NDArray[np.int64]) -> None:
        """Take in a batch: every row of the logits belongs to its owner."""
        assert self._task is not None
        for i in dict.fromkeys(owner_N.tolist()):
            mine = logits_NC[owner_N == i]
            if self._examples.supervision == "example":
                mine = mine[0]
            row = self._examples.row[i]
            self._readings[row][i] = self._task.read(self._examples, i, mine)
            self._left[row] -= 1
            if not self._left[row]:
                readings = self._readings.pop(row)
                ordered = [readings[k] for k in sorted(readings)]
                self.kept[row] = self._finish(row, ordered)
