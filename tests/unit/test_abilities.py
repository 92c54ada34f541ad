"""The table of methods, cell by cell: what it promises holds, what it denies fails."""

import json
import re
from dataclasses import replace

import pytest
import torch
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from tests.methods import base_of, batch_of, cells
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from loralab import registry
from loralab.adapters import abilities
from loralab.adapters.attach import attach
from loralab.adapters.files import save_plain, save_weights
from loralab.config import PEFTConfig
from loralab.errors import AdapterError, ModelError
from loralab.models.architecture import facts_of
from loralab.models.forward import supervised_logits
from loralab.models.loaded import LoadedModel
from loralab.models.numerics import Numerics, seed_everything
from loralab.models.packing import check_packing
from loralab.quantization.linear import AffineLinear

CELLS = {label: (method, params) for label, method, params in cells()}
ABLE = {row.method: row.able for row in abilities.table()}
# a tiny Llama has no biases and brings its head along: their cells are in the matrix
LLAMA = [x for x in CELLS if x not in ("bitfit", "linear-probe")]
IDS = torch.arange(3, 17).view(2, 7)
SHAPE = LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=1000,
    num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
    tie_word_embeddings=False,
)  # fmt: skip


def four_bit(linear):
    new = Linear4bit(linear.in_features, linear.out_features, bias=False)
    new.compute_dtype = torch.float32
    new.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
    return new.to("cpu")


def eight_bit(linear):
    new = Linear8bitLt(
        linear.in_features, linear.out_features, bias=False, has_fp16_weights=False
    )
    new.weight = Int8Params(
        linear.weight.data, requires_grad=False, has_fp16_weights=False
    )
    return new.to("cpu")


def affine(linear):
    return AffineLinear.from_linear(linear, 4)


CELL = {four_bit: "nf4", eight_bit: "int8", affine: "affine"}


def llama(quantize=None):
    seed_everything(0)
    model = LlamaForCausalLM(SHAPE).eval()
    model.config.use_cache = False
    facts = facts_of(model)  # of the float model, as `load_base` has it
    for name, module in list(model.named_modules()):
        if quantize and isinstance(module, torch.nn.Linear) and name != "lm_head":
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, quantize(module))
    return LoadedModel(
        model, None, "causal-lm", facts, Numerics("cpu", "fp32", "test"),
        (), "./tiny", None, "tiny",
    )  # fmt: skip


def batches():
    mask = torch.ones_like(IDS)
    places = torch.tensor([0, 1, 2, 3, 7, 8, 9, 10])
    labels = IDS.flatten()[places + 1]
    yield {
        "input_ids": IDS, "attention_mask": mask, "places": places, "labels": labels,
        "example": places // 7,
    }  # fmt: skip


def adapted(label, base):
    method, params = CELLS[label]
    params = {k: v for k, v in params.items() if k != "target_modules"}
    if method == "boft":
        params["target_modules"] = ["v_proj"]
    seed_everything(0)
    return attach(base, PEFTConfig(name=method, params=params), batches)


def logits(model):
    return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.parametrize("label", [x for x in CELLS if not ABLE[x].vision])
def test_sixteen_bits(label, tmp_path):
    method, params = CELLS[label]
    base = base_of("vit", tmp_path)
    base.model.bfloat16()
    base = replace(base, numerics=Numerics("cpu", "bf16", "test"))
    batch = batch_of(base)
    attached = attach(
        base, PEFTConfig(name=method, params=params), lambda: iter([batch])
    )
    with base.numerics.autocast():
        logits, labels, _ = supervised_logits(attached.model, batch, base)
    cross_entropy(logits, labels).backward()
    trained = [p for p in attached.model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 for p in trained)
    assert all(p.grad.isfinite().all() for p in trained if p.grad is not None)
    assert any(p.grad is not None for p in trained)


@pytest.mark.parametrize("bits", CELL)
@pytest.mark.parametrize("label", LLAMA)
def test_quantized(label, bits):
    base = llama(bits)
    reason = getattr(ABLE[label], CELL[bits])
    if reason:
        with pytest.raises(AdapterError, match=re.escape(reason)):
            adapted(label, base)
        return
    with torch.no_grad():
        plain = logits(llama(bits).model)
    attached = adapted(label, base)
    net = attached.model.train()
    before = logits(net)
    if hasattr(net, "prompt_encoder"):
        assert not torch.allclose(before[:, -7:], plain)  # it begins with a prompt
    else:
        torch.testing.assert_close(before, plain, atol=1e-4, rtol=1e-4)
    before.square().mean().backward()
    trained = [p for p in net.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    with torch.no_grad():
        for parameter in trained:
            parameter -= 0.1 * parameter.grad.sign()
    assert not torch.allclose(logits(net), before)


def gradients(label, checkpointing):
    net = adapted(label, llama()).model.train()
    if checkpointing:
        net.enable_input_require_grads()
        net.activation_checkpointing_enable({"use_reentrant": False})
    logits(net).square().mean().backward()
    return {n: p.grad for n, p in net.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("label", LLAMA)
def test_checkpointing(label):
    if ABLE[label].checkpointing:
        with pytest.raises(RuntimeError):
            gradients(label, True)
        return
    plain, checkpointed = gradients(label, False), gradients(label, True)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


@pytest.mark.parametrize("label", LLAMA)
def test_packing(label):
    base = llama()
    attached = adapted(label, base)
    with torch.no_grad():  # an adapter that does nothing would hide a leak
        for parameter in attached.model.parameters():
            if parameter.requires_grad:
                parameter += 0.02
    packed = replace(base, model=attached.model.eval())
    if ABLE[label].packing:
        with pytest.raises((ModelError, RuntimeError, ValueError)):
            check_packing(packed)
    else:
        check_packing(packed)


def can_be_served(folder):
    """Return whether vLLM would take the adapter: what its loader asks of a folder."""
    if not (folder / "adapter_config.json").is_file():
        return False
    said = json.loads((folder / "adapter_config.json").read_text())
    if said["peft_type"] != "LORA" or said["use_dora"] or said["modules_to_save"]:
        return False
    ranks = [said["r"], *said["rank_pattern"].values()]
    alphas = [said["lora_alpha"], *said["alpha_pattern"].values()]
    scales = {f"{a / r:.6g}" for a, r in zip(alphas, ranks, strict=True)}
    return said["bias"] == "none" and max(ranks) == said["r"] and len(scales) == 1


# these are plain LoRA files, and stand on a base that vLLM does not have
OTHER_BASE = ("qa-lora", "lora init=loftq")


@pytest.mark.parametrize("label", [x for x in LLAMA if x != "adalora"])
def test_vllm(label, tmp_path):
    attached = adapted(label, llama())
    if attached.plain:
        save_plain(tmp_path, *attached.plain(attached.model))
    else:
        save_weights(attached.model, tmp_path)
    if label in OTHER_BASE:
        assert ABLE[label].vllm
    else:
        assert can_be_served(tmp_path) is not bool(ABLE[label].vllm)


def test_ranks_of_a_strategy_are_served_too(tmp_path):
    params = {"ranks": {"name": "linear-growth"}, "rank": 4, "alpha": 8}
    attached = attach(llama(), PEFTConfig(name="lora", params=params))
    assert attached.scales == {2.0: 14}
    save_weights(attached.model, tmp_path)
    assert can_be_served(tmp_path)


def test_every_reason_is_a_sentence_and_every_method_has_a_row():
    methods = {row.method.split(" ")[0] for row in abilities.table()}
    assert methods == set(registry.names("PEFT method"))
    for row in abilities.table():
        for reason in row.cells().values():
            assert not reason or len(reason.split()) > 3


@pytest.mark.parametrize("bits", CELL)
def test_a_quantized_base_is_seen(bits):
    with pytest.raises(AdapterError, match="base"):
        attach(llama(bits), PEFTConfig(name="full"))
