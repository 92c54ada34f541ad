import json
import subprocess
import sys

import pytest

from loralab.config import compose
from loralab.errors import RunError
from loralab.runs import FORMAT_VERSION, Run, find_run, list_runs
from loralab.runs.environment import peak_memory_bytes
from loralab.runs.files import (
    atomic_directory,
    atomic_file,
    remove_leftovers,
    write_json,
    write_text,
)
from loralab.runs.run import create, move_aside

HOLD = """
import sys
from pathlib import Path
from loralab.runs import Run
with Run(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder():
    held = []

    def hold(run):
        command = [sys.executable, "-c", HOLD, str(run.path)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        held.append(process)
        assert process.stdout.readline().strip() == "held"
        return process

    yield hold
    for process in held:
        process.kill()
        process.communicate()


def new_run(folder, name="spam", seed=0):
    given = [f"name={name}", f"training.seed={seed}"]
    return create(compose("sms-spam", given), folder, "adapter")


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole(tmp_path):
    file = tmp_path / "new" / "a.txt"
    for text in ("old", "new"):
        with atomic_file(file) as temporary:
            temporary.write_text(text)
            assert not file.exists() or file.read_text() == "old"
        assert file.read_text() == text
    assert entries(file.parent) == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(file) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert file.read_text() == "old"
    assert entries(tmp_path) == ["a.txt"]


def test_a_directory_is_replaced_whole(tmp_path):
    target = tmp_path / "adapter"
    for name in ("old", "new"):
        with atomic_directory(target) as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / name).write_text(name)
            assert not target.exists() or entries(target / "deep") == ["old"]
        assert entries(target / "deep") == [name]
    assert entries(tmp_path) == ["adapter"]


def test_a_failed_directory_leaves_the_old_one_and_nothing_else(tmp_path):
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_directory(target) as temporary:
        (temporary / "half").write_text("half")
        raise ZeroDivisionError
    assert entries(target) == ["old"]
    assert entries(tmp_path) == ["adapter"]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from loralab.runs.files import atomic_directory, atomic_file\n"
        "root = Path(sys.argv[1])\n"
        "with atomic_directory(root / 'adapter') as folder:\n"
        "    (folder / 'weights').write_text('half')\n"
        "    with atomic_file(root / 'checkpoints' / 'state') as file:\n"
        "        file.write_text('half')\n"
        "        os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert entries(tmp_path)[0].startswith(".tmp-adapter")
    assert entries(tmp_path / "checkpoints")[0].startswith(".tmp-state")
    (tmp_path / "kept").write_text("kept")
    remove_leftovers(tmp_path)
    assert entries(tmp_path) == ["checkpoints", "kept"]
    assert entries(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_refused(tmp_path, value):
    file = tmp_path / "a.json"
    write_json(file, {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"loss": value})
    assert json.loads(file.read_text()) == {"loss": 1.0}


def test_a_new_run_reads_back_its_configuration(tmp_path):
    run = new_run(tmp_path)
    assert run.config == compose("sms-spam", ["name=spam"])
    assert run.id == run.config.run_id
    assert run.read()["format"] == FORMAT_VERSION
    run.update(steps=3)
    run.update(note="x")
    assert (run.read()["steps"], run.read()["note"]) == (3, "x")


def test_another_process_cannot_take_a_run_that_is_held(tmp_path, holder):
    run = new_run(tmp_path)
    process = holder(run)
    with pytest.raises(RunError, match="another process"), run.locked():
        pass
    process.communicate()  # closes its stdin, so that it lets go
    with run.locked():
        assert run.status == "running"


def test_a_second_holder_in_this_process_is_refused_too(tmp_path):
    run = new_run(tmp_path)
    with run.locked(), pytest.raises(RunError), Run(run.path).locked():
        pass
    with run.locked():
        pass


def test_a_killed_run_is_interrupted_and_not_running(tmp_path, holder):
    run = new_run(tmp_path)
    process = holder(run)
    assert run.status == "running"
    process.kill()
    process.wait()
    assert run.status == "interrupted"
    assert run.read()["status"] == "running"


@pytest.mark.parametrize("status", ["complete", "failed"])
def test_a_finished_run_keeps_its_status(tmp_path, holder, status):
    run = new_run(tmp_path)
    run.update(status=status)
    assert run.status == status
    holder(run)
    assert run.status == status


def test_a_run_is_found_by_path_id_and_name(tmp_path):
    run = new_run(tmp_path)
    new_run(tmp_path, "other")
    assert [find_run(x, tmp_path) for x in (str(run.path), run.id, "spam")] == [run] * 3


def test_a_name_is_the_whole_name(tmp_path):
    run, longer = new_run(tmp_path, "spam"), new_run(tmp_path, "spam-large")
    assert find_run("spam", tmp_path) == run
    assert find_run("spam-large", tmp_path) == longer


def test_a_name_that_two_runs_have_names_both(tmp_path):
    runs = [new_run(tmp_path, seed=seed) for seed in (0, 1)]
    with pytest.raises(RunError) as caught:
        find_run("spam", tmp_path)
    assert all(run.id in caught.value.fix for run in runs)
    assert find_run(runs[1].id, tmp_path) == runs[1]


def test_an_unknown_run_shows_the_nearest(tmp_path):
    with pytest.raises(RunError, match="there are none"):
        find_run("spam", tmp_path / "nowhere")
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "adapter_config.json").write_text("{}")
    with pytest.raises(RunError, match="an adapter alone, and this takes a run"):
        find_run(str(tmp_path / "merged"), tmp_path)
    run = new_run(tmp_path)
    with pytest.raises(RunError, match=f"nearest: {run.id}"):
        find_run(run.id.replace("spam", "spma"), tmp_path)


def test_a_directory_that_is_no_run_says_so(tmp_path):
    with pytest.raises(RunError, match="not a run"):
        find_run(str(tmp_path), tmp_path / "runs")


def test_runs_are_listed_oldest_first(tmp_path):
    runs = [new_run(tmp_path, name) for name in ("c", "a", "b")]
    for day, run in enumerate(runs, 1):
        run.update(started=f"2026-01-0{day}T00:00:00+00:00")
    assert list_runs(tmp_path) == runs


def test_a_run_that_is_moved_aside_keeps_its_content(tmp_path):
    moved = []
    for _ in range(2):
        run = new_run(tmp_path)
        run.update(number=len(moved))
        moved.append(move_aside(run))
    assert not run.path.exists()
    assert [path.name for path in moved] == [f"{run.id}.1", f"{run.id}.2"]
    assert [Run(path).read()["number"] for path in moved] == [0, 1]


def test_events_leave_out_a_half_last_line(tmp_path):
    run = new_run(tmp_path)
    assert run.events() == []
    lines = [json.dumps({"event": "log", "step": step}) for step in range(3)]
    log = run.path / "metrics.jsonl"
    log.write_text("\n".join(lines) + "\n")
    assert [event["step"] for event in run.events()] == [0, 1, 2]
    log.write_text("\n".join(lines)[:-5])
    assert [event["step"] for event in run.events()] == [0, 1]


def test_a_later_format_is_refused(tmp_path):
    run = new_run(tmp_path)
    run.update(format=FORMAT_VERSION + 1)
    with pytest.raises(RunError, match="update loralab"):
        run.read()


@pytest.mark.parametrize("text", ["{", "[]", "{}", "3"])
def test_a_broken_run_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match="not a run"):
        Run(tmp_path).read()


def test_a_run_without_adapter_says_how_to_go_on(tmp_path):
    run = new_run(tmp_path)
    with pytest.raises(RunError, match="interrupted") as caught:
        run.require_adapter()
    assert "--resume" in caught.value.fix
    run.adapter.mkdir()
    assert run.require_adapter() == run.adapter


def test_evaluations_are_read_by_split(tmp_path):
    run = new_run(tmp_path)
    assert run.evaluations() == {}
    told = {"primary": "f1", "metrics": {"f1": {}}, "confidence": 0.95}
    told["measured_rows"] = 9
    for split in ("test", "validation"):
        write_json(run.path / "eval" / f"{split}.json", {**told, "split": split})
    assert set(run.evaluations()) == {"test", "validation"}
    assert run.evaluations()["test"] == {**told, "split": "test"}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"primary": "f1", "metrics": {}}'])
def test_a_broken_evaluation_says_how_to_measure_it_again(tmp_path, text):
    run = new_run(tmp_path)
    write_text(run.path / "eval" / "test.json", text)
    with pytest.raises(RunError, match=r"loralab evaluate .* --split test"):
        run.evaluations()


def test_a_record_that_lacks_what_every_run_says_is_no_run(tmp_path):
    run = new_run(tmp_path)
    write_json(run.path / "run.json", {"format": 1, "kind": "adapter", "name": 3})
    with pytest.raises(RunError, match="does not say name, hash, status, started"):
        run.read()
    (run.path / "metrics.jsonl").write_bytes(b"\xff")
    with pytest.raises(RunError, match="events"):
        run.events()


def test_a_process_does_not_count_the_memory_of_the_one_that_started_it():
    held = bytearray(400_000_000)
    held[::4096] = b"x" * len(held[::4096])  # touched, so resident
    code = "from loralab.runs.environment import peak_memory_bytes as p; print(p())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 0 < int(done.stdout) < 300_000_000 < peak_memory_bytes()
