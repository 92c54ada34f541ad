"""A run made again from its own directory is the same, bit for bit on a CPU; what is
not the same is said, and a changed input before anything is computed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from loralab import compose, quantize, train
from loralab.config import StorageConfig
from loralab.errors import ExportError
from loralab.experiments import sameness
from loralab.experiments.reproduce import (
    Reproduction,
    changes,
    recorded_seconds,
    reproduce,
    unheard,
)
from loralab.merging.state.log import read_log
from loralab.merging.state.state import MergedState
from loralab.runs import Run
from loralab.runs.files import sha256_file, write_json
from tests.cli import loralab
from tests.conftest import CLASSIFY
from tests.merge_folders import adapter

LETTERS = ("ab", "ba", "cd", "dc")


def content(folder):
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file): sha256_file(file) for file in files}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Rows of our own in a CSV."""
    file = tmp_path_factory.mktemp("rows") / "rows.csv"
    rows = [f"{word} {number},{word[0]}" for word in LETTERS for number in range(12)]
    file.write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    return file


def of_table(table, peft, **more):
    settings = {
        "data.source": f"{{name: file, params: {{path: {table}}}}}",
        "model.dtype": "fp32",
        "training.max_steps": 4,
        "training.logging_steps": 1,
        "evaluation.base": "false",
        "evaluation.resamples": 200,
        **more,
    }
    overrides = [f"peft={peft}", *(f"{k}={v}" for k, v in settings.items())]
    return compose("text-classification", overrides)


def test_an_adapter_is_made_again_and_the_original_only_read(minilm_run):
    before = content(minilm_run.path)
    made = reproduce(minilm_run)
    assert made.equal, made.compared
    assert made.tolerance == 0
    counts = {one.what: one.count for one in made.compared}
    assert counts["adapter tensors"] == len(
        load_file(minilm_run.adapter / "adapter_model.safetensors")
    )
    assert counts["logged losses"] >= 2
    assert counts["test metrics"] > 0
    assert counts["test predictions"] >= 64
    assert counts["test answers"] >= 64
    assert content(minilm_run.path) == before
    assert recorded_seconds(minilm_run) > 0


def test_a_probe_on_a_csv_and_the_same_csv_with_one_word_changed(table, tmp_path):
    run = train(of_table(table, "linear-probe"), tmp_path / "runs")
    same = loralab("reproduce", run.path, "--json", "--out", tmp_path / "again")
    assert same.code == 0, same.err
    told = json.loads(same.out)
    assert told["equal"]
    assert Run(tmp_path / "again" / run.id).status == "complete"
    assert "cost" in same.err
    table.write_text(
        table.read_text(encoding="utf-8").replace("ab 3", "ab three"), "utf-8"
    )
    other = loralab("reproduce", run.path, "--out", tmp_path / "other")
    assert other.code == 1
    assert "the data of then is not here" in other.out
    assert not (tmp_path / "other").exists()


def test_an_artefact_is_stored_again_with_the_same_bytes(minilm_run, tmp_path):
    storage = StorageConfig(name="affine-int8")
    made = quantize(minilm_run, storage, runs_dir=minilm_run.path.parent, rows=8)
    alone = tmp_path / made.id
    shutil.copytree(made.path, alone)
    lost = loralab("reproduce", alone)
    assert lost.code == 2
    assert minilm_run.id in lost.err
    again = reproduce(Run(alone), runs_dir=minilm_run.path.parent)
    assert again.equal, again.compared
    assert {one.what for one in again.inputs} == {
        *("source, format and route", "data", "base")
    }
    assert {one.what for one in again.compared} == {"artefact files", "certificate"}
    file = max((alone / "artefact").iterdir(), key=lambda f: f.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(ExportError, match="another content"):
        reproduce(Run(alone), runs_dir=minilm_run.path.parent)


def test_trackers_elsewhere_are_not_told_of_it():
    chosen = "training.callbacks=[{name: wandb}, {name: memory}, {name: trackio}]"
    left = unheard(compose("trec-6", [chosen])).training.callbacks
    assert [one.name for one in left] == ["memory"]


@pytest.mark.parametrize("method", ["opcm", "ties"])
def test_a_merge_is_replayed_to_the_same_bytes(tmp_path, method):
    state = MergedState.init(tmp_path / "merge", method)
    for seed in range(3):
        state.add(adapter(tmp_path / f"a{seed}", seed), weight=1 + seed)
    state.undo()
    before = content(tmp_path / "merge")
    out = loralab("reproduce", tmp_path / "merge", "--json")
    assert out.code == 0, out.err
    told = {one["what"]: one for one in json.loads(out.out)["compared"]}
    assert told["adapters"]["count"] == 4
    assert told["merged tensors"]["count"] == 4
    assert told["sums"]["count"] == (4 if method == "opcm" else 0)
    assert content(tmp_path / "merge") == before


def test_a_merge_whose_log_tells_another_norm_is_not_equal(tmp_path):
    state = MergedState.init(tmp_path / "merge", "opcm")
    state.add(adapter(tmp_path / "a"))
    log = read_log(tmp_path / "merge")
    told = log.entries[0].model_dump(exclude={"number", "previous"})
    bare = log.model_copy(update={"entries": (), "tip": log.links()[0]})
    bare.then(**{**told, "norm": told["norm"] * 1.001}).write(tmp_path / "merge")
    out = loralab("reproduce", tmp_path / "merge")
    assert out.code == 1, out.err
    assert "NOT EQUAL" in out.out


@pytest.fixture
def twin(minilm_run, tmp_path):
    """A copy of a run, to be changed."""
    shutil.copytree(minilm_run.path, tmp_path / minilm_run.id)
    return Run(tmp_path / minilm_run.id)


def test_one_bit_of_one_weight_is_a_difference(minilm_run, twin):
    assert sameness.tensors(minilm_run.adapter, twin.adapter).equal
    file = twin.adapter / "adapter_model.safetensors"
    stored = load_file(file)
    name = next(name for name in stored if "lora_B" in name)
    stored[name].view(torch.int32).view(-1)[0] ^= 1
    save_file(stored, file)
    found = sameness.tensors(minilm_run.adapter, twin.adapter)
    assert not found.equal
    assert (found.differing, found.where) == (1, f"{file.name}:{name}")
    assert 0 < found.largest < 1e-6
    assert sameness.tensors(minilm_run.adapter, twin.adapter, 1e-6).equal
    del stored[name]
    save_file(stored, file)
    gone = sameness.tensors(minilm_run.adapter, twin.adapter)
    told = Reproduction("a", "adapter", None, 0.0, (), (), (gone,)).as_dict()
    assert json.loads(json.dumps(told, allow_nan=False))["equal"] is False
    assert not sameness.tensors(minilm_run.adapter, twin.adapter, 1e6).equal


def test_minus_zero_and_a_nan_are_not_zero(tmp_path):
    folders = {}
    for label, value in (("zero", 0.0), ("minus", -0.0), ("nan", float("nan"))):
        folders[label] = tmp_path / label
        folders[label].mkdir()
        save_file({"x": torch.tensor([1.0, value])}, folders[label] / "x.safetensors")
    assert not sameness.tensors(folders["zero"], folders["minus"]).equal
    assert sameness.tensors(folders["zero"], folders["minus"], 1e-9).equal
    assert sameness.tensors(folders["nan"], folders["nan"]).equal
    assert not sameness.tensors(folders["zero"], folders["nan"], 1e9).equal


def test_a_tensor_without_dimensions_is_compared_too(tmp_path):
    for label, value in (("one", 1.0), ("same", 1.0), ("other", 2.0)):
        (tmp_path / label).mkdir()
        save_file({"x": torch.tensor(value)}, tmp_path / label / "x.safetensors")
    assert sameness.tensors(tmp_path / "one", tmp_path / "same").equal
    assert not sameness.tensors(tmp_path / "one", tmp_path / "other").equal


def test_another_loss_figure_or_answer_is_a_difference(minilm_run, twin):
    text = (twin.path / "metrics.jsonl").read_text(encoding="utf-8")
    loss = next(e for e in twin.events() if "eval_loss" in e)["eval_loss"]
    changed = text.replace(str(loss), str(loss + 1e-9))
    (twin.path / "metrics.jsonl").write_text(changed, encoding="utf-8")
    found = sameness.losses(minilm_run, twin)
    assert (found.equal, found.differing) == (False, 1)
    assert sameness.losses(minilm_run, twin, 1e-8).equal
    result = twin.evaluations()["test"]
    result["metrics"]["accuracy"]["adapter"]["low"] += 0.01
    write_json(twin.path / "eval" / "test.json", result)
    first, predictions, answers = sameness.evaluation(minilm_run, twin, "test", 0.0)
    assert (first.equal, first.where) == (False, "accuracy.adapter.low")
    assert predictions.equal
    assert answers.equal
    said = {"a": "yes", "b": "no"}
    half = sameness.answers("answers", said, {"a": "yes", "b": "yes"}, 0.4)
    assert (half.equal, half.largest) == (False, 0.5)
    assert sameness.answers("answers", said, {"a": "yes", "b": "yes"}, 0.5).equal


def test_what_changed_since_is_named(twin):
    assert "threads" not in {change.name for change in changes(twin)}
    here = twin.read()["environment"]
    packages = {**here["packages"], "torch": "1.0"}
    twin.update(
        environment={**here, "threads": 64, "packages": packages},
        numerics={**twin.read()["numerics"], "dtype": "bf16"},
    )
    found = {change.name: change for change in changes(twin)}
    assert found["threads"].then == 64
    assert found["packages.torch"].then == "1.0"
    assert (found["dtype"].then, found["dtype"].now) == ("bf16", "fp32")


def test_what_cannot_be_made_again_is_one_clear_error(minilm_run, twin, tmp_path):
    own = loralab("reproduce", minilm_run.path, "--out", minilm_run.path.parent)
    assert own.code == 2
    assert "here already" in own.err
    twin.update(status="failed")
    half = loralab("reproduce", twin.path)
    assert half.code == 2
    assert "failed" in half.err
    assert "--resume" in half.err
    twin.update(kind="artefact")
    for verb, told in (
        ("reproduce", "`loralab quantize` again"),
        ("doctor", "not made"),
    ):
        said = loralab(verb, twin.path)
        assert told in said.out + said.err
        assert "train" not in said.out + said.err
    none = loralab("reproduce", "nothing", "--runs-dir", tmp_path / "empty")
    assert none.code == 2


@pytest.mark.slow
@pytest.mark.parametrize("peft", ["full", "adalora", "qa-lora", "dora"])
def test_every_kind_of_training_is_the_same_again(tmp_path, peft):
    run = train(compose("trec-6", [*CLASSIFY, f"peft={peft}"]), tmp_path)
    made = reproduce(run)
    assert made.equal, made.compared


@pytest.mark.slow
def test_a_language_model_s_adapter_is_the_same_again(smollm2_run):
    made = reproduce(smollm2_run)
    assert made.equal, made.compared


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["onnx-int8", "nf4", "safetensors"])
def test_every_kind_of_artefact_has_the_same_bytes_again(minilm_run, storage):
    config = StorageConfig(name=storage)
    run = quantize(minilm_run, config, runs_dir=minilm_run.path.parent, rows=8)
    made = reproduce(run)
    assert made.equal, made.compared
    base = quantize(compose("trec-6", CLASSIFY), config, runs_dir=run.path.parent)
    made = reproduce(base)
    assert made.equal, made.compared
