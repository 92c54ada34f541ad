"""Worker processes: one of them, what is said to it, and many at work side by side.

An executor decides where processes stand and what each is given. The rest is the same
for all: a process is started when it is needed, and again when it has died; it trains
job after job, and one thread at a time speaks to the jobs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from loralab.errors import RunError
from loralab.experiments.jobs import Job, Jobs, Outcome
from loralab.runs import Run

LOOK = 0.1
"""Seconds between two looks at a run."""
PATIENCE = 10.0
"""Seconds that a worker has to end by itself."""


def threads_of(count: int) -> dict[str, str]:
    """Return the environment variables that give a process so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return {**dict.fromkeys(names, str(count)), "TOKENIZERS_PARALLELISM": "false"}


class Link(Protocol):
    """A process that trains, wherever it is."""

    def alive(self) -> bool:
        """Return whether it can be spoken to."""

    def send(self, message: Mapping[str, Any]) -> None:
        """Hand it a line."""

    def receive(self) -> dict[str, Any]:
        """Return its next line; ``{}`` if it has died."""

    def death(self) -> str:
        """Return how it died."""

    def close(self) -> None:
        """End it."""


class Process:
    """A process of `loralab.experiments.worker`, on this machine.

    Args:
        log: Where what libraries print is kept.
        environment: Variables that it has beside ours.
        folder: Its working directory; None for ours.
    """

    def __init__(
        self, log: Path, environment: Mapping[str, str], folder: str | None = None
    ) -> None:
        self._log = log
        with log.open("a", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "loralab.experiments.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                encoding="utf-8",
                env={**os.environ, **environment},
                cwd=folder,
            )

    def ready(self) -> dict[str, Any]:
        """Return its first line; or, under ``why``, what kept it from starting."""
        found = self.receive()
        if found.get("ready"):
            return found
        return {"why": self._log.read_text(encoding="utf-8").strip()[-400:]}

    def alive(self) -> bool:
        """Return whether it has not ended."""
        return self._process.poll() is None

    def send(self, message: Mapping[str, Any]) -> None:
        """Hand it a line."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it has died; reading says so
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Return its next line; ``{}`` if it has died."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        return dict(json.loads(line)) if line else {}

    def death(self) -> str:
        """Return how it died."""
        code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        often = "; often the system's, out of memory" if code == -9 else ""
        return f"its process was ended ({how}{often}); see {self._log.name}"

    def close(self) -> None:
        """End it: in a moment if it is idle, at once if it trains."""
        assert self._process.stdin and self._process.stdout
        with suppress(BrokenPipeError):  # it has died with a line unread
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def check_ready(found: Mapping[str, Any], log: Path) -> None:
    """Refuse a process that did not start.

    Raises:
        RunError: with what its log says.
    """
    if "why" in found:
        raise RunError(
            "a worker process does not start",
            where=str(log),
            why=found["why"],
            fix="mend what it says, and call again",
        )


class OneAtATime:
    """Lets one thread at a time speak to the jobs, until all is stopped."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._lock = threading.Lock()
        self.stopped = False
        self.error: BaseException | None = None

    def next(self) -> Job | None:
        """Return the next job, or None: there are no more, or no more are begun."""
        with self._lock:
            return None if self.stopped or self.error else self._jobs.next()

    def event(self, job: Job, event: dict[str, Any]) -> bool:
        """Pass an event on; return whether the run shall stop."""
        with self._lock:
            return not self.stopped and self._jobs.event(job, event)

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Pass on how a job ended."""
        with self._lock:
            if not self.stopped:  # a run that we stopped has not failed
                self._jobs.ended(job, outcome)


class Worker:
    """Trains job after job in a process, and in a new one when it has died.

    Args:
        connect: Starts a process.
        retries: How often a run is begun again whose process has died; it resumes.
        patience: Seconds that a run is waited for which another process holds: that
            may be one of ours, dead but not yet gone.
    """

    def __init__(
        self, connect: Callable[[], Link], retries: int = 0, patience: float = 0.0
    ) -> None:
        self._connect, self._retries, self._patience = connect, retries, patience
        self._link: Link | None = None

    def train(self, job: Job, runs_dir: Path, jobs: OneAtATime) -> Outcome:
        """Have a job trained, and pass on what happens."""
        began, why = time.monotonic(), ""
        for left in range(self._retries, -1, -1):
            if self._link is None:
                jobs.event(job, {"event": "preparing", "what": "starting a worker"})
            link = self._started()
            _wait_for(Run(runs_dir / job.config.run_id), self._patience)
            if ended := _trained(link, job, runs_dir, jobs):
                return Outcome(**ended, seconds=time.monotonic() - began)
            why = link.death()
            self.close()
            if jobs.stopped or not left:
                break
            jobs.event(job, {"event": "preparing", "what": f"once more: {why}"})
        return Outcome("failed", why, time.monotonic() - began)

    def _started(self) -> Link:
        if self._link is not None and not self._link.alive():
            self.close()
        if self._link is None:
            self._link = self._connect()
        return self._link

    def close(self) -> None:
        """End its process, if there is one."""
        link, self._link = self._link, None
        if link is not None:
            link.close()


def _trained(
    link: Link, job: Job, runs_dir: Path, jobs: OneAtATime
) -> dict[str, Any] | None:
    """Have a process train a job; return how it ended, or None: the process died."""
    config = job.config.model_dump(mode="json")
    link.send({"config": config, "runs_dir": str(runs_dir)})
    while message := link.receive():
        if "ended" in message:
            return dict(message["ended"])
        event = message["event"]
        stop = jobs.event(job, event)
        if event["event"] == "validation":
            link.send({"stop": stop})
    return None


def _wait_for(run: Run, patience: float) -> None:
    """Wait so many seconds, at most, until nobody holds a run."""
    until = time.monotonic() + patience
    while (run.path / "run.json").is_file() and run.status == "running":
        if time.monotonic() >= until:
            return
        time.sleep(LOOK)


def serve(workers: Sequence[Worker], jobs: Jobs, runs_dir: Path) -> None:
    """Have workers train until there are no more jobs; each ends with its last.

    Raises:
        RunError: a worker does not start.
    """
    shared = OneAtATime(jobs)

    def work(worker: Worker) -> None:
        try:
            while job := shared.next():
                shared.ended(job, worker.train(job, runs_dir, shared))
            worker.close()  # what it held is for others
        except BaseException as error:  # raised again in the caller's thread
            shared.error = shared.error or error

    threads = [threading.Thread(target=work, args=(w,), daemon=True) for w in workers]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        shared.stopped = True  # after an interrupt, some are still at work
        for worker in workers:
            worker.close()
    if shared.error:
        raise shared.error
