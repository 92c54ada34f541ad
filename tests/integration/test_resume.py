"""A training that is killed, wherever it is killed, ends as if it had not been."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loralab.runs import Run
from loralab.training.checkpoint import latest, step_of
from tests.integration import drill

ROOT = Path(__file__).parents[2]
SHORT = [("step", 3), ("rename", 3)]
LONG = [
    *[("step", n) for n in (1, 2, 5, 9, 13, 16)],
    *[("write", n) for n in (1, 3, 8, 15, 24, 41, 60)],
    *[("rename", n) for n in (1, 2, 5, 9, 12)],
    *[("half-line", n) for n in (1, 6)],
]


def child(runs_dir, *arguments):
    command = [sys.executable, "-m", "tests.integration.drill", runs_dir, *arguments]
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stderr


def check_whole(path):
    """Nothing that carries its final name is half written."""
    for file in path.rglob("*.json"):
        if not any(part.startswith(".tmp-") for part in file.parts):
            json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    code, errors = child(folder, "never")
    assert code == 0, errors
    return Run(folder / drill.config().run_id)


def kill_and_resume(kills, folder, uninterrupted):
    """Kill at each point in turn; a kill that comes too late begins a new run."""
    run = Run(folder / drill.config().run_id)
    done, generation = 0, 0
    for where, count in kills:
        code, errors = child(folder, where, count)
        if code == 0:  # the point was not reached any more: the run had ended
            finish(run, uninterrupted)
            generation += 1
            run.path.rename(folder / f"ended-{generation}")
            code, errors = child(folder, where, count)
        assert code == -signal.SIGKILL, errors
        done += 1
        assert step_of(latest(run.checkpoints)) > 0
        assert run.status == "interrupted"
        check_whole(run.path)
    code, errors = child(folder, "never")
    assert code == 0, errors
    finish(run, uninterrupted)
    return done


def finish(run, uninterrupted):
    for name in ("adapter_model.safetensors", "adapter_config.json", "loralab.json"):
        whole = (uninterrupted.adapter / name).read_bytes()
        assert (run.adapter / name).read_bytes() == whole, name
    assert run.status == "complete"
    assert run.read()["resumes"] or run is uninterrupted
    assert not list(run.path.rglob(".tmp-*"))
    check_whole(run.path)
    metrics = [r.evaluations()["test"]["metrics"] for r in (run, uninterrupted)]
    assert metrics[0] == metrics[1]
    losses = [
        [(e["step"], e["loss"]) for e in r.events() if e["event"] == "log"]
        for r in (run, uninterrupted)
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_two_kills(tmp_path, uninterrupted):
    assert kill_and_resume(SHORT, tmp_path, uninterrupted) == 2


@pytest.mark.slow
def test_twenty_kills(tmp_path, uninterrupted):
    assert len(LONG) == 20
    assert kill_and_resume(LONG, tmp_path, uninterrupted) == 20


def test_a_killed_run_is_not_continued_unasked(tmp_path):
    from loralab import train
    from loralab.errors import RunError

    code, _ = child(tmp_path, "step", 1)
    assert code == -signal.SIGKILL
    with pytest.raises(RunError, match="--resume"):
        train(drill.config(), tmp_path)
