"""The certificate: nothing between a model and itself; what is far off fails."""

import copy

import pytest
import torch
from datasets import Dataset
from tests.tiny import SENTENCES, tiny

from loralab.config import EvaluationConfig, ModelConfig, TaskConfig
from loralab.data.examples import get_preprocessor
from loralab.evaluation.intervals import wilson
from loralab.export.parity import Tolerance, certify
from loralab.inference.load import Loaded
from loralab.models.base import load_base
from loralab.models.numerics import seed_everything

CONFIG = EvaluationConfig(resamples=200)
EXACT = Tolerance(kl=1e-6, top1=0.8, loss=1e-6)


def classifier(folder):
    task = get_preprocessor(TaskConfig(name="text-classification"))
    rows = Dataset.from_list(
        [
            {"text": text, "text_pair": None, "label": "ab"[i % 2]}
            for i, text in enumerate(SENTENCES[:144:6])
        ]
    )
    state = task.fit({"train": list(rows)})
    seed_everything(0)
    config = ModelConfig(path=str(tiny("bert", folder)), dtype="fp32", device="cpu")
    base = load_base(config, task.head, state["labels"])
    task.prepare(base.processor)
    return Loaded(base.model, base, task), rows


def writer(folder):
    task = get_preprocessor(TaskConfig(name="causal-lm"))
    pairs = zip(SENTENCES[:12], SENTENCES[12:24], strict=True)
    rows = Dataset.from_list(
        [task.parse({"instruction": asked, "output": said}) for asked, said in pairs]
    )
    config = ModelConfig(path=str(tiny("llama", folder)), dtype="fp32", device="cpu")
    base = load_base(config, task.head)
    task.prepare(base.processor)
    return Loaded(base.model, base, task), rows


@pytest.fixture(params=[classifier, writer])
def given(request, tmp_path):
    return request.param(tmp_path)


def changed(loaded, noise):
    """Return the same with noise on every weight."""
    model = copy.deepcopy(loaded.model)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(noise * weight.std() * torch.randn_like(weight))
    return Loaded(model, loaded.base, loaded.task)


def test_a_model_is_itself(given):
    loaded, rows = given
    found = certify(loaded, loaded, rows, CONFIG, EXACT)
    assert found["passed"]
    assert found["kl"]["value"] == pytest.approx(0, abs=1e-7)
    assert found["top1"]["value"] == found["top1"]["high"] == 1.0
    if loaded.base.head == "sequence-classification":  # a label a row
        assert found["top1"]["low"] == pytest.approx(wilson(24, 24, 0.95).low)
    for metric in found["metrics"].values():
        assert metric["difference"]["value"] == 0
    if found["greedy"]:
        assert found["greedy"]["equal"] == found["greedy"]["prompts"] > 0


def test_few_rows_do_not_show_that_labels_agree(tmp_path):
    loaded, rows = classifier(tmp_path)
    eight = rows.select(range(8))
    found = certify(loaded, loaded, eight, CONFIG, EXACT)
    assert [check["name"] for check in found["checks"] if not check["passed"]] == [
        "top-1 agreement"
    ]


def test_kl_is_that_of_the_logits(given):
    loaded, rows = given
    other = changed(loaded, 0.1)
    found = certify(other, loaded, rows, CONFIG, EXACT)
    from loralab.data.batching import collate
    from loralab.models.forward import supervised_logits

    examples = loaded.task(list(rows), loaded.base.processor)
    total, labels, same = 0.0, 0, 0
    for i in range(len(examples)):  # each row alone
        made = collate(examples, [[i]], loaded.base.processor.pad_token_id)
        with torch.no_grad():
            p, q = (
                supervised_logits(m.model, made, m.base)[0].double().log_softmax(-1)
                for m in (loaded, other)
            )
        total += float((p.exp() * (p - q)).sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        labels += len(p)
    assert found["labels"] == labels
    assert found["kl"]["value"] == pytest.approx(total / labels, rel=1e-4)
    assert found["top1"]["value"] == pytest.approx(same / labels)


def test_what_is_too_far_off_does_not_pass(given):
    loaded, rows = given
    found = certify(changed(loaded, 1.0), loaded, rows, CONFIG, EXACT)
    assert not found["passed"]
    failed = [check["name"] for check in found["checks"] if not check["passed"]]
    assert "KL divergence" in failed


def test_the_worse_end_of_an_interval_decides(given):
    loaded, rows = given
    other = changed(loaded, 0.1)
    kl = certify(other, loaded, rows, CONFIG, EXACT)["kl"]
    assert kl["value"] < kl["high"]
    between = Tolerance(kl=(kl["value"] + kl["high"]) / 2, top1=0.0, loss=100.0)
    assert not certify(other, loaded, rows, CONFIG, between)["passed"]
    above = between.model_copy(update={"kl": kl["high"]})
    assert certify(other, loaded, rows, CONFIG, above)["passed"]
