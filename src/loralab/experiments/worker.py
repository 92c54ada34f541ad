"""A worker process: trains what it is handed, one run after the other.

`python -m loralab.experiments.worker` reads one JSON object a line from stdin and
answers on stdout; what libraries print goes to stderr, which its parent keeps.

    in    {"config": {…}, "runs_dir": "runs"}      train this
          {"stop": false}                          the answer to a validation
    out   {"ready": true, "code": "…"}               what it is made of
          {"event": {…}}                           steps (a few a second), validations …
          {"ended": {"status": …, "error": …, "found": …}}

When its parent dies, stdin ends, and so does the worker, in the midst of a run: the run
resumes from its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

import loralab
from loralab.errors import LoralabError

STEPS_EVERY = 0.5
"""Seconds between two events of the same kind that come often."""

PASSED_ON = ("preparing", "plan", "step", "validation", "evaluating", "found")


def code() -> str:
    """Return a digest of loralab's own files, the same wherever it is installed."""
    root = Path(loralab.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0")
        digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class Pruned(LoralabError):
    """A run that its sweep has stopped."""


class _Wire:
    """The lines in and out."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._in: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            self._in.put(json.loads(line))
        os._exit(0)  # the parent has gone, or wants no more

    def receive(self) -> dict[str, Any]:
        return self._in.get()

    def send(self, **message: Any) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()


class _Watch:
    """Passes the events of a run on, and stops it when told to."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire
        self._last: dict[str, float] = {}
        self.found = False

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        self.found |= kind == "found"
        if kind not in PASSED_ON:
            return
        if kind in ("step", "evaluating"):
            if time.monotonic() - self._last.get(kind, 0.0) < STEPS_EVERY:
                return
            self._last[kind] = time.monotonic()
        self._wire.send(event=event)
        if kind == "validation" and self._wire.receive()["stop"]:
            raise Pruned(f"pruned by its sweep at step {event['step']}")


def _train(wire: _Wire, order: dict[str, Any]) -> dict[str, Any]:
    from loralab.config.compose import validate
    from loralab.training.train import train

    watch = _Watch(wire)
    try:
        config = validate(order["config"])
        train(config, order["runs_dir"], resume=True, on_event=watch)
    except Pruned as error:
        return {"status": "pruned", "error": str(error), "found": False}
    except LoralabError as error:
        return {"status": "failed", "error": str(error), "found": False}
    except Exception as error:
        import traceback

        traceback.print_exc()
        text = f"{type(error).__name__}: {error}"
        return {"status": "failed", "error": text, "found": False}
    return {"status": "complete", "error": "", "found": watch.found}


def main() -> None:
    """Serve until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and ends us
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nobody's print may stand between our lines
    wire = _Wire(out)
    wire.send(ready=True, code=code())
    while True:
        wire.send(ended=_train(wire, wire.receive()))


if __name__ == "__main__":
    main()
