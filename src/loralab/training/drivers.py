"""Methods that must be driven: what they ask of training beyond gradient descent.

A PEFT method names the module that drives it by the fact ``driver`` of its
registration. That module has the four functions of `Driver`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from loralab import registry
from loralab.config import ExperimentConfig, PEFTConfig

if TYPE_CHECKING:
    from loralab.training.events import EventLog
    from loralab.training.trainer import PEFTTrainer


class Driver(Protocol):
    """What drives a method."""

    def check(self, config: ExperimentConfig) -> None:
        """Refuse what the method cannot be trained with, before anything loads."""

    def begin(self, model: Any, config: PEFTConfig, steps: int) -> None:
        """Take the number of optimizer steps, before anything is written."""

    def drive(self, trainer: PEFTTrainer, log: EventLog, config: PEFTConfig) -> None:
        """Put callbacks, parts of the state and a penalty on the trainer."""

    def result(self, model: Any) -> Any:
        """Check the trained model, and return the PEFT model that is saved."""


def driver_of(config: PEFTConfig) -> Driver | None:
    """Return what drives the configured method, None if nothing needs to."""
    module = registry.get("PEFT method", config.name).facts.get("driver")
    return cast(Driver, import_module(module)) if module else None
