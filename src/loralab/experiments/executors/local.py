"""Worker processes on this machine, each with its share of the cores.

One training rarely keeps all cores busy: kernels are small, and much of a step runs on
one of them. So several processes with fewer threads each beat one with all. A process
that is killed (by the system, out of memory) fails its run, not the others: a new one
takes its place.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import Field

from loralab.errors import RunError
from loralab.experiments.jobs import Job, Jobs, Outcome
from loralab.registry import Params, register

PATIENCE = 10.0
"""Seconds that a worker has to end by itself."""


class LocalParams(Params):
    """How many processes, and how many threads each."""

    workers: int | None = Field(
        None, gt=0, description="null: one a GPU; without one, two if there are cores"
    )
    threads: int | None = Field(
        None, gt=0, description="of a worker; null: the cores, divided"
    )


def gpus() -> list[str]:
    """Return the GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [one for one in allowed.split(",") if one]
    found = Path("/dev").glob("nvidia[0-9]*")
    return [str(i) for i, _ in enumerate(found)]


def shares(params: LocalParams) -> tuple[int, int]:
    """Return workers, and threads a worker."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    cores = cores or os.cpu_count() or 1
    workers = params.workers or len(gpus()) or min(2, cores)
    return workers, params.threads or max(1, cores // workers)


def _environment(index: int, threads: int) -> dict[str, str]:
    found = dict(os.environ)
    found |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    found["TOKENIZERS_PARALLELISM"] = "false"
    devices = gpus()
    if devices:
        found["CUDA_VISIBLE_DEVICES"] = devices[index % len(devices)]
    return found


class _Worker:
    """A process, started when it is needed, and again when it has died."""

    def __init__(self, index: int, threads: int, logs_dir: Path) -> None:
        self._environment = _environment(index, threads)
        self._log = logs_dir / f"worker-{index + 1}.log"
        self._process: subprocess.Popen[str] | None = None

    def _start(self) -> subprocess.Popen[str]:
        with self._log.open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "loralab.experiments.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=self._environment,
            )
        self._process = process
        if not self._receive().get("ready"):
            raise RunError(
                "a worker process does not start",
                where=str(self._log),
                why=self._log.read_text(encoding="utf-8").strip()[-400:],
                fix="mend what it says, and call again",
            )
        return process

    def _send(self, **message: Any) -> None:
        assert self._process and self._process.stdin
        with suppress(BrokenPipeError):  # it has died; reading says so
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        """Return its next line; ``{}`` if it has died."""
        assert self._process and self._process.stdout
        line = self._process.stdout.readline()
        return dict(json.loads(line)) if line else {}

    def train(self, job: Job, runs_dir: Path, jobs: Jobs) -> Outcome:
        """Have a job trained, and pass on what happens."""
        began = time.monotonic()
        if self._process is None or self._process.poll() is not None:
            self._start()
        config = job.config.model_dump(mode="json")
        self._send(config=config, runs_dir=str(runs_dir))
        while message := self._receive():
            if "ended" in message:
                return Outcome(**message["ended"], seconds=time.monotonic() - began)
            event = message["event"]
            stop = jobs.event(job, event)
            if event["event"] == "validation":
                self._send(stop=stop)
        return Outcome("failed", self._death(), time.monotonic() - began)

    def _death(self) -> str:
        assert self._process
        code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        often = "; often the system's, out of memory" if code == -9 else ""
        return f"its process was ended ({how}{often}); see {self._log.name}"

    def close(self) -> None:
        """End the process: in a moment if it is idle, at once if it trains."""
        if self._process is None:
            return
        assert self._process.stdin and self._process.stdout
        with suppress(BrokenPipeError):  # it has died with a line unread
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class _OneAtATime:
    """Lets one thread at a time speak to the jobs, until all is stopped."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._lock = threading.Lock()
        self.stopped = False
        self.error: BaseException | None = None

    def next(self) -> Job | None:
        with self._lock:
            return None if self.stopped or self.error else self._jobs.next()

    def event(self, job: Job, event: dict[str, Any]) -> bool:
        with self._lock:
            return not self.stopped and self._jobs.event(job, event)

    def ended(self, job: Job, outcome: Outcome) -> None:
        with self._lock:
            if not self.stopped:  # a run that we stopped has not failed
                self._jobs.ended(job, outcome)


@register("executor", "local", LocalParams)
def local(params: LocalParams, jobs: Jobs, runs_dir: Path, logs_dir: Path) -> None:
    """Train all jobs in worker processes; return when there are no more.

    Args:
        params: Processes and threads.
        jobs: Where jobs come from, and where it is told how they ended.
        runs_dir: Where runs are made or found.
        logs_dir: Where what the workers print is kept.

    Raises:
        RunError: a worker does not start.
    """
    count, threads = shares(params)
    logs_dir.mkdir(parents=True, exist_ok=True)
    workers = [_Worker(i, threads, logs_dir) for i in range(count)]
    shared = _OneAtATime(jobs)

    def serve(worker: _Worker) -> None:
        try:
            while job := shared.next():
                shared.ended(job, worker.train(job, runs_dir, shared))
        except BaseException as error:  # raised again in the caller's thread
            shared.error = shared.error or error

    serving = [threading.Thread(target=serve, args=(w,), daemon=True) for w in workers]
    try:
        for thread in serving:
            thread.start()
        for thread in serving:
            thread.join()
    finally:
        shared.stopped = True  # after an interrupt, some are still at work
        for worker in workers:
            worker.close()
    if shared.error:
        raise shared.error
