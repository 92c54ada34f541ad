"""What an executor is handed, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from loralab.config import ExperimentConfig

Status = Literal["complete", "failed", "pruned", "pending"]


@dataclass(frozen=True)
class Job:
    """A run that is to be trained.

    Attributes:
        number: In its sweep or study.
        config: What is trained.
        pending: Whether it ended as pending before: what became of it since is news.
    """

    number: int
    config: ExperimentConfig
    pending: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        status: What became of it; ``pending``: it was handed on, to be trained later.
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

    def tell(self, event: dict[str, Any]) -> None:
        """Hear of what is of no single job."""
