"""The storage formats of the torch engine: what they write is what they said."""

import json
import sys

import pytest
import torch
from safetensors import safe_open
from tests.tiny import tiny
from tests.vision import KINDS, SIDE, save

from loralab import registry
from loralab.config import ModelConfig
from loralab.errors import ConfigError, QuantizationError
from loralab.inference.engines.torch import open_model
from loralab.models.base import load_base
from loralab.models.empty import empty_base
from loralab.models.numerics import Numerics, seed_everything
from loralab.models.quiet import quiet_libraries
from loralab.quantization.linear import float_matrices
from loralab.quantization.storage import Source

GROUP = {"group": 16}
PARAMS = {
    "nf4": {"compute": "fp32"}, "nf4-dq": {"compute": "fp32"}, "int8": {},
    "affine-int4": GROUP, "affine-int8": GROUP,
}  # fmt: skip
BITS = {"nf4": 4, "nf4-dq": 4, "int8": 8, "affine-int4": 4, "affine-int8": 8}
CODES = {"nf4": "weight", "nf4-dq": "weight", "int8": "weight"}
CPU = Numerics("cpu", "fp32", "test")
IDS = torch.arange(5, 29).view(2, 12)
PIXELS = torch.arange(2 * 3 * SIDE * SIDE).view(2, 3, SIDE, SIDE).sin()
HEADS = {
    "llama": ("causal-lm", ()),
    "gpt2": ("causal-lm", ()),
    "qwen2": ("causal-lm", ()),
    "bert": ("sequence-classification", ("a", "b")),
    "deberta-v2": ("token-classification", ("O", "B-X")),
    "vit": ("image-classification", ("a", "b")),
    "clip": ("zero-shot-image-classification", {"a": ["an a."], "b": ["a b."]}),
}


WIDE = {"hidden_size": 64, "intermediate_size": 128}  # NF4 on a CPU asks for that
SIZES = {
    "llama": {**WIDE, "head_dim": 16}, "gpt2": {"hidden_size": 64, "n_inner": 128},
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    return {
        kind: (save if kind in KINDS else tiny)(
            kind, root / kind, **SIZES.get(kind, WIDE)
        )
        for kind in HEADS
    }


def base_of(kind, folders, head=None, dtype="fp32"):
    seed_everything(0)
    wanted, labels = HEADS[kind]
    config = ModelConfig(path=str(folders[kind]), dtype=dtype, device="cpu")
    return load_base(config, head or wanted, labels or ("a", "b"))


def store(base, name, folder, **params):
    """Return the params, what was written, and the registered format."""
    entry = registry.get("storage format", name)
    made = entry.schema(**{"rest": "fp32", **PARAMS[name], **params})
    folder.mkdir(parents=True)
    source = Source(base.model, base.processor, base.head, base.facts.linear)
    return made, entry.target(made, source, folder, lambda *_: None), entry


def note_of(name, params, head):
    return {"storage": {"name": name, "params": params.model_dump()}, "head": head}


def logits(model):
    with torch.no_grad():
        if model.main_input_name == "pixel_values":
            out = model(pixel_values=PIXELS)
        else:
            out = model(input_ids=IDS)
    return next(
        getattr(out, name)
        for name in ("logits", "image_embeds", "last_hidden_state")
        if hasattr(out, name)
    )


def with_values(base, held):
    """Put stored values into the float model."""
    for name, value in held.items():
        module = base.model.get_submodule(name)
        turned = type(module).__name__ == "Conv1D"
        module.weight.data = value.T if turned else value
    return base.model


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("kind", HEADS)
def test_a_stored_model_is_what_it_was_said_to_be(kind, name, folders, tmp_path):
    base = base_of(kind, folders)
    before = {n: t.clone() for n, t in base.model.state_dict().items()}
    params, stored, entry = store(base, name, tmp_path / "it")
    config = ModelConfig(path=str(folders[kind]), dtype="fp32", device="cpu")
    empty = empty_base(config, base.head, HEADS[kind][1])
    said = entry.facts["predict"](params, empty.model, empty.facts.linear)
    files = {f.name: f.stat().st_size for f in (tmp_path / "it").glob("*.safetensors")}
    assert said == stored.bytes == sum(files.values())
    assert stored.files == files
    held = dict(entry.facts["values"](params, tmp_path / "it"))
    assert set(held) == set(stored.quantized) == set(base.facts.linear)
    for module, weight in float_matrices(base.model, base.facts.linear).items():
        assert held[module].dtype == torch.float32
        assert torch.equal(held[module], entry.facts["rounded"](params, weight))
        assert 0 < (held[module] - weight).norm() / weight.norm() < 0.12
    after = base.model.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items())
    model = open_model(tmp_path / "it", note_of(name, params, base.head), CPU)
    found, wanted = logits(model), logits(with_values(base, held))
    if name == "int8":  # it rounds inputs to 8 bits too
        assert 0 < (found - wanted).norm() < 0.1 * wanted.norm()
    else:
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "clip"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_bytes_of_a_float_model_are_foretold(kind, dtype, folders, tmp_path):
    base = base_of(kind, folders)
    entry = registry.get("storage format", "safetensors")
    params = entry.schema(dtype=dtype)
    source = Source(base.model, base.processor, base.head, base.facts.linear)
    stored = entry.target(params, source, tmp_path, lambda *_: None)
    said = entry.facts["predict"](params, base.model, base.facts.linear)
    assert said == stored.bytes == (tmp_path / "model.safetensors").stat().st_size


@pytest.mark.parametrize("name", PARAMS)
def test_codes_take_their_bits_and_the_rest_its_dtype(name, folders, tmp_path):
    base = base_of("llama", folders)
    store(base, name, tmp_path / "it", rest="fp16")
    written = next((tmp_path / "it").glob("*.safetensors"))
    with safe_open(written, framework="pt") as file:
        for module, weight in float_matrices(base.model, base.facts.linear).items():
            codes = file.get_tensor(f"{module}.{CODES.get(name, 'codes')}")
            assert codes.dtype in (torch.uint8, torch.int8)
            assert 8 * codes.nbytes == BITS[name] * weight.numel()
        for rest in ("lm_head", "model.embed_tokens", "model.norm"):
            assert file.get_tensor(f"{rest}.weight").dtype == torch.float16


@pytest.mark.parametrize("name", ["nf4", "nf4-dq", "int8"])
def test_transformers_alone_opens_it_as_it_would_have_quantized_it(
    name, folders, tmp_path
):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    base = base_of("llama", folders)
    params, _, _ = store(base, name, tmp_path / "it")
    asked = {"load_in_8bit": True} if name == "int8" else {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": name == "nf4-dq",
        "bnb_4bit_compute_dtype": torch.float32,
    }  # fmt: skip
    with quiet_libraries():
        kwargs = {"dtype": torch.float32, "device_map": {"": "cpu"}}
        opened = AutoModelForCausalLM.from_pretrained(tmp_path / "it", **kwargs)
        quantized = AutoModelForCausalLM.from_pretrained(
            folders["llama"], quantization_config=BitsAndBytesConfig(**asked), **kwargs
        )
    ours = open_model(tmp_path / "it", note_of(name, params, "causal-lm"), CPU)
    assert torch.equal(logits(opened.train()), logits(quantized.train()))
    assert torch.equal(logits(opened.train()), logits(ours.train()))
    assert opened.config.use_cache


def test_transformers_does_not_open_affine_codes_with_random_weights(folders, tmp_path):
    from transformers import AutoModelForCausalLM

    store(base_of("llama", folders), "affine-int4", tmp_path / "it")
    with pytest.raises(OSError, match="no file named model"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "it")


def test_a_probe_comes_back(folders, tmp_path):
    base = base_of("bert", folders, head="feature-extraction")
    for name in ("nf4", "affine-int4"):
        params, _, _ = store(base, name, tmp_path / name)
        model = open_model(tmp_path / name, note_of(name, params, base.head), CPU)
        assert torch.equal(model.probe.weight, base.model.probe.weight)
        assert model.pooler is None


def test_tied_weights_are_stored_once(folders, tmp_path):
    base = base_of("qwen2", folders)
    assert base.facts.tied
    store(base, "nf4", tmp_path / "it")
    with safe_open(tmp_path / "it" / "model.safetensors", framework="pt") as file:
        assert "model.embed_tokens.weight" in file.keys()  # noqa: SIM118
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118


@pytest.mark.parametrize("name", ["nf4", "affine-int4"])
def test_a_truncated_file_is_one_clear_error(name, folders, tmp_path):
    params, _, entry = store(base_of("llama", folders), name, tmp_path / "it")
    file = next((tmp_path / "it").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(QuantizationError, match="not a whole safetensors file"):
        open_model(tmp_path / "it", note_of(name, params, "causal-lm"), CPU)
    with pytest.raises(QuantizationError, match="not a whole safetensors file"):
        dict(entry.facts["values"](params, tmp_path / "it"))
    file.unlink()
    with pytest.raises(QuantizationError, match="not a whole safetensors file"):
        open_model(tmp_path / "it", note_of(name, params, "causal-lm"), CPU)


def test_a_file_of_another_format_is_refused(folders, tmp_path):
    store(base_of("llama", folders), "nf4-dq", tmp_path / "it")
    entry = registry.get("storage format", "nf4")
    config = json.loads((tmp_path / "it" / "config.json").read_text())
    config["quantization_config"]["llm_int8_skip_modules"] = ["model"]
    (tmp_path / "it" / "config.json").write_text(json.dumps(config))
    note = note_of("nf4", entry.schema(), "causal-lm")
    with pytest.raises((QuantizationError, RuntimeError)):
        open_model(tmp_path / "it", note, CPU)


@pytest.mark.parametrize("name", PARAMS)
def test_what_cannot_be_held_is_refused(name, folders, tmp_path):
    base = base_of("llama", folders)
    own = base.model.model.layers[1].mlp.up_proj.weight.data
    own[3, 4] = float("nan")
    with pytest.raises(QuantizationError, match=r"layers\.1\.mlp\.up_proj.*NaN"):
        store(base, name, tmp_path / "nan")
    own[3, 4] = 0.0
    base.model.lm_head.weight.data[0, 0] = 1e5
    with pytest.raises(QuantizationError, match=r"lm_head.*float16"):
        store(base, name, tmp_path / "large", rest="fp16")


def test_a_group_must_divide_the_inputs(folders, tmp_path):
    with pytest.raises(QuantizationError, match="no multiple of the group 48"):
        store(base_of("llama", folders), "affine-int4", tmp_path / "it", group=48)


@pytest.mark.parametrize("name", ["nf4", "nf4-dq"])
def test_what_bitsandbytes_dequantizes_wrongly_on_a_cpu_is_refused(name, tmp_path):
    """In blocks of 64 that run on from row to row; the stored codes are right."""
    folder = tiny("llama", tmp_path / "m")  # 32 inputs a row
    base = load_base(ModelConfig(path=str(folder), dtype="fp32"), "causal-lm")
    params, _, entry = store(base, name, tmp_path / "it")
    held = dict(entry.facts["values"](params, tmp_path / "it"))
    for module, weight in float_matrices(base.model, base.facts.linear).items():
        assert (held[module] - weight).norm() / weight.norm() < 0.12
    with pytest.raises(QuantizationError, match="32 is no multiple of 64"):
        open_model(tmp_path / "it", note_of(name, params, "causal-lm"), CPU)
    for load in (load_base, empty_base):
        config = ModelConfig(path=str(folder), storage=name, device="cpu")
        with pytest.raises(QuantizationError, match="32 is no multiple of 64"):
            load(config, "causal-lm")


@pytest.mark.parametrize("name", ["nf4", "nf4-dq", "int8"])
def test_without_bitsandbytes_the_extra_is_named(name, folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(QuantizationError, match=r"loralab\[bitsandbytes\]"):
        store(base_of("llama", folders), name, tmp_path / "it")


def test_only_formats_that_are_trained_on_are_taken():
    assert ModelConfig(path="./x", storage="nf4_dq").storage.name == "nf4-dq"
    with pytest.raises(ConfigError, match="no storage format"):
        registry.get("storage format", "nf5")
    with pytest.raises(ValueError, match="no storage format 'nf5'"):
        ModelConfig(path="./x", storage="nf5")


def test_a_format_that_is_only_written_is_no_base(monkeypatch):
    own = {"engine": "torch", "heads": ()}
    entry = registry.Entry("gguf-like", None, registry.Params, own, __name__)
    monkeypatch.setitem(registry._entries, ("storage format", "gguf-like"), entry)
    with pytest.raises(ValueError, match="gguf-like is not trained on; choose from"):
        ModelConfig(path="./x", storage="gguf-like")
