"""The formats onnx-fp32, -int4 and -int8: what they write is what they say."""

import copy

import numpy as np
import pytest
import torch
from tests.onnx_models import decoder, encoder, opened, store

from loralab.errors import ExportError, QuantizationError
from loralab.quantization.linear import AffineLinear
from loralab.quantization.onnx_decoder import linears
from loralab.quantization.onnx_graph import MODEL, Graph
from loralab.quantization.storage import Source
from loralab.registry import get

BIG = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
INT4 = [
    {},
    {"head": False},
    {"algorithm": "rtn", "block_size": 16, "symmetric": False},
    {"algorithm": "rtn", "block_size": 64},
    {"algorithm": "k_quant", "slots": True},
    {"head": False, "symmetric": False, "block_size": 64},
]
INT8 = [
    {},
    {"slots": True},
    {"per_channel": False, "embeddings": False},
    {"reduce_range": True},
]


def bert(**sizes):
    name = "BertForSequenceClassification"
    return encoder(name, "sequence-classification", num_labels=3, **sizes)


def agree(form, params, base, folder, stored):
    """Values read back are the rounded ones, bit for bit; return them."""
    found = dict(form.facts["values"](params, folder))
    assert sorted(found) == sorted(stored.quantized)
    for name, values in found.items():
        weight = linears(base.model)[name].weight.detach()
        assert torch.equal(values, form.facts["rounded"](params, weight)), name
        assert not torch.equal(values, weight)
    return found


@pytest.mark.parametrize("params", INT4, ids=str)
def test_int4_holds_the_rounded_matrices(params, tmp_path):
    base = decoder(num_key_value_heads=2, **BIG)
    made = store(base, tmp_path / "to", "onnx-int4", **params)
    found = agree(*made[:2], base, tmp_path / "to", made[2])
    head = {"lm_head"} if params.get("head", True) else set()
    assert set(found) == {*base.facts.linear} | head
    predicted = made[0].facts["predict"](made[1], base.model, base.facts.linear)
    assert predicted == pytest.approx(made[2].bytes, rel=0.01)


def test_int4_holds_real_zeros(tmp_path):
    base = decoder(num_key_value_heads=2, **BIG)
    form, params, stored = store(base, tmp_path / "to", "onnx-int4", algorithm="affine")
    found = dict(form.facts["values"](params, tmp_path / "to"))
    for name in base.facts.linear:
        weight = base.model.get_submodule(name).weight
        wanted = form.facts["rounded"](params, weight)
        torch.testing.assert_close(found[name], wanted, rtol=0, atol=1e-6)
        symmetric = form.facts["rounded"](form.schema(), weight)
        assert (weight - wanted).norm() < (weight - symmetric).norm()
    predicted = form.facts["predict"](params, base.model, base.facts.linear)
    assert predicted == pytest.approx(stored.bytes, rel=0.01)


@pytest.mark.parametrize("params", INT8, ids=str)
def test_int8_holds_the_rounded_matrices(params, tmp_path):
    base = bert()
    made = store(base, tmp_path / "to", "onnx-int8", **params)
    found = agree(*made[:2], base, tmp_path / "to", made[2])
    assert set(found) == set(base.facts.linear)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["onnx-fp32", "onnx-int4"])
def test_the_bytes_of_a_decoder_are_foretold(name, tied, tmp_path):
    base = decoder(tied, num_key_value_heads=2, **BIG)
    form, params, stored = store(base, tmp_path / "to", name)
    with torch.device("meta"):
        empty = type(base.model)(base.model.config)
    predicted = form.facts["predict"](params, empty, base.facts.linear)
    assert predicted == pytest.approx(stored.bytes, rel=0.01)
    assert stored.bytes == sum(
        (tmp_path / "to" / file).stat().st_size for file in stored.files
    )


@pytest.mark.parametrize("name", ["onnx-fp32", "onnx-int8"])
@pytest.mark.parametrize(
    ("cls", "head"),
    [
        ("BertForSequenceClassification", "sequence-classification"),
        ("ViTForImageClassification", "image-classification"),
        ("BertModel", "feature-extraction"),
    ],
)
def test_the_bytes_of_an_encoder_are_foretold(name, cls, head, tmp_path):
    sizes = {**BIG, "hidden_size": 384, "intermediate_size": 1536}
    if cls == "BertModel":
        sizes |= {"hidden_size": 96, "vocab_size": 30_000}
    base = encoder(cls, head, **sizes)
    form, params, stored = store(base, tmp_path / "to", name)
    predicted = form.facts["predict"](params, base.model, base.facts.linear)
    assert predicted == pytest.approx(stored.bytes, rel=0.01)


def test_float_matrices_are_the_models_own(tmp_path):
    base = decoder()
    *_, stored = store(base, tmp_path / "to", "onnx-fp32")
    graph = Graph(tmp_path / "to")
    assert stored.quantized == graph.quantized() == ()
    for name, module in linears(base.model).items():
        assert torch.equal(graph.matrix(name), module.weight), name


def test_only_the_named_modules_are_quantized(tmp_path):
    base = decoder()
    source = Source(
        base.model,
        base.processor,
        base.head,
        ["model.layers.1.mlp.up_proj", "model.layers.0.self_attn.q_proj"],
    )
    form = get("storage format", "onnx-int4")
    (tmp_path / "to").mkdir()
    stored = form.target(
        form.schema(head=False), source, tmp_path / "to", print_nothing
    )
    assert set(stored.quantized) == set(source.names)
    key = linears(base.model)["model.layers.0.self_attn.k_proj"].weight
    graph = Graph(tmp_path / "to")
    assert torch.equal(graph.matrix("model.layers.0.self_attn.k_proj"), key)


def print_nothing(*_):
    pass


def qa_lora_merged(base, group=32):
    """Put a model's linear modules on affine codes, with real zeros that have moved."""
    draw = torch.Generator().manual_seed(0)
    for name in base.facts.linear:
        module = AffineLinear.from_linear(base.model.get_submodule(name), 4, group)
        module.zeros += torch.randn(module.zeros.shape, generator=draw) / 3
        base.model.set_submodule(name, module)
    return base


def test_affine_codes_are_kept_bit_for_bit_with_their_real_zeros(tmp_path):
    base = qa_lora_merged(decoder(num_key_value_heads=2, **BIG))
    form, params, stored = store(base, tmp_path / "to", "onnx-int4", accuracy_level=0)
    graph = Graph(tmp_path / "to")
    for name in base.facts.linear:
        module = base.model.get_submodule(name)
        torch.testing.assert_close(graph.matrix(name), module.weight, atol=1e-6, rtol=0)
        ((node, first, last),) = graph.pieces[name]
        codes = graph.array(graph.node(node).input[1])[first:last]
        assert np.array_equal(codes.reshape(last - first, -1), module.codes.numpy())
    predicted = form.facts["predict"](params, base.model, base.facts.linear)
    assert predicted == pytest.approx(stored.bytes, rel=0.01)
    ids = torch.arange(30)[None] + 5
    made = opened(tmp_path / "to")(ids).logits
    head = dict(form.facts["values"](params, tmp_path / "to"))["lm_head"]
    base.model.get_input_embeddings().weight.data = head
    base.model.tie_weights()
    with torch.inference_mode():
        want = base.model(ids).logits
    assert (want - made).abs().max() < 1e-4


@pytest.mark.parametrize("params", [{"block_size": 16}, {"algorithm": "k_quant"}])
def test_affine_codes_of_another_form_are_refused(params, tmp_path):
    with pytest.raises(QuantizationError, match="groups of 32 do not fit"):
        store(qa_lora_merged(decoder()), tmp_path / "to", "onnx-int4", **params)


@pytest.mark.parametrize("name", ["onnx-fp32", "onnx-int8"])
def test_other_formats_take_the_values_of_affine_codes(name, tmp_path):
    base = qa_lora_merged(bert()) if name == "onnx-int8" else qa_lora_merged(decoder())
    made = store(base, tmp_path / "to", name)
    if name == "onnx-int8":
        agree(*made[:2], base, tmp_path / "to", made[2])
    graph = Graph(tmp_path / "to")
    for module in base.facts.linear if name == "onnx-fp32" else ():
        own = base.model.get_submodule(module).weight
        assert torch.equal(graph.matrix(module), own)


def test_the_model_is_not_changed(tmp_path):
    base = bert()
    base.model.to(torch.bfloat16).train()
    before = copy.deepcopy(base.model.state_dict())
    store(base, tmp_path / "to", "onnx-int8")
    assert base.model.training
    after = base.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert after["classifier.weight"].dtype == torch.bfloat16


def test_a_module_that_stays_in_float_is_an_error(tmp_path):
    base = bert()
    store(base, tmp_path / "to", "onnx-fp32")
    with pytest.raises(QuantizationError, match="12 of 12 modules were not quantized"):
        Graph(tmp_path / "to").require([n for n in base.facts.linear if "layer." in n])


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"symmetric": False}, "tied cannot share zeros"),
        ({"algorithm": "rtn", "symmetric": False}, "odd number of blocks"),
    ],
)
def test_what_the_builder_would_write_wrongly_is_refused(params, says, tmp_path):
    with pytest.raises(QuantizationError, match=says):
        store(decoder(), tmp_path / "to", "onnx-int4", **params)


def test_heads_that_the_runtime_refuses_are_refused_first(tmp_path):
    with pytest.raises(QuantizationError, match="heads of 8 features"):
        store(decoder(head_dim=8), tmp_path / "to", "onnx-fp32")


@pytest.mark.parametrize("name", ["onnx-fp32", "onnx-int8"])
def test_a_truncated_graph_is_one_clear_error(name, tmp_path):
    store(bert(), tmp_path / "to", name)
    file = tmp_path / "to" / MODEL
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ExportError, match=r"no \.onnx file"):
        Graph(tmp_path / "to")
    file.unlink()
    with pytest.raises(ExportError, match="no such file"):
        Graph(tmp_path / "to")


def test_truncated_weights_are_one_clear_error(tmp_path):
    store(decoder(), tmp_path / "to", "onnx-fp32")
    file = tmp_path / "to" / f"{MODEL}.data"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ExportError, match="weights are truncated"):
        Graph(tmp_path / "to")
    file.unlink()
    with pytest.raises(ExportError, match="weights are missing"):
        Graph(tmp_path / "to")
