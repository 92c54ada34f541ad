"""A merge as a directory: nothing lost, nothing half, nothing changed unseen."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from tests.merge_folders import SHAPES, adapter
from tests.merging import dense_update

import loralab
from loralab import registry
from loralab.errors import (
    AdapterError,
    ConfigError,
    LoralabError,
    MergeError,
    RunError,
)
from loralab.lowrank.files import AdapterFolder
from loralab.lowrank.update import frobenius
from loralab.merging.merge import merge
from loralab.merging.method import method
from loralab.merging.state.state import MergedState

METHODS = ("apart", "average")
CONTINUAL = [
    name
    for name in registry.names("merge method")
    if registry.get("merge method", name).facts.get("continual")
]


@pytest.fixture
def adapters(tmp_path):
    """Three adapters of different ranks; the last one adapts another module too."""
    more = {**SHAPES, "model.new": (3, 4)}
    return [
        adapter(tmp_path / "one", 1, 2),
        adapter(tmp_path / "two", 2, 1, {"model.q": (6, 5)}),
        adapter(tmp_path / "three", 3, 3, more),
    ]


def made(folder, adapters, name="apart", **params):
    state = MergedState.init(folder, name, **params)
    for one in adapters:
        state.add(one)
    return state


def content(folder):
    """Return every file of a state but the lock."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }


def sums(folder):
    return {n: b for n, b in content(folder).items() if n.startswith("merged-")}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("norm", ["none", "mean"])
def test_steps_give_what_a_joint_merge_gives(tmp_path, adapters, name, norm):
    state = made(tmp_path / "state", adapters, name, norm=norm)
    expected = merge(method(name, norm=norm), [AdapterFolder.open(a) for a in adapters])
    found = {layer.name: layer.update * state.scale for layer in state.layers()}
    assert found.keys() == expected.keys() and len(found) == 3
    for module, update in expected.items():
        torch.testing.assert_close(dense_update(found[module]), dense_update(update))


def test_a_joint_method_keeps_no_sum(tmp_path, adapters):
    made(tmp_path / "state", adapters, "average")
    assert not sums(tmp_path / "state")


@pytest.mark.parametrize("name", METHODS)
def test_its_numbers(tmp_path, adapters, name):
    state = made(tmp_path / "state", adapters, name)
    state = MergedState.open(tmp_path / "state")
    assert state.task_count == 3
    assert [task.adapter for task in state.tasks] == ["one", "two", "three"]
    norms = [
        math.hypot(*(frobenius(u) for u in merge(method("average"), [a]).values()))
        for a in map(AdapterFolder.open, adapters)
    ]
    assert state.avg_norm == pytest.approx(sum(norms) / 3)
    merged = merge(method(name), [AdapterFolder.open(a) for a in adapters])
    whole = math.hypot(*map(frobenius, merged.values()))
    assert state.lambda_t == pytest.approx(whole / state.avg_norm)


def test_a_state_without_a_task_has_no_numbers(tmp_path):
    state = MergedState.init(tmp_path / "state", "average")
    for number in ("avg_norm", "lambda_t"):
        with pytest.raises(MergeError, match="no task"):
            getattr(state, number)
    with pytest.raises(MergeError, match="no task"):
        state.undo()


def test_adapters_are_kept_bit_for_bit_and_once(tmp_path, adapters):
    state = made(tmp_path / "state", adapters[:1])
    state.add(adapters[0], name="again", force=True)
    (kept,) = (tmp_path / "state" / "adapters").iterdir()
    assert {f.name: f.read_bytes() for f in kept.iterdir()} == {
        f.name: f.read_bytes() for f in adapters[0].iterdir()
    }


def test_a_weight_multiplies_an_update(tmp_path, adapters):
    state = MergedState.init(tmp_path / "state", "average")
    state.add(adapters[0], weight=-2.0)
    (plain,) = merge(method("average"), [AdapterFolder.open(adapters[1])]).values()
    state.add(adapters[1], weight=3.0)
    assert state.log[1].norm == pytest.approx(3 * frobenius(plain))
    first = merge(method("average"), [AdapterFolder.open(adapters[0])])["model.v"]
    found = {layer.name: layer.update for layer in state.layers()}["model.v"]
    torch.testing.assert_close(dense_update(found), -dense_update(first))


@pytest.mark.parametrize("weight", [0.0, math.nan, math.inf])
def test_a_weight_that_merges_nothing(tmp_path, adapters, weight):
    state = MergedState.init(tmp_path / "state", "average")
    with pytest.raises(MergeError, match="weight"):
        state.add(adapters[0], weight=weight)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_undo_gives_the_bytes_of_before(tmp_path, adapters, dtype):
    folder = tmp_path / "state"
    state = made(folder, adapters[:2], dtype=dtype)
    before = sums(folder)
    state.add(adapters[2])
    assert sums(folder).keys() != before.keys()
    state.undo()
    assert sums(folder) == before and len(before) == 1
    assert [task.adapter for task in state.tasks] == ["one", "two"]
    assert [e.action for e in MergedState.open(folder).log] == ["add"] * 3 + ["undo"]
    state.add(adapters[2], name="three")
    straight = made(tmp_path / "straight", adapters, dtype=dtype)
    assert sums(folder) == sums(straight.folder)
    for _ in range(3):
        state.undo()
    assert not sums(folder) and state.task_count == 0


@pytest.mark.parametrize("name", CONTINUAL)
def test_every_continual_method_takes_a_step_and_undoes_it(tmp_path, adapters, name):
    folder = tmp_path / "state"
    state = made(folder, adapters[:2], name)
    before = sums(folder)
    state.add(adapters[2])
    expected = merge(method(name), [AdapterFolder.open(a) for a in adapters])
    for layer in state.layers():
        found, whole = layer.update * state.scale, expected[layer.name]
        torch.testing.assert_close(dense_update(found), dense_update(whole))
    state.undo()
    assert sums(folder) == before


def test_a_replay_that_gives_something_else_is_refused(tmp_path, adapters, monkeypatch):
    state = made(tmp_path / "state", adapters[:1])
    before = content(state.folder)
    state.verify()
    entry = registry.get("merge method", "apart")
    own = entry.target
    monkeypatch.setitem(entry.__dict__, "target", lambda *given: own(*given) * -1)
    with pytest.raises(MergeError, match="merged anew"):
        state.verify()
    assert content(state.folder) == before


def test_a_folder_that_is_in_use_is_no_place_for_a_state(tmp_path):
    MergedState.init(tmp_path / "state", "average")
    with pytest.raises(MergeError, match="not empty"):
        MergedState.init(tmp_path / "state", "average")


def test_an_unknown_param_makes_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="nrom"):
        MergedState.init(tmp_path / "state", "average", nrom="mean")
    assert not (tmp_path / "state").exists()


def changed(path, offset=-1):
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    "pattern",
    ["merged-*", "adapters/*/adapter_model.safetensors", "adapters/*/tokenizer.txt"],
)
def test_a_changed_or_missing_file_is_named(tmp_path, adapters, pattern):
    state = made(tmp_path / "state", adapters[:1])
    (file,) = state.folder.glob(pattern)
    changed(file)
    with pytest.raises(MergeError, match=file.name + ": is not what was written"):
        MergedState.open(state.folder)
    file.unlink()
    with pytest.raises(MergeError, match=file.name + ": is missing"):
        MergedState.open(state.folder)


CHANGES = {
    "weight": (lambda c: c["entries"][0].update(weight=2.0), "entry 1"),
    "last entry": (lambda c: c["entries"][1].update(adapter="x"), "entry 2"),
    "method": (lambda c: c["method"]["params"].update(norm="mean"), "head"),
    "entry left out": (lambda c: c["entries"].pop(0), "entry 1|head"),
    "later format": (lambda c: c.update(format=2), "later"),
    "no field": (lambda c: c["entries"][0].pop("weight"), "not what loralab wrote"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_log_is_refused(tmp_path, adapters, case):
    change, said = CHANGES[case]
    state = made(tmp_path / "state", adapters[:2])
    file = state.folder / "state.json"
    raw = json.loads(file.read_text())
    change(raw)
    file.write_text(json.dumps(raw))
    with pytest.raises(MergeError, match=said):
        MergedState.open(state.folder)


def test_what_is_no_state_is_said_so(tmp_path, adapters):
    for folder in (tmp_path / "nowhere", adapters[0]):
        with pytest.raises(MergeError, match="not a merge state"):
            MergedState.open(folder)


def test_the_same_adapter_twice_is_refused(tmp_path, adapters, caplog):
    state = made(tmp_path / "state", adapters[:1])
    twin = shutil.copytree(adapters[0], tmp_path / "twin")
    (twin / "tokenizer.txt").write_text("other")
    with pytest.raises(MergeError, match="same adapter as one"):
        state.add(twin)
    state.add(twin, force=True)
    assert "same adapter as one" in caplog.text


def test_another_base_is_refused(tmp_path, adapters):
    state = made(tmp_path / "state", adapters[:1])
    other = adapter(tmp_path / "other", 5, base="org/another")
    before = content(state.folder)
    with pytest.raises(MergeError, match="org/another and org/base"):
        state.add(other)
    assert content(state.folder) == before
    state.add(other, force=True)
    assert state.task_count == 2


def test_a_fingerprint_tells_more_than_a_name(tmp_path):
    def noted(name, seed, fingerprint, base):
        folder = adapter(tmp_path / name, seed, base=base)
        note = {"base": {"fingerprint": fingerprint}}
        (folder / "loralab.json").write_text(json.dumps(note))
        return folder

    state = made(tmp_path / "state", [noted("one", 1, "a" * 64, "org/base")])
    state.add(noted("moved", 2, "a" * 64, "./base"))
    with pytest.raises(MergeError, match="bbbb"):
        state.add(noted("tuned", 3, "b" * 64, "org/base"))


def test_what_training_made_of_a_base_makes_another_of_it(tmp_path):
    def noted(name, seed, **form):
        folder = adapter(tmp_path / name, seed)
        note = {"base": {"fingerprint": "a" * 64, **form}}
        (folder / "loralab.json").write_text(json.dumps(note))
        return folder

    nf4 = {"name": "nf4", "params": {"rest": "bf16"}}
    rewritten = {"name": "qa-lora", "params": {"bits": 4, "target_modules": ["q"]}}
    old = noted("old", 1)  # of before these keys
    state = made(tmp_path / "state", [old])
    state.add(noted("new", 2, storage=None, rewritten=None))
    with pytest.raises(MergeError, match="stored as nf4 rest=bf16, and in float"):
        state.add(noted("stored", 3, storage=nf4))
    with pytest.raises(MergeError, match="by qa-lora bits=4 target_modules=q, and in"):
        state.add(noted("pooled", 4, rewritten=rewritten))
    both = made(tmp_path / "both", [tmp_path / "pooled"])
    both.add(noted("twin", 5, rewritten=rewritten))
    with pytest.raises(MergeError, match="bits=4"):
        other = {**rewritten, "params": {**rewritten["params"], "bits": 8}}
        both.add(noted("finer", 6, rewritten=other))
    out = both.export(tmp_path / "out").folder
    (out / "loralab.json").unlink(missing_ok=True)
    assert AdapterFolder.open(out).base.rewritten == rewritten
    both.add(noted("plain", 7), force=True)
    assert AdapterFolder.open(both.export(tmp_path / "mix").folder).base.form == ""


def test_two_tasks_of_one_name_are_refused(tmp_path, adapters):
    state = made(tmp_path / "state", adapters[:1])
    with pytest.raises(MergeError, match="called one already"):
        state.add(adapters[1], name="one")


def spoil(folder, what):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    A = "base_model.model.model.q.lora_A.weight"
    if what == "NaN":
        tensors[A][0, 0] = math.nan
    elif what == "missing tensor":
        del tensors[A]
    elif what == "rank 0":
        for name, tensor in tensors.items():
            side = tensor[:0] if "_A" in name else tensor[:, :0]
            tensors[name] = side.contiguous()
    elif what == "other shape":
        tensors[A] = tensors[A][:, :3].contiguous()
    elif what == "cut":
        file.write_bytes(file.read_bytes()[:-5])
        return
    elif what == "pickle":
        file.unlink()
        torch.save(tensors, folder / "adapter_model.bin")
        return
    save_file(tensors, file)


@pytest.mark.parametrize(
    "what", ["NaN", "missing tensor", "rank 0", "other shape", "cut", "pickle"]
)
def test_a_bad_adapter_changes_nothing(tmp_path, adapters, what):
    state = made(tmp_path / "state", adapters[:1])
    before = content(state.folder)
    bad = adapter(tmp_path / "bad", 7)
    spoil(bad, what)
    with pytest.raises(AdapterError):
        state.add(bad, force=True)
    assert content(state.folder) == before
    assert MergedState.open(state.folder).task_count == 1


def test_a_busy_state_is_left_alone(tmp_path, adapters):
    state = made(tmp_path / "state", adapters[:1])
    with FileLock(state.folder / ".lock"), pytest.raises(RunError, match="at work"):
        state.add(adapters[1])


def test_an_old_object_sees_what_others_did(tmp_path, adapters):
    one = made(tmp_path / "state", adapters[:1])
    other = MergedState.open(one.folder)
    other.add(adapters[1])
    one.add(adapters[2])
    assert [task.adapter for task in one.tasks] == ["one", "two", "three"]


def test_a_full_disk_changes_nothing(tmp_path, adapters):
    state = made(tmp_path / "state", adapters[:1])
    before = content(state.folder)
    large = adapter(tmp_path / "large", 9, 4, {"model.q": (6, 5), "wide": (900, 900)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(LoralabError, match="written"):
            state.add(large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert content(state.folder) == before


DRILL = """
import os, signal, sys, time
from pathlib import Path
import tests.merge_folders
from loralab.errors import RunError
from loralab.runs.run import held
from loralab.merging.state.state import MergedState

folder, new = map(Path, sys.argv[1:])
left = [0]

def deadly(owner, name):
    original = getattr(owner, name)
    def wrapped(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    setattr(owner, name, wrapped)

ready, holds = os.pipe()
holder = os.fork()
if not holder:
    with held(folder):
        os.write(holds, b"!")
        time.sleep(60)
os.read(ready, 1)
try:
    MergedState.open(folder).add(new)
except RunError as error:
    print(error.what)
os.kill(holder, signal.SIGKILL)  # and its lock goes with it
os.waitpid(holder, 0)

for count in range(1, 1000):
    child = os.fork()
    if not child:
        left[0] = count
        deadly(os, "fsync"), deadly(Path, "replace"), deadly(os, "pwrite")
        MergedState.open(folder).add(new)
        os._exit(0)
    ended = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(ended):
        sys.exit(3 if ended else 0)
    state = MergedState.open(folder)
    print(count, state.task_count, flush=True)
    if state.task_count == 2:
        state.undo()
"""


def drilled(tmp_path, adapters):
    """Kill an `add` at each of its writes; return (point, tasks afterwards).

    First of all another process holds the state, and is killed.
    """
    state = made(tmp_path / "state", adapters[:1])
    before = sums(state.folder)
    command = [sys.executable, "-c", DRILL, state.folder, adapters[2]]
    ran = subprocess.run(
        list(map(str, command)),
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    after = MergedState.open(state.folder)
    assert after.task_count == 2
    after.verify()
    expected = {"adapters", "state.json", ".lock", after._log.merged.file}
    assert {f.name for f in state.folder.iterdir()} == expected
    after.undo()
    assert sums(state.folder) == before
    busy, *points = ran.stdout.splitlines()
    assert busy == "another process is at work here"
    return [tuple(map(int, point.split())) for point in points]


def test_a_kill_at_any_write_leaves_a_merge_that_opens(tmp_path, adapters):
    points = drilled(tmp_path, adapters)
    assert len(points) > 20
    tasks = [count for _, count in points]
    assert tasks == sorted(tasks) and set(tasks) == {1, 2}


def test_the_public_names_make_a_state(tmp_path, adapters):
    merger = loralab.LoRAOPCMMerger(mode="stable", alpha_threshold=0.3)
    state = merger.merge_sequential(adapters, tmp_path / "first", weights=[1, 0.5, 2])
    same = {"mode": "stable", "alpha_threshold": 0.3}
    other = loralab.merge(adapters, "opcm", tmp_path / "second", (1, 0.5, 2), **same)
    assert sums(state.folder) == sums(other.folder)
    assert isinstance(state, loralab.MergedState) and state.task_count == 3
    assert state.lambda_t == other.lambda_t > 1
    written = state.export(tmp_path / "out", rank=1)
    assert set(written.ranks.values()) == {1}
    source = AdapterFolder.open(tmp_path / "out")
    assert isinstance(source.factors("model.q"), loralab.LoRAModule)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": [1.0]}, "1 weights for 3 adapters"),
        ({"weights": [1.0, 0.0, 1.0]}, "merges nothing"),
        ({"adapters": []}, "no adapter"),
    ],
)
def test_what_cannot_be_merged_makes_no_state(tmp_path, adapters, change, said):
    given = {"adapters": adapters, "method": "average", **change}
    with pytest.raises(MergeError, match=said):
        loralab.merge(folder=tmp_path / "state", **given)
    assert not (tmp_path / "state").exists()
