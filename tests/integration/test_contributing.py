"""What CONTRIBUTING.md says: each of its plug-ins is installed, and worked with.

One small life of an adapter goes through all thirteen: rows of SQLite, a task of two
columns, LoRA-FA, a callback and a metric; a sweep; a merge; an artefact; a delivery.
"""

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loralab import compose, registry, train
from loralab.config import RouteConfig, StorageConfig
from loralab.errors import DataError
from loralab.experiments.sweep import Sweep, SweepConfig
from loralab.export.artefact import quantize
from loralab.inference.open import open_run
from loralab.inference.pipeline import InferencePipeline
from loralab.lowrank.files import AdapterFolder
from loralab.lowrank.update import frobenius
from loralab.merging.merge import merge
from loralab.merging.method import method
from loralab.publishing.publish import publish, target_config
from loralab.runs import Run
from tests.laws.test_merging import LAWS
from tests.merging import drawn_layer
from tests.tiny import SENTENCES, tiny

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CODES = {
    match[2]: (match[3], match[1])
    for match in re.finditer(
        r"```python\n((?:(?!```).)*?@register\(\s*\"([^\"]+)\", \"([^\"]+)\".*?)```",
        PAGE,
        re.DOTALL,
    )
}
"""Kind -> name and code."""
EXPERIMENT = """
defaults: [/model: minilm, /data: file, /training: classification,
  /evaluation: default, _self_]
model: {path: ./m, dtype: fp32}
task: {name: titled-text}
data:
  source: {name: sqlite, params: {path: rows.db, query: SELECT * FROM mail}}
  max_rows: {train: 16, validation: 8, test: 8}
training:
  max_steps: 2
  eval_steps: 1
  per_device_train_batch_size: 4
  callbacks: [{name: validation-csv}]
evaluation: {resamples: 200, metrics: [accuracy, brier-top]}
"""
ROWS = 150
METHODS = {
    "frozen": "peft: {name: lora-fa, params: {rank: 4}}",
    "wide": "peft: {name: lora, params: {rank: 8, ranks: {name: wide-outputs}}}",
}


def module_of(name):
    return f"mine_{name.replace('-', '_')}"


def forget():
    """Let entry points be read again."""
    registry._points.cache_clear()
    registry._claims.cache_clear()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A directory to work in, with the page's plug-ins installed as one package."""
    folder = tmp_path_factory.mktemp("contributing")
    site = folder / "site"
    info = site / "mine-1.0.dist-info"
    info.mkdir(parents=True)
    points = []
    for kind, (name, code) in CODES.items():
        (site / f"{module_of(name)}.py").write_text(code, encoding="utf-8")
        points.append(f"[{registry.group_of(kind)}]\n{name} = {module_of(name)}")
    about = "Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n"
    (info / "METADATA").write_text(about, encoding="utf-8")
    (info / "entry_points.txt").write_text("\n".join(points), encoding="utf-8")
    before = Path.cwd()
    sys.path.insert(0, str(site))
    forget()
    os.chdir(folder)
    yield prepared(folder)
    os.chdir(before)
    sys.path.remove(str(site))
    forget()
    for kind, (
        name,
        _,
    ) in CODES.items():  # those of ours stay
        registry._entries.pop((kind, name), None)
        sys.modules.pop(module_of(name), None)


def prepared(folder):
    tiny("bert", folder / "m")
    for name, peft in METHODS.items():
        (folder / f"{name}.yaml").write_text(EXPERIMENT + peft, encoding="utf-8")
    with sqlite3.connect(folder / "rows.db") as database:
        database.execute("CREATE TABLE mail (title TEXT, body TEXT, label TEXT)")
        rows = [(f"mail {i}", s, "ab"[i % 2]) for i, s in enumerate(SENTENCES[:ROWS])]
        database.executemany("INSERT INTO mail VALUES (?, ?, ?)", rows)
    database.close()
    return folder


@pytest.fixture(scope="module")
def run(work):
    return train(compose("frozen.yaml"), "runs")


@pytest.fixture(scope="module")
def swept(work):
    rates = ("training.learning_rate=1e-4,1e-3,1e-2",)
    config = SweepConfig("wide.yaml", rates, "corners")
    return Sweep(config, "runs").run("here")


@pytest.fixture(scope="module")
def stored(run):
    storage, route = StorageConfig(name="signs"), RouteConfig(name="left-out")
    return quantize(run, storage, route, "runs", rows=0)


def test_every_kind_has_an_example():
    assert sorted(CODES) == sorted(registry.PACKAGES)


def test_each_is_found_by_its_name_and_is_not_among_ours(work):
    for kind, (name, _) in CODES.items():
        assert name in registry.names(kind)
        assert registry.get(kind, name).target.__module__ == module_of(name)
        folder = ROOT / "src" / registry.PACKAGES[kind].replace(".", "/")
        assert not (folder / f"{name.replace('-', '_')}.py").exists()


def test_the_code_is_in_the_style_of_the_house(tmp_path):
    folder = tmp_path / "src" / "loralab"
    folder.mkdir(parents=True)
    for name, code in CODES.values():
        (folder / f"{module_of(name)}.py").write_text(code, encoding="utf-8")
    settings = ["--config", str(ROOT / "pyproject.toml"), "--no-cache", str(folder)]
    for command in (["check"], ["format", "--diff"]):
        ruff = [sys.executable, "-m", "ruff", *command, *settings]
        done = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_rows_are_those_of_the_database(run):
    given = run.read()["data"]
    assert given["report"]["read"] == ROWS
    assert given["sizes"]["train"] == 16


def test_a_query_that_sqlite_does_not_know_is_one_error(work):
    wrong = "data.source.params.query='SELECT * FROM male'"
    with pytest.raises(DataError, match="no such table: male"):
        train(compose("frozen.yaml", [wrong]), "wrong")
    assert not (work / "wrong").exists()


def test_a_title_is_read_before_its_body(run):
    task = registry.get("task", "titled-text")
    row = task.target(task.schema()).parse(
        {"title": "Hello", "body": "it rains", "label": "a"}
    )
    assert row["text"] == "Hello: it rains"


def test_only_b_of_the_adapter_learns(run):
    state = load_file(run.adapter / "adapter_model.safetensors")
    A, B = ({n: state[n] for n in state if f".lora_{x}." in n} for x in "AB")
    assert A and len(A) == len(B)
    assert all(tensor.any() for tensor in B.values())  # they begin at zero
    learnt = sum(state[name].numel() for name in state.keys() - A.keys())
    assert run.read()["plan"]["trainable"] == learnt


def test_the_metric_stands_in_the_evaluation_with_its_interval(run):
    brier = run.evaluations()["test"]["metrics"]["brier-top"]
    assert 0 < brier["adapter"]["value"] < 1
    assert brier["difference"]["low"] <= brier["difference"]["high"]


def test_the_callback_has_written_each_validation(run):
    lines = (run.path / "validation.csv").read_text(encoding="utf-8").splitlines()
    told = [e for e in run.events() if e["event"] == "validation"]
    assert [int(line.split(",")[0]) for line in lines] == [e["step"] for e in told]
    assert lines


def test_the_corners_are_swept_in_this_process(swept):
    assert [trial.status for trial in swept] == ["complete", "complete"]
    rates = [float(trial.point[0].partition("=")[2]) for trial in swept]
    assert rates == [1e-4, 1e-2]


def test_wide_modules_have_more_rank(swept):
    ranks = Run(Path("runs") / swept[0].run).read()["calibration"]["ranks"]["ranks"]
    wide = {name for name in ranks if name.endswith("intermediate.dense")}
    assert wide
    narrow = max(rank for name, rank in ranks.items() if name not in wide)
    assert min(ranks[name] for name in wide) > narrow


def test_two_adapters_are_merged(swept):
    folders = [Path("runs") / trial.run / "adapter" for trial in swept]
    both = [AdapterFolder.open(folder) for folder in folders]
    merged, mean = (merge(method(m), both) for m in ("root-average", "average"))
    for name, update in merged.items():
        assert frobenius(update) == pytest.approx(2**0.5 * frobenius(mean[name]))


@pytest.mark.parametrize("law", ["identity", "gauge", "scale", "permutation", "rank"])
def test_the_merge_method_keeps_its_laws(work, law):
    layer = drawn_layer((7, 5), (2, 3, 1))
    LAWS[law](method("root-average"), layer, torch.Generator().manual_seed(0))


def test_signs_are_read_back_without_the_adapter(stored):
    made = stored.read()["artefact"]
    assert (made["route"], made["engine"]) == ("left-out", "dequantized")
    assert made["bytes"]["predicted"] == made["bytes"]["measured"]
    assert made["survival"]["kept"] == pytest.approx(0, abs=1e-6)
    file = stored.path / "artefact" / "model.safetensors"
    held = {name for name in load_file(file) if name.endswith(".negative")}
    assert len(held) == made["quantized"] == made["linear"]


def test_the_engine_answers_with_stored_values(stored):
    opened = open_run(stored)
    (answer,) = InferencePipeline(opened)(["mail 1: The old cat sees snow."])
    assert answer["label"] in ("a", "b")
    weight = opened.model.bert.encoder.layer[0].attention.self.query.weight
    assert len(weight[0].abs().unique()) == 1


def test_a_run_is_delivered_once(run, work):
    target = target_config("folder", {"path": "shared"})
    first, second = publish(run, target), publish(run, target)
    assert (work / "shared" / run.id / "adapter_model.safetensors").is_file()
    assert first["sent"] and not first["there"]
    assert second["there"] and "adapter_model.safetensors" not in second["sent"]
