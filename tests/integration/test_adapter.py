"""The adapter elsewhere: in plain PEFT, in a pipeline, in a stream."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from loralab import InferencePipeline
from loralab.data.tasks.causal_lm import encode_messages
from loralab.inference.generate import encode
from loralab.inference.load import load_adapter
from loralab.models.embedded import embedded_folder

PLAIN = """
import json, sys
import torch
import transformers
from peft import PeftModel
base, adapter, kind, labels, ids = json.loads(sys.argv[1])
extra = {"num_labels": labels} if labels else {}
model = getattr(transformers, kind).from_pretrained(base, dtype=torch.float32, **extra)
model = PeftModel.from_pretrained(model, adapter).eval()
assert "loralab" not in sys.modules
with torch.no_grad():
    print(json.dumps(model(input_ids=torch.tensor([ids])).logits[0].tolist()))
"""


def plain_peft(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, json.dumps(arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "which",
    ["minilm_run", pytest.param("smollm2_run", marks=pytest.mark.slow)],
)
def test_plain_peft_gives_the_same_logits(which, request):
    run = request.getfixturevalue(which)
    adapter = load_adapter(run)
    ids = adapter.base.processor("What is the capital of France ?")["input_ids"]
    with torch.no_grad():
        ours = adapter.model(input_ids=torch.tensor([ids])).logits[0].numpy()
        with adapter.model.disable_adapter():
            base = adapter.model(input_ids=torch.tensor([ids])).logits[0].numpy()
    if which == "minilm_run":
        arguments = ("minilm", "AutoModelForSequenceClassification", 6)
    else:
        arguments = ("smollm2-135m-instruct", "AutoModelForCausalLM", 0)
    name, kind, labels = arguments
    folder = str(embedded_folder(name))
    theirs = plain_peft(folder, str(run.adapter), kind, labels, ids)
    np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=1e-4)
    assert np.abs(ours - base).max() > 1e-3  # the adapter does something


def test_the_head_travels_with_the_adapter(minilm_run):
    stored = load_file(minilm_run.adapter / "adapter_model.safetensors")
    heads = {k: v for k, v in stored.items() if "classifier" in k}
    assert {v.shape for v in heads.values()} == {(6, 384), (6,)}
    live = load_adapter(minilm_run).model.state_dict()
    for name, tensor in heads.items():
        path, _, leaf = name.rpartition(".")
        assert torch.equal(live[f"{path}.modules_to_save.default.{leaf}"], tensor)


def test_batches_answer_in_order_like_single_texts(minilm_run):
    pipeline = InferencePipeline.from_run(minilm_run, batch_size=4)
    texts = ["Who ?", "How many miles is it from here to the Moon and back again ?"]
    texts = [*texts, "Where is it ?", "What is an atom ?", "Why ?"] * 2
    together = pipeline(texts)
    for text, answer in zip(texts, together, strict=True):
        (alone,) = pipeline([text])
        assert alone["label"] == answer["label"]
        for label, probability in alone["probabilities"].items():
            assert answer["probabilities"][label] == pytest.approx(
                probability, abs=1e-5
            )


def test_generation_in_batches_alone_and_streamed_agree(smollm2_run):
    pipeline = InferencePipeline.from_run(smollm2_run, batch_size=3)
    prompts = ["What is AI?", "Tell me a joke about a very old computer, please.", "Hi"]
    together = pipeline.generate(prompts, max_new_tokens=8)
    for prompt, answer in zip(prompts, together, strict=True):
        assert pipeline.generate([prompt], max_new_tokens=8) == [answer]
        assert "".join(pipeline.stream(prompt, max_new_tokens=8)).strip() == answer


def test_inference_prompts_are_the_prefix_of_training(smollm2_run):
    pipeline = InferencePipeline.from_run(smollm2_run)
    processor = pipeline._adapter.base.processor
    asked = [{"role": "user", "content": "What is AI?"}]
    answered = [*asked, {"role": "assistant", "content": "A field of study."}]
    ids, labels = encode_messages(answered, processor, {})
    encoded = encode(pipeline._adapter, [pipeline.prompt("What is AI?")])
    prompt = encoded["input_ids"][0].tolist()
    assert ids[: len(prompt)] == prompt
    assert set(labels[: len(prompt)]) == {-100}
    assert labels[len(prompt)] == ids[len(prompt)]
