"""Routes of real adapters on tiny models: what is stored, and what survives."""

import logging
from dataclasses import replace

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from tests.tiny import tiny
from transformers import AutoConfig, AutoModelForCausalLM

from loralab import registry
from loralab.adapters.attach import attach, base_only, restore
from loralab.adapters.files import save_plain, save_weights
from loralab.config import ModelConfig, PEFTConfig
from loralab.errors import AdapterError, ConfigError, ExportError, QuantizationError
from loralab.export.routed import check_format, survival_of, take
from loralab.export.routes.merge_into_nf4 import four_bit
from loralab.export.weights import values_of
from loralab.inference.load import LoadedAdapter
from loralab.models.base import load_base
from loralab.models.forward import supervised_logits
from loralab.models.numerics import seed_everything
from loralab.quantization.affine import dequantize, quantize
from loralab.quantization.linear import AffineLinear

TEXTS = ["the old cat sees snow.", "a small dog likes good bread.", "today", "a cat"]
HEADS = {"bert": "sequence-classification", "llama": "causal-lm", "gpt2": "causal-lm"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = tmp_path_factory.mktemp("models")
    found = {kind: str(tiny(kind, made / kind)) for kind in HEADS}
    return {**found, "llama": widened(found["llama"])}


def widened(folder):
    """Let every row be filled by NF4's blocks of 64."""
    config = AutoConfig.from_pretrained(folder)
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    seed_everything(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def base_of(folders, kind, four_bits=False, dtype="fp32"):
    seed_everything(0)
    config = ModelConfig(path=folders[kind], dtype=dtype, device="cpu")
    base = load_base(config, HEADS[kind], ["a", "b"] if kind == "bert" else ())
    if four_bits:
        for name in base.facts.linear:
            parent, _, leaf = name.rpartition(".")
            made = four_bit(base.model.get_submodule(name), False)
            setattr(base.model.get_submodule(parent), leaf, made)
        base.model.is_loaded_in_4bit = True
    return base


def adapter_of(folders, tmp_path, name="lora", kind="bert", size=0.3, **more):
    """Return an adapter that looks trained, as it is loaded from its folder."""
    keys = {"four_bits", "dtype"}
    given = {key: value for key, value in more.items() if key in keys}
    params = {key: value for key, value in more.items() if key not in keys}
    config = PEFTConfig(name=name, params=params)
    attached = attach(base_of(folders, kind, **given), config)
    seed_everything(1)
    with torch.no_grad():
        for path, parameter in attached.model.named_parameters():
            if parameter.requires_grad and "lora_A" not in path:
                parameter.add_(torch.randn_like(parameter) * size / 4)
    folder = tmp_path / name
    folder.mkdir()
    if attached.plain:
        save_plain(folder, *attached.plain(attached.model))
    else:
        save_weights(attached.model, folder)
    base = base_of(folders, kind, **given)
    model = restore(base, config, folder).eval()
    return LoadedAdapter(model, base, None, config, folder)


def logits(model, base):
    base.processor.pad_token = base.processor.pad_token or base.processor.eos_token
    base.processor.padding_side = "right"
    made = dict(base.processor(TEXTS, padding=True, return_tensors="pt"))
    made |= {"labels": torch.zeros(4, dtype=torch.long), "example": torch.arange(4)}
    if base.head == "causal-lm":
        made["places"] = torch.arange(4)
    with torch.no_grad():
        return supervised_logits(model, made, base)[0]


def nf4(weight):
    codes, state = quantize_4bit(
        weight.contiguous(), quant_type="nf4", compress_statistics=False
    )
    return dequantize_4bit(codes, state)


def affine(weight, group=16):
    return dequantize(quantize(weight, 4, group))


def stored(routed, rounded):
    """Read what a format would hold: float matrices rounded, codes as they are."""
    for name in routed.names:
        module = routed.model.get_submodule(name)
        values = values_of(module, name)
        yield name, values if isinstance(module, AffineLinear) else rounded(values)


def survived(routed, rounded):
    return survival_of(routed, rounded, stored(routed, rounded))


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


# ---- merge-then-quantize ----


@pytest.mark.parametrize("kind", HEADS)
def test_merged_in_float_it_answers_like_the_adapter(folders, tmp_path, kind):
    adapter = adapter_of(folders, tmp_path, kind=kind)
    before = logits(adapter.model, adapter.base)
    routed = take(adapter, "merge-then-quantize")
    close(logits(routed.model, adapter.base), before)
    assert torch.equal(logits(adapter.model, adapter.base), before)  # left as it was
    with base_only(adapter.model):
        assert (logits(adapter.model, adapter.base) - before).abs().max() > 0.1
    exact = survived(routed, lambda weight: weight)
    assert exact.kept == pytest.approx(1, abs=1e-5)
    assert exact.noise < 1e-5
    assert set(exact.layers) == set(adapter.base.facts.linear)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("lora", {"dora": True}),
        ("lora", {"rslora": True}),
        ("loha", {}),
        ("ia3", {}),
        ("full", {}),
    ],
)
def test_any_method_that_merges_can_be_measured(folders, tmp_path, name, params):
    adapter = adapter_of(folders, tmp_path, name, **params)
    routed = take(adapter, "merge-then-quantize")
    close(logits(routed.model, adapter.base), logits(adapter.model, adapter.base))
    found = survived(routed, lambda weight: weight)
    assert found.kept == pytest.approx(1, abs=1e-5)
    assert found.noise < 1e-4


def test_an_adapter_of_norms_has_nothing_to_lose(folders, tmp_path):
    routed = take(adapter_of(folders, tmp_path, "ln-tuning"), "merge-then-quantize")
    assert routed.names == ()
    assert survived(routed, nf4) is None


@pytest.mark.parametrize(
    ("name", "more"),
    [("lora", {"four_bits": True}), ("qa-lora", {"group_size": 16})],
)
def test_on_a_quantized_base_it_is_merged_into_the_dequantized_one(
    folders, tmp_path, name, more
):
    adapter = adapter_of(folders, tmp_path, name, kind="llama", **more)
    routed = take(adapter, "merge-then-quantize")
    # in evaluation bitsandbytes would multiply in bf16, and reorder its codes
    wanted = logits(adapter.model.train(), adapter.base)
    close(logits(routed.model, adapter.base), wanted)
    float_base = base_of(folders, "llama").model
    rounded = nf4 if "four_bits" in more else affine
    for name in routed.names:
        module = routed.model.get_submodule(name)
        assert isinstance(module, torch.nn.Linear)
        assert module.weight.dtype == torch.float32
        wanted = rounded(float_base.get_submodule(name).weight.detach())
        assert torch.equal(routed.weight(name), wanted)


def test_a_base_in_bf16_gets_the_update_in_fp32(folders, tmp_path):
    adapter = adapter_of(folders, tmp_path, dtype="bf16", size=1e-3)
    routed = take(adapter, "merge-then-quantize")
    assert survived(routed, lambda weight: weight).kept == pytest.approx(1, abs=1e-3)

    def to_bf16(weight):
        return weight.bfloat16().float()

    assert survived(routed, to_bf16).kept < 0.9  # as it would be, merged in bf16


def test_a_prompt_cannot_be_merged_and_the_reason_is_said(folders, tmp_path):
    adapter = adapter_of(folders, tmp_path, "prompt-tuning", kind="llama")
    with pytest.raises(AdapterError, match="cannot be merged") as caught:
        take(adapter, "merge-then-quantize")
    assert caught.value.why


def test_an_adapter_with_nan_is_refused(folders, tmp_path):
    adapter = adapter_of(folders, tmp_path)
    layer = adapter.model.get_base_model().get_submodule(adapter.base.facts.linear[0])
    layer.lora_B["default"].weight.data[0, 0] = torch.nan
    with pytest.raises(ExportError, match="not finite"):
        take(adapter, "merge-then-quantize")


# ---- merge-into-nf4 ----


def test_a_small_adapter_is_swallowed_by_nf4_and_that_is_said(
    folders, tmp_path, caplog
):
    adapter = adapter_of(folders, tmp_path, kind="llama", size=0.02, four_bits=True)
    with caplog.at_level(logging.WARNING, "loralab"):
        found = survived(take(adapter, "merge-into-nf4"), nf4)
    assert found.size < 0.02
    assert found.kept < 0.5
    assert "SWALLOWED" in caplog.text
    assert "side-path" in caplog.text


def test_a_large_adapter_survives_in_silence(folders, tmp_path, caplog):
    adapter = adapter_of(folders, tmp_path, kind="llama", size=4.0, four_bits=True)
    with caplog.at_level(logging.WARNING, "loralab"):
        assert survived(take(adapter, "merge-into-nf4"), nf4).kept > 0.95
    assert "SWALLOWED" not in caplog.text


@pytest.mark.parametrize("four_bits", [False, True])
def test_it_is_pefts_merge_on_the_grid_of_nf4(folders, tmp_path, four_bits):
    adapter = adapter_of(folders, tmp_path, kind="llama", four_bits=four_bits)
    routed = take(adapter, "merge-into-nf4")
    float_base = base_of(folders, "llama").model
    for name in routed.names:
        quantized = nf4(float_base.get_submodule(name).weight.detach())
        assert torch.equal(routed.weight(name), quantized)
        factors = routed.update(name)
        delta = factors.scale * (factors.B @ factors.A)
        found = values_of(routed.model.get_submodule(name))
        assert torch.equal(found, nf4(found))  # the format finds the same codes
        share = (found == nf4(quantized + delta)).float().mean()
        assert share > 0.99  # a tie may fall to either side
    check_format(routed, "nf4")
    with pytest.raises(ExportError, match="affine-int4 cannot hold"):
        check_format(routed, "affine-int4")


def test_nf4_takes_plain_lora_only(folders, tmp_path):
    with pytest.raises(AdapterError, match="qa-lora cannot stand on a 4-bit base"):
        take(adapter_of(folders, tmp_path, "qa-lora", group_size=16), "merge-into-nf4")
    (tmp_path / "dora").mkdir()
    adapter = adapter_of(folders, tmp_path / "dora", kind="llama", dora=True)
    with pytest.raises(ExportError, match="no plain LoRA"):
        take(adapter, "merge-into-nf4")


def test_rows_that_blocks_do_not_fill_are_refused(folders, tmp_path):
    with pytest.raises(QuantizationError, match="no multiple of 64"):
        take(adapter_of(folders, tmp_path), "merge-into-nf4")


def test_a_forward_pass_before_the_merge_does_no_harm(folders, tmp_path):
    adapter = adapter_of(folders, tmp_path, kind="llama", size=4.0, four_bits=True)
    fresh = survived(take(adapter, "merge-into-nf4"), nf4)
    answers = logits(adapter.model, adapter.base)
    # where the CPU multiplies in bf16, bitsandbytes has put the codes in disorder now
    routed = take(adapter, "merge-into-nf4")
    assert survived(routed, nf4).kept == pytest.approx(fresh.kept, abs=0.01)
    assert torch.equal(logits(adapter.model, adapter.base), answers)


def test_double_quantization_is_another_format(folders, tmp_path):
    adapter = adapter_of(folders, tmp_path, kind="llama")
    routed = take(adapter, "merge-into-nf4", {"double_quant": True})
    assert routed.formats == ("nf4-dq",)
    with pytest.raises(ConfigError, match="double_quant"):
        take(adapter, "merge-into-nf4", {"double_quan": True})


# ---- qa-lora ----


@pytest.mark.parametrize("size", [0.01, 0.3])
def test_zeros_hold_all_of_a_qa_lora(folders, tmp_path, size):
    adapter = adapter_of(folders, tmp_path, "qa-lora", size=size, group_size=16)
    before = logits(adapter.model, adapter.base)
    routed = take(adapter, "qa-lora")
    close(logits(routed.model, adapter.base), before)
    found = survived(routed, affine)
    assert found.kept == pytest.approx(1, abs=1e-4)
    assert found.noise < 1e-3
    for name in routed.names:
        ours = routed.model.get_submodule(name)
        theirs = adapter.model.get_base_model().get_submodule(name).get_base_layer()
        assert torch.equal(ours.codes, theirs.codes)
        assert torch.equal(ours.scales, theirs.scales)
        assert not torch.equal(ours.zeros, theirs.zeros)
    check_format(routed, "affine-int4")
    with pytest.raises(ExportError, match="nf4 cannot hold"):
        check_format(routed, "nf4")


def test_integer_zeros_swallow_it(folders, tmp_path):
    adapter = adapter_of(folders, tmp_path, "qa-lora", size=0.01, group_size=16)
    routed = take(adapter, "qa-lora")

    def values():
        for name in routed.names:
            new = routed.model.get_submodule(name).packed
            layer = adapter.model.get_base_model().get_submodule(name)
            old = layer.get_base_layer().zeros
            moved = (new.zeros - old).round()
            yield name, dequantize(replace(new, zeros=old + moved))

    assert survival_of(routed, affine, values()).kept < 0.2


def test_an_adapter_of_another_training_has_no_place_in_zeros(folders, tmp_path):
    with pytest.raises(ExportError, match="lora was not trained for it"):
        take(adapter_of(folders, tmp_path), "qa-lora")


def test_bits_without_a_format_are_refused(folders, tmp_path):
    adapter = adapter_of(folders, tmp_path, "qa-lora", group_size=16, bits=3)
    with pytest.raises(ExportError, match="codes of 3 bits"):
        take(adapter, "qa-lora")


# ---- side-path ----


@pytest.mark.parametrize("more", [{}, {"four_bits": True, "kind": "llama"}])
def test_beside_the_base_all_survives(folders, tmp_path, more):
    adapter = adapter_of(folders, tmp_path, size=1e-3, **more)
    routed = take(adapter, "side-path")
    found = survival_of(routed, nf4, iter(()))
    assert (found.kept, found.noise) == (1, 0)
    with adapter.model.disable_adapter():
        expected = adapter.model.get_base_model()
        for name in routed.names:
            own = values_of(expected.get_submodule(name).get_base_layer())
            assert torch.equal(values_of(routed.model.get_submodule(name)), own)
    file = adapter.folder / "adapter_model.safetensors"
    assert routed.beside == adapter.folder
    assert routed.extra_bytes == file.stat().st_size
    assert routed.extra_products == 2 * len(routed.names)
    shapes = [values_of(routed.model.get_submodule(n)).shape for n in routed.names]
    assert routed.extra_multiplications == sum(8 * sum(shape) for shape in shapes)


def test_the_stored_base_has_the_trained_head(folders, tmp_path):
    adapter = adapter_of(folders, tmp_path)
    head = take(adapter, "side-path").model.classifier.weight
    trained = adapter.model.get_base_model().classifier.modules_to_save["default"]
    assert torch.equal(head, trained.weight)
    untrained = adapter.model.get_base_model().classifier.original_module
    assert not torch.equal(head, untrained.weight)


def test_the_stored_base_with_the_adapter_beside_it_is_the_adapter(folders, tmp_path):
    adapter = adapter_of(folders, tmp_path)
    routed = take(adapter, "side-path")
    base = base_of(folders, "bert")
    base.model.load_state_dict(routed.model.state_dict())
    again = restore(base, adapter.peft, routed.beside)
    close(logits(again.eval(), base), logits(adapter.model, adapter.base))


def test_what_reads_the_weight_cannot_stand_beside_it(folders, tmp_path):
    with pytest.raises(ExportError, match="no plain LoRA"):
        take(adapter_of(folders, tmp_path, dora=True), "side-path")


def test_every_route_is_found_by_its_name():
    assert registry.names("route") == [
        "merge-into-nf4",
        "merge-then-quantize",
        "qa-lora",
        "side-path",
    ]
    with pytest.raises(ConfigError, match="merge-into-nf4"):
        registry.get("route", "merge-into-nf")
