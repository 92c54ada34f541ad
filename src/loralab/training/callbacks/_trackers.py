"""Trackers: callbacks that hand a run's figures to a tool which draws them.

One vocabulary for all: ``train/loss``, ``train/learning_rate``, ``validation/loss``,
``memory/rss_bytes``, ``test/accuracy/adapter`` and its ``…/low`` and ``…/high``.

A resumed run repeats the steps after its checkpoint, which a tracker may have written
before the kill. TensorBoard is told to forget them; the others cannot forget, so they
are told only of steps they do not have. On a CPU the repeated ones are equal anyway.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from abc import ABC, abstractmethod
from io import StringIO
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from loralab.runs import Run
from loralab.runs.files import remove_directory, write_text
from loralab.training.checkpoint import latest, step_of

if TYPE_CHECKING:
    from loralab.training.callbacks.trackio import TrackioParams
    from loralab.training.callbacks.wandb import WandBParams

Scalars = dict[str, float]
NOT_FIGURES = {"event", "step", "epoch"}


def scalars(event: dict[str, Any]) -> Scalars:
    """Return what a ``log``, ``memory`` or ``validation`` event says, by flat name."""
    group = {"log": "train", "memory": "memory", "validation": "validation"}
    if event["event"] not in group:
        return {}
    return _finite(
        {
            f"{group[event['event']]}/{key.removeprefix('eval_')}": value
            for key, value in event.items()
            if key not in NOT_FIGURES
        }
    )


def results(event: dict[str, Any]) -> Scalars:
    """Return the figures of an ``evaluated`` event: each arm with its interval."""
    found: dict[str, Any] = {}
    for metric, arms in event["metrics"].items():
        for arm, interval in arms.items():
            name = f"{event['split']}/{metric}/{arm}"
            found[name] = interval["value"]
            found |= {f"{name}/{end}": interval[end] for end in ("low", "high")}
    return _finite(found)


def _finite(values: dict[str, Any]) -> Scalars:
    numbers = {k: v for k, v in values.items() if isinstance(v, (int, float))}
    return {k: float(v) for k, v in numbers.items() if math.isfinite(v)}


def fields(config: Any, path: str = "") -> dict[str, Any]:
    """Return the plain fields of a configuration by dotted key; lists as JSON."""
    if not isinstance(config, dict):
        return {path: json.dumps(config) if isinstance(config, list) else config}
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= fields(value, f"{path}.{key}" if path else str(key))
    return found


class Tracker(TrainerCallback, ABC):
    """Turns the events of a run into scalars; a subclass writes them down.

    Attributes:
        has: The highest step that is written already; nothing up to it is repeated.
    """

    has: int = -1

    def on_event(self, event: dict[str, Any]) -> None:
        """Write the figures of an event."""
        if event["event"] == "evaluated":
            self.write_results(results(event))
        elif (found := scalars(event)) and event["step"] > self.has:
            self.write(event["step"], found)

    @abstractmethod
    def write(self, step: int, values: Scalars) -> None:
        """Write the figures of a step."""

    @abstractmethod
    def write_results(self, values: Scalars) -> None:
        """Write the figures of the final evaluation of a split."""


class TensorBoardCallback(Tracker):
    """Writes event files for TensorBoard below ``<run>/tensorboard``.

    The final evaluation is a series of its own, written anew by each session.
    """

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = run.path / "tensorboard"
        self._make = SummaryWriter
        self._results: Any = None
        start = latest(run.checkpoints)
        self._step = step_of(start) if start else 0
        purge = self._step + 1 if start else None
        remove_directory(self._folder / "evaluation" if start else self._folder)
        self._writer = SummaryWriter(str(self._folder), purge_step=purge)
        if start is None:
            config = fields(run.config.model_dump(mode="json"))
            table = ["key | value", "--- | ---"]
            table += [f"{key} | `{value}`" for key, value in config.items()]
            self._writer.add_text("config", "\n".join(table), 0)

    def write(self, step: int, values: Scalars) -> None:
        """Write the figures of a step, to the disk: a kill may come at any time."""
        self._step = step
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def write_results(self, values: Scalars) -> None:
        """Write the figures of the final evaluation at the last step."""
        if self._results is None:
            self._results = self._make(str(self._folder / "evaluation"))
        for name, value in values.items():
            self._results.add_scalar(name, value, self._step)
        self._results.flush()

    def close(self) -> None:
        """Close the event files."""
        self._writer.close()
        if self._results is not None:
            self._results.close()


class TrackioCallback(Tracker):
    """Writes to trackio's local database; the run has the name of its directory."""

    def __init__(self, params: TrackioParams, run: Run) -> None:
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        before = SQLiteStorage.get_max_step_for_run(params.project, run.id)
        self.has = -1 if before is None else before
        self._final: Scalars = {}
        self._step = 0
        with contextlib.redirect_stdout(StringIO()):  # it prints
            self._run = trackio.init(
                project=params.project,
                name=run.id,
                config=fields(run.config.model_dump(mode="json")),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def on_event(self, event: dict[str, Any]) -> None:
        """Write the figures of an event; those of the evaluation when all are there."""
        super().on_event(event)
        if event["event"] == "plan":
            self._step = event["steps"]
        if event["event"] == "complete" and self._final and self._step >= self.has:
            self._run.log(self._final, step=self._step + 1)

    def write(self, step: int, values: Scalars) -> None:
        """Write the figures of a step."""
        self._run.log(values, step=step)

    def write_results(self, values: Scalars) -> None:
        """Keep the figures of a split; trackio has no place but one more step."""
        self._final |= values

    def close(self) -> None:
        """Wait until all is in the database."""
        import trackio

        with contextlib.redirect_stdout(StringIO()):
            trackio.finish()


class WandBCallback(Tracker):
    """Logs to Weights & Biases; offline where ``WANDB_MODE=offline`` says so.

    The key is read by wandb from ``WANDB_API_KEY`` alone. Nothing of the machine is
    sent but the list of installed packages: no code, git remote, console or figures.
    """

    def __init__(self, params: WandBParams, run: Run) -> None:
        import wandb

        folder = run.path / "wandb"
        folder.mkdir(exist_ok=True)
        self._mark = folder / "last-step.txt"
        if self._mark.is_file():
            self.has = int(self._mark.read_text(encoding="utf-8"))
        self._run = wandb.init(
            project=params.project,
            entity=params.entity,
            dir=str(run.path),
            id=run.id,
            name=run.id,
            resume="allow",
            mode="offline" if os.environ.get("WANDB_MODE") == "offline" else "online",
            config=fields(run.config.model_dump(mode="json")),
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
            ),
        )

    def write(self, step: int, values: Scalars) -> None:
        """Write the figures of a step."""
        self._run.log(values, step=step)
        write_text(self._mark, str(step))

    def write_results(self, values: Scalars) -> None:
        """Write the figures of the final evaluation into the run's summary."""
        self._run.summary.update(values)

    def close(self) -> None:
        """Wait until all is written or sent."""
        self._run.finish()
