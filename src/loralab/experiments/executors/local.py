"""Worker processes on this machine, each with its share of the cores.

One training rarely keeps all cores busy: kernels are small, and much of a step runs on
one of them. So several processes with fewer threads each beat one with all. A process
that is killed (by the system, out of memory) fails its run, not the others: a new one
takes its place.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from pydantic import Field

from loralab.experiments.executors._workers import (
    Process,
    Worker,
    check_ready,
    serve,
    threads_of,
)
from loralab.experiments.jobs import Jobs
from loralab.registry import Params, register
from loralab.runs.environment import cores


class LocalParams(Params):
    """How many processes, and how many threads each.

    Attributes:
        workers: null: one a GPU; without one, two if there are cores
        threads: of a worker; null: the cores, divided (no more than OMP_NUM_THREADS)
    """

    workers: int | None = Field(None, gt=0)
    threads: int | None = Field(None, gt=0)


def gpus() -> list[str]:
    """Return the GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [one for one in allowed.split(",") if one]
    found = Path("/dev").glob("nvidia[0-9]*")
    return [str(i) for i, _ in enumerate(found)]


def shares(params: LocalParams) -> tuple[int, int]:
    """Return workers, and threads a worker: no more than this process may have."""
    workers = params.workers or len(gpus()) or min(2, cores())
    mine = os.environ.get("OMP_NUM_THREADS", "")
    most = int(mine) if mine.isdecimal() else cores()
    return workers, params.threads or max(1, min(most, cores() // workers))


def _start(index: int, threads: int, logs_dir: Path) -> Process:
    environment, devices = threads_of(threads), gpus()
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices[index % len(devices)]
    log = logs_dir / f"worker-{index + 1}.log"
    process = Process(log, environment)
    check_ready(process.ready(), log)
    return process


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
    starts = [partial(_start, i, threads, logs_dir) for i in range(count)]
    serve([Worker(start) for start in starts], jobs, runs_dir)
