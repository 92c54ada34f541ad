"""`launch`: the processes of one training, started, listened to, and ended together.

`torch.distributed.run` starts them with this Python, lets them find each other on a
free port of this machine, and ends all when one fails. Only what is said here reaches
them: no configuration of Accelerate's is read, and its environment variables are taken
away. The first process tells its events on stdout, one JSON object a line; the one that
fails leaves its error in a file.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loralab import errors
from loralab.config import ExperimentConfig
from loralab.errors import ConfigError, ConfigErrors, LoralabError, TrainingError
from loralab.models.numerics import choose_numerics
from loralab.runs import Run
from loralab.runs.environment import cores
from loralab.runs.run import now
from loralab.training.events import OnEvent
from loralab.training.parallel import WHERE, check_parallel

PATIENCE = 20.0
"""Seconds that the processes have to end when they are told to."""

FOREIGN = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "PET_", "PMI_", "OMPI_COMM_",
           "MV2_COMM_")  # fmt: skip
"""Environment variables that would change what Accelerate or `torch.distributed.run`
does, by how they begin."""

logger = logging.getLogger(__name__)


def launch(
    config: ExperimentConfig, run: Run, *, on_event: OnEvent, **order: Any
) -> None:
    """Train in the configured number of processes; return when the run is complete.

    Args:
        config: The experiment.
        run: Where it is written.
        on_event: Told of everything that happens.
        order: More that the processes are told: ``force``, ``locks``.

    Raises:
        LoralabError: what was wrong in one of the processes, as it would be told of a
            training in this one.
    """
    check_parallel(config)
    _check_devices(config)
    began = False
    with TemporaryDirectory(prefix="loralab-") as name:
        folder = Path(name)
        told = {"config": config.model_dump(mode="json"), "run": str(run.path)}
        (folder / "order.json").write_text(json.dumps(told | order), encoding="utf-8")
        try:
            with _started(config, folder) as process:
                assert process.stdout
                for line in process.stdout:
                    event = json.loads(line)
                    began |= event["event"] == "plan"
                    on_event(event)
                code = process.wait()
            if code:
                raise _error(folder, run)
        except Exception as error:
            if began and run.status == "interrupted":  # ended before it could say so
                run.update(status="failed", error=str(error), finished=now())
            raise


def _check_devices(config: ExperimentConfig) -> None:
    """Refuse more processes than there are GPUs."""
    import torch

    wanted, found = config.training.parallel.processes, torch.cuda.device_count()
    device = choose_numerics(config.model.device, config.model.dtype).device
    if device == "cuda" and found < wanted:
        raise ConfigError(
            f"{wanted} processes, and this machine has {found} GPUs",
            where=f"{WHERE}.processes",
            fix="one process a GPU; or model.device=cpu",
        )


@contextmanager
def _started(config: ExperimentConfig, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the processes, and leave none behind."""
    processes = config.training.parallel.processes
    environment = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
    threads = str(max(1, cores() // processes))
    environment.setdefault("OMP_NUM_THREADS", threads)
    environment["TOKENIZERS_PARALLELISM"] = "false"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--local-addr=127.0.0.1", f"--nproc-per-node={processes}"),
        *("-m", "loralab.training.worker", str(folder)),
    ]
    with (folder / "stderr.txt").open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
            env=environment,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stdout
        process.stdout.close()


def _error(folder: Path, run: Run) -> LoralabError:
    """Return the error of the process that failed; those that it took along are none.

    When one process ends, the others may say that they have lost it. So an error of
    ours comes first, then the earliest.
    """
    files = sorted(folder.glob("error-*.json"), key=lambda f: f.stat().st_mtime_ns)
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for told in sorted(found, key=lambda told: told["kind"] is None):
        if told["kind"]:
            kind: type[LoralabError] = getattr(errors, told["kind"], TrainingError)
            if issubclass(kind, ConfigErrors):  # made of others; all its text is told
                kind = ConfigError
            return kind(told["what"], **told["rest"])
        logger.error("process %d:\n%s", told["rank"], told["traceback"])
        return TrainingError(
            f"process {told['rank']} was ended by {told['what']}",
            where=str(run.path),
            fix="continue with --resume once it is mended",
        )
    last = (folder / "stderr.txt").read_text(encoding="utf-8", errors="replace")
    logger.error("the processes said:\n%s", last[-4000:])
    return TrainingError(
        "a process was ended from outside",
        where=str(run.path),
        why="often the system does so, when memory is short",
        fix="continue with --resume, with fewer processes or smaller batches",
    )
