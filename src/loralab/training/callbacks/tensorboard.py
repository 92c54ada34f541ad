"""TensorBoard: ``tensorboard --logdir runs`` draws every run below it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loralab.registry import Params, register

if TYPE_CHECKING:
    from loralab.runs import Run
    from loralab.training.callbacks._trackers import TensorBoardCallback


@register("callback", "tensorboard")
def tensorboard(params: Params, run: Run) -> TensorBoardCallback:
    """Return the callback that writes ``<run>/tensorboard``."""
    from loralab.training.callbacks._trackers import TensorBoardCallback

    return TensorBoardCallback(run)
