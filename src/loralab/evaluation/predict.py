"""Predictions, streamed: logits live for one batch, only what was measured is kept.

Cross-entropy is always that of the logits, −log softmax(logits)[label], never a loss
that a model or method adds something to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loralab.data.batching import collate, evaluation_order, unit_lengths, units
from loralab.data.examples import Examples
from loralab.models.base import LoadedModel
from loralab.models.forward import supervised_logits

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int], None]
"""Called with (batches done, batches in all)."""


@dataclass(frozen=True)
class Predictions:
    """What a model said of each row.

    Attributes:
        rows: Row numbers that were measured, ascending, [E].
        nll: Summed negative log-likelihood of a row's labels, nats, [E] float64.
        labels: Number of labels of a row (tokens; 1 for a classifier), [E] float64.
        predicted: Predicted class, [E] int64, or None for token-level tasks.
        probability: Its probability, [E] float64, or None.
    """

    rows: NDArray[np.int64]
    nll: NDArray[np.float64]
    labels: NDArray[np.float64]
    predicted: NDArray[np.int64] | None
    probability: NDArray[np.float64] | None

    @property
    def cross_entropy(self) -> float:
        """Nats per label."""
        return float(self.nll.sum() / self.labels.sum())


def predict(
    model: Any,
    base: LoadedModel,
    examples: Examples,
    batch_size: int,
    progress: Progress | None = None,
) -> Predictions:
    """Run a model over examples.

    Args:
        model: The PEFT model (under `disable_adapter()` it is the base).
        base: Processor and numerics.
        examples: Encoded rows.
        batch_size: Rows, or packs, at a time at most.
        progress: Told of every batch.
    """
    import torch
    from torch.nn.functional import cross_entropy

    groups = units(examples)
    order = evaluation_order(unit_lengths(examples, groups), batch_size)
    count = len(examples)
    nll, labels = np.zeros(count), np.zeros(count)
    predicted, probability = np.full(count, -1), np.zeros(count)
    was_training = model.training
    model.eval()
    for done, batch in enumerate(order, 1):
        made = collate(
            examples, [groups[i] for i in batch], base.processor.pad_token_id
        )
        moved = {name: t.to(base.numerics.device) for name, t in made.items()}
        with torch.inference_mode():
            logits, truth, owner = supervised_logits(model, moved, base.numerics)
            loss = cross_entropy(logits, truth, reduction="none").double()
        where = owner.cpu().numpy()
        np.add.at(nll, where, loss.cpu().numpy())
        np.add.at(labels, where, 1)
        if not examples.token_level:
            predicted[where], probability[where] = _best(logits)
        if progress:
            progress(done, len(order))
    model.train(was_training)
    if examples.token_level:
        return _by_row(examples, nll, labels)
    rows = np.asarray(examples.row)
    return Predictions(rows, nll, labels, predicted, probability)


def _best(logits_NC: torch.Tensor) -> tuple[Any, Any]:
    top = logits_NC.softmax(-1).max(-1)
    return top.indices.cpu().numpy(), top.values.double().cpu().numpy()


def _by_row(
    examples: Examples, nll: NDArray[np.float64], labels: NDArray[np.float64]
) -> Predictions:
    """Sum what the windows of one long row gave."""
    rows, where = np.unique(np.asarray(examples.row), return_inverse=True)
    return Predictions(
        rows,
        np.bincount(where, weights=nll).astype(np.float64),
        np.bincount(where, weights=labels).astype(np.float64),
        None,
        None,
    )
