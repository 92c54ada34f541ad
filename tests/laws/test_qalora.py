"""QA-LoRA merges into real zeros, and only into real zeros, without loss."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForImageClassification

from loralab.adapters.methods.qa_lora import QALoraParams, qa_lora_config
from loralab.adapters.qalora import (
    QALoraLinear,
    from_plain,
    merged_zeros,
    register,
    sum_pool,
    to_plain,
)
from loralab.errors import AdapterError, QuantizationError
from loralab.quantization.affine import AffineWeight, dequantize, quantize
from loralab.quantization.linear import AffineLinear, quantize_modules
from tests.tiny import tiny
from tests.vision import SIDE, fused, save

few = settings(max_examples=15, deadline=None)
EPS = torch.finfo(torch.float32).eps
TARGETS = {
    "llama": [
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ],
    "vit": ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"],
    "fused": ["qkv", "attn.proj", "mlp.fc1", "mlp.fc2"],
}
FOUND = {"llama": 14, "vit": 12, "fused": 4}


def layer(dtype=torch.float32, bits=4, group=32, pool=None, size=0.03, shape=(24, 128)):
    """A layer with a trained-looking adapter: ‖ΔW‖ is `size` of ‖W̃‖."""
    torch.manual_seed(0)
    linear = nn.Linear(shape[1], shape[0], dtype=dtype)
    base = AffineLinear.from_linear(linear, bits, group, dtype=dtype)
    config = LoraConfig(r=4, lora_alpha=8, qalora_group_size=pool or group)
    made = QALoraLinear(base, "default", config, r=4, lora_alpha=8)
    with torch.no_grad():
        B = made.lora_B["default"].weight.normal_()
        B *= size * base.weight.norm() / made.get_delta_weight("default").norm()
    return made.eval()


def stored(base):
    return base.codes.clone(), base.scales.clone(), base.zeros.clone()


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("pool", [16, 64])
def test_merged_is_unmerged(bits, pool):
    made = layer(torch.float64, bits, 16, pool)
    x = torch.randn(9, 128, dtype=torch.float64)
    base, before = made.base_layer(x), made(x)
    assert relative(before - base, base) > 1e-3  # the adapter does something
    dense = functional.linear(x, made.get_delta_weight("default"))
    torch.testing.assert_close(before - base, dense, rtol=0, atol=1e-12)
    codes, scales, zeros = stored(made.base_layer)
    made.merge()
    assert made.merged
    assert float((made(x) - before).abs().max()) <= 1e-12
    assert torch.equal(made.base_layer.codes, codes)
    assert torch.equal(made.base_layer.scales, scales)
    assert not torch.equal(made.base_layer.zeros, zeros)
    made.unmerge()
    assert float((made.base_layer.zeros - zeros).abs().max()) <= 1e-12
    assert float((made(x) - before).abs().max()) <= 1e-12


@pytest.mark.parametrize("size", [0.001, 0.01, 0.1])
def test_in_fp32_only_rounding_of_the_adapter_is_lost(size):
    made = layer(size=size)
    before, delta = made.base_layer.weight.double(), made.get_delta_weight("default")
    codes, scales, _ = stored(made.base_layer)
    made.merge()
    found = made.base_layer.weight.double() - before
    assert relative(found, delta.double()) <= 4 * EPS / size  # ε · ‖W‖ / ‖ΔW‖
    assert torch.equal(made.base_layer.codes, codes)
    assert torch.equal(made.base_layer.scales, scales)


@given(
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([8, 32]),
    st.sampled_from([1, 2]),
    st.sampled_from(["minmax", "mse"]),
    st.integers(0, 999),
)
@few
def test_shifted_zeros_are_a_shifted_matrix(bits, group, whole, clipping, seed):
    torch.manual_seed(seed)
    weight = quantize(torch.randn(6, 64).double(), bits, group, clipping, torch.float64)
    delta = torch.randn(6, 64 // (group * whole), dtype=torch.float64)
    zeros = merged_zeros(weight.zeros, weight.scales, delta)
    moved = AffineWeight(weight.codes, weight.scales, zeros, bits, group)
    wanted = dequantize(weight) + delta.repeat_interleave(group * whole, dim=1)
    torch.testing.assert_close(dequantize(moved), wanted, rtol=0, atol=1e-12)
    back = merged_zeros(zeros, weight.scales, -delta)
    torch.testing.assert_close(back, weight.zeros, rtol=0, atol=1e-11)


def kept(size, rounded):
    """Return how much of ΔW a merge keeps: ⟨W' − W, ΔW⟩ / ‖ΔW‖²."""
    made = layer(size=size, shape=(256, 256))
    delta, base = made.group_delta("default"), made.base_layer

    def weight(zeros):
        return dequantize(
            AffineWeight(base.codes, base.scales, zeros, base.bits, base.group)
        )

    zeros = base.zeros.round() if rounded else base.zeros
    after = merged_zeros(zeros, base.scales, delta)
    moved = weight(after.round() if rounded else after) - weight(zeros)
    whole = made.get_delta_weight("default")
    return float((moved * whole).sum() / whole.square().sum())


def test_integer_zeros_swallow_the_adapter():
    assert kept(0.01, rounded=True) < 0.01
    assert kept(0.03, rounded=True) < 0.15
    assert kept(0.3, rounded=True) > 0.9  # it is the rounding, not a mistake here
    for size in (0.01, 0.03, 0.3):
        assert kept(size, rounded=False) == pytest.approx(1, abs=1e-3)


def test_a_merged_model_that_is_cast_keeps_its_adapter():
    made = layer(size=0.01, shape=(256, 256))
    before, delta = made.base_layer.weight, made.get_delta_weight("default")
    made.merge()
    merged = made.base_layer.weight - before
    zeros = made.base_layer.zeros.to(torch.bfloat16).float()
    made.base_layer.to(torch.bfloat16)
    assert torch.equal(made.base_layer.weight - before, merged)
    assert relative(merged, delta) < 1e-4
    made.base_layer.zeros = zeros  # what a plain cast would have left
    assert relative(made.base_layer.weight - before, delta) > 0.2


def test_average_pooling_is_the_same_with_s_over_g():
    made, g = layer(torch.float64), 32
    x, base = torch.randn(5, 128, dtype=torch.float64), made.base_layer
    A, B = made.lora_A["default"].weight, made.lora_B["default"].weight
    averaged = functional.avg_pool1d(x, g)
    torch.testing.assert_close(g * averaged, sum_pool(x, g))
    # the reference implementation: no g in the forward, 1/g in the merge
    with torch.no_grad():
        before = base(x) + 2.0 * averaged @ A.T @ B.T
        base.zeros = base.zeros - (B @ A) * 2.0 / g / base.scales
        torch.testing.assert_close(base(x), before, rtol=0, atol=1e-12)


def test_a_new_adapter_is_the_identity_and_so_is_its_merge():
    made = layer()
    nn.init.zeros_(made.lora_B["default"].weight)
    x, before = torch.randn(3, 128), stored(made.base_layer)
    assert torch.equal(made(x), made.base_layer(x))
    made.merge()
    assert all(map(torch.equal, stored(made.base_layer), before))


def test_two_active_adapters_add_up_merged_or_not_and_switch_off():
    made, x = layer(torch.float64), torch.randn(5, 128, dtype=torch.float64)
    made.update_layer("second", 2, 4, LoraConfig(r=2, qalora_group_size=64))
    nn.init.normal_(made.lora_B["second"].weight)
    made.set_adapter(["default", "second"])
    base = wanted = made.base_layer(x)
    for name in ("default", "second"):
        wanted = wanted + functional.linear(x, made.get_delta_weight(name))
    torch.testing.assert_close(made(x), wanted, rtol=0, atol=1e-12)
    made.merge()
    torch.testing.assert_close(made(x), wanted, rtol=0, atol=1e-12)
    made.enable_adapters(False)
    torch.testing.assert_close(made(x), base, rtol=0, atol=1e-12)
    assert not made.merged


@pytest.mark.parametrize(("group", "pool"), [(32, 16), (32, 48), (64, 32), (32, 256)])
def test_groups_that_do_not_match_are_refused(group, pool):
    with pytest.raises(AdapterError, match=f"pooling over {pool} inputs"):
        layer(group=group, pool=pool)


def test_a_bias_and_a_broken_adapter_are_refused():
    base = AffineLinear.from_linear(nn.Linear(32, 8), 4)
    config = LoraConfig(r=2, lora_bias=True, qalora_group_size=32)
    with pytest.raises(AdapterError, match="lora_bias"):
        QALoraLinear(base, "default", config, r=2)
    made = layer()
    nn.init.constant_(made.lora_B["default"].weight, torch.nan)
    before = stored(made.base_layer)
    with pytest.raises(AdapterError, match="not finite"):
        made.merge()
    assert all(map(torch.equal, stored(made.base_layer), before))
    assert not made.merged


def test_a_on_sums_begins_with_the_variance_that_lora_has():
    torch.manual_seed(0)
    base = AffineLinear.from_linear(nn.Linear(2048, 8), 4)
    config = LoraConfig(r=256, qalora_group_size=32)
    made = QALoraLinear(base, "default", config, r=256)
    plain, x = nn.Linear(2048, 256, bias=False), torch.randn(256, 2048)
    with torch.no_grad():
        ratio = made.lora_A["default"](x).var() / plain(x).var()
    assert float(ratio) == pytest.approx(1, rel=0.1)  # and not the group, 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = tmp_path_factory.mktemp("models")
    return {"llama": tiny("llama", made / "llama"), "vit": save("vit", made / "vit")}


@pytest.fixture(scope="module")
def llama(folders):
    return folders["llama"], "llama"


@pytest.fixture(scope="module", params=["llama", "vit", "fused"])
def model_of(request, folders):
    """A language model, a ViT, and one whose query, key and value are one module."""
    return folders.get(request.param), request.param


def quantized(told, bits=4):
    folder, kind = told
    if kind == "fused":
        base = fused()
    else:
        auto = AutoModelForCausalLM
        if kind == "vit":
            auto = AutoModelForImageClassification
        base = auto.from_pretrained(folder, dtype=torch.float32)
    ends = tuple(f".{name}" for name in TARGETS[kind])
    names = [n for n, m in base.named_modules() if n.endswith(ends)]
    assert len(names) == FOUND[kind]
    quantize_modules(base, names, bits, 16)
    return base


def adapted(told, **params):
    torch.manual_seed(0)
    chosen = QALoraParams(group_size=16, rank=4, **params)
    config = qa_lora_config(chosen, TARGETS[told[1]])
    return get_peft_model(quantized(told), config)


def given_to(kind):
    """What a model of a kind is given, and the labels."""
    draw = torch.Generator().manual_seed(1)
    if kind == "llama":
        ids = torch.randint(0, 300, (4, 12), generator=draw)
        return {"input_ids": ids}, ids
    pixels = torch.randn(12, 3, SIDE, SIDE, generator=draw)
    return {"pixel_values": pixels}, torch.arange(12) % 3


def loss_of(model, inputs, labels):
    logits = model(**inputs).logits
    if "input_ids" in inputs:
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return functional.cross_entropy(logits, labels)


def trained(told, steps=8, **params):
    """Return a model after a few steps, its losses and what it was given."""
    model = adapted(told, **params)
    inputs, labels = given_to(told[1])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    optimizer.param_groups[0]["lr"] = 5e-3
    losses = []
    for _ in range(steps):
        loss = loss_of(model, inputs, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return model.eval(), losses, inputs


def test_it_trains_and_merges_without_loss(model_of):
    model, losses, inputs = trained(model_of, dropout=0.05)
    assert losses[-1] < losses[0] - 0.2
    layers = [m for m in model.modules() if isinstance(m, QALoraLinear)]
    assert len(layers) == FOUND[model_of[1]]
    live = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(live) == 2 * len(layers)
    assert all("lora_" in name for name in live)
    codes = [stored(m.base_layer)[:2] for m in layers]
    with torch.no_grad():
        before = model(**inputs).logits
        with model.disable_adapter():
            base = model(**inputs).logits
        merged = model.merge_and_unload()
        after = merged(**inputs).logits
    assert float((before - base).abs().max()) > 0.1
    torch.testing.assert_close(after, before, rtol=0, atol=2e-5)
    found = [m for m in merged.modules() if isinstance(m, AffineLinear)]
    assert len(found) == len(layers)
    assert not any(isinstance(m, QALoraLinear) for m in merged.modules())
    for module, (old, scales) in zip(found, codes, strict=True):
        assert torch.equal(module.codes, old)
        assert torch.equal(module.scales, scales)


def test_an_adapter_returns_to_a_base_quantized_again(model_of):
    model, _, inputs = trained(model_of, steps=2)
    state = get_peft_model_state_dict(model)
    again = adapted(model_of)
    set_peft_model_state_dict(again, state)
    with torch.no_grad():
        wanted = model(**inputs).logits
        assert torch.equal(again.eval()(**inputs).logits, wanted)


def test_two_adapters_and_mixed_batches(llama):
    model, _, inputs = trained(llama, steps=2)
    ids = inputs["input_ids"]
    config = copy.copy(model.peft_config["default"])
    model.add_adapter("second", register(config))
    with torch.no_grad():
        wanted = model(input_ids=ids[:1]).logits
        with model.disable_adapter():
            base = model(input_ids=ids[1:2]).logits
        mixed = model(input_ids=ids[:2], adapter_names=["default", "__base__"]).logits
    torch.testing.assert_close(mixed, torch.cat([wanted, base]), rtol=0, atol=1e-5)


def test_it_is_a_plain_lora_on_the_dequantized_base(model_of, tmp_path):
    model, _, inputs = trained(model_of, steps=2)
    state = get_peft_model_state_dict(model)
    plain = to_plain(state, 16)
    back = from_plain(plain, 16)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    model.save_pretrained(tmp_path)  # the configuration is plain LoRA's
    config = LoraConfig.from_pretrained(tmp_path)
    assert (config.qalora_group_size, config.use_qalora) == (16, False)
    base = quantized(model_of)
    for name, module in list(base.named_modules()):
        if isinstance(module, AffineLinear):
            base.set_submodule(name, module.to_linear())
    elsewhere = get_peft_model(base, config).eval()
    set_peft_model_state_dict(elsewhere, plain)
    with torch.no_grad():
        wanted = model(**inputs).logits
        torch.testing.assert_close(
            elsewhere(**inputs).logits, wanted, rtol=0, atol=2e-5
        )


def test_an_adapter_that_is_no_qa_lora_is_refused():
    name = "base_model.model.q_proj.lora_A.weight"
    with pytest.raises(AdapterError, match="not constant inside groups of 16"):
        from_plain({name: torch.randn(4, 32)}, 16)
    with pytest.raises(AdapterError, match="32 inputs are no multiple of the group 24"):
        from_plain({name: torch.zeros(4, 32)}, 24)


def test_plain_peft_refuses_the_quantized_base_and_the_pooled_file(llama, tmp_path):
    config = LoraConfig(r=4, target_modules=TARGETS["llama"])
    with pytest.raises(ValueError, match="AffineLinear"):
        get_peft_model(quantized(llama), config)
    adapted(llama).save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(llama[0], dtype=torch.float32)
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(base, tmp_path)


def test_a_width_that_groups_do_not_divide_is_refused(llama):
    base = AutoModelForCausalLM.from_pretrained(llama[0], dtype=torch.float32)
    with pytest.raises(QuantizationError, match="48 is no multiple of the group 32"):
        quantize_modules(base, ["model.layers.0.mlp.down_proj"], 4, 32)
