"""Weights & Biases: the key stands in ``WANDB_API_KEY``, or ``WANDB_MODE=offline``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pydantic import Field

from loralab.errors import ConfigError
from loralab.registry import Params, register

if TYPE_CHECKING:
    from loralab.runs import Run
    from loralab.training.callbacks._trackers import WandBCallback


class WandBParams(Params):
    """Where the run appears."""

    project: str = Field("loralab", min_length=1)
    entity: str | None = Field(None, description="user or team; null: the key's own")


def check(params: WandBParams) -> None:
    """Raise unless wandb is installed and has a key, or is told to be offline."""
    from loralab.training.callbacks._life import require

    require("wandb", "wandb")
    offline = os.environ.get("WANDB_MODE") == "offline"
    if not offline and not os.environ.get("WANDB_API_KEY"):
        raise ConfigError(
            "the callback 'wandb' has no key",
            where="training.callbacks",
            why="WANDB_API_KEY is not set",
            fix="set it in the environment, or set WANDB_MODE=offline",
        )


@register("callback", "wandb", WandBParams, check=check)
def wandb(params: WandBParams, run: Run) -> WandBCallback:
    """Return the callback that logs to Weights & Biases."""
    from loralab.training.callbacks._trackers import WandBCallback

    return WandBCallback(params, run)
