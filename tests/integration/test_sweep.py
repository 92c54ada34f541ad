"""Sweeps in real worker processes: each run once, through kills and failures."""

import os
import signal
import subprocess
import sys
import time

import pytest

from loralab.experiments.sweep import Sweep, SweepConfig
from loralab.runs import Run, list_runs
from tests.cli import loralab
from tests.sweeps import BASE, LR, prepare, record


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a tiny model and rows in two classes."""
    monkeypatch.chdir(tmp_path)
    return prepare(tmp_path)


def ended(folder):
    return sum(trial["status"] == "complete" for trial in record(folder))


def start(folder, *overrides):
    command = [
        sys.executable,
        "-m",
        "loralab.cli.main",
        "sweep",
        "text-classification",
        *BASE,
    ]
    command += [*overrides, "--no-cost", "--workers", "2"]
    return subprocess.Popen(
        command,
        cwd=folder,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_twelve_runs_killed_three_times_are_twelve_runs_each_once(here):
    swept = (f"{LR}=1e-3,3e-3,1e-2", "seed=range(4)")
    for wanted in (1, 4, 8):
        process = start(here, *swept)
        while ended(here) < wanted and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None, process.stdout.read()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert ended(here) < 12
    process = start(here, *swept)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    trials = record(here)
    assert [trial["status"] for trial in trials] == ["complete"] * 12
    assert len({trial["run"] for trial in trials}) == 12
    runs = list_runs(here / "runs")
    assert {run.id for run in runs} == {trial["run"] for trial in trials}
    for run in runs:
        assert run.status == "complete"
        steps = [e["step"] for e in run.events() if e["event"] == "validation"]
        assert len(steps) == len(set(steps))
    assert "12 of 12" not in out.splitlines()[0]


def test_a_run_that_fails_is_written_down_and_the_rest_go_on(here):
    given = [*BASE, f"{LR}=1e-3,1e38", "training.max_grad_norm=0"]
    out = loralab("sweep", "text-classification", *given, "--no-cost", "--workers", "1")
    assert out.code == 1
    good, bad = record(here)
    assert good["status"] == "complete"
    assert good["objective"] > 0
    assert bad["status"] == "failed"
    assert bad["error"]
    again = loralab(
        "sweep", "text-classification", *given, "--no-cost", "--workers", "1"
    )
    assert "2 of 2 ended before" in again.out
    assert record(here) == [good, bad]


class KillsItsWorker(Sweep):
    """Kills the process that trains trial 0, in the midst of it."""

    def event(self, job, event):
        if job.number == 0 and event["event"] == "step":
            children = subprocess.run(
                ["pgrep", "-P", str(os.getpid()), "-f", "experiments.worker"],
                capture_output=True,
                text=True,
            )
            os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
        return super().event(job, event)


@pytest.mark.slow
def test_a_worker_that_is_killed_fails_its_run_and_is_replaced(here):
    config = SweepConfig("text-classification", (*BASE, "seed=0,1"))
    first, second = KillsItsWorker(config, here / "runs").run(workers=1)
    assert first.status == "failed"
    assert "signal 9" in first.error
    assert second.status == "complete"
    retried = Sweep(config, here / "runs", retry=True).run(workers=1)
    assert [trial.status for trial in retried] == ["complete"] * 2


@pytest.mark.slow
def test_a_run_that_is_there_is_found_and_optuna_prunes(here):
    given = (*BASE, f"{LR}=tag(log,interval(1e-4,1e-1))", "training.eval_steps=1")
    config = SweepConfig(
        "text-classification", given, "optuna", {"trials": 8, "pruner": "median"}
    )
    trials = Sweep(config, here / "runs").run(workers=1)
    assert len(trials) == 8
    assert {trial.status for trial in trials} <= {"complete", "pruned"}
    pruned = [trial for trial in trials if trial.status == "pruned"]
    for trial in pruned:
        assert "pruned by its sweep at step" in trial.error
        assert Run(here / "runs" / trial.run).status == "failed"
    done = next(trial for trial in trials if trial.status == "complete")
    point = f"{LR}={done.point[0].partition('=')[2]},1e-5"
    grid = SweepConfig("text-classification", (*BASE, point, "training.eval_steps=1"))
    found, _ = Sweep(grid, here / "runs").run(workers=1)
    assert found.run == done.run
    assert found.objective == done.objective
    assert found.seconds == 0
