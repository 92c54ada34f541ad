"""The engine onnx says what torch says with the weights that were stored."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from loralab.data.examples import Examples
from loralab.errors import AdapterError, ExportError, ModelError
from loralab.inference.engines._onnx_session import open_session
from loralab.inference.generate import encode, generate, stream
from loralab.inference.greedy import greedy
from loralab.inference.load import Loaded
from loralab.inference.predict import predict
from loralab.models.forward import HEADS
from loralab.models.numerics import Numerics
from loralab.quantization.onnx_decoder import whole
from loralab.quantization.onnx_graph import MODEL, load, values
from loralab.quantization.onnx_slots import write_adapter
from loralab.registry import get
from tests.onnx_models import decoder, encoder, opened, store
from tests.tiny import SENTENCES

TEXTS = [*SENTENCES[:3], "Snow.", "The old cat."]
ENCODERS = [
    ("BertForSequenceClassification", "sequence-classification", ("logits",)),
    ("RobertaForTokenClassification", "token-classification", ("logits",)),
    ("BertForQuestionAnswering", "question-answering", ("start_logits", "end_logits")),
    ("BertModel", "feature-extraction", ("last_hidden_state",)),
]


@pytest.fixture(scope="module")
def lms(tmp_path_factory):
    """A decoder, and format -> (folder, the torch model that holds what was stored)."""
    base, found = decoder(), {}
    for name, params in (
        ("onnx-fp32", {}),
        ("onnx-int4", {"accuracy_level": 0}),
    ):
        folder = tmp_path_factory.mktemp("lm") / name
        store(base, folder, name, **params)
        found[name] = folder, dequantized(base.model, folder)
    return base, found


def dequantized(model, folder):
    """Return a copy of a model with the values that a folder holds."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for name, matrix in values(folder):
            made.get_submodule(name).weight.copy_(matrix)
    return made


def batch(base, texts=TEXTS):
    return base.processor(texts, return_tensors="pt", padding=True)


@pytest.mark.parametrize(("cls", "head", "names"), ENCODERS)
@pytest.mark.parametrize("form", ["onnx-fp32", "onnx-int8"])
def test_an_encoder_says_what_torch_says(form, cls, head, names, tmp_path):
    base = encoder(cls, head)
    store(base, tmp_path / "to", form)
    engine, theirs = opened(tmp_path / "to"), batch(base)
    with torch.inference_mode():
        out, made = dequantized(base.model, tmp_path / "to")(**theirs), engine(**theirs)
    real = theirs["attention_mask"].bool()
    for name in names:
        want, have = out[name], getattr(made, name)
        if have.shape[:2] == real.shape:
            want, have = want[real], have[real]
        if form == "onnx-fp32":
            assert (want - have).abs().max() < 1e-4
        else:  # inputs and embeddings are of 8 bits too
            assert (want - have).norm() < 0.1 * want.norm()


@pytest.mark.parametrize(
    "cls", ["ViTForImageClassification", "Dinov2ForImageClassification"]
)
def test_a_vision_model_says_what_torch_says(cls, tmp_path):
    base = encoder(cls, "image-classification", image_size=28, patch_size=14)
    store(base, tmp_path / "to", "onnx-fp32")
    engine = opened(tmp_path / "to")
    for size in (28, 42, 14):
        draw = torch.Generator().manual_seed(0)
        pixels = torch.randn(3, 3, size, size, generator=draw)
        with torch.inference_mode():
            batch = {"pixel_values": pixels}
            want = HEADS[base.head].forward(base.model, batch, base.numerics)
        assert (want - engine(pixel_values=pixels).logits).abs().max() < 1e-4


@pytest.mark.parametrize("form", ["onnx-fp32", "onnx-int4"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_decoder_says_what_torch_says(form, side, lms):
    base, stored = lms
    folder, model = stored[form]
    given = base.processor(TEXTS, return_tensors="pt", padding=True, padding_side=side)
    real = given["attention_mask"].bool()
    with torch.inference_mode():
        want = [
            model(input_ids=ids[own][None]).logits[0]
            for ids, own in zip(given["input_ids"], real, strict=True)
        ]
        made = opened(folder)(**given, use_cache=False).logits
    assert (torch.cat(want) - made[real]).abs().max() < 1e-4
    assert not made[~real].any()


@pytest.mark.parametrize("form", ["onnx-fp32", "onnx-int4"])
def test_greedy_answers_are_torchs(form, lms):
    base, stored = lms
    folder, model = stored[form]
    eos = base.processor.eos_token_id
    prompts = base.processor(TEXTS)["input_ids"]
    prompts[1] = [*prompts[1][:-2], eos, eos]  # the pad token, and not padding
    steps = []
    engine = opened(folder)
    said = engine.greedy(prompts, 12, lambda: steps.append(1))
    for ids, answer in zip(prompts, said, strict=True):
        theirs = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=eos,
        )
        assert answer == theirs[0, len(ids) :].tolist()
    lengths = {len(ids) for ids in prompts}
    assert len(steps) <= 12 * len(lengths)
    assert all(len(a) == 12 for a in engine.greedy(prompts, 12, stop=False))


def examples(base, **extra):
    ids = base.processor(TEXTS)["input_ids"]
    return Examples(ids, ids, list(range(len(ids))), "next-token", **extra)


def test_the_end_of_an_answer_is_in_it_in_no_engine(tmp_path):
    base = decoder()
    (ids,) = base.processor(TEXTS[:1])["input_ids"]
    eos = base.processor.eos_token_id
    with torch.no_grad():  # the end is what the model would say first
        logits = base.model(torch.tensor([ids])).logits[0, -1]
        rows = base.model.get_input_embeddings().weight
        rows[eos] = 1.5 * rows[logits.argmax()]
    store(base, tmp_path / "to", "onnx-fp32")
    assert logits.max() > 0 and eos not in ids
    for model in (base.model, opened(tmp_path / "to")):
        assert greedy(Loaded(model, base, None), [ids], 5) == [[]]


@pytest.mark.parametrize("capacity", [None, 40])
def test_predict_packs_and_all(capacity, lms):
    base, stored = lms
    folder, model = stored["onnx-int4"]
    rows = examples(base, capacity=capacity)
    want = predict(model, base, rows, 2)
    made = predict(opened(folder), base, rows, 2)
    np.testing.assert_array_equal(made.labels, want.labels)
    np.testing.assert_allclose(made.nll, want.nll, rtol=1e-4)


def test_predict_with_a_probe(tmp_path):
    base = encoder("BertModel", "feature-extraction")
    store(base, tmp_path / "to", "onnx-fp32")
    ids = base.processor(TEXTS)["input_ids"]
    rows = Examples(ids, [0, 1, 2, 0, 1], list(range(5)))
    want = predict(base.model, base, rows, 2)
    made = predict(opened(tmp_path / "to"), base, rows, 2)
    np.testing.assert_allclose(made.nll, want.nll, rtol=1e-4)


def test_generate_and_stream_are_torchs(lms):
    base, stored = lms
    folder, model = stored["onnx-fp32"]
    ours = Loaded(opened(folder), base, None)
    theirs = Loaded(model, base, None)
    want = generate(theirs, TEXTS, 3, max_new_tokens=8)
    assert generate(ours, TEXTS, 3, max_new_tokens=8) == want
    told = "".join(stream(ours, TEXTS[0], max_new_tokens=8, temperature=0))
    assert told.strip() == want[0][0]


def test_a_row_of_a_batch_ends_alone(lms):
    _, stored = lms
    folder, model = stored["onnx-fp32"]
    ids = torch.arange(30).reshape(3, 10) + 5
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    free = model.generate(**given, max_new_tokens=8, do_sample=False, eos_token_id=1)
    stop = int(free[1, 12])
    assert stop not in free[0, 10:]
    ends = {"max_new_tokens": 8, "eos_token_id": stop, "pad_token_id": 299}
    want = model.generate(**given, do_sample=False, **ends)
    assert want[1, 13:].eq(299).all()
    assert torch.equal(opened(folder).generate(**given, **ends), want)


def test_samples_follow_torchs_seed(lms):
    base, stored = lms
    adapter = Loaded(opened(stored["onnx-fp32"][0]), base, None)

    def sampled(seed):
        torch.manual_seed(seed)
        inputs = encode(adapter, TEXTS[:2])
        return adapter.model.generate(
            **inputs,
            max_new_tokens=6,
            do_sample=True,
            temperature=2.0,
            num_return_sequences=3,
        )

    assert torch.equal(sampled(0), sampled(0))
    assert not torch.equal(sampled(0)[:, -6:], sampled(1)[:, -6:])
    assert len(sampled(0)) == 6


def test_it_says_what_computes(lms):
    _, stored = lms
    told = opened(stored["onnx-int4"][0]).describe()
    assert told["engine"] == "onnx"
    assert told["threads"] == torch.get_num_threads()
    assert told["kernel"] == "MatMulNBits 4 bits, block 32, fp32 inputs"
    assert "onnxruntime-genai" in told["version"]


def test_int8_inputs_stay_near(tmp_path):
    """Accuracy level 4 quantizes inputs to int8: near, and not the same."""
    base = decoder()
    store(base, tmp_path / "to", "onnx-int4", accuracy_level=4)
    model, ids = dequantized(base.model, tmp_path / "to"), torch.arange(40)[None] + 5
    with torch.inference_mode():
        want, made = model(ids).logits, opened(tmp_path / "to")(ids).logits
    assert 0 < (want - made).norm() < 0.05 * want.norm()


def test_another_device_is_refused(lms):
    _, stored = lms
    there = Numerics("cuda", "fp16", "a test")
    with pytest.raises(ModelError, match="runs on the CPU, not on cuda"):
        get("engine", "onnx").target(stored["onnx-fp32"][0], {}, there)


@pytest.mark.parametrize(("file", "left"), [(MODEL, 500), (f"{MODEL}.data", 500)])
def test_a_truncated_model_is_one_clear_error(file, left, tmp_path):
    store(decoder(), tmp_path / "to", "onnx-fp32")
    whole = (tmp_path / "to" / file).read_bytes()
    (tmp_path / "to" / file).write_bytes(whole[:left])
    with pytest.raises(ExportError, match=r"truncated|no \.onnx file"):
        opened(tmp_path / "to")


def test_a_decoder_without_its_configuration_is_one_clear_error(tmp_path):
    store(decoder(), tmp_path / "to", "onnx-fp32")
    (tmp_path / "to" / "genai_config.json").unlink()
    with pytest.raises(ExportError, match="genai_config"):
        opened(tmp_path / "to")


def test_the_output_layer_sees_what_a_hook_leaves(lms):
    base, stored = lms
    engine = opened(stored["onnx-fp32"][0])
    ids = torch.tensor([base.processor(TEXTS[0])["input_ids"]])
    whole = engine(ids).logits
    layer = engine.get_output_embeddings()
    assert isinstance(layer, nn.Module)
    handle = layer.register_forward_pre_hook(lambda _, args: (args[0][:, 2:3],))
    some = engine(ids).logits
    handle.remove()
    assert torch.equal(some, whole[:, 2:3])
    assert engine.config.vocab_size == whole.shape[-1]


def last_logits(folder, config, ids, graph=None):
    """Return how many positions have logits, and the last one's."""
    session = open_session(folder, 1, graph)
    size = config.hidden_size // config.num_attention_heads
    feed = {
        one.name: np.zeros((1, config.num_key_value_heads, 0, size), np.float32)
        for one in session.get_inputs()
        if one.name.startswith("past_key_values")
    }
    feed |= {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    (made,) = session.run(["logits"], feed)
    return made.shape[1], made[0, -1]


def test_what_is_stored_has_logits_of_the_last_position_only(lms):
    base, stored = lms
    folder = stored["onnx-fp32"][0]
    ids = np.array([base.processor(TEXTS[0])["input_ids"]])
    (one, last), (all_of_them, same) = (
        last_logits(folder, base.model.config, ids, graph)
        for graph in (None, whole(load(folder)))
    )
    assert (one, all_of_them) == (1, ids.shape[1])
    assert all_of_them > 1
    assert np.allclose(last, same, atol=1e-5)


def lora(base, names, rank=3):
    """Return A and s · B of some modules, drawn."""
    draw = torch.Generator().manual_seed(1)

    def factor(module):
        out, width = base.model.get_submodule(module).weight.shape
        a = torch.randn(rank, width, generator=draw) / width**0.5
        return a, torch.randn(out, rank, generator=draw) / 5

    return {name: factor(name) for name in names}


def adapted(model, factors):
    made = copy.deepcopy(model)
    with torch.no_grad():
        for name, (a, b) in factors.items():
            made.get_submodule(name).weight.add_(b @ a)
    return made


def test_adapters_beside_a_decoder_are_switched(tmp_path):
    base = decoder()
    store(base, tmp_path / "to", "onnx-int4", accuracy_level=0, slots=True)
    inside = base.facts.linear
    chosen = {
        "one": lora(base, [n for n in inside if n.endswith(("q_proj", "v_proj"))]),
        "all": lora(base, inside, rank=5),
    }
    for name, factors in chosen.items():
        write_adapter(factors, name, tmp_path / "to")
    plain, engine = dequantized(base.model, tmp_path / "to"), opened(tmp_path / "to")
    ids = torch.tensor([base.processor(TEXTS[0])["input_ids"]])
    said = []
    for name in (None, "one", "all", None):
        model = plain if name is None else adapted(plain, chosen[name])
        engine.set_adapter(name)
        with torch.inference_mode():
            want, made = model(ids).logits, engine(ids).logits
        assert (want - made).abs().max() < 1e-4, name
        theirs = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=1)
        answer = engine.greedy(ids.tolist(), 8)[0]
        assert answer == theirs[0, ids.shape[1] :].tolist(), name
        said.append(answer)
    assert said[0] == said[3]
    assert said[0] != said[2]
    with pytest.raises(AdapterError, match="no adapter 'oen'"):
        engine.set_adapter("oen")


@pytest.mark.parametrize("form", ["onnx-fp32", "onnx-int8"])
def test_adapters_beside_an_encoder_are_switched(form, tmp_path):
    base = encoder("BertForSequenceClassification", "sequence-classification")
    store(base, tmp_path / "to", form, slots=True)
    factors = lora(base, base.facts.linear)
    write_adapter(factors, "mine", tmp_path / "to")
    engine, given = opened(tmp_path / "to"), batch(base)
    plain = dequantized(base.model, tmp_path / "to")
    for name, model in ((None, plain), ("mine", adapted(plain, factors))):
        engine.set_adapter(name)
        with torch.inference_mode():
            want, made = model(**given).logits, engine(**given).logits
        if form == "onnx-fp32":
            assert (want - made).abs().max() < 1e-4
        else:
            assert (want - made).norm() < 0.1 * want.norm()


def test_an_adapter_without_room_is_refused(tmp_path):
    base = decoder()
    store(base, tmp_path / "to", "onnx-fp32")
    with pytest.raises(ExportError, match="no room for an adapter"):
        write_adapter(lora(base, base.facts.linear[:1]), "mine", tmp_path / "to")
