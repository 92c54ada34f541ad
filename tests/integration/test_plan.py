"""What `plan` says is what training then is; and what it says when nothing fits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loralab import compose
from loralab.models.base import load_base
from loralab.models.embedded import embedded_folder
from loralab.models.empty import empty_base
from loralab.models.shape import weight_shapes
from loralab.models.source import weight_files
from loralab.training.plan import plan
from tests.cli import loralab
from tests.conftest import CLASSIFY, GENERATE
from tests.tiny import tiny

HEADS = {
    "sequence-classification": ["a", "b"],
    "token-classification": ["O", "B-X", "I-X"],
    "question-answering": [],
    "feature-extraction": ["a", "b"],
}


@pytest.mark.parametrize("head", HEADS)
def test_a_base_without_weights_has_the_shapes_of_the_loaded_one(head):
    config = compose("trec-6", CLASSIFY).model
    empty = empty_base(config, head, HEADS[head])
    loaded = load_base(config, head, HEADS[head])
    assert {p.device.type for p in empty.model.parameters()} == {"meta"}
    assert empty.facts == loaded.facts
    assert empty.new_modules == loaded.new_modules
    shapes = {name: p.shape for name, p in empty.model.named_parameters()}
    assert shapes == {name: p.shape for name, p in loaded.model.named_parameters()}


@pytest.mark.parametrize("kind", ["gpt2", "t5", "bart", "deberta-v2", "llama"])
def test_tiny_models_too(kind, tmp_path):
    path = f"model.path={tiny(kind, tmp_path / kind)}"
    head = {"t5": "seq2seq-lm", "bart": "seq2seq-lm", "deberta-v2": ""}.get(
        kind, "causal-lm"
    )
    config = compose("trec-6", [*CLASSIFY, path]).model
    labels = ["a", "b"] if not head else []
    head = head or "sequence-classification"
    empty, loaded = empty_base(config, head, labels), load_base(config, head, labels)
    assert empty.facts == loaded.facts
    assert empty.new_modules == loaded.new_modules


@pytest.mark.parametrize("setup", [("trec-6", CLASSIFY), ("chatterbot", GENERATE)])
def test_a_plan_counts_what_the_run_then_counts(setup, minilm_run, smollm2_run):
    experiment, overrides = setup
    run = minilm_run if experiment == "trec-6" else smollm2_run
    found = plan(compose(experiment, overrides), timed=False)
    assert found.counts == run.read()["plan"]
    assert (
        sum(m["trained"] for m in found.modules.values()) == (found.counts["trainable"])
    )
    size = run.read()["adapter_bytes"]
    assert found.adapter_bytes == pytest.approx(size, rel=0.05)
    assert found.memory.fits
    assert not found.remedies


@pytest.mark.slow
def test_more_rows_a_batch_and_more_tokens_need_more_memory():
    def peak(*changes):
        return plan(compose("trec-6", [*CLASSIFY, *changes]), timed=False).memory

    base = peak("training.per_device_train_batch_size=8")
    wide = peak("training.per_device_train_batch_size=32")
    short = peak("training.per_device_train_batch_size=8", "task.params.max_length=8")
    saved = peak(
        "training.per_device_train_batch_size=32",
        "training.gradient_checkpointing=true",
    )
    assert short.training < base.training < wide.training
    assert saved.training < wide.training


def test_time_is_measured():
    found = plan(compose("trec-6", CLASSIFY))
    assert found.rates is not None
    assert found.rates.training > 0
    assert found.rates.evaluation > 0


def huge(folder):
    """A model of 80 billion parameters, of which there is only the configuration."""
    tiny("llama", folder)
    for file in weight_files(folder):
        file.unlink()
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"hidden_size": 32768, "intermediate_size": 131072}
    config |= {"num_attention_heads": 64, "num_key_value_heads": 64, "head_dim": 512}
    file.write_text(json.dumps({**config, "num_hidden_layers": 4}), encoding="utf-8")


@pytest.mark.slow
def test_what_does_not_fit_is_told_with_what_would_need_less(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    huge(tmp_path / "huge")
    outcome = loralab(
        "plan",
        "chatterbot",
        "model.path=./huge",
        "task.params.max_length=128",
        "data.max_rows={train: 64, validation: 8, test: 8}",
    )
    assert outcome.code == 1, outcome.err
    assert "DOES NOT FIT" in outcome.out
    for change in ("batch_size=1", "gradient_checkpointing=true", "max_length=64"):
        assert change in outcome.out
    assert "storage=nf4-dq" in outcome.out
    assert not (tmp_path / "runs").exists()


def test_a_plan_is_json_for_who_wants_it(tmp_path):
    outcome = loralab("plan", "trec-6", *CLASSIFY, "--no-timed", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["memory"]["training"] > found["memory"]["process"] > 0
    assert found["rates"] is None


def test_the_same_experiment_is_told_the_same_memory_again():
    def told():
        outcome = loralab("plan", "trec-6", *CLASSIFY, "--no-timed", "--json")
        memory = json.loads(outcome.out)["memory"]
        return {name: memory[name] for name in ("process", "training", "evaluation")}

    first = told()
    held = b"x" * 100_000_000  # as what an earlier prediction leaves behind
    assert told() == first
    assert held


SHORT_OF_MEMORY = """
import resource, sys
from loralab import compose, train
from loralab.errors import TrainingError

def squeeze(event):
    if event["event"] == "plan":
        pages = int(open("/proc/self/statm").read().split()[0])
        size = pages * resource.getpagesize() + 400 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
    if event["event"] == "preparing":
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

try:
    train(compose("newsgroups-20", sys.argv[2:]), sys.argv[1], on_event=squeeze)
except TrainingError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by the Linux way")
@pytest.mark.slow
def test_a_training_that_runs_out_of_memory_says_what_would_fit(tmp_path):
    changes = [
        "data.max_rows={train: 128, validation: 8, test: 8}",
        "task.params.max_length=256",
        "training.per_device_train_batch_size=128",
        "training.max_steps=2",
        "model.dtype=fp32",
    ]
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, str(tmp_path), *changes],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "ran out of memory" in done.stdout
    assert "per_device_train_batch_size=64" in done.stdout
    assert " GB" in done.stdout
    (run,) = Path(tmp_path).glob("newsgroups-20-*")
    assert json.loads((run / "run.json").read_text())["status"] == "failed"


def test_the_names_of_tensors_are_read_from_the_headers():
    names = weight_shapes(embedded_folder("minilm"))
    assert "embeddings.word_embeddings.weight" in names
    assert "__metadata__" not in names
