"""A base with an adapter in its weights: what PEFT's merge gives, shard by shard."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.merging import dense, drawn_factors
from tests.unit.test_stream import limited
from torch import nn

from loralab.errors import AdapterError, ExportError
from loralab.lowrank.files import AdapterFolder
from loralab.merging.export.bake import RECORD, add, bake
from loralab.merging.export.export import export
from loralab.merging.merge import merged_layers
from loralab.merging.method import method
from loralab.models.quiet import quiet_libraries

SMALL = {"vocab_size": 40, "max_position_embeddings": 16, "num_hidden_layers": 2}


def llama(**options):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**SMALL, **sizes, **options))


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, **sizes))


def vit_config():
    from transformers import ViTConfig

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return ViTConfig(num_hidden_layers=1, image_size=8, patch_size=4, **sizes)


def vit():
    from transformers import ViTForImageClassification

    return ViTForImageClassification(vit_config())


def captions():
    """Return a ViT before a GPT-2, whose configurations are inside another."""
    from transformers import VisionEncoderDecoderConfig, VisionEncoderDecoderModel

    parts = (vit_config(), gpt2().config)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    return VisionEncoderDecoderModel(config)


def neo_before_gpt2():
    """Return two models with layers of the same name, Conv1D in the second alone."""
    from transformers import EncoderDecoderConfig, EncoderDecoderModel, GPTNeoConfig

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    neo = GPTNeoConfig(
        vocab_size=50, num_layers=1, attention_types=[[["global"], 1]], **sizes
    )
    config = EncoderDecoderConfig.from_encoder_decoder_configs(neo, gpt2().config)
    return EncoderDecoderModel(config)


CASES = {
    "sharded": (lambda: llama(tie_word_embeddings=False), ["q_proj", "down_proj"]),
    "embeddings": (
        lambda: llama(tie_word_embeddings=False),
        ["embed_tokens", "lm_head", "v_proj"],
    ),
    "Conv1D, square ones too": (gpt2, ["c_attn", "c_proj"]),
    "Conv1D in a composite model": (captions, ["c_attn", "c_proj", "q_attn"]),
    "Conv1D in one part of it": (neo_before_gpt2, ["c_fc", "c_proj"]),
    "a convolution": (vit, ["projection", "classifier"]),
}


def made(folder, build, targets, dtype=torch.float32, seed=0, **options):
    """Write a base in shards and an adapter of it; return the adapter on the base."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    with quiet_libraries():
        model = build().to(dtype)
        model.save_pretrained(folder / "base", max_shard_size="6KB")
        config = LoraConfig(r=3, lora_alpha=4, target_modules=targets, **options)
        model = get_peft_model(model, config)
        torch.manual_seed(seed + 1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return model


@pytest.mark.parametrize("case", CASES)
def test_baked_weights_are_those_of_pefts_merge(case, tmp_path):
    build, targets = CASES[case]
    model = made(tmp_path, build, targets)
    adapter = AdapterFolder.open(tmp_path / "adapter")
    found = bake(tmp_path / "base", adapter, tmp_path / "out")
    with quiet_libraries():
        merged = model.merge_and_unload()
        again = type(merged).from_pretrained(tmp_path / "out")
        before = type(merged).from_pretrained(tmp_path / "base")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    expected, old = merged.state_dict(), before.state_dict()
    changed = {f"{module}.weight" for module in adapter.modules}
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(tensor, old[name]) == (name not in changed)
    assert {weight.module for weight in found.weights} == set(adapter.modules)
    assert 0 < found.relative_rounding < 1e-6 and not found.warnings
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["adapter"]["digest"] == adapter.digest
    assert (tmp_path / "out" / "config.json").read_bytes() == (
        tmp_path / "base" / "config.json"
    ).read_bytes()


def test_a_checkpoint_may_leave_out_the_name_of_the_body(tmp_path):
    made(tmp_path, gpt2, ["c_attn"])
    (tmp_path / "short").mkdir()
    shutil.copyfile(tmp_path / "base" / "config.json", tmp_path / "short/config.json")
    tensors = {}
    for file in (tmp_path / "base").glob("*.safetensors"):
        tensors |= load_file(file)
    short = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    save_file(short, tmp_path / "short" / "model.safetensors")
    adapter = AdapterFolder.open(tmp_path / "adapter")
    bake(tmp_path / "base", adapter, tmp_path / "one")
    bake(tmp_path / "short", adapter, tmp_path / "two")
    one = {}
    for file in (tmp_path / "one").glob("*.safetensors"):
        one |= load_file(file)
    two = load_file(tmp_path / "two" / "model.safetensors")
    assert all(torch.equal(one[f"transformer.{name}"], t) for name, t in two.items())


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.booleans(),
)
def test_rows_add_up_to_the_whole_and_rounding_is_measured(out, into, dtype, flip):
    factors = drawn_factors((out, into), 3, out * 50 + into)
    ΔW = dense(factors).T if flip else dense(factors)
    W = torch.randn(ΔW.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = W.double().clone()
    update, lost = add(W, factors, transposed=flip)
    assert W.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        W.double(),
        before + ΔW,
        rtol=eps,
        atol=4 * max(eps, 1e-7) * float(ΔW.abs().max()),
    )
    assert update == pytest.approx(ΔW.norm().item(), rel=1e-5)
    real = (W.double() - before - ΔW).norm().item()
    assert lost == pytest.approx(real, rel=1e-3, abs=1e-5 * update)


def test_many_blocks_of_rows_are_one_update(monkeypatch):
    monkeypatch.setattr("loralab.merging.export.bake.BLOCK", 40)
    factors = drawn_factors((50, 20), 2, 0)  # two rows at a time
    W = torch.zeros(factors.shape, dtype=torch.float64)
    update, _ = add(W, factors)
    torch.testing.assert_close(W, dense(factors))
    assert update == pytest.approx(W.norm().item())


@pytest.mark.parametrize("norm", ["none", "mean"])
def test_a_merged_adapter_beside_the_base_and_in_it_answers_alike(norm, tmp_path):
    from peft import PeftModel

    for number in range(2):
        made(tmp_path / str(number), gpt2, ["c_attn", "c_fc", "wpe"], seed=number)
    adapters = [AdapterFolder.open(tmp_path / n / "adapter", n) for n in "01"]
    rule, base = method("average", norm=norm), tmp_path / "0" / "base"
    export(tmp_path / "m", merged_layers(rule, adapters), adapters, rule)
    bake(base, AdapterFolder.open(tmp_path / "m"), tmp_path / "baked")
    ids = torch.arange(12)[None]
    with quiet_libraries(), torch.no_grad():
        kind = type(gpt2())
        plain = kind.from_pretrained(base).eval()(ids).logits
        inside = kind.from_pretrained(tmp_path / "baked").eval()(ids).logits
        beside = PeftModel.from_pretrained(kind.from_pretrained(base), tmp_path / "m")
        torch.testing.assert_close(beside.eval()(ids).logits, inside)
    assert not torch.allclose(inside, plain)


def test_a_bf16_base_keeps_its_dtype_and_tells_what_it_swallowed(tmp_path, caplog):
    made(tmp_path, lambda: llama(tie_word_embeddings=False), ["q_proj"], torch.bfloat16)
    config = tmp_path / "adapter" / "adapter_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "lora_alpha": 1e-4}))
    adapter = AdapterFolder.open(tmp_path / "adapter")
    found = bake(tmp_path / "base", adapter, tmp_path / "out")
    assert found.relative_rounding > 0.5
    (warning,) = found.warnings
    assert "lost" in warning and warning in caplog.text
    for file in (tmp_path / "out").glob("*.safetensors"):
        assert {t.dtype for t in load_file(file).values()} == {torch.bfloat16}


def test_a_head_that_fits_is_taken_and_one_without_place_is_told(tmp_path):
    model = made(tmp_path, vit, ["q_proj"], modules_to_save=["classifier"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.classifier.weight"
    tensors[name] = tensors[name] + 1
    tensors["base_model.model.other.weight"] = torch.ones(2)
    save_file(tensors, file)
    adapter = AdapterFolder.open(tmp_path / "adapter")
    with pytest.raises(ExportError, match="no weight of vit") as caught:
        bake(tmp_path / "base", adapter, tmp_path / "out")
    assert "otherwise" in caught.value.why  # transformers renames it when it loads
    stored = "vit.encoder.layer.0.attention.attention.query.weight"
    names = dict.fromkeys(adapter.modules, stored)
    found = bake(tmp_path / "base", adapter, tmp_path / "out", names)
    assert [weight.tensor for weight in found.weights] == [stored]
    assert set(found.replaced) == {"classifier.weight", "classifier.bias"}
    assert found.left == ("base_model.model.other.weight",)
    assert "no place for 1" in found.warnings[0]
    with quiet_libraries():
        again = type(model.base_model.model).from_pretrained(tmp_path / "out")
    assert torch.equal(again.classifier.weight, tensors[name])


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (torch.nan, AdapterError, "holds NaN"),
        (1e5, ExportError, "is not finite in torch.float16"),
    ],
)
def test_a_head_that_is_not_finite_is_refused(value, kind, said, tmp_path):
    made(tmp_path, vit, ["q_proj"], torch.float16, modules_to_save=["classifier"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    tensors["base_model.model.classifier.weight"][0, 0] = value
    save_file(tensors, file)
    adapter = AdapterFolder.open(tmp_path / "adapter")
    stored = "vit.encoder.layer.0.attention.attention.query.weight"
    names = dict.fromkeys(adapter.modules, stored)
    with pytest.raises(kind, match=said):
        bake(tmp_path / "base", adapter, tmp_path / "out", names)
    assert not (tmp_path / "out").exists()


def test_what_holds_the_old_weights_is_not_copied(tmp_path):
    made(tmp_path, gpt2, ["c_attn"])
    for name in ("pytorch_model.bin", "model.gguf", "tokenizer.json"):
        (tmp_path / "base" / name).write_text("x")
    adapter = AdapterFolder.open(tmp_path / "adapter")
    found = bake(tmp_path / "base", adapter, tmp_path / "out")
    assert found.left_out == ("model.gguf", "pytorch_model.bin")
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()


def config_of(base, **changes):
    content = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**content, **changes}))


def one_shard(base):
    return sorted(base.glob("*.safetensors"))[0]


def retensor(base, change):
    for file in base.glob("*.safetensors"):
        save_file(change(load_file(file)), file)


def as_pickle(base):
    for file in base.glob("model*"):
        file.unlink()
    (base / "pytorch_model.bin").write_bytes(b"\x80")


BREAK = {
    "quantized": (
        lambda b: config_of(b, quantization_config={"quant_method": "gptq"}),
        ExportError,
        r"quantized \(gptq\)",
    ),
    "codes": (
        lambda b: retensor(b, lambda t: {k: v.to(torch.int8) for k, v in t.items()}),
        ExportError,
        "stored as torch.int8",
    ),
    "a pickle": (as_pickle, ExportError, r"no model\.safetensors"),
    "a truncated shard": (
        lambda b: one_shard(b).write_bytes(one_shard(b).read_bytes()[:-9]),
        AdapterError,
        "not safetensors",
    ),
    "a missing shard": (
        lambda b: one_shard(b).unlink(),
        AdapterError,
        "not there",
    ),
    "another width": (
        lambda b: retensor(
            b,
            lambda t: {
                k: v[:-1].clone() if k.endswith("c_attn.weight") else v
                for k, v in t.items()
            },
        ),
        ExportError,
        r"is \[15, 48\]",
    ),
    "other names": (
        lambda b: retensor(
            b, lambda t: {k.replace("c_attn", "qkv"): v for k, v in t.items()}
        ),
        ExportError,
        "no weight of transformer.h.0.attn.c_attn",
    ),
    "NaN": (
        lambda b: retensor(b, lambda t: {k: v * torch.nan for k, v in t.items()}),
        ExportError,
        "is not finite",
    ),
    "no configuration": (
        lambda b: (b / "config.json").unlink(),
        ExportError,
        "cannot be read",
    ),
}


@pytest.mark.parametrize("how", BREAK)
def test_a_base_that_cannot_take_the_update_is_refused(how, tmp_path):
    made(tmp_path, gpt2, ["c_attn"])
    adapter = AdapterFolder.open(tmp_path / "adapter")
    damage, kind, said = BREAK[how]
    damage(tmp_path / "base")
    with pytest.raises(kind, match=said):
        bake(tmp_path / "base", adapter, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]


@pytest.mark.parametrize(
    ("build", "target"),
    [
        (gpt2, "wte"),
        (lambda: llama(tie_word_embeddings=True), "embed_tokens"),
        (captions, "wte"),
    ],
    ids=["unsaid", "said", "said of a part"],
)
def test_a_tied_weight_is_refused(build, target, tmp_path):
    made(tmp_path, build, [target])
    adapter = AdapterFolder.open(tmp_path / "adapter")
    with pytest.raises(ExportError, match=f"{target} shares its weight"):
        bake(tmp_path / "base", adapter, tmp_path / "out")


@pytest.mark.parametrize("nested", [False, True])
def test_a_tied_weight_is_known_where_the_vocabulary_is_the_default(nested, tmp_path):
    build = (lambda: llama(tie_word_embeddings=True)) if nested else gpt2
    made(tmp_path, build, ["embed_tokens" if nested else "wte"])
    file = tmp_path / "base" / "config.json"
    content = json.loads(file.read_text())
    del content["vocab_size"], content["tie_word_embeddings"]
    made_for = {"architectures": ["Gemma3ForConditionalGeneration"]}
    whole = {**made_for, "text_config": content} if nested else content
    file.write_text(json.dumps(whole))
    adapter = AdapterFolder.open(tmp_path / "adapter")
    with pytest.raises(ExportError, match="shares its weight"):
        bake(tmp_path / "base", adapter, tmp_path / "out")


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_weight_that_was_saved_in_full_is_refused(tied, tmp_path):
    saved = {"modules_to_save": ["embed_tokens"]}
    made(tmp_path, lambda: llama(tie_word_embeddings=tied), ["q_proj"], **saved)
    adapter = AdapterFolder.open(tmp_path / "adapter")
    if tied:
        with pytest.raises(ExportError, match="embed_tokens shares its weight"):
            bake(tmp_path / "base", adapter, tmp_path / "out")
        adapter.config["ensure_weight_tying"] = True  # the output was trained with it
    found = bake(tmp_path / "base", adapter, tmp_path / "out")
    assert found.replaced == ("model.embed_tokens.weight",)


def test_positions_are_not_tied(tmp_path):
    made(tmp_path, gpt2, ["wpe"])
    adapter = AdapterFolder.open(tmp_path / "adapter")
    (weight,) = bake(tmp_path / "base", adapter, tmp_path / "out").weights
    assert weight.tensor == "transformer.wpe.weight"


def test_a_full_disk_and_a_full_folder_leave_everything_as_it_was(tmp_path):
    made(tmp_path, gpt2, ["c_attn"])
    adapter = AdapterFolder.open(tmp_path / "adapter")
    with limited(4000), pytest.raises(ExportError, match="cannot be written"):
        bake(tmp_path / "base", adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ExportError, match="is not empty"):
        bake(tmp_path / "base", adapter, tmp_path / "adapter")
