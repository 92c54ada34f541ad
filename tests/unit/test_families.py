"""Every family on its tiny model: facts, presets, adapted modules, logits, packing."""

import copy
import functools
import json
import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from tests.tiny import CAUSAL, ENCODERS, HIDDEN, KINDS, SEQ2SEQ, VOCABULARY, tiny
from transformers.pytorch_utils import Conv1D

from loralab.adapters.attach import attach
from loralab.config import ModelConfig, PEFTConfig, compose
from loralab.config.compose import describe, presets
from loralab.errors import AdapterError, DataError, ModelError
from loralab.inference.generate import encode, generate, stream
from loralab.inference.load import Loaded
from loralab.models.architecture import (
    FAMILIES,
    PRESETS,
    match_targets,
    target_patterns,
)
from loralab.models.base import load_base
from loralab.models.packing import check_packing

LABELS = ("a", "b", "c")

# kind -> layers, tied, fused, conv1d: counted by hand from the class
QKV, NEOX = {"qkv_proj": 3, "gate_up_proj": 2}, {"query_key_value": 3}
FACTS = {
    "llama": (2, False, {}, ()),
    "mistral": (2, False, {}, ()),
    "qwen2": (2, True, {}, ()),
    "qwen3": (2, True, {}, ()),
    "gemma2": (2, True, {}, ()),
    "phi": (2, False, {}, ()),
    "phi3": (2, False, QKV, ()),
    "gpt2": (2, True, {"c_attn": 3}, ("c_attn", "c_fc", "c_proj")),
    "gpt_neox": (2, False, NEOX, ()),
    "opt": (2, True, {}, ()),
    "bloom": (2, True, NEOX, ()),
    "falcon": (2, True, NEOX, ()),
    **{kind: (2, False, {}, ()) for kind in ENCODERS},  # as classifiers: no output
    "modernbert": (2, False, {"Wqkv": 3, "Wi": 2}, ()),
    "t5": (4, True, {}, ()),
    "flan-t5": (4, False, {}, ()),
    "bart": (4, True, {}, ()),
}

# kind -> modules of attention, qv (None: fused), mlp, all-linear, in the whole model
_LLAMA = (8, 4, 6, 14)
_BERT = (8, 4, 4, 12)
COUNTS = {
    **dict.fromkeys(["llama", "mistral", "qwen2", "qwen3", "gemma2"], _LLAMA),
    **dict.fromkeys(["phi", "opt"], (8, 4, 4, 12)),
    "phi3": (4, None, 4, 8),
    **dict.fromkeys(["gpt2", "gpt_neox", "bloom", "falcon"], (4, None, 4, 8)),
    **dict.fromkeys(["roberta", "xlm-roberta", "mpnet"], _BERT),
    **dict.fromkeys(["distilbert", "deberta-v2"], _BERT),
    "bert": (8, 4, 4, 13),  # its pooler was trained
    "electra": (8, 4, 4, 13),  # embeddings_project
    "albert": (4, 2, 2, 8),  # one shared layer; pooler, embedding_hidden_mapping_in
    "modernbert": (4, None, 4, 8),
    # four blocks; those of the decoder have a second attention
    "t5": (24, 12, 8, 32),
    "flan-t5": (24, 12, 12, 36),
    "bart": (24, 12, 8, 32),
}

HEADS = {
    **dict.fromkeys(CAUSAL, ("score",)),
    **dict.fromkeys(["bert", "albert"], ("classifier",)),
    "modernbert": ("classifier",),  # its head.dense was trained
    **dict.fromkeys(
        ["roberta", "xlm-roberta", "electra", "mpnet"],
        ("classifier.dense", "classifier.out_proj"),
    ),
    "distilbert": ("classifier", "pre_classifier"),
    "deberta-v2": ("classifier", "pooler.dense"),
}

KEEPS_PACKS_APART = {
    **dict.fromkeys(CAUSAL, True),
    **dict.fromkeys(["opt", "bloom", "falcon"], False),
}


@functools.cache
def written(kind):
    return tiny(kind, Path(tempfile.mkdtemp()) / kind)


def config(kind):
    return ModelConfig(path=str(written(kind)), dtype="fp32", device="cpu")


def load(kind, head=None):
    torch.manual_seed(0)  # of a new head
    if kind in CAUSAL and head is None:
        return load_base(config(kind), "causal-lm")
    if kind in SEQ2SEQ:
        return load_base(config(kind), "seq2seq-lm")
    return load_base(config(kind), "sequence-classification", LABELS)


@functools.cache
def facts(kind):
    return load(kind).facts


def adapted(kind, targets, loaded=None):
    params = {"rank": 2, "alpha": 6, "target_modules": targets}
    made = PEFTConfig(name="lora", params=params)
    return attach(loaded or load(kind), made).model.eval()


def layers_of(model):
    prefix = "base_model.model."
    return {
        name.removeprefix(prefix): module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def logits(kind, model):
    ids = torch.arange(20, 40).reshape(2, 10)
    extra = {"decoder_input_ids": ids[:, 3:7]} if kind in SEQ2SEQ else {}
    if model.config.pad_token_id is None:  # a batch of one needs no padding
        ids = ids[:1]
    with torch.no_grad():
        return model(input_ids=ids, **extra).logits


def test_the_tables_speak_of_every_kind_and_every_family():
    assert KINDS.keys() == FACTS.keys() == COUNTS.keys()
    vision = {"vit", "deit", "dinov2", "dinov2_with_registers", "clip_vision_model"}
    elsewhere = {"gemma", "timm_wrapper", *vision}  # as llama; test_vision
    assert {kind[0] for kind in KINDS.values()} | elsewhere == FAMILIES.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_those_counted_by_hand(kind):
    found = facts(kind)
    layers, tied, fused, conv1d = FACTS[kind]
    assert found.model_type == KINDS[kind][0]
    assert (found.layers, found.hidden, found.vocabulary) == (
        layers,
        HIDDEN,
        VOCABULARY,
    )
    assert (found.tied, found.fused, found.conv1d) == (tied, fused, conv1d)
    assert found.encoder_decoder == (kind in SEQ2SEQ)
    model = load(kind).model
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert json.loads(json.dumps(asdict(found)))["fused"] == fused


@pytest.mark.parametrize("kind", [k for k in KINDS if FACTS[k][2]])
def test_a_fused_module_is_as_wide_as_what_is_fused_in_it(kind):
    model, parts = load(kind).model, facts(kind).fused
    found = dict.fromkeys(parts, 0)
    for name in facts(kind).linear:
        last = name.rpartition(".")[2]
        if last in parts:
            module = model.get_submodule(name)
            width = module.weight.shape[1 if isinstance(module, Conv1D) else 0]
            inner = model.config.intermediate_size if parts[last] == 2 else HIDDEN
            # falcon: one key and one value head beside all of the query
            thin = kind == "falcon"
            assert width == (HIDDEN + 2 * HIDDEN // 4 if thin else parts[last] * inner)
            found[last] += 1
    assert set(found.values()) == {2}


@pytest.mark.parametrize(
    ("kind", "preset", "count"),
    [
        (kind, preset, count)
        for kind in KINDS
        for preset, count in zip(PRESETS, COUNTS[kind], strict=True)
        if count is not None
    ],
)
def test_a_preset_adapts_as_many_modules_as_counted_by_hand(kind, preset, count):
    loaded = load(kind)
    matched = match_targets(target_patterns(preset, loaded.facts), loaded.facts)
    meant = {name for names in matched.values() for name in names}
    found = set(layers_of(adapted(kind, preset, loaded)))
    assert found == meant
    assert len(found) == count


@pytest.mark.parametrize("kind", KINDS)
def test_presets_nest_and_attention_shares_nothing_with_the_mlp(kind):
    sets = {}
    for preset in PRESETS:
        if preset != "qv" or COUNTS[kind][1]:
            matched = match_targets(target_patterns(preset, facts(kind)), facts(kind))
            sets[preset] = {name for names in matched.values() for name in names}
    assert not sets["attention"] & sets["mlp"]
    assert sets["attention"] | sets["mlp"] <= sets["all-linear"]
    assert sets.get("qv", set()) < sets["attention"]
    assert sets["all-linear"] == set(facts(kind).linear)


@pytest.mark.parametrize("kind", [k for k in KINDS if COUNTS[k][1] is None])
def test_query_and_value_alone_are_refused_where_they_are_fused(kind):
    whole = next(name for name, parts in FACTS[kind][2].items() if parts == 3)
    with pytest.raises(AdapterError, match=f"query, key and value in {whole}") as bad:
        adapted(kind, "qv")
    assert "attention" in bad.value.fix


@pytest.mark.parametrize("kind", KINDS)
def test_all_linear_leaves_the_output_and_a_new_head_alone(kind):
    loaded = load(kind)
    output = loaded.model.get_output_embeddings()
    names = {
        name
        for name, module in loaded.model.named_modules()
        if module is output or name.split(".")[0] in ("score", "classifier")
    }
    assert names
    assert not names & set(loaded.facts.linear)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_computes_what_the_merged_weights_compute(kind):
    torch.manual_seed(1)
    model = adapted(kind, "all-linear")
    plain = load(kind).model
    before = logits(kind, plain)
    for name, layer in layers_of(model).items():
        b, a = layer.lora_B["default"].weight, layer.lora_A["default"].weight
        torch.nn.init.normal_(b, std=0.05)
        update = 3.0 * (b @ a).detach()  # out x in, scaled by alpha / rank
        module = plain.get_submodule(name)
        conv = isinstance(module, Conv1D)
        assert layer.fan_in_fan_out == conv
        module.weight.data += update.T if conv else update
    after = logits(kind, plain)
    assert (after - before).abs().max() > 1e-2
    assert torch.allclose(logits(kind, model), after, atol=1e-5, rtol=1e-5)


def test_the_saved_adapter_of_transposed_weights_says_so(tmp_path):
    model = adapted("gpt2", "all-linear")
    torch.manual_seed(2)
    for layer in layers_of(model).values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.05)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"]
    from peft import PeftModel

    again = PeftModel.from_pretrained(load("gpt2").model, tmp_path).eval()
    assert torch.equal(logits("gpt2", again), logits("gpt2", model))
    merged = copy.deepcopy(again).merge_and_unload()
    assert torch.allclose(logits("gpt2", merged), logits("gpt2", model), atol=1e-5)


@pytest.mark.parametrize("kind", [k for k in KINDS if FACTS[k][1]])
def test_tied_embeddings_stay_tied_under_an_adapter(kind):
    loaded = load(kind)
    one = loaded.model.get_input_embeddings().weight
    assert loaded.model.get_output_embeddings().weight is one
    model = adapted(kind, "all-linear", loaded).get_base_model()
    assert model.get_input_embeddings().weight is one
    assert model.get_output_embeddings().weight is one


@pytest.mark.parametrize("kind", HEADS)
def test_a_classifier_finds_its_new_head_and_trains_it_in_full(kind):
    loaded = load(kind, "sequence-classification")
    assert loaded.new_modules == HEADS[kind]
    new = sum(
        loaded.model.get_submodule(name).weight.numel()
        + (loaded.model.get_submodule(name).bias is not None)
        * len(loaded.model.get_submodule(name).weight)
        for name in HEADS[kind]
    )
    made = PEFTConfig(name="lora", params={"rank": 2})
    model = attach(loaded, made).model
    full = [
        p.numel()
        for name, p in model.named_parameters()
        if p.requires_grad and "lora_" not in name
    ]
    assert sum(full) == new
    assert logits(kind, model).shape[1] == len(LABELS)


@pytest.mark.parametrize("kind", ["gemma2", "bloom", "mpnet", "deberta-v2"])
def test_a_class_without_sdpa_takes_eager_unless_sdpa_is_asked_for(kind):
    head = "causal-lm" if kind in CAUSAL else "sequence-classification"
    loaded = load(kind)
    assert loaded.model.config._attn_implementation == "eager"
    asked = config(kind).model_copy(update={"attn_implementation": "sdpa"})
    with pytest.raises(ModelError, match="does not support"):
        load_base(asked, head, LABELS if head != "causal-lm" else ())


def test_a_class_with_sdpa_takes_it():
    assert load("llama").model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", CAUSAL)
def test_the_packing_check_says_what_three_packed_rows_show(kind):
    loaded = load(kind)
    torch.manual_seed(0)
    rows = [torch.randint(5, VOCABULARY, (1, n)) for n in (60, 40, 33)]
    where = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    with torch.no_grad():
        packed = loaded.model(
            input_ids=torch.cat(rows, 1), position_ids=where, use_cache=False
        ).logits
        alone = torch.cat([loaded.model(input_ids=row).logits for row in rows], 1)
    error = float((packed - alone).abs().max())
    assert math.isfinite(error)
    if KEEPS_PACKS_APART[kind]:
        assert error < 1e-4
        assert check_packing(loaded) < 1e-4
    else:
        assert error > 0.1
        with pytest.raises(ModelError, match="read each other"):
            check_packing(loaded)


def answering(kind, method="lora"):
    base = load(kind)
    base.processor.pad_token = base.processor.pad_token or base.processor.eos_token
    base.processor.chat_template = None
    params = {"tokens": 8} if method == "prompt-tuning" else {}
    model = attach(base, PEFTConfig(name=method, params=params)).model
    task = SimpleNamespace(params=SimpleNamespace(max_source_length=600))
    return Loaded(model.eval(), base, task)


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
@pytest.mark.parametrize(("method", "free"), [("lora", 13), ("prompt-tuning", 5)])
def test_a_table_of_positions_holds_prompt_and_answer_or_it_is_told(kind, method, free):
    adapter = answering(kind, method)
    text = adapter.base.processor.decode([50] * 500)
    assert encode(adapter, [text])["input_ids"].shape[1] in (500, 501)  # with <s>
    new = free - (encode(adapter, [text])["input_ids"].shape[1] - 500)
    assert len(generate(adapter, [text], 1, max_new_tokens=new)) == 1
    for said in (
        lambda: generate(adapter, ["a", text], 2, max_new_tokens=new + 1),
        lambda: list(stream(adapter, text, max_new_tokens=new + 1, temperature=0.0)),
    ):
        with pytest.raises(DataError, match=rf"{new + 1} new ones.*has 512 positions"):
            said()
    with pytest.raises(DataError, match="at least 1"):
        generate(adapter, ["a"], 1, max_new_tokens=0)


def test_source_and_target_have_a_table_each():
    adapter = answering("bart")
    text = adapter.base.processor.decode([50] * 500)
    assert len(generate(adapter, [text], 1, max_new_tokens=20)) == 1
    for prompt, new in ((text * 2, 4), ("a", 513)):
        with pytest.raises(DataError, match="has 512 positions"):
            generate(adapter, [prompt], 1, max_new_tokens=new)


@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_positions_without_a_table_have_no_end(kind):
    adapter = answering(kind)
    text = adapter.base.processor.decode([50] * 520)
    assert len(generate(adapter, [text], 1, max_new_tokens=2)) == 1


@pytest.mark.parametrize("name", sorted(presets("model")))
def test_every_model_preset_composes_and_says_what_it_is(name):
    given = [f"model={name}", "data.source.params.path=x.csv"]
    for experiment in ("text-classification", "instruction-tuning"):
        assert compose(experiment, given).model.path
    told = describe(presets("model")[name])
    if not compose("text-classification", given).model.path.startswith("embedded:"):
        assert "licence" in told
        assert "gated" in told
