"""Ray and Slurm beside `local`: the same runs, through deaths of workers and machines,
and nothing that cannot be trained is begun."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from loralab.errors import ConfigError, RunError
from loralab.experiments.executors.ray import places
from loralab.experiments.study import Study
from loralab.experiments.study_config import StudyConfig
from loralab.experiments.sweep import Sweep, SweepConfig
from loralab.runs import Run
from tests.cli import loralab
from tests.sweeps import BASE, EXPERIMENT, LR, made, prepare, record

TWO = (*BASE, "seed=0,1", "training.eval_steps=2", "training.save_steps=2")
ONE = (*BASE, "seed=0")
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory whose name the shell and sbatch take apart, if they can."""
    folder = tmp_path / 'it\'s $HOME "here" `id`'
    folder.mkdir()
    monkeypatch.chdir(folder)
    return prepare(folder)


def run(sweep, executor, **params):
    """Run a sweep; Ray gives itself 30 seconds to start, too few on a busy machine."""
    try:
        return sweep.run(executor, **params)
    except RunError as error:
        if "timed out during startup" in str(error):
            pytest.skip("this machine is too busy for Ray to start")
        raise


def swept(given, folder, executor, **params):
    return run(Sweep(SweepConfig(EXPERIMENT, given), folder), executor, **params)


def submit(folder, task=0, **environment):
    """Begin a task of the one batch script, as Slurm would, in no shell of ours."""
    (script,) = folder.glob("*-sweep-*/slurm/submit.sh")
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(script)], check=True)
    return subprocess.Popen(
        [str(script)],
        cwd=script.parent,
        env={**os.environ, "SLURM_ARRAY_TASK_ID": str(task), **environment},
        start_new_session=True,
    )


@needs_ray
def test_ray_is_started_trains_and_is_gone(here):
    (trial,) = swept(ONE, here / "runs", "ray", workers=1)
    assert (trial.status, trial.error) == ("complete", "")
    assert Run(here / "runs" / trial.run).status == "complete"
    names = [child.name() for child in psutil.Process().children(recursive=True)]
    assert not {"raylet", "gcs_server"} & set(names)
    (folder,) = here.glob("runs/*-sweep-*")
    kept = {file.name for file in folder.iterdir()}
    assert kept == {".lock", "sweep.json", "worker-1.log"}


def test_slurm_hands_on_trains_nothing_and_finds_what_has_ended(here):
    given = ["sweep", EXPERIMENT, *ONE, "--executor", "slurm"]
    out = loralab(*given, "executor.account=0123", "executor.hours=0.5")
    assert out.code == 0
    assert "sbatch --chdir=" in out.out
    assert not list(here.glob("runs/*/run.json"))
    (trial,) = record(here)
    assert (trial["status"], trial["objective"]) == ("pending", None)
    script = next(here.glob("runs/*/slurm/submit.sh")).read_text(encoding="utf-8")
    for line in ("--account=0123", "--time=30", "--array=0-0", "--requeue"):
        assert f"#SBATCH {line}\n" in script
    assert submit(here / "runs").wait() == 0
    out = loralab(*given)
    assert out.code == 0
    assert "sbatch" not in out.out
    (trial,) = record(here)
    assert trial["status"] == "complete"
    assert trial["objective"] == made(here / "runs", trial["run"])["validation"][-1][1]
    assert not list(here.glob("runs/*/slurm/submit.sh"))


@needs_ray
@pytest.mark.slow
def test_ray_and_slurm_make_the_runs_of_local(here):
    names = [t.run for t in swept(TWO, here / "local", "local", workers=2, threads=1)]
    expected = [made(here / "local", name) for name in names]
    assert {run["status"] for run in expected} == {"complete"}
    rayed = swept(TWO, here / "ray", "ray", workers=2)
    assert [trial.run for trial in rayed] == names
    assert [made(here / "ray", name) for name in names] == expected
    swept(TWO, here / "slurm", "slurm", runs_per_task=2)
    assert submit(here / "slurm").wait() == 0
    found = swept(TWO, here / "slurm", "slurm")
    assert [trial.status for trial in found] == ["complete"] * 2
    assert [made(here / "slurm", name) for name in names] == expected


def below(pid, part):
    """Return the processes below one whose command line has a part in it."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if part in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


class Kills(Sweep):
    """Kills processes of these names, once, in the midst of a training."""

    part, killed, told = "", 0, ()

    def event(self, job, event):
        self.told = (*self.told, event)
        if event["event"] == "validation" and event["step"] == 4 and not self.killed:
            victims = below(os.getpid(), self.part)
            self.killed = len(victims)
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
        return super().event(job, event)


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("part", ["experiments.worker", "ray::Relay"])
def test_a_run_whose_worker_is_killed_ends_as_if_it_had_not_been(here, part):
    given = (*BASE, "seed=3", "training.eval_steps=2", "training.save_steps=2")
    (whole,) = swept(given, here / "whole", "local", workers=1, threads=1)
    sweep = Kills(SweepConfig(EXPERIMENT, given), here / "killed")
    sweep.part = part
    (trial,) = run(sweep, "ray", workers=1)
    assert sweep.killed == 1
    assert (trial.status, trial.run) == ("complete", whole.run)
    assert Run(here / "killed" / trial.run).read()["resumes"]
    assert made(here / "killed", trial.run) == made(here / "whole", whole.run)
    again = [e for e in sweep.told if "once more" in str(e.get("what"))]
    assert len(again) == 1


class Prunes(Sweep):
    """Stops the trial of seed 1 at its first validation."""

    told = ()

    def event(self, job, event):
        self.told = (*self.told, event)
        stop = event["event"] == "validation" and job.config.training.seed == 1
        return super().event(job, event) or stop


@needs_ray
@pytest.mark.slow
def test_a_training_that_fails_or_is_pruned_is_not_begun_again(here):
    given = (*BASE, f"{LR}=1e38,1e-3", "seed=0,1", "training.max_grad_norm=0")
    sweep = Prunes(SweepConfig(EXPERIMENT, given), here / "runs")
    trials = run(sweep, "ray", workers=2)
    by = {
        tuple(float(one.partition("=")[2]) for one in sorted(t.point)): t.status
        for t in trials
    }
    assert by[1e-3, 0] == "complete"
    assert by[1e-3, 1] == "pruned"
    assert by[1e38, 0] == "failed"
    assert not [e for e in sweep.told if "once more" in str(e.get("what"))]


@pytest.mark.slow
def test_a_task_whose_time_is_up_goes_back_into_the_queue_and_resumes(here):
    given = (*BASE[:-3], *BASE[-2:], "training.max_steps=400", "training.save_steps=20")
    tools = here / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text('#!/bin/bash\necho "$@" >"$0.said"\n')
    (tools / "scontrol").chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    (trial,) = swept(given, here / "runs", "slurm")
    one = Run(here / "runs" / trial.run)
    task = submit(here / "runs", SLURM_JOB_ID="77", PATH=path)
    while not list(one.path.glob("checkpoints/*")):
        assert task.poll() is None
        time.sleep(0.05)
    os.kill(task.pid, signal.SIGUSR1)
    assert task.wait() == 1
    assert (tools / "scontrol.said").read_text() == "requeue 77\n"
    assert one.status == "interrupted"
    (between,) = swept(given, here / "runs", "slurm")
    assert between.status == "pending"
    late = submit(here / "runs", SLURM_JOB_ID="77", PATH=path, SLURM_RESTART_COUNT="1")
    assert late.wait() == 0
    assert one.read()["resumes"]
    (ended,) = swept(given, here / "runs", "slurm")
    assert ended.status == "complete"


@pytest.mark.slow
def test_a_failed_task_is_told_once_and_written_again_only_on_retry(here):
    given = (*ONE, f"{LR}=1e38", "training.max_grad_norm=0")
    swept(given, here / "runs", "slurm")
    assert submit(here / "runs").wait() == 1
    (failed,) = swept(given, here / "runs", "slurm")
    assert failed.status == "failed"
    assert failed.error
    assert not list(here.glob("runs/*/slurm/submit.sh"))
    again = Sweep(SweepConfig(EXPERIMENT, given), here / "runs", retry=True)
    assert [trial.status for trial in again.run("slurm")] == ["pending"]
    assert list(here.glob("runs/*/slurm/submit.sh"))


def test_a_study_hands_its_cells_on_and_is_not_done(here):
    config = StudyConfig.model_validate(
        {
            "name": "rates",
            "question": "Does it hand its runs on?",
            "experiment": EXPERIMENT,
            "overrides": BASE,
            "arms": {"lora": []},
            "sizes": {"smoke": {"seeds": 2}},
            "smallest_difference": 0.1,
        }
    )
    for _ in range(2):
        study = Study(config, "smoke", here / "runs")
        assert not study.run("slurm", at_once=1)
        assert [cell.status for cell in study.cells()] == ["pending"] * 2
    text = next(here.glob("runs/*/slurm/submit.sh")).read_text(encoding="utf-8")
    assert "--array=0-1%1\n" in text
    assert all(cell.run in text for cell in study.cells())
    assert not list(here.glob("runs/*/run.json"))


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


@contextlib.contextmanager
def cluster(tmp_path, **environment):
    """A Ray that is not ours, with one core, as `ray start` makes it."""
    port = free_port()
    command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
    options = ["--head", f"--port={port}", "--num-cpus=1", "--include-dashboard=false"]
    short = Path("/tmp") / f"c{os.getpid()}"
    subprocess.run(
        [*command, "start", *options, "--disable-usage-stats", f"--temp-dir={short}"],
        env={**os.environ, **TOKEN, **environment},
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        for process in psutil.process_iter(["cmdline"]):
            if str(short) in " ".join(process.info["cmdline"] or ()):
                process.kill()
        shutil.rmtree(short, ignore_errors=True)


def from_outside(given, runs_dir, address, *more, **settings):
    """Sweep over a cluster in a process of its own: Ray reads its token once."""
    words = ["sweep", EXPERIMENT, *given, "--no-cost", "--runs-dir", str(runs_dir)]
    words += ["--executor", "ray", f"executor.address={address}", *more]
    return subprocess.run(
        [sys.executable, "-m", "loralab.cli.main", *words],
        env={**os.environ, **TOKEN},
        capture_output=True,
        text=True,
        **settings,
    )


@needs_ray
@pytest.mark.slow
def test_a_cluster_is_used_by_its_address_and_goes_on(here, tmp_path):
    with cluster(tmp_path) as address:
        # two workers, room for one: the other waits for its place, and gets it
        done = from_outside(TWO, "runs", address, "--workers", "2")
        assert done.returncode == 0, done.stderr
        assert [trial["status"] for trial in record(here)] == ["complete"] * 2
        host, _, port = address.partition(":")
        socket.create_connection((host, int(port)), 5).close()


@needs_ray
@pytest.mark.slow
def test_a_cluster_with_another_loralab_or_another_disk_is_refused(here, tmp_path):
    import loralab as ours

    other = tmp_path / "other"
    shutil.copytree(Path(ours.__file__).parent, other / "loralab")
    with (other / "loralab" / "errors.py").open("a") as file:
        file.write("\n")
    path = os.pathsep.join([str(other), os.environ.get("PYTHONPATH", "")])
    with cluster(tmp_path, PYTHONPATH=path) as address:
        done = from_outside(ONE, "runs", address)
        assert done.returncode == 2
        assert "another loralab" in done.stderr
        handle = os.open(here, os.O_RDONLY)  # a path that only one process has
        try:
            private = f"/proc/self/fd/{handle}/private"
            done = from_outside(ONE, private, address, pass_fds=[handle])
        finally:
            os.close(handle)
        assert done.returncode == 2
        assert "does not see" in done.stderr
    assert not list(here.glob("*/*/run.json"))


@needs_ray
@pytest.mark.slow
def test_what_this_machine_has_no_room_for_is_refused(here):
    if list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("there are GPUs here")
    with pytest.raises(ConfigError, match="room for 0"):
        swept(ONE, here / "runs", "ray", gpus=0.5)
    with pytest.raises(ConfigError, match=r"room for \d+"):
        swept(ONE, here / "runs", "ray", workers=4096)


def node(alive=True, **resources):
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "room"),
    [
        ([node(CPU=8.0)], 3, 0, 2),
        ([node(CPU=8.0)], 1, 1, 0),
        ([node(CPU=8.0, GPU=2.0)], 1, 1, 2),
        ([node(CPU=8.0, GPU=2.0)], 1, 0.5, 4),
        ([node(CPU=8.0, GPU=2.0)], 1, 0.4, 4),  # 0.2 of a GPU is left on each
        ([node(CPU=3.0, GPU=2.0)], 1, 0.25, 3),
        ([node(CPU=8.0, GPU=3.0)], 1, 2, 1),
        ([node(CPU=4.0), node(CPU=4.0, GPU=1.0), node(False, CPU=64.0)], 2, 0, 4),
        ([node(CPU=3.0), node(CPU=3.0)], 2, 0, 2),  # no worker lies on two machines
    ],
)
def test_room_is_counted_machine_by_machine_and_card_by_card(nodes, cpus, gpus, room):
    assert places(nodes, cpus, gpus) == room


WRONG = {
    "half of two GPUs": ("ray", ["executor.gpus=1.5"], "a whole number"),
    "a crumb of a GPU": ("ray", ["executor.gpus=0.0001"], "at least 0.01"),
    "no workers": ("ray", ["executor.workers=0"], "workers"),
    "an unknown key": ("ray", ["executor.gpu=1"], "its keys are"),
    "an address without a port": ("ray", ["executor.address=node1"], "address"),
    "a key twice": ("ray", ["--workers", "1", "executor.workers=2"], "twice"),
    "no value": ("ray", ["executor.gpus"], "not executor.key=value"),
    "workers of a script": ("slurm", ["--workers", "2"], "its keys are"),
    "no time": ("slurm", ["executor.hours=0"], "hours"),
    "no time before the warning": ("slurm", ["executor.hours=0.05"], "half the time"),
    "a partition with a line in it": ("slurm", ["executor.partition=a\n#b"], "match"),
    "an option that is none": ("slurm", ["executor.extra=[rm -rf x]"], "match"),
    "no such executor": ("dask", [], "no executor"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_params_are_one_clear_error(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    executor, given, said = WRONG[case]
    words = ["sweep", "sms-spam", "seed=0,1", "--no-cost", "--executor", executor]
    out = loralab(*words, *given)
    assert out.code == 2
    assert said in out.err
    assert not (tmp_path / "runs").exists()


def test_a_missing_ray_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "ray", None
    )  # what it is where it is not installed
    with pytest.raises(ConfigError, match=r"loralab\[ray\]"):
        Sweep(SweepConfig("sms-spam", ("seed=0,1",)), tmp_path).run("ray")


@needs_ray
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_answers_is_told_at_once(tmp_path, scheme):
    address = f"{scheme}127.0.0.1:{free_port()}"
    began = time.monotonic()
    with pytest.raises(RunError, match="no Ray cluster answers"):
        Sweep(SweepConfig("sms-spam", ("seed=0,1",)), tmp_path).run(
            "ray", address=address
        )
    assert time.monotonic() - began < 60


def test_a_sampler_that_learns_is_refused_where_results_come_later(tmp_path):
    given = ("training.learning_rate=interval(1e-5,1e-3)",)
    config = SweepConfig("sms-spam", given, "optuna", {"trials": 3})
    with pytest.raises(ConfigError, match=r"optuna.*cannot be used with slurm"):
        Sweep(config, tmp_path).run("slurm")
    assert not list(tmp_path.iterdir())
