"""What an executor is handed, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from loralab.config import ExperimentConfig

Status = Literal["complete", "failed", "pruned"]


@dataclass(frozen=True)
class Job:
    """A run that is to be trained."""

    number: int
    config: ExperimentConfig


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        status: What became of it.
        error: Why it failed or was pruned; empty if it is complete.
        seconds: From being handed out to the end.
        found: Whether the run was complete before.
    """

    status: Status
    error: str = ""
    seconds: float = 0.0
    found: bool = False


class Jobs(Protocol):
    """Where an executor gets its jobs; called by one thread at a time."""

    def next(self) -> Job | None:
        """Return the next job, or None: there are no more."""

    def event(self, job: Job, event: dict[str, Any]) -> bool:
        """Hear what happens in a run; return True to stop it (prune)."""

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Hear how a job ended."""
