"""Worker processes wherever Ray has room: on this machine, or over a cluster.

Each is an actor of Ray, with its cores and its share of GPUs, that starts a worker as
`local` does on its own machine and hands the lines to and fro: so the runs are those of
`local`. A worker that dies, with its machine or alone, is replaced, and its run resumes
from its last checkpoint. A training that raises an error would raise it again: its run
is written down as failed.

Runs are written where the workers are, under the path that they have here. So on a
cluster the runs directory, and the working directory with what the experiment names by
relative paths, must be of a file system that all machines share; it is checked.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from loralab.errors import ConfigError, RunError
from loralab.experiments.executors._workers import (
    PATIENCE,
    Process,
    Worker,
    check_ready,
    serve,
    threads_of,
)
from loralab.experiments.jobs import Jobs
from loralab.experiments.worker import code
from loralab.registry import Params, register
from loralab.runs.environment import cores

RELEASE = 120.0
"""Seconds that a run is waited for whose machine has died: file systems over a network
drop the locks of a dead machine late (NFS: after 90 seconds)."""

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent home
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no warning of what we do not set
    "RAY_worker_niceness": "0",  # Ray's own 15 would make runs wait for all else here
}
"""Variables of the environment that a Ray of ours reads."""

LEAST_SHARE = 0.01
ROUNDING = 1e-9
"""Of a division: a third of a GPU goes into it three times."""

OBJECT_STORE = 100 * 2**20
"""Bytes of shared memory that a Ray of ours takes: we hand it lines, and no arrays."""


class RayParams(Params):
    """Workers, and what each is given.

    Attributes:
        workers: null: as many as there is room for
        cpus: cores of a worker, and its threads
        gpus: of a worker: 0.5 puts two on one; null: 1 where there are any
        address: null: a Ray on this machine, ended with the sweep; auto, HOST:PORT or
            ray://HOST:PORT: a cluster that runs
        retries: of a run whose worker died
    """

    workers: int | None = Field(None, gt=0)
    cpus: int = Field(1, gt=0)
    gpus: float | None = Field(None, ge=0)
    address: str | None = Field(None, pattern=r"^(auto|(ray://)?[^/\s]+:\d+)$")
    retries: int = Field(3, ge=0)

    @field_validator("gpus")
    @classmethod
    def _is_a_share_or_whole(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError("more than one GPU is a whole number of them")
        if gpus is not None and 0 < gpus < LEAST_SHARE:
            raise ValueError(f"a share of a GPU is at least {LEAST_SHARE}")
        return gpus


def places(nodes: Sequence[Mapping[str, Any]], cpus: int, gpus: float) -> int:
    """Return how many workers the machines of a cluster have room for.

    Args:
        nodes: As `ray.nodes()` tells them.
        cpus: Cores of a worker.
        gpus: GPUs of a worker; a share of one is never made up of two.
    """
    found = 0
    for node in nodes:
        has = node["Resources"] if node["Alive"] else {}
        room = int(has.get("CPU", 0) // cpus)
        if gpus > 1:
            room = min(room, int(has.get("GPU", 0) // gpus))
        elif gpus:
            room = min(room, int(has.get("GPU", 0)) * int(1 / gpus + ROUNDING))
        found += room
    return found


class Relay:
    """The actor: a worker process on a machine of the cluster, and the lines to it."""

    def __init__(self) -> None:
        self._process: Process | None = None

    def look(self, folder: str, probe: str) -> dict[str, Any]:
        """Say which machine this is, and whether it sees our directories."""
        return {
            "machine": platform.node(),
            "folder": Path(folder).is_dir(),
            "probe": Path(probe).is_file(),
        }

    def start(
        self, log: str, environment: dict[str, str], folder: str
    ) -> dict[str, Any]:
        """Start the process; return its first line."""
        self._process = Process(Path(log), environment, folder)
        return self._process.ready()

    def ask(self, name: str, *args: Any) -> Any:
        """Return what a method of the process returns."""
        return getattr(self._process, name)(*args)


class _Remote:
    """A process that is spoken to through its actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._lost = ""

    def _ask(self, name: str, *args: Any) -> Any:
        """Return what the process answers; None if its actor has died."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        if self._lost:
            return None
        try:
            return ray.get(self._actor.ask.remote(name, *args))
        except RayTaskError:
            raise
        except RayError as error:
            self._lost = _first_line(error)
            return None

    def alive(self) -> bool:
        """Return whether it can be spoken to."""
        return bool(self._ask("alive"))

    def send(self, message: Mapping[str, Any]) -> None:
        """Hand it a line."""
        self._ask("send", message)

    def receive(self) -> dict[str, Any]:
        """Return its next line; ``{}`` if it or its actor has died."""
        return self._ask("receive") or {}

    def death(self) -> str:
        """Return how it died."""
        how = self._ask("death")
        return how or f"its machine or Ray's process there has died: {self._lost}"

    def close(self) -> None:
        """End it, also in the midst of a training."""
        import ray

        with suppress(Exception):  # it may have gone, and Ray with it
            ray.kill(self._actor)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _reach(address: str) -> None:
    """Refuse an address where nobody answers: Ray itself waits long, and then aborts.

    Raises:
        RunError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise RunError(
            "no Ray cluster answers at this address",
            where=address,
            why=str(error),
            fix="`ray status` on the cluster tells its address; executor.address=auto "
            "is the one that this machine belongs to",
        ) from None


def _begin(params: RayParams, folder: str) -> None:
    """Connect to a cluster, or start a Ray here whose files are in `folder`.

    Raises:
        RunError: it is not reached, or does not start.
    """
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if params.address is None:
        here = {"num_cpus": cores(), "object_store_memory": OBJECT_STORE}
        quiet |= {"include_dashboard": False, "_temp_dir": folder, **here}
    elif params.address != "auto":
        _reach(params.address)
    try:
        ray.init(params.address or "local", **quiet)
    except Exception as error:  # Ray raises `Exception` itself, of a slow start
        what = "no Ray cluster is reached"
        fix = "if it wants a token, have it in ~/.ray/auth_token and set RAY_AUTH_MODE"
        fix += "=token; without executor.address, a Ray starts here"
        if params.address is None:
            what, fix = "Ray does not start", "call again; --executor local needs none"
        raise RunError(
            what,
            where=params.address or platform.node(),
            why=_first_line(error),
            fix=fix,
        ) from None


def _end(folder: str) -> None:
    """End what a start that failed has left at work, and delete Ray's files."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(folder in word for word in child.cmdline()):
                child.kill()
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _cluster(params: RayParams) -> Iterator[None]:
    """Have a Ray to work with; one that this process has begun itself is left as is."""
    for name, value in SETTINGS.items():  # before Ray is imported
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    # a short path, whatever TMPDIR says: names of sockets have 107 characters
    short = "/tmp" if Path("/tmp").is_dir() else None
    folder = tempfile.mkdtemp(prefix="loralab-", dir=short)
    try:
        _begin(params, folder)
        yield
    finally:
        ray.shutdown()
        _end(folder)


def _fitting(params: RayParams) -> tuple[int, float]:
    """Return how many workers there will be, and GPUs a worker.

    Raises:
        ConfigError: there is no room for one of them.
    """
    import ray

    nodes = ray.nodes()
    cards = sum(n["Resources"].get("GPU", 0) for n in nodes if n["Alive"])
    gpus = float(cards > 0) if params.gpus is None else params.gpus
    room = places(nodes, params.cpus, gpus)
    # a cluster may grow, or others leave it: there, who finds no room waits for it
    wanted = params.workers or room
    if not room or (params.address is None and wanted > room):
        has = sum(n["Resources"].get("CPU", 0) for n in nodes if n["Alive"])
        raise ConfigError(
            f"{params.workers or 1} x {params.cpus} cores and {gpus:g} GPUs are asked "
            f"for, and there is room for {room}",
            where="executor.workers, executor.cpus, executor.gpus",
            why=f"Ray has {len(nodes)} machines with {has:g} cores, {cards:g} GPUs",
            fix="ask for less; on a cluster, one machine with room for a worker "
            "must run",
        )
    return wanted, gpus


def _start(
    params: RayParams, gpus: float, log: Path, folder: Path, probe: Path
) -> _Remote:
    """Start a worker where Ray finds room for it.

    Raises:
        RunError: it does not see our directories, has other code, or does not start.
    """
    import ray
    from ray.exceptions import RayError

    environment = threads_of(params.cpus)
    if not gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    make = ray.remote(Relay).options(num_cpus=params.cpus, num_gpus=gpus)
    actor = make.remote()
    try:
        seen = ray.get(actor.look.remote(str(folder), str(probe)))
        _check_seen(seen, folder, probe)
        ready = ray.get(actor.start.remote(str(log), environment, str(folder)))
    except RayError as error:
        raise RunError(
            "a worker does not start on the cluster",
            why="; ".join(str(error).strip().splitlines()[-3:]),
            fix="install the same loralab on all its machines",
        ) from None
    check_ready(ready, log)
    if ready["code"] != code():
        raise RunError(
            "a machine of the cluster has another loralab than this one",
            where=str(seen["machine"]),
            why="its runs would not be those that this one makes",
            fix="install the same loralab on all its machines",
        )
    return _Remote(actor)


def _check_seen(seen: Mapping[str, Any], folder: Path, probe: Path) -> None:
    """Refuse a machine that does not see our directories.

    Raises:
        RunError: it does not.
    """
    for name, path in (("folder", folder), ("probe", probe.parent)):
        if not seen[name]:
            raise RunError(
                f"{seen['machine']}, a machine of the cluster, does not see {path}",
                why="a run is written by the machine that trains it, and read by this",
                fix="call from, and name by --runs-dir, a directory of a file system "
                "that all machines have under the same path",
            )


@register("executor", "ray", RayParams)
def ray(params: RayParams, jobs: Jobs, runs_dir: Path, logs_dir: Path) -> None:
    """Train all jobs in workers of Ray; return when there are no more.

    Args:
        params: Workers, what each is given, and where.
        jobs: Where jobs come from, and where it is told how they ended.
        runs_dir: Where runs are made or found, for all machines.
        logs_dir: Where what the workers print is kept.

    Raises:
        ConfigError: Ray is not installed, or there is no room for a worker.
        RunError: no cluster is reached; a worker does not start, or does not see what
            it needs.
    """
    if find_spec("ray") is None:
        raise ConfigError(
            "the executor 'ray' needs the package ray, which is not here",
            fix="pip install 'loralab[ray]', or take --executor local",
        )
    logs_dir.mkdir(parents=True, exist_ok=True)
    probe = logs_dir.absolute() / f".seen-{uuid.uuid4().hex}"
    with _cluster(params):
        count, gpus = _fitting(params)
        logs = [logs_dir.absolute() / f"worker-{i + 1}.log" for i in range(count)]
        given = {"folder": Path.cwd(), "probe": probe}
        starts = [partial(_start, params, gpus, log, **given) for log in logs]
        probe.touch()
        try:
            workers = [Worker(start, params.retries, RELEASE) for start in starts]
            serve(workers, jobs, runs_dir)
        finally:
            probe.unlink(missing_ok=True)
