import functools

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from loralab.adapters.attach import attach
from loralab.config import PEFTConfig
from loralab.errors import AdapterError
from loralab.models.architecture import (
    PRESETS,
    facts_of,
    match_targets,
    target_patterns,
)
from loralab.models.loaded import LoadedModel
from loralab.models.numerics import Numerics

LAYERS = 2
TINY = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 50,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODERS = {"bert", "roberta", "electra", "xlm-roberta"}
HEAD_OF = dict.fromkeys(ENCODERS, "classifier")
# where every projection is a module of its own, once a layer; the rest: test_families
PLAIN = ["gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3", *sorted(ENCODERS)]
SEQUENCE, CAUSAL = "sequence-classification", "causal-lm"


def tiny(model_type, head=None):
    head = head or (SEQUENCE if model_type in ENCODERS else CAUSAL)
    extra = {"embedding_size": 12} if model_type == "electra" else {}
    config = AutoConfig.for_model(model_type, **TINY, **extra)
    torch.manual_seed(0)
    made = AutoModelForCausalLM
    if head == SEQUENCE:
        made = AutoModelForSequenceClassification
    model = made.from_config(config)
    new = (HEAD_OF.get(model_type, "score"),) if head == SEQUENCE else ()
    cpu = Numerics("cpu", "fp32", "a test")
    facts = facts_of(model, new)
    return LoadedModel(model, None, head, facts, cpu, new, "./tiny", None, "0" * 64)


@functools.cache
def facts(model_type):
    return tiny(model_type).facts


def adapted(model):
    prefix = "base_model.model."
    return {
        name.removeprefix(prefix)
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


@pytest.mark.parametrize("model_type", PLAIN)
def test_facts_are_those_of_the_model(model_type):
    found = facts(model_type)
    assert found.model_type == model_type
    assert (found.layers, found.hidden, found.vocabulary) == (LAYERS, 16, 50)
    model = tiny(model_type).model
    assert found.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("preset", [p for p in PRESETS if p != "all-linear"])
@pytest.mark.parametrize("model_type", PLAIN)
def test_every_pattern_of_every_family_matches_once_in_every_layer(model_type, preset):
    patterns = target_patterns(preset, facts(model_type))
    for names in match_targets(patterns, facts(model_type)).values():
        assert len(names) == LAYERS
        assert all(
            f"layer.{i}." in n or f"layers.{i}." in n for i, n in enumerate(names)
        )


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model_type", PLAIN)
def test_peft_adapts_exactly_the_matched_modules(model_type, preset):
    loaded = tiny(model_type)
    linear = set(loaded.facts.linear)
    matched = match_targets(target_patterns(preset, loaded.facts), loaded.facts)
    config = PEFTConfig(name="lora", params={"rank": 2, "target_modules": preset})
    found = attach(loaded, config)
    meant = {name for names in matched.values() for name in names}
    assert adapted(found.model) == meant <= linear
    assert sum(found.scales.values()) == len(meant)
    assert found.matched == {pattern: len(names) for pattern, names in matched.items()}


@pytest.mark.parametrize("model_type", PLAIN)
def test_attention_and_mlp_share_nothing_and_qv_is_of_attention(model_type):
    sets = {}
    for preset in ("attention", "qv", "mlp", "all-linear"):
        patterns = target_patterns(preset, facts(model_type))
        matched = match_targets(patterns, facts(model_type))
        sets[preset] = {name for names in matched.values() for name in names}
    assert not sets["attention"] & sets["mlp"]
    assert sets["qv"] < sets["attention"]
    assert len(sets["qv"]) == 2 * LAYERS
    assert len(sets["attention"]) == 4 * LAYERS
    assert sets["attention"] | sets["mlp"] <= sets["all-linear"]
    assert sets["all-linear"] == set(facts(model_type).linear)


def test_bert_tells_the_output_of_attention_from_that_of_the_mlp():
    patterns = target_patterns("mlp", facts("bert"))
    names = [
        n for found in match_targets(patterns, facts("bert")).values() for n in found
    ]
    assert names
    assert not any("attention" in name for name in names)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_all_linear_leaves_out_the_output_layer(model_type):
    loaded = tiny(model_type)
    assert any(name == "lm_head" for name, _ in loaded.model.named_modules())
    attached = attach(loaded, PEFTConfig(name="lora"))
    assert not any("lm_head" in name for name in adapted(attached.model))
    assert all(
        "lora_" in name
        for name, parameter in attached.model.named_parameters()
        if parameter.requires_grad
    )


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra", "llama", "gpt2"])
def test_all_linear_leaves_out_a_new_head_which_is_trained_in_full(model_type):
    loaded = tiny(model_type, SEQUENCE)
    (new,) = loaded.new_modules
    inside = sum(p.numel() for p in loaded.model.get_submodule(new).parameters())
    attached = attach(loaded, PEFTConfig(name="lora"))
    assert not any(name.startswith(new) for name in adapted(attached.model))
    full = [
        parameter.numel()
        for name, parameter in attached.model.named_parameters()
        if parameter.requires_grad and "lora_" not in name
    ]
    assert sum(full) == inside > 0


def test_all_linear_adapts_the_transposed_layers_of_gpt2():
    loaded = tiny("gpt2")
    attached = attach(loaded, PEFTConfig(name="lora"))
    ends = {name.rpartition(".")[2] for name in adapted(attached.model)}
    assert ends == {"c_attn", "c_proj", "c_fc"}
    assert len(adapted(attached.model)) == 4 * LAYERS


def test_a_new_adapter_changes_nothing_yet():
    loaded = tiny("llama")
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        before = loaded.model.eval()(ids).logits
        attached = attach(loaded, PEFTConfig(name="lora"))
        assert torch.equal(attached.model.eval()(ids).logits, before)


def test_a_pattern_that_matches_nothing_shows_the_nearest():
    with pytest.raises(AdapterError, match="nearest: q_proj"):
        match_targets(["v_proj", "q_prj"], facts("llama"))
    loaded = tiny("llama")
    config = PEFTConfig(name="lora", params={"target_modules": ["v_proj", "q_prj"]})
    with pytest.raises(AdapterError, match="nearest: q_proj"):
        attach(loaded, config)


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens", "proj", "input_layernorm"])
def test_what_is_no_linear_module_of_the_body_is_no_target(name):
    with pytest.raises(AdapterError, match="matches no linear module"):
        match_targets([name], facts("llama"))


def test_a_broken_pattern_is_refused():
    with pytest.raises(AdapterError, match="no regular expression"):
        match_targets(["q_proj("], facts("llama"))


def test_an_unknown_preset_shows_the_nearest():
    with pytest.raises(AdapterError, match="nearest: attention"):
        target_patterns("atention", facts("llama"))


def test_a_preset_of_an_unknown_family_names_what_can_be_chosen():
    with pytest.raises(AdapterError, match="codegen") as caught:
        target_patterns("attention", facts("codegen"))
    assert "all-linear" in caught.value.fix
    assert "qkv_proj" in caught.value.fix


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "v_proj"],
        ["self_attn.o_proj"],
        [r"layers\.0\.mlp\.\w+_proj"],
        ["q_proj", r"1\.mlp\.up_proj"],
    ],
)
def test_patterns_of_the_users_own_are_what_peft_adapts(targets):
    loaded = tiny("llama")
    matched = match_targets(targets, loaded.facts)
    config = PEFTConfig(name="lora", params={"target_modules": targets})
    attached = attach(loaded, config)
    meant = {name for names in matched.values() for name in names}
    assert adapted(attached.model) == meant
    assert attached.matched.keys() == set(targets)


def test_a_rank_of_its_own_keeps_the_scale_and_must_name_a_module():
    name = "model.layers.0.self_attn.q_proj"
    params = {"rank": 2, "alpha": 4, "target_modules": "qv"}
    own = {"rank_pattern": {name: 4}, "alpha_pattern": {name: 8}}
    loaded = tiny("llama")
    attached = attach(loaded, PEFTConfig(name="lora", params=params | own))
    assert attached.scales == {2.0: 2 * LAYERS}
    layer = attached.model.get_submodule(f"base_model.model.{name}")
    assert layer.r == {"default": 4}
    wrong = {"rank_pattern": {"k_proj": 4}, "alpha_pattern": {"k_proj": 8}}
    loaded = tiny("llama")
    with pytest.raises(AdapterError, match="k_proj"):
        attach(loaded, PEFTConfig(name="lora", params=params | wrong))


def test_counts_are_those_of_the_formula():
    loaded = tiny("llama")
    body = sum(p.numel() for p in loaded.model.parameters())
    params = {"rank": 3, "target_modules": ["q_proj", "down_proj"]}
    attached = attach(loaded, PEFTConfig(name="lora", params=params))
    assert attached.trainable == LAYERS * 3 * ((16 + 16) + (24 + 16))
    assert attached.total == body + attached.trainable
