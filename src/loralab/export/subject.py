"""What is to be stored: a run's adapter on its base, or an experiment's base alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loralab.adapters.files import read_note
from loralab.config import ExperimentConfig
from loralab.data.examples import classes_of, get_preprocessor
from loralab.data.rows import load_rows
from loralab.inference.load import Loaded, load_adapter
from loralab.models.base import load_base
from loralab.models.numerics import seed_everything
from loralab.runs import Run


@dataclass(frozen=True)
class Subject:
    """What is to be stored, loaded as it is used.

    Attributes:
        loaded: The adapter on its base, or the base alone; on the CPU.
        config: Of the experiment.
        run: The adapter's run; None of a base alone.
        state: What the task learnt from rows.
        data: What ``run.json`` says of the rows.
    """

    loaded: Loaded
    config: ExperimentConfig
    run: Run | None
    state: dict[str, Any]
    data: dict[str, Any]

    @property
    def name(self) -> str:
        """What a certificate calls it."""
        return self.run.id if self.run else f"the base of {self.config.name}"


def subject_of(what: Run | ExperimentConfig) -> Subject:
    """Load a run's adapter, or an experiment's base with its head as training begins.

    Raises:
        LoralabError: rows, base or adapter are at fault.
    """
    if isinstance(what, Run):
        state = read_note(what.require_adapter())["task_state"]
        loaded = load_adapter(what, device="cpu")
        return Subject(loaded, what.config, what, state, what.read()["data"])
    task = get_preprocessor(what.task)
    rows = load_rows(what.data, task)
    state = task.fit({name: list(split) for name, split in rows.splits.items()})
    seed_everything(what.training.seed)
    model = what.model.model_copy(update={"device": "cpu", "storage": None})
    base = load_base(model, task.head, classes_of(state))
    task.prepare(base.processor)
    return Subject(Loaded(base.model, base, task), what, None, state, rows.record())
