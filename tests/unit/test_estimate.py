"""What is told of a model that is not here: exact where it can be, else an upper bound,
held against what is counted and measured of a model that is."""

import json

import pytest
import torch
import transformers
import yaml
from studies.continual_merging import train as suites
from tests.cli import loralab
from tests.conftest import CLASSIFY

from loralab import compose
from loralab.models.known import known_models
from loralab.training.estimate import MORE, _rehearsed, estimate, read_machine

SHORT = "task.params.max_length=32"
MACHINE = {
    "name": "a machine",
    "flops_per_second": 1e12,
    "memory_bytes": 16e9,
    "source": "a guess, for a test",
}
PHI = ("instruction-tuning", "model=phi-2", "data=dolly-15k", "training.max_steps=9")


@pytest.fixture(scope="module")
def found():
    return estimate(compose("trec-6", [*CLASSIFY, SHORT]))


@pytest.mark.parametrize("path", known_models())
def test_the_known_numbers_make_as_many_parameters_as_the_model_has(path):
    about = known_models()[path]
    shape = transformers.AutoConfig.for_model(**about["config"], num_labels=1000)
    kinds = {"bert": "", "clip": "", "vit": "ForImageClassification"}
    kind = f"AutoModel{kinds.get(shape.model_type, 'ForCausalLM')}"
    with torch.device("meta"):
        model = getattr(transformers, kind).from_config(shape)
    assert sum(p.numel() for p in model.parameters()) == about["parameters"]


def test_of_a_model_that_is_here_it_counts_what_the_run_counted(found, minilm_run):
    content = minilm_run.read()
    classes = len(content["task_state"]["labels"])
    head = (classes - 2) * (content["base"]["hidden"] + 1)
    assert found.trained + head == content["training"]["trainable"]
    assert found.parameters + head == content["base"]["parameters"]
    assert found.steps == content["training"]["steps"]
    assert found.tokens == found.steps * 32 * 32
    assert found.tokens >= content["training"]["tokens"]
    assert found.adapter_bytes == pytest.approx(content["adapter_bytes"], rel=0.02)


def test_its_operations_are_those_that_a_training_counted(found, minilm_run):
    training = minilm_run.read()["training"]
    a_position = training["flops"] / training["positions"]
    assert found.flops / found.tokens == pytest.approx(a_position, rel=0.05)


def test_the_peak_of_all_layers_follows_from_that_of_few(found):
    config = compose("trec-6", [*CLASSIFY, SHORT])
    layers = 6
    assert layers > MORE
    assert found.peak_bytes == pytest.approx(
        _rehearsed(config, layers, 32)[0], rel=0.01
    )


def test_a_model_that_is_not_here_is_told_of_with_what_is_unknown(tmp_path):
    file = tmp_path / "machine.yaml"
    file.write_text(yaml.safe_dump(MACHINE), encoding="utf-8")
    out = loralab("plan", *PHI, "--json", "--machine", file)
    told = json.loads(out.out)
    assert told["parameters"] == known_models()["microsoft/phi-2"]["parameters"]
    assert told["base_bytes"] == pytest.approx(2 * told["parameters"], rel=0.001)
    assert told["seconds"] == pytest.approx(told["flops"] / 1e12)
    assert told["peak_bytes"] > told["base_bytes"]
    assert told["fits"] is (told["peak_bytes"] < 16e9)
    assert out.code == (0 if told["fits"] else 1)
    assert any("512 tokens" in text for text in told["unknown"])
    assert not any("hours" in text for text in told["unknown"])


def test_what_cannot_be_told_is_one_clear_error(tmp_path):
    words = ("instruction-tuning", "data=dolly-15k", "model.path=microsoft/phi-3")
    out = loralab("plan", *words, "--offline")
    assert out.code == 2
    assert "nearest: microsoft/phi-2" in out.err
    file = tmp_path / "machine.yaml"
    file.write_text(yaml.safe_dump({**MACHINE, "flops_per_second": 0}), "utf-8")
    wrong = loralab("plan", *PHI, "--machine", file)
    assert wrong.code == 2
    assert "flops_per_second" in wrong.err
    assert loralab("plan", *PHI, "--machine", tmp_path / "none.yaml").code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "group", ["bert-glue", "llama-2-7b", "mistral-7b", "clip-vit-b32", "clip-vit-l14"]
)
def test_every_large_suite_has_a_ledger_without_hub_and_gpu(group, tmp_path, capsys):
    file = tmp_path / "machine.yaml"
    file.write_text(yaml.safe_dump(MACHINE), encoding="utf-8")
    chosen = suites.adapters(group)
    suites.tell_offline(chosen, read_machine(file))
    told = capsys.readouterr().out
    for one in chosen:
        assert f" {one.name} " in told
    assert "in all" in told
    assert "unknown" in told
