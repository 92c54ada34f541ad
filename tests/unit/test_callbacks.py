import json
import logging
import mmap
import os
import shutil
import struct
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.conftest import CLASSIFY
from transformers import TrainerCallback

from loralab import WandBCallback, compose, registry, train
from loralab.errors import ConfigError, ConfigErrors
from loralab.runs import Run
from loralab.training import events
from loralab.training.callbacks._life import check_callbacks, opened
from loralab.training.callbacks._trackers import fields, results, scalars
from loralab.training.callbacks.memory import MemoryMonitor, MemoryParams
from loralab.training.checkpoint import step_of

ROOT = Path(__file__).parents[2]
EACH_STEP = [*CLASSIFY, "training.logging_steps=1", "training.eval_steps=2"]
FOREIGN = """
from __future__ import annotations
import json
from loralab.registry import Params, register

class NoteParams(Params):
    file: str

@register("callback", "note", NoteParams)
def note(params, run):
    from transformers import TrainerCallback

    def write(**line):
        with open(params.file, "a") as handle:
            handle.write(json.dumps(line) + "\\n")

    class Note(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            write(hook=state.global_step)
        def on_event(self, event):
            write(event=event["event"], figures="metrics" in event)
        def close(self):
            write(closed=run.id)

    return Note()
"""


def callbacks(*chosen):
    return f"training.callbacks=[{', '.join(chosen)}]"


@pytest.fixture
def installed(tmp_path):
    """A foreign package, as an installer would have left it."""
    site = tmp_path / "site"
    info = site / "foreign_note-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "foreign_note.py").write_text(FOREIGN, "utf-8")
    text = "Metadata-Version: 2.1\nName: foreign-note\nVersion: 1.0\n"
    (info / "METADATA").write_text(text, "utf-8")
    entry = "[loralab.callback]\nnote = foreign_note\n"
    (info / "entry_points.txt").write_text(entry, "utf-8")
    return site


def foreign_training(site, folder, *overrides):
    notes = folder / "notes.jsonl"
    chosen = callbacks(f"{{name: note, params: {{file: '{notes}'}}}}")
    given = [*EACH_STEP, "training.max_steps=4", chosen, *overrides]
    code = (
        "import sys, json\nfrom loralab import compose, train\n"
        f"train(compose('trec-6', json.loads(sys.argv[1])), {str(folder / 'runs')!r})"
    )
    paths = os.pathsep.join([str(site), str(ROOT / "src")])
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(given)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    lines = notes.read_text("utf-8").splitlines() if notes.is_file() else []
    return done, [json.loads(line) for line in lines]


def test_a_callback_of_another_package_sees_steps_events_and_the_end(
    installed, tmp_path
):
    done, notes = foreign_training(installed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert [n["hook"] for n in notes if "hook" in n] == [1, 2, 3, 4]
    found = Counter(n["event"] for n in notes if "event" in n)
    assert (found["plan"], found["log"], found["validation"]) == (1, 4, 2)
    assert found["checkpoint"] == 2
    order = [n.get("event", "closed") for n in notes if "hook" not in n]
    assert order.index("evaluated") > len(order) - 5
    assert order[-2:] == ["complete", "closed"]
    assert {"event": "evaluated", "figures": True} in notes


def test_it_is_closed_after_an_error_too(installed, tmp_path):
    wild = ["training.learning_rate=1e30", "training.optim=sgd"]
    done, notes = foreign_training(installed, tmp_path, *wild)
    assert done.returncode != 0
    assert "TrainingError" in done.stderr
    assert "closed" in notes[-1]
    assert all(n.get("event") != "evaluated" for n in notes)


def test_names_and_params_are_judged_with_the_configuration():
    with pytest.raises(ConfigErrors, match="nearest: tensorboard"):
        compose("trec-6", [callbacks("{name: tensorbord}")])
    wrong = "{name: memory, params: {warn_belo: 0.1}}"
    with pytest.raises(ConfigErrors, match="nearest: warn_below"):
        compose("trec-6", [callbacks(wrong)])
    (default,) = compose("trec-6").training.callbacks
    assert default.name == "tensorboard"
    assert compose("trec-6", [callbacks()]).training.callbacks == []


def test_configuring_a_tracker_imports_none_of_them():
    given = [callbacks(*(f"{{name: {n}}}" for n in registry.names("callback")))]
    code = (
        "import sys, json\nfrom loralab import compose\n"
        "compose('trec-6', json.loads(sys.argv[1]))\n"
        "heavy = {'torch', 'transformers', 'tensorboard', 'trackio', 'psutil'}\n"
        "assert not heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, json.dumps(given)], check=True)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_missing_package_is_told_before_anything_is_written(name, tmp_path):
    if find_spec(name):
        pytest.skip(f"{name} is installed here")
    config = compose("trec-6", [*CLASSIFY, callbacks(f"{{name: {name}}}")])
    with pytest.raises(ConfigError, match=rf"loralab\[{name}\]") as caught:
        train(config, tmp_path)
    assert caught.value.where == "training.callbacks"
    assert list(tmp_path.iterdir()) == []


def curves(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {
        tag: [(x.step, x.value) for x in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }, found


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    chosen = callbacks("{name: tensorboard}", "{name: memory}")
    return train(compose("trec-6", [*EACH_STEP, chosen]), tmp_path_factory.mktemp("t"))


def logged(run, event, key):
    return [(e["step"], e[key]) for e in run.events() if e["event"] == event]


def test_tensorboard_has_what_the_run_has_logged(tracked):
    drawn, files = curves(tracked.path / "tensorboard")
    for tag, event, key in (
        ("train/loss", "log", "loss"),
        ("train/learning_rate", "log", "learning_rate"),
        ("train/grad_norm", "log", "grad_norm"),
        ("train/tokens_per_second", "log", "tokens_per_second"),
        ("validation/loss", "validation", "eval_loss"),
        ("validation/accuracy", "validation", "eval_accuracy"),
        ("memory/rss_bytes", "memory", "rss_bytes"),
    ):
        expected = logged(tracked, event, key)
        assert len(expected) >= 3
        assert [step for step, _ in drawn[tag]] == [step for step, _ in expected]
        values = [value for _, value in expected]
        assert [v for _, v in drawn[tag]] == pytest.approx(values, rel=1e-6)
    text = files.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "training.max_steps | `6`" in text


def test_tensorboard_has_the_final_evaluation_of_each_arm(tracked):
    drawn, _ = curves(tracked.path / "tensorboard" / "evaluation")
    for metric, arms in tracked.evaluations()["test"]["metrics"].items():
        assert set(arms) == {"adapter", "base", "difference"}
        for arm, interval in arms.items():
            for end, tag in (("value", ""), ("low", "/low"), ("high", "/high")):
                ((step, value),) = drawn[f"test/{metric}/{arm}{tag}"]
                assert step == 6
                assert value == pytest.approx(interval[end], rel=1e-6)


def as_if_killed_after(run, folder, step):
    """A copy of the run with nothing but what a kill after `step` would leave."""
    copy = Run(folder / run.id)
    shutil.copytree(run.path, copy.path)
    for checkpoint in copy.checkpoints.iterdir():
        if step_of(checkpoint) > step:
            shutil.rmtree(checkpoint)
    shutil.rmtree(copy.adapter)
    copy.update(status="running")
    return copy


@pytest.mark.parametrize("step", [4, 6])
def test_a_resumed_run_draws_each_step_once(tracked, tmp_path, step):
    copy = as_if_killed_after(tracked, tmp_path, step)
    assert step_of(max(copy.checkpoints.iterdir(), key=step_of)) == step
    train(copy.config, tmp_path, resume=True)
    whole, _ = curves(tracked.path / "tensorboard")
    drawn, _ = curves(copy.path / "tensorboard")
    assert drawn["train/loss"] == whole["train/loss"]
    assert drawn["validation/loss"] == whole["validation/loss"]
    ended, _ = curves(copy.path / "tensorboard" / "evaluation")
    assert ended == curves(tracked.path / "tensorboard" / "evaluation")[0]
    log = (copy.path / "log.txt").read_text("utf-8")
    assert "training begins" in log
    assert f"training resumes at step {step}" in log


def test_a_run_without_checkpoint_is_drawn_anew(tracked, tmp_path):
    copy = as_if_killed_after(tracked, tmp_path, 0)
    train(copy.config, tmp_path, resume=True)
    drawn, files = curves(copy.path / "tensorboard")
    assert drawn["train/loss"] == curves(tracked.path / "tensorboard")[0]["train/loss"]
    assert len(files.Tensors("config/text_summary")) == 1


def test_callbacks_do_not_change_what_is_trained(tracked, tmp_path):
    plain = train(compose("trec-6", [*EACH_STEP, callbacks()]), tmp_path)
    name = "adapter_model.safetensors"
    assert (plain.adapter / name).read_bytes() == (tracked.adapter / name).read_bytes()
    assert not (plain.path / "tensorboard").exists()
    assert plain.id != tracked.id


class Heard:
    def __init__(self):
        self.events = []

    def emit(self, event, **fields):
        self.events.append({"event": event, **fields})


def watch(params, size=0):
    """Hold `size` bytes for a moment between two logging steps."""
    monitor, log = MemoryMonitor(MemoryParams(**params)), Heard()
    monitor.bind(log)
    try:
        monitor.on_event({"event": "log", "step": 1})
        with mmap.mmap(-1, size or 1) as held:  # malloc may have had it before
            held[:: mmap.PAGESIZE] = bytes(len(held[:: mmap.PAGESIZE]))
            time.sleep(0.1)
        monitor.on_event({"event": "step", "step": 2})
        monitor.on_event({"event": "log", "step": 2})
    finally:
        monitor.close()
    assert not monitor._thread.is_alive()
    return log.events


def test_the_memory_monitor_sees_a_peak_between_steps():
    first, second = watch({"interval_seconds": 0.01}, size=300_000_000)
    assert (first["step"], second["step"]) == (1, 2)
    assert 2e8 < second["rss_peak_bytes"] - first["rss_bytes"] < 4e8
    assert second["rss_bytes"] <= second["rss_peak_bytes"]
    assert second["available_lowest_bytes"] <= second["available_bytes"]


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.999, 1)])
def test_the_memory_monitor_warns_once(caplog, share, count):
    with caplog.at_level(logging.WARNING, logger="loralab"):
        watch({"interval_seconds": 0.01, "warn_below": share})
    assert sum("are available" in r.message for r in caplog.records) == count


def test_events_become_flat_finite_figures():
    log = {"event": "log", "step": 3, "epoch": 0.5, "loss": 1.0, "grad_norm": None}
    assert scalars(log) == {"train/loss": 1.0}
    nan = {"event": "validation", "step": 3, "eval_loss": float("nan"), "eval_f1": 0.5}
    assert scalars(nan) == {"validation/f1": 0.5}
    assert scalars({"event": "step", "step": 1, "of": 2}) == {}
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    evaluated = {"split": "test", "metrics": {"mcc": {"base": interval}}}
    assert results(evaluated) == {
        "test/mcc/base": 0.5,
        "test/mcc/base/low": 0.4,
        "test/mcc/base/high": 0.6,
    }
    assert fields({"a": {"b": 1, "c": [1, 2]}, "d": None}) == {
        "a.b": 1,
        "a.c": "[1, 2]",
        "d": None,
    }


def test_the_first_callback_is_closed_when_the_second_cannot_be_made(monkeypatch):
    closed = []
    first = SimpleNamespace(close=lambda: closed.append(1))
    known = dict(registry._entries)
    monkeypatch.setattr(registry, "_entries", known)

    def second(params, run):
        raise ValueError("no")

    for name, make in (("memory", lambda params, run: first), ("tensorboard", second)):
        known["callback", name] = registry.Entry(
            name, make, registry.Params, {}, __name__
        )
    chosen = [SimpleNamespace(name=n, params={}) for n in ("memory", "tensorboard")]
    with pytest.raises(ValueError, match="no"), opened(chosen, None, None):
        pass
    assert closed == [1]


# ---- trackers that are extras: run where they are installed ----


def test_wandb_is_a_trainer_callback():
    assert issubclass(WandBCallback, TrainerCallback)


def test_wandb_without_a_key_is_told_before_anything_is_written(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = compose("trec-6", [*CLASSIFY, callbacks("{name: wandb}")])
    with pytest.raises(ConfigError, match="no key"):
        train(config, tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_callbacks(config.training.callbacks)


def wandb_records(file):
    """The records of an offline file: LevelDB's log format behind 7 bytes."""
    data, at, parts = file.read_bytes(), 7, []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts.append(data[at + 7 : at + 7 + size])
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def wandb_history(folder):
    """The training steps and the summary in all offline files of a run."""
    from wandb.proto import wandb_internal_pb2 as pb

    steps, summary = [], {}
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in wandb_records(file):
            record = pb.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {i.key or i.nested_key[0] for i in record.history.item}
                if "train/loss" in items:
                    steps.append(record.history.step.num)
            for item in record.summary.update:
                summary[item.key or item.nested_key[0]] = item.value_json
    return steps, summary


def test_wandb_offline_has_the_steps_once_and_the_key_nowhere(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    key = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", key)
    chosen = callbacks("{name: wandb, params: {project: trial}}")
    first = tmp_path / "first"
    run = train(compose("trec-6", [*EACH_STEP, chosen]), first)
    again = tmp_path / "again"
    again.mkdir()
    copy = as_if_killed_after(run, again, 4)
    time.sleep(1.1)  # offline folders are named by the second
    train(copy.config, again, resume=True)
    for path in (run.path, copy.path):
        steps, summary = wandb_history(path)
        assert steps == [1, 2, 3, 4, 5, 6]
        expected = run.evaluations()["test"]["metrics"]["accuracy"]["adapter"]["value"]
        assert float(summary["test/accuracy/adapter"]) == pytest.approx(expected)
        for file in path.rglob("*"):
            assert not file.is_file() or key.encode() not in file.read_bytes(), file


def test_trackio_has_the_steps_once(tmp_path):
    pytest.importorskip("trackio")
    chosen = callbacks("{name: trackio, params: {project: trial}}")
    code = (
        "import sys, json\nfrom loralab import compose, train\n"
        "train(compose('trec-6', json.loads(sys.argv[1])), sys.argv[2], resume=True)"
    )
    given, database = json.dumps([*EACH_STEP, chosen]), tmp_path / "trackio"
    env = {**os.environ, "TRACKIO_DIR": str(database)}

    def training():
        command = [sys.executable, "-c", code, given, str(tmp_path / "runs")]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        import sqlite3

        (file,) = database.glob("*.db")
        rows = sqlite3.connect(file).execute("SELECT step, metrics FROM metrics")
        return [(step, json.loads(text)) for step, text in rows]

    def steps(rows, name):
        return [step for step, values in rows if name in values]

    first = training()
    (run,) = (Run(p) for p in (tmp_path / "runs").iterdir())
    (tmp_path / "copies").mkdir()
    copy = as_if_killed_after(run, tmp_path / "copies", 4)
    shutil.rmtree(run.path)
    copy.path.rename(run.path)
    for rows in (first, training()):
        assert steps(rows, "train/loss") == [1, 2, 3, 4, 5, 6]
        assert steps(rows, "validation/loss") == [2, 4, 6]
        assert steps(rows, "test/accuracy/difference/low") == [7]


def test_every_event_reaches_every_subscriber_in_order(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    heard = []
    log = events.EventLog(Run(tmp_path), lambda e: heard.append(("a", e["event"])))
    log.subscribe(lambda e: heard.append(("b", e["event"])))
    log.emit("log", step=1)
    log.tell("saving")
    assert heard == [("a", "log"), ("b", "log"), ("a", "saving"), ("b", "saving")]
    assert [e["event"] for e in Run(tmp_path).events()] == ["log"]
