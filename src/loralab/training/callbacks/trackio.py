"""Trackio: a tracker with a database on this machine; ``trackio show`` draws it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from loralab.registry import Params, register

if TYPE_CHECKING:
    from loralab.runs import Run
    from loralab.training.callbacks._trackers import TrackioCallback


class TrackioParams(Params):
    """Where the run appears."""

    project: str = Field("loralab", pattern=r"^[A-Za-z0-9._-]+$")


def check(params: TrackioParams) -> None:
    """Raise unless trackio is installed."""
    from loralab.training.callbacks._life import require

    require("trackio", "trackio")


@register("callback", "trackio", TrackioParams, check=check)
def trackio(params: TrackioParams, run: Run) -> TrackioCallback:
    """Return the callback that writes to trackio's database."""
    from loralab.training.callbacks._trackers import TrackioCallback

    return TrackioCallback(params, run)
