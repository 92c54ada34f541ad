"""Delivery: send what is not there yet, try again where that can help, verify.

The wait before attempt n + 1 is drawn evenly from the upper half of
``first_seconds · 2ⁿ⁻¹`` (jitter keeps many clients from returning at once). A file that
arrived begins the count anew, so it is attempts *without progress* that are limited.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loralab.errors import PublishingError
from loralab.logs import redact
from loralab.publishing.store import Failure, File, Store

logger = logging.getLogger(__name__)

OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Retry:
    """How often and how soon.

    Attributes:
        attempts: In a row without a file arriving, at least 1.
        first_seconds: The longest wait before the second attempt.
        longest_seconds: The longest wait at all.
    """

    attempts: int = 3
    first_seconds: float = 1.0
    longest_seconds: float = 30.0

    def wait(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row."""
        most = min(self.first_seconds * 2 ** (failures - 1), self.longest_seconds)
        return float(most * random.uniform(0.5, 1.0))


class Delivery:
    """The state of one delivery: what is there, and how often it failed in a row."""

    def __init__(
        self, store: Store, files: Sequence[File], retry: Retry, tell: OnEvent
    ) -> None:
        self._store, self._files = store, files
        self._retry, self._tell = retry, tell
        self.before: set[str] | None = None
        self.there: set[str] = set()
        self.failures = 0

    def run(self) -> set[str]:
        """Deliver; return the names of what was there before.

        Raises:
            PublishingError: refused, failed too often, or not there as it was sent.
        """
        sent = False
        while True:
            try:
                left = self._ask()
                if left and sent:
                    raise _wrong(left)
                if not left:
                    return self.before or set()
                self._store.send(left, self._sent)
                sent = True
            except PublishingError:
                raise
            except Exception as error:
                found = self._store.failure(error)
                if found is None:
                    raise
                sent = False
                self._again(found)

    def _ask(self) -> list[File]:
        """Ask what is there; return what is not."""
        there = self._store.present(self._files)
        if self.before is None:
            self.before = there
        if len(there) > len(self.there):
            self.failures = 0
        self.there = there
        return [file for file in self._files if file.name not in there]

    def _sent(self, name: str, count: int) -> None:
        self._tell({"event": "sending", "name": name, "bytes": count})

    def _again(self, found: Failure) -> None:
        """Wait for the next attempt.

        Raises:
            PublishingError: there is none.
        """
        self.failures += 1
        why = redact(found.why)
        far = f"{len(self.there)} of {len(self._files)} files are there and verified"
        if not found.transient:
            raise PublishingError(f"refused: {why}", why=far, fix=redact(found.fix))
        if self.failures >= self._retry.attempts:
            raise PublishingError(
                f"failed {self.failures} times in a row: {why}",
                why=far,
                fix="repeat the command: what is there is not sent again",
            )
        seconds = self._retry.wait(self.failures)
        logger.info("attempt %d failed: %s", self.failures, why)
        left = self._retry.attempts - self.failures
        self._tell({"event": "retry", "why": why, "seconds": seconds, "left": left})
        time.sleep(seconds)


def _wrong(left: Sequence[File]) -> PublishingError:
    names = ", ".join(file.name for file in left)
    return PublishingError(
        f"arrived, but not as sent: the server's checksum or size differs: {names}",
        why="it was changed on the way, or somebody else wrote it meanwhile",
        fix="repeat the command: only these are sent again",
    )
