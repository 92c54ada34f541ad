"""Inits do what they say: A, B or W differ from the default, and it is recorded."""

import pytest
import torch
from tests.tiny import tiny

from loralab.adapters.attach import attach
from loralab.adapters.calibration import (
    explained_variance,
    input_counts,
    measure,
    weight_gradients,
)
from loralab.adapters.initialise import (
    MOVES_BASE,
    check_initialised,
    loftq_layer,
)
from loralab.adapters.layers import lora_layers
from loralab.adapters.sketching import input_sketches
from loralab.config import ModelConfig, PEFTConfig
from loralab.data.batching import collate
from loralab.data.examples import Examples
from loralab.errors import AdapterError, ConfigErrors
from loralab.models.base import load_base
from loralab.models.forward import supervised_logits
from loralab.models.numerics import seed_everything

INITS = ("orthogonal", "pissa", "olora", "corda", "lora-ga", "eva", "loftq")
TEXTS = ["the old cat sees snow.", "a small dog likes good bread.", "today", "a cat"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {kind: str(tiny(kind, folder / kind)) for kind in ("bert", "gpt2")}


def base_of(folders, kind="bert"):
    seed_everything(0)
    config = ModelConfig(path=folders[kind], dtype="fp32", device="cpu")
    return load_base(config, "sequence-classification", ["a", "b"])


def batch_of(base):
    base.processor.pad_token = base.processor.pad_token or base.processor.eos_token
    made = dict(base.processor(TEXTS, padding=True, return_tensors="pt"))
    labels = torch.tensor([0, 1, 0, 1])
    return {**made, "labels": labels, "example": torch.arange(4)}


def attached(folders, init, kind="bert", **params):
    base = base_of(folders, kind)
    batch = batch_of(base)
    config = PEFTConfig(name="lora", params={"rank": 4, "init": init, **params})
    return attach(base, config, lambda: iter([batch, batch])), base, batch


@pytest.mark.parametrize("init", INITS)
def test_it_differs_from_the_default_and_says_so(folders, init):
    made, _, _ = attached(folders, init)
    default, _, _ = attached(folders, "default")
    record = made.record["init"]
    assert record["hash_before"] != record["hash_after"]
    assert record["init"] == init
    assert record["seconds"] >= 0
    assert record["batches"] == (2 if init in ("eva", "corda", "lora-ga") else 0)
    ours, theirs = lora_layers(made.model), lora_layers(default.model)
    for name, layer in ours.items():
        a = layer.lora_A["default"].weight
        assert not torch.equal(a, theirs[name].lora_A["default"].weight), name


@pytest.mark.parametrize("init", [x for x in INITS if x != "loftq"])
def test_training_begins_at_the_base_model(folders, init):
    plain = base_of(folders)
    wanted, _, _ = supervised_logits(plain.model, batch_of(plain), plain)
    made, base, batch = attached(folders, init)
    found, _, _ = supervised_logits(made.model.eval(), batch, base)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("init", MOVES_BASE)
def test_what_moves_the_base_is_saved_as_the_difference_to_it(folders, init):
    made, _, _ = attached(folders, init)
    config, state = made.plain(made.model)
    assert (config.r, config.init_lora_weights) == (8, True)
    for name in [x for x in state if ".lora_A." in x]:
        update = state[name.replace("lora_A", "lora_B")] @ state[name]
        assert update.abs().max() < 1e-5  # nothing is learnt yet


def test_the_same_rows_give_the_same_start(folders):
    for init in ("eva", "corda", "lora-ga"):
        one, _, _ = attached(folders, init)
        two, _, _ = attached(folders, init)
        assert one.record["init"]["hash_after"] == two.record["init"]["hash_after"]


@pytest.mark.parametrize("init", ["eva", "corda", "lora-ga"])
def test_without_rows_it_is_refused_instead_of_being_the_default(folders, init):
    with pytest.raises(AdapterError, match="silently be the default"):
        attach(base_of(folders), PEFTConfig(name="lora", params={"init": init}))


def test_an_init_that_does_nothing_is_caught(folders, monkeypatch):
    monkeypatch.setitem(
        __import__("loralab.adapters.initialise", fromlist=["_STEPS"])._STEPS,
        "pissa",
        lambda model, loaded, batches: None,
    )
    with pytest.raises(AdapterError, match="has changed nothing"):
        attached(folders, "pissa")
    with pytest.raises(AdapterError, match="has changed nothing"):
        check_initialised({"init": "eva", "hash_before": "a", "hash_after": "a"})


def test_eva_with_fewer_inputs_than_rank_is_refused_not_waited_for(folders):
    with pytest.raises(AdapterError, match="4 inputs"):
        attached(folders, "eva", rank=6, alpha=12)  # a pooler reads one token a row


def test_inits_that_do_not_fit_the_base_or_each_other(folders):
    with pytest.raises(AdapterError, match="in × out"):
        attached(folders, "olora", "gpt2")
    with pytest.raises(AdapterError, match="even ranks"):
        attached(folders, "orthogonal", rank=5)
    for params in (
        {"init": "pissa", "dora": True},
        {"init": "pissa", "schedule": [{"at": 0.5, "rank": 2}]},
        {"ranks": {"name": "uniform"}, "rank_pattern": {"query": 2},
         "alpha_pattern": {"query": 4}},
    ):  # fmt: skip
        with pytest.raises((ConfigErrors, ValueError), match="choose one"):
            PEFTConfig(name="lora", params=params)


@pytest.mark.parametrize(
    ("init", "most"), [("corda", 32), ("loftq", 32), ("lora-ga", 16), ("eva", 48)]
)
def test_a_rank_that_a_module_has_no_vectors_for_is_refused(folders, init, most):
    base = base_of(folders)
    weight = base.model.get_submodule(base.facts.linear[0]).weight
    before = weight.clone()
    batch = batch_of(base)
    targets = ["query", r"layer\.0\.output\.dense"]  # 32 × 32, and 48 in × 32 out
    params = {"rank": most + 1, "init": init, "target_modules": targets}
    params |= {"rank_pattern": {"query": 2}, "alpha_pattern": {"query": 4}}
    config = PEFTConfig(name="lora", params=params)
    with pytest.raises(AdapterError, match=f"48 in × 32 out, rank {most} at most"):
        attach(base, config, lambda: iter([batch]))
    assert torch.equal(weight, before)  # nothing was begun


@pytest.mark.parametrize("init", ["corda", "loftq"])
def test_a_rank_of_all_the_vectors_of_a_module_is_taken(folders, init):
    made, _, _ = attached(folders, init, rank=32, target_modules=["key"])
    for layer in lora_layers(made.model).values():
        assert layer.lora_A["default"].weight.shape == (32, 32)


@pytest.mark.parametrize("alpha", [4, 32])
def test_loftq_brings_the_base_near_to_what_it_was_at_any_scale(folders, alpha):
    base = base_of(folders)
    weights = {n: base.model.get_submodule(n).weight.clone() for n in base.facts.linear}
    config = PEFTConfig(name="lora", params={"rank": 4, "alpha": alpha})
    model = attach(base, config).model
    for name, layer in lora_layers(model).items():
        loftq_layer(layer)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        quantized = layer.get_base_layer().weight
        alone = (weights[name] - quantized).norm()
        helped = (weights[name] - quantized - alpha / 4 * b @ a).norm()
        assert alone > 0
        assert helped < 0.95 * alone


def test_statistics_are_what_they_are_called(folders):
    base = base_of(folders)
    batch = batch_of(base)
    name = next(n for n in base.facts.linear if n.endswith("query"))
    weight = base.model.get_submodule(name).weight
    mean, square = (
        weight_gradients(base.model, {name: weight}, base, lambda: iter([batch]), power)
        for power in (1, 2)
    )
    logits, labels, _ = supervised_logits(base.model, batch, base)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    (wanted,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(mean[name], wanted)
    torch.testing.assert_close(square[name], wanted.square())
    found = measure("gradient", base, [name], lambda: iter([batch]), 4)
    assert found[name] == pytest.approx(float((weight * wanted).abs().mean()), rel=1e-5)
    found = measure("fisher", base, [name], lambda: iter([batch]), 4)
    assert found[name] == pytest.approx(float(wanted.square().mean()), rel=1e-5)
    assert weight.grad is None
    assert not base.model.training


def test_explained_variance_is_that_of_real_tokens_and_shared_by_equal_inputs(folders):
    base = base_of(folders)
    batch = batch_of(base)
    names = [n for n in base.facts.linear if "layer.0.attention.self" in n]
    heard = []
    hook = base.model.get_submodule(names[0]).register_forward_pre_hook(
        lambda _, args: heard.append(args[0])
    )
    found = explained_variance(base, names, lambda: iter([batch]), 5)
    hook.remove()
    real = heard[0][batch["attention_mask"].bool()].double()
    sigma = torch.linalg.svdvals(real - real.mean(0))
    wanted = (sigma.square() / sigma.square().sum())[:5]
    assert found[names[0]] == pytest.approx(wanted.tolist(), rel=1e-3)
    assert all(found[name] == found[names[0]] for name in names)


READS = {
    "t5": {
        "encoder.block.0.layer.0.SelfAttention.q": "source",
        "decoder.block.0.layer.0.SelfAttention.q": "target",
        "decoder.block.0.layer.1.EncDecAttention.q": "target",
        "decoder.block.0.layer.1.EncDecAttention.k": "source",
        "decoder.block.0.layer.2.DenseReluDense.wi": "target",
    },
    "bart": {
        "model.encoder.layers.0.self_attn.q_proj": "source",
        "model.decoder.layers.0.self_attn.q_proj": "target",
        "model.decoder.layers.0.encoder_attn.q_proj": "target",
        "model.decoder.layers.0.encoder_attn.k_proj": "source",
        "model.decoder.layers.0.fc1": "target",
    },
}


@pytest.mark.parametrize("kind", READS)
@pytest.mark.parametrize("target", [(7, 3), (12, 9)])  # as wide as the source, or not
def test_a_decoder_is_heard_at_its_own_tokens(tmp_path, kind, target):
    config = ModelConfig(path=str(tiny(kind, tmp_path / kind)), device="cpu")
    base = load_base(config, "seq2seq-lm", ())
    source = (6, 2)
    ids, labels = ([[5] * n for n in rows] for rows in (source, target))
    examples = Examples(ids, labels, [0, 1], "sequence")
    batch = collate(examples, [[0], [1]], base.pad_id)
    modules = {name: base.model.get_submodule(name) for name in READS[kind]}
    tokens = {"source": sum(source), "target": sum(target)}
    wanted = {name: tokens[read] for name, read in READS[kind].items()}
    assert input_counts(base.model, modules, base, lambda: iter([batch])) == wanted
    found, _ = input_sketches(base.model, modules, base, lambda: iter([batch]), 4)
    assert {name: sketch.tokens for name, sketch in found.items()} == wanted
    lora = PEFTConfig(name="lora", params={"rank": 2, "init": "eva"})
    made = attach(base, lora, lambda: iter([batch, batch]))
    assert made.record["init"]["batches"] == 2


@pytest.mark.parametrize("name", ["prompt-tuning", "p-tuning"])
def test_a_prompt_before_a_decoder_that_classifies_is_refused(folders, name):
    with pytest.raises(AdapterError, match="would read padding"):
        attach(base_of(folders, "gpt2"), PEFTConfig(name=name))


def test_a_rank_pattern_that_is_no_pattern_is_told(folders):
    params = {"rank_pattern": {"qu(": 2}, "alpha_pattern": {"qu(": 4}}
    with pytest.raises(AdapterError, match="no regular expression"):
        attach(base_of(folders), PEFTConfig(name="lora", params=params))
