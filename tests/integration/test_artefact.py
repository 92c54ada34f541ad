"""Artefacts: stored, read back, certified, opened in their engine, found again."""

import json
import shutil
from dataclasses import replace

import pytest

from loralab import compose, evaluate, train
from loralab.config import RouteConfig, StorageConfig
from loralab.errors import ExportError, LoralabError, QuantizationError, RunError
from loralab.evaluation.compare import compare
from loralab.export import artefact
from loralab.export.artefact import quantize
from loralab.inference.artefact import check_files, read_note
from loralab.inference.pipeline import InferencePipeline
from loralab.publishing.archive import extract
from loralab.publishing.publish import publish, target_config
from tests.cli import loralab
from tests.conftest import CLASSIFY

TEXTS = ["Who wrote Hamlet?", "How far is the Moon?", "What is a quark?"]
INT8 = StorageConfig(name="affine-int8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("artefacts")


@pytest.fixture(scope="module")
def stored(minilm_run, folder):
    return quantize(minilm_run, INT8, runs_dir=folder, rows=64)


@pytest.fixture(scope="module")
def beside(minilm_run, folder):
    route = RouteConfig(name="side-path")
    return quantize(minilm_run, INT8, route, runs_dir=folder, rows=64)


def test_the_note_tells_all(stored, minilm_run):
    made, note = stored.read()["artefact"], read_note(stored.path / "artefact")
    assert stored.status == "complete"
    assert made["made_of"] == minilm_run.id and made["route"] == "merge-then-quantize"
    assert made["quantized"] == made["linear"] == 37
    assert made["bytes"]["measured"] == note["files"]["affine.safetensors"]["bytes"]
    assert made["of_fp16"] == pytest.approx(2 * made["of_fp32"])
    check_files(stored.path / "artefact", note, contents=True)


def test_eight_bits_keep_the_adapter(stored):
    survival = stored.read()["artefact"]["survival"]
    assert survival["kept"] > 0.9
    assert len(survival["layers"]) == 37


def test_it_is_certified_against_the_adapter(stored, minilm_run):
    parity = json.loads((stored.path / "parity.json").read_text())
    assert parity["predecessor"] == minilm_run.id and parity["artefact"] == stored.id
    assert parity["passed"] and stored.read()["parity"] is True
    assert 0 < parity["kl"]["value"] < 0.01


def test_a_certificate_that_is_not_passed_ends_with_1(stored, minilm_run, tmp_path):
    shutil.copytree(stored.path, tmp_path / stored.id)
    words = ("quantize", minilm_run.path, "--to", "affine-int8", "--runs-dir", tmp_path)
    there = loralab(*words, "--json")
    assert there.code == 0 and json.loads(there.out)["remedies"] == []
    file = tmp_path / stored.id / "parity.json"
    parity = json.loads(file.read_text())
    parity["passed"] = parity["checks"][0]["passed"] = False
    file.write_text(json.dumps(parity))
    told = loralab(*words)
    assert told.code == 1 and "NOT PASSED" in told.out
    assert "try group=16, or --route side-path, or " in told.out
    told = loralab(*words, "--json")
    assert told.code == 1
    assert json.loads(told.out)["remedies"][:2] == ["group=16", "--route side-path"]


def test_the_same_call_finds_it(stored, minilm_run, folder, monkeypatch):
    monkeypatch.setattr(artefact, "subject_of", lambda _: pytest.fail("made again"))
    assert quantize(minilm_run, INT8, runs_dir=folder).path == stored.path


def test_the_usual_route_by_its_name_is_the_same(stored, minilm_run, folder):
    usual = RouteConfig(name="merge-then-quantize")
    assert quantize(minilm_run, INT8, usual, runs_dir=folder).path == stored.path


def test_a_certificate_that_was_left_out_is_made_when_asked(
    minilm_run, tmp_path, monkeypatch
):
    run = quantize(minilm_run, INT8, runs_dir=tmp_path, rows=0)
    assert run.status == "complete" and not (run.path / "parity.json").exists()
    monkeypatch.setattr(artefact, "_store", lambda *_: pytest.fail("stored twice"))
    assert quantize(minilm_run, INT8, runs_dir=tmp_path, rows=64).path == run.path
    assert run.status == "complete" and run.read()["parity"] is True


def test_it_answers_as_the_adapter_does(stored, minilm_run):
    ours, theirs = (InferencePipeline.from_run(r)(TEXTS) for r in (stored, minilm_run))
    for one, other in zip(ours, theirs, strict=True):
        assert one["label"] == other["label"]
        assert one["probability"] == pytest.approx(other["probability"], abs=0.02)


def test_it_is_evaluated_and_compared(stored, minilm_run):
    result = evaluate(stored)
    assert "base" not in result["metrics"]["accuracy"]
    found = compare([minilm_run, stored])
    (pair,) = found["paired"]
    assert pair["second"] == stored.id
    assert abs(pair["value"]) < 0.05
    shown = loralab("compare", str(minilm_run.path), str(stored.path))
    assert shown.code == 0, shown.err
    for word in ("affine-int8", "merge-then-quantize", "of fp32, fp16"):
        assert word in shown.out


def test_the_side_path_keeps_all(beside, stored, minilm_run):
    made = beside.read()["artefact"]
    assert made["survival"]["kept"] == 1 and made["route"] == "side-path"
    assert made["bytes"]["measured"] > stored.read()["artefact"]["bytes"]["measured"]
    assert (beside.path / "artefact" / "adapter").is_dir()
    answers = InferencePipeline.from_run(beside)(TEXTS)
    expected = InferencePipeline.from_run(minilm_run)(TEXTS)
    for one, other in zip(answers, expected, strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=0.02)


def test_qa_lora_goes_into_the_zeros(folder):
    own = [*CLASSIFY, "peft=qa-lora", "peft.params.target_modules=qv"]
    run = train(compose("trec-6", own), folder)
    made = quantize(run, StorageConfig(name="affine-int4"), runs_dir=folder, rows=64)
    about = made.read()["artefact"]
    assert about["route"] == "qa-lora" and about["quantized"] == 12
    assert about["survival"]["kept"] == pytest.approx(1, abs=1e-4)
    parity = json.loads((made.path / "parity.json").read_text())
    assert abs(parity["kl"]["high"]) < 1e-6
    other = StorageConfig(name="affine-int4", params={"group": 64})
    with pytest.raises(QuantizationError, match="groups of 32"):
        quantize(run, other, runs_dir=folder)


def test_a_base_alone(folder):
    config = compose("trec-6", CLASSIFY)
    run = quantize(config, INT8, runs_dir=folder, rows=64)
    made = run.read()["artefact"]
    assert made["route"] is None and made["survival"] is None
    with pytest.raises(ExportError, match="takes no route"):
        quantize(config, INT8, RouteConfig(name="side-path"), runs_dir=folder)


def test_a_damaged_file_is_told(stored, tmp_path):
    copy = tmp_path / stored.id
    shutil.copytree(stored.path, copy)
    weights = copy / "artefact" / "affine.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    told = loralab("infer", str(copy), "Who?")
    assert told.code == 2 and "Traceback" not in told.err
    assert "affine.safetensors is not the file that was written" in told.err
    weights.unlink()
    assert "it is missing" in loralab("infer", str(copy), "Who?").err


def test_a_format_for_others_is_refused_and_leaves_nothing(minilm_run, tmp_path):
    asked = [(StorageConfig(name="gguf"), None, "gguf cannot store")]
    asked.append((INT8, RouteConfig(name="qa-lora"), "was not trained for it"))
    group = StorageConfig(name="affine-int4", params={"group": 100})
    asked.append((group, None, "no multiple of the group"))
    for storage, route, told in asked:
        with pytest.raises(LoralabError, match=told):
            quantize(minilm_run, storage, route, runs_dir=tmp_path, rows=0)
        assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_half_written(minilm_run, tmp_path, monkeypatch):
    from loralab import registry

    entry = registry.get("storage format", "affine-int8")

    def full(params, source, folder, tell):
        (folder / "affine.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device", str(folder / "affine.safetensors"))

    broken = replace(entry, target=full)
    monkeypatch.setitem(registry._entries, ("storage format", "affine-int8"), broken)
    with pytest.raises(OSError, match="No space left"):
        quantize(minilm_run, INT8, runs_dir=tmp_path, rows=64)
    (run,) = tmp_path.iterdir()
    assert not list(run.glob("**/affine.safetensors"))
    monkeypatch.undo()
    assert quantize(minilm_run, INT8, runs_dir=tmp_path, rows=64).status == "complete"


def test_a_kill_before_the_certificate_stores_nothing_twice(
    minilm_run, tmp_path, monkeypatch
):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    monkeypatch.setattr(artefact, "certify_run", die)
    with pytest.raises(Killed):
        quantize(minilm_run, INT8, runs_dir=tmp_path, rows=64)
    monkeypatch.undo()
    monkeypatch.setattr(artefact, "_store", lambda *_: pytest.fail("stored twice"))
    run = quantize(minilm_run, INT8, runs_dir=tmp_path, rows=64)
    assert run.status == "complete" and run.read()["parity"] is True


def test_a_run_of_another_kind_is_told(stored):
    with pytest.raises(RunError, match="run of kind artefact"):
        quantize(stored, INT8)


@pytest.mark.parametrize("kind", ["adapter", "artefact"])
def test_what_was_published_answers_without_its_run(
    kind, stored, minilm_run, tmp_path, monkeypatch
):
    run = minilm_run if kind == "adapter" else stored
    expected = InferencePipeline.from_run(run)(TEXTS)
    archive, folder = tmp_path / "sent.zip", tmp_path / "got"
    publish(run, target_config("archive", {"path": str(archive)}))
    extract(archive, folder)
    monkeypatch.chdir(tmp_path)  # where no run is found
    assert InferencePipeline.from_run(folder)(TEXTS) == expected
    largest = max(folder.iterdir(), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.raises(RunError, match=largest.name):
        InferencePipeline.from_run(folder)
