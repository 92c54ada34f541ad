"""A batch script for Slurm: one task of an array a run, or some runs a task.

    runs/<sweep>/slurm/
      <run>.yaml         the resolved configurations, one a run
      submit.sh          the script, with the runs that have not ended in it

This trains nothing. It writes the script and tells how to submit it; every run in it
ends as pending. The same call later finds the runs that have ended, and writes a script
of those that have not. Each task is a plain `loralab train … --resume`: one that was
preempted, or sent back into the queue before its time was up, goes on from its run's
last checkpoint, and a script that is submitted twice finds the runs of the first time.
"""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationInfo, field_validator

from loralab.config import compose
from loralab.errors import ConfigError, LoralabError
from loralab.experiments.executors._workers import threads_of
from loralab.experiments.jobs import Job, Jobs, Outcome
from loralab.registry import Params, register
from loralab.runs import Run
from loralab.runs.files import write_text

# what stands in a line of #SBATCH: sbatch, not the shell, takes it apart
Word = Annotated[str, Field(pattern=r"^[\w.,:+=/@-]+$")]
Option = Annotated[str, Field(pattern=r"^--[^\r\n]+$")]
Line = Annotated[str, Field(pattern=r"^[^\r\n]+$")]

SCRIPT = """\
#!/bin/bash
{options}

# Written by loralab, with {count} runs in {tasks} tasks. Submit it with
#   {command}

runs_dir={runs_dir}
configs={configs}
python={python}
each={each}
again={again}
runs=(
{runs}
)

: "${{SLURM_ARRAY_TASK_ID:?is set by Slurm: submit this script with sbatch}}"
cd {folder} || exit 1
{exports}
{setup}
child=
# USR1 comes {warning} seconds before the time is up: back into the queue. The runs then
# go on from their last checkpoints.
# shellcheck disable=SC2317  # it is reached, by the trap
requeue() {{
  if [ -n "$child" ]; then kill -TERM "$child"; wait "$child"; fi
  if [ "${{SLURM_RESTART_COUNT:-0}}" -ge "$again" ]; then
    echo "the time is up, and the task went back $again times: not again" >&2
    exit 1
  fi
  scontrol requeue "${{SLURM_JOB_ID:-}}"
  exit 1
}}
trap requeue USR1

failed=0
for run in "${{runs[@]:SLURM_ARRAY_TASK_ID * each:each}}"; do
  "$python" -m loralab.cli.main train "$configs/$run.yaml" \\
    --resume --runs-dir "$runs_dir" &
  child=$!
  wait "$child" || failed=1
done
exit "$failed"
"""


class SlurmParams(Params):
    """What a task asks for, and how many there are.

    Attributes:
        partition: of the cluster; null: its default
        account: that pays; null: yours
        hours: the time limit of a task; null: the partition's
        cpus: cores of a task, and its threads
        gpus: of a task
        memory: of a task, in GiB; null: the partition's
        runs_per_task: one after the other, so that short runs do not wait each
        at_once: tasks that run at a time; null: as many as there is room for
        requeues: how often a task goes back into the queue before its time is up
        warning: seconds before the time is up
        extra: more options of sbatch, such as [--constraint=a100]
        setup: lines of shell before a training, such as [module load cuda]
    """

    partition: Word | None = None
    account: Word | None = None
    hours: float | None = Field(None, gt=0)
    cpus: int = Field(1, gt=0)
    gpus: int = Field(0, ge=0)
    memory: float | None = Field(None, gt=0)
    runs_per_task: int = Field(1, gt=0)
    at_once: int | None = Field(None, gt=0)
    requeues: int = Field(10, ge=0)
    warning: int = Field(120, gt=0, le=65535, validate_default=True)
    extra: tuple[Option, ...] = ()
    setup: tuple[Line, ...] = ()

    @field_validator("warning")
    @classmethod
    def _leaves_time_to_train(cls, warning: int, info: ValidationInfo) -> int:
        hours = info.data.get("hours")
        if hours and warning >= 3600 * hours / 2:
            raise ValueError("it comes before half the time of a task is over")
        return warning


def options(params: SlurmParams, name: str, tasks: int) -> list[str]:
    """Return the options of sbatch.

    Args:
        params: What is asked for.
        name: Of the job; what sbatch might take apart is replaced.
        tasks: How many.
    """
    most = f"%{params.at_once}" if params.at_once else ""
    found = {
        "job-name": re.sub(r"[^\w.-]+", "-", name),
        "array": f"0-{tasks - 1}{most}",
        "output": "%A_%a.log",
        "open-mode": "append",
        "partition": params.partition,
        "account": params.account,
        "time": math.ceil(60 * params.hours) if params.hours else None,  # minutes
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": params.cpus,
        "gres": f"gpu:{params.gpus}" if params.gpus else None,
        "mem": f"{math.ceil(1024 * params.memory)}M" if params.memory else None,
        "signal": f"B:USR1@{params.warning}",
    }
    lines = [f"--{key}={value}" for key, value in found.items() if value is not None]
    return [*lines, "--requeue", *params.extra]


def script(
    params: SlurmParams, runs: Sequence[str], runs_dir: Path, folder: Path
) -> str:
    """Return the batch script.

    Args:
        params: What a task asks for.
        runs: The names of the runs.
        runs_dir: Where they are made.
        folder: Where their configurations are; it is named after the sweep's.
    """
    tasks = math.ceil(len(runs) / params.runs_per_task)
    exports = threads_of(params.cpus)
    if not params.gpus:
        exports["CUDA_VISIBLE_DEVICES"] = ""
    given = options(params, folder.parent.name, tasks)
    return SCRIPT.format(
        options="\n".join(f"#SBATCH {option}" for option in given),
        count=len(runs),
        tasks=tasks,
        command=command(folder),
        runs_dir=shlex.quote(str(runs_dir)),
        configs=shlex.quote(str(folder)),
        python=shlex.quote(sys.executable),
        each=params.runs_per_task,
        again=params.requeues,
        runs="\n".join(f"  {shlex.quote(run)}" for run in runs),
        folder=shlex.quote(str(Path.cwd())),
        exports="\n".join(f"export {k}={shlex.quote(v)}" for k, v in exports.items()),
        setup="".join(f"{line}\n" for line in params.setup),
        warning=params.warning,
    )


def command(folder: Path) -> str:
    """Return what submits the script: its logs lie beside it."""
    there = shlex.quote(str(folder))
    return f"sbatch --chdir={there} {shlex.quote(str(folder / 'submit.sh'))}"


def _written(job: Job, folder: Path) -> Outcome:
    """Write a resolved configuration, and see that a task will read the same run."""
    file = folder / f"{job.config.run_id}.yaml"
    text = yaml.safe_dump(job.config.model_dump(mode="json"), sort_keys=False)
    write_text(file, text)
    try:
        again = compose(str(file)).run_id
    except ConfigError as error:
        again = str(error)
    if again == job.config.run_id:
        return Outcome("pending")
    why = "a task could not read this configuration as it was meant, as with ${…} in it"
    return Outcome("failed", f"{why}: {again}; --executor local trains it")


def _look(job: Job, runs_dir: Path) -> Outcome | None:
    """Return what has become of a run; None: it is to be trained."""
    from loralab.training.train import train

    run = Run(runs_dir / job.config.run_id)
    status = run.standing
    if status == "complete":
        try:
            train(job.config, runs_dir)  # finds it, and that it is of the same rows
        except LoralabError as error:
            return Outcome("failed", str(error))
        return Outcome("complete", found=True)
    if status == "failed" and job.pending:  # else it failed before, and is tried again
        return Outcome("failed", str(run.read().get("error")))
    return Outcome("pending", "being trained") if status == "running" else None


@register("executor", "slurm", SlurmParams, later=True)
def slurm(params: SlurmParams, jobs: Jobs, runs_dir: Path, logs_dir: Path) -> None:
    """Write a batch script of all jobs that have not ended; tell of those that have.

    Args:
        params: What a task asks for.
        jobs: Where jobs come from, and where it is told how they ended.
        runs_dir: Where runs are made or found, by all machines of the cluster.
        logs_dir: The script goes into its ``slurm/``.

    Raises:
        OSError: nothing can be written there.
    """
    folder = (logs_dir / "slurm").absolute()
    file = folder / "submit.sh"
    waiting: list[str] = []
    at_work = 0
    while job := jobs.next():
        outcome = _look(job, runs_dir)
        if outcome is None:
            outcome = _written(job, folder)
            waiting += [job.config.run_id] * (outcome.status == "pending")
        else:
            at_work += outcome.status == "pending"
        jobs.ended(job, outcome)
    if not waiting:
        file.unlink(missing_ok=True)
    else:
        write_text(file, script(params, waiting, runs_dir.absolute(), folder))
        file.chmod(0o755)
    jobs.tell(
        {
            "event": "handed_on",
            "waiting": len(waiting),
            "at_work": at_work,
            "command": command(folder) if waiting else "",
        }
    )
