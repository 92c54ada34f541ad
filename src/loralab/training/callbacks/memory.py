"""The memory monitor: what the process and the GPU hold, and a warning before the end.

An event ``memory`` stands beside each logging step. Between them a thread looks a few
times a second, so that a short peak is seen; a look is two small files of ``/proc``.
"""

from __future__ import annotations

import logging
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from pydantic import Field

from loralab.registry import Params, register

if TYPE_CHECKING:
    from loralab.runs import Run
    from loralab.training.events import EventLog

logger = logging.getLogger(__name__)


class MemoryParams(Params):
    """When to look, and when to warn."""

    warn_below: float = Field(
        0.1, ge=0, lt=1, description="share of the machine's memory still available"
    )
    interval_seconds: float = Field(0.5, gt=0, description="between two looks")


class MemoryMonitor:
    """Emits ``memory`` events (bytes) into the run's log."""

    def __init__(self, params: MemoryParams) -> None:
        import psutil
        import torch

        self._params = params
        self._process = psutil.Process()
        self._memory = psutil.virtual_memory
        self._total = psutil.virtual_memory().total
        self._cuda: Any = torch.cuda if torch.cuda.is_available() else None
        self._log: EventLog | None = None
        self._peak = 0
        self._lowest = self._total
        self._warned = False
        self._over = Event()
        self._thread = Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()

    def bind(self, log: EventLog) -> None:
        """Take the log that events are emitted into."""
        self._log = log

    def _watch(self) -> None:
        while not self._over.wait(self._params.interval_seconds):
            self._look()

    def _look(self) -> tuple[int, int]:
        rss, available = self._process.memory_info().rss, self._memory().available
        self._peak = max(self._peak, rss)
        self._lowest = min(self._lowest, available)
        if not self._warned and available < self._params.warn_below * self._total:
            self._warned = True
            logger.warning(
                "only %.2f of %.2f GB of memory are available; this process holds "
                "%.2f GB. Smaller batches or gradient_checkpointing need less",
                available / 1e9,
                self._total / 1e9,
                rss / 1e9,
            )
        return rss, available

    def on_event(self, event: dict[str, Any]) -> None:
        """Emit what is held now, and the extremes since the last ``log`` event."""
        if event["event"] != "log" or self._log is None:
            return
        rss, available = self._look()
        found = {
            "rss_bytes": rss,
            "rss_peak_bytes": self._peak,
            "available_bytes": available,
            "available_lowest_bytes": self._lowest,
        }
        if self._cuda:
            found["cuda_allocated_bytes"] = self._cuda.memory_allocated()
            found["cuda_reserved_bytes"] = self._cuda.memory_reserved()
            found["cuda_peak_bytes"] = self._cuda.max_memory_allocated()
        self._peak, self._lowest = 0, self._total
        self._log.emit("memory", step=event["step"], **found)

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()


@register("callback", "memory", MemoryParams)
def memory(params: MemoryParams, run: Run) -> MemoryMonitor:
    """Return the memory monitor."""
    return MemoryMonitor(params)
