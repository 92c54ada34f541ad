"""The event log of a run: ``metrics.jsonl``, one JSON object a line.

Everything that wants to watch a run (the command line's progress, a tracker) subscribes
to the same events that are written down.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from loralab.runs import Run
from loralab.runs.files import write_text
from loralab.runs.run import now

logger = logging.getLogger(__name__)

OnEvent = Callable[[dict[str, Any]], None]


class EventLog:
    """Appends events to a run's log and tells the subscribers."""

    def __init__(self, run: Run, on_event: OnEvent | None = None) -> None:
        self._file = run.path / "metrics.jsonl"
        self._run = run
        self._subscribers = [on_event] if on_event else []

    def subscribe(self, on_event: OnEvent) -> None:
        """Add one who is told of everything from now on."""
        self._subscribers.append(on_event)

    def on_event(self, event: dict[str, Any]) -> None:
        """Pass an event on to the subscribers, in the order they came."""
        for told in self._subscribers:
            told(event)

    def tell(self, event: str, **fields: Any) -> None:
        """Tell the subscribers only; for what is of no interest afterwards."""
        self.on_event({"event": event, **fields})

    def emit(self, event: str, **fields: Any) -> None:
        """Write an event down and tell the subscribers."""
        line = json.dumps({"event": event, "time": now(), **fields})
        with self._file.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")
        often = event in ("log", "memory")
        logger.log(logging.DEBUG if often else logging.INFO, "%s %s", event, fields)
        self.tell(event, **fields)

    def rewind(self, step: int) -> None:
        """Drop the events of steps after `step`, and a half last line of a kill."""
        kept = [e for e in self._run.events() if e.get("step", 0) <= step]
        write_text(self._file, "".join(json.dumps(e) + "\n" for e in kept))


class SilentLog(EventLog):
    """The log of a process that only helps: the first of them writes the run."""

    def emit(self, event: str, **fields: Any) -> None:
        """Do nothing."""
