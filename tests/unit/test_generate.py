"""How answers are written: by the model's probabilities, whatever its files say."""

import json
from types import SimpleNamespace

import pytest
import torch
from tests.tiny import tiny

from loralab.config import ModelConfig, TaskConfig
from loralab.data.examples import get_preprocessor
from loralab.inference.generate import generate
from loralab.inference.greedy import greedy
from loralab.models.base import load_base

OTHERS = {
    "do_sample": True, "temperature": 0.6, "top_k": 3, "top_p": 0.5, "min_p": 0.2,
    "repetition_penalty": 1.9, "no_repeat_ngram_size": 1, "num_beams": 4,
    "min_new_tokens": 9, "suppress_tokens": [5, 6, 7], "length_penalty": 2.0,
}  # fmt: skip
PROMPTS = ["a short one", "and one that is a little longer than that"]


@pytest.fixture(params=["llama", "t5"])
def writer(request, tmp_path):
    """Return what loads a tiny model with what its folder says of writing."""
    folder = tiny(request.param, tmp_path)
    head = "causal-lm" if request.param == "llama" else "seq2seq-lm"

    def load(said):
        file = folder / "generation_config.json"
        kept = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps({**kept, **said}), encoding="utf-8")
        config = ModelConfig(path=str(folder), dtype="fp32", device="cpu")
        torch.manual_seed(0)
        base = load_base(config, head)
        task = get_preprocessor(TaskConfig(name=head))
        task.prepare(base.processor)
        return SimpleNamespace(model=base.model.eval(), base=base, task=task)

    return load


def written(adapter, temperature):
    torch.manual_seed(1)
    return generate(adapter, PROMPTS, 2, max_new_tokens=12, temperature=temperature)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_what_a_base_says_of_decoding_changes_no_answer(writer, temperature):
    plain = written(writer({}), temperature)
    assert written(writer(OTHERS), temperature) == plain


def test_greedy_is_the_likeliest_token_of_each_step(writer):
    adapter = writer(OTHERS)
    if adapter.model.config.is_encoder_decoder:
        pytest.skip("the loop below is a decoder's")
    ids = adapter.base.processor(PROMPTS[1])["input_ids"]
    wanted = list(ids)
    with torch.no_grad():
        for _ in range(8):
            logits = adapter.model(torch.tensor([wanted])).logits[0, -1]
            wanted.append(int(logits.argmax()))
    assert greedy(adapter, [ids], 8, stop=False)[0] == wanted[len(ids) :]
