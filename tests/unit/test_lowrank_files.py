"""Adapter folders as PEFT writes them: our ΔW is PEFT's, and what is not plain is told.

PEFT is the reference: the folders are its own, of tiny models with every kind of layer.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.every_layer import KINDS, delta, loaded, ours, saved
from tests.merging import drawn_sketch

from loralab.errors import AdapterError
from loralab.lowrank.files import (
    WEIGHTS,
    AdapterFolder,
    other_files,
    read_adapter,
    write_adapter,
)
from loralab.lowrank.settings import CONFIG, NOTE
from loralab.lowrank.sketch import write_sketches
from loralab.models.quiet import quiet_libraries


@settings(max_examples=12, deadline=None)
@given(
    st.booleans(),
    st.dictionaries(st.sampled_from([*KINDS, "linear$"]), st.integers(1, 5)),
    st.dictionaries(st.sampled_from([*KINDS, "^linear"]), st.floats(0.1, 9)),
    st.integers(0, 99),
)
def test_every_kind_of_layer_is_what_peft_makes_of_it(rslora, ranks, alphas, seed):
    options = {  # sorted, as PEFT saves them: the first key that matches is taken
        "rank_pattern": dict(sorted(ranks.items())),
        "alpha_pattern": dict(sorted(alphas.items())),
        "use_rslora": rslora,
    }
    with tempfile.TemporaryDirectory() as folder:
        saved(folder, seed=seed, **options)
        model = loaded(folder)
        opened = AdapterFolder.open(folder)
        assert sorted(opened.shapes) == sorted(KINDS)
        for module, shape in opened.shapes.items():
            expected = delta(model, module)
            assert shape == tuple(expected.shape)
            got = ours(opened.factors(module))
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_gpt2_is_read_as_a_map_from_inputs_to_outputs(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=9)
    with quiet_libraries():
        model = get_peft_model(
            GPT2LMHeadModel(config),
            LoraConfig(
                r=3, target_modules=["c_attn", "c_proj"], init_lora_weights=False
            ),
        )
        model.save_pretrained(tmp_path)
    opened = AdapterFolder.open(tmp_path)
    assert opened.shapes["transformer.h.0.attn.c_attn"] == (24, 8)
    assert len(opened.shapes) == 3
    for module in opened.shapes:
        layer = model.base_model.model.get_submodule(module)
        expected = layer.double().get_delta_weight("default").detach().T
        torch.testing.assert_close(
            ours(opened.factors(module)), expected, rtol=1e-12, atol=1e-12
        )


def test_written_back_every_layer_has_its_names_and_shapes(tmp_path):
    model = saved(tmp_path / "a", modules_to_save=["head"], use_rslora=True)
    stored = read_adapter(tmp_path / "a")
    write_adapter(tmp_path / "b", stored)
    was, now = load_file(tmp_path / "a" / WEIGHTS), load_file(tmp_path / "b" / WEIGHTS)
    assert was.keys() == now.keys()
    assert all(torch.equal(now[name], tensor) for name, tensor in was.items())
    again = loaded(tmp_path / "b")
    for module in KINDS:
        torch.testing.assert_close(delta(again, module), delta(model, module))


def test_dtypes_stay_known_and_the_widest_is_named(tmp_path):
    saved(tmp_path)
    retensor(tmp_path, lambda t: t.update({k: v.bfloat16() for k, v in t.items()}))
    opened = AdapterFolder.open(tmp_path)
    assert opened.dtype == torch.bfloat16
    assert opened.factors("linear").A.dtype == torch.float32
    retensor(tmp_path, lambda t: t.update({first(t): t[first(t)].double()}))
    opened = AdapterFolder.open(tmp_path)
    assert opened.dtype == torch.float64


def test_a_run_is_taken_where_a_folder_is_and_gives_its_name(tmp_path):
    run = tmp_path / "cola-12ab"
    saved(run / "adapter")
    (run / "run.json").write_text("{}")
    by_run, by_folder = AdapterFolder.open(run), AdapterFolder.open(run / "adapter")
    assert by_run.path == by_folder.path == run / "adapter"
    assert by_run.name == by_folder.name == "cola-12ab"
    assert AdapterFolder.open(run, "mine").name == "mine"


def test_the_digest_follows_the_content_and_not_the_place(tmp_path):
    saved(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    one, two = AdapterFolder.open(tmp_path / "a"), AdapterFolder.open(tmp_path / "b")
    assert one.digest == two.digest and len(one.digest) == 64
    rewrite(tmp_path / "b", lora_alpha=5)
    assert AdapterFolder.open(tmp_path / "b").digest != one.digest


def test_the_base_is_named_by_the_configuration_and_our_note(tmp_path):
    saved(tmp_path)
    rewrite(tmp_path, base_model_name_or_path=None)
    bare = AdapterFolder.open(tmp_path).base
    assert (bare.name, bare.revision, bare.fingerprint) == (None, None, None)
    rewrite(tmp_path, base_model_name_or_path="org/base", revision="v2")
    note = {"base": {"path": "elsewhere", "revision": None, "fingerprint": "ab12"}}
    (tmp_path / NOTE).write_text(json.dumps(note))
    base = AdapterFolder.open(tmp_path).base
    assert (base.name, base.revision, base.fingerprint) == ("org/base", "v2", "ab12")
    (tmp_path / NOTE).write_text("{")
    with pytest.raises(AdapterError, match=NOTE):
        _ = AdapterFolder.open(tmp_path).base


def test_sketches_of_inputs_are_found_beside_the_adapter(tmp_path):
    saved(tmp_path)
    assert AdapterFolder.open(tmp_path).inputs("linear") is None
    sketch = drawn_sketch(6, 0)
    write_sketches(tmp_path, {"linear": sketch}, {}, rows=1, rank=3, base="f00d")
    opened = AdapterFolder.open(tmp_path)
    assert torch.equal(opened.inputs("linear").S, sketch.S.float())
    assert opened.inputs("gpt") is None


def test_sketches_of_inputs_do_not_go_with_other_weights(tmp_path):
    saved(tmp_path / "one")
    sketch = {"linear": drawn_sketch(6, 0)}
    write_sketches(tmp_path / "one", sketch, {}, rows=1, rank=3, base="f00d")
    stored = read_adapter(tmp_path / "one")
    write_adapter(tmp_path / "two", stored, beside=tmp_path / "one")
    assert AdapterFolder.open(tmp_path / "two").inputs("linear") is None


def test_an_old_configuration_lacks_keys_and_means_what_it_meant(tmp_path):
    model = saved(tmp_path)
    known = ("peft_type", "r", "lora_alpha", "target_modules", "bias")
    config = json.loads((tmp_path / CONFIG).read_text())
    old = {key: config[key] for key in known}
    (tmp_path / CONFIG).write_text(json.dumps(old))
    opened = AdapterFolder.open(tmp_path)
    for module in KINDS:
        torch.testing.assert_close(
            ours(opened.factors(module)), delta(model, module), rtol=1e-12, atol=1e-12
        )


def first(tensors):
    return min(name for name in tensors if "lora_A" in name)


def rewrite(folder, **changes):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))


def retensor(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / WEIGHTS)


def renamed(old, new):
    return lambda t: t.update({new: t.pop(old)})


LINEAR = "base_model.model.linear.lora_A.weight"
BREAK = {
    "NaN": (lambda t: t[LINEAR].fill_(torch.nan), f"{LINEAR} holds NaN"),
    "infinity": (lambda t: t[LINEAR].mul_(torch.inf), f"{LINEAR} holds NaN"),
    "no A": (lambda t: t.pop(LINEAR), f"{LINEAR} is missing"),
    "rank 0": (
        lambda t: t.update(
            {LINEAR: torch.zeros(0, 6), LINEAR.replace("_A", "_B"): torch.zeros(9, 0)}
        ),
        rf"(?s){LINEAR} is \[0, 6\] and B \[9, 0\].*rank 0 has no direction",
    ),
    "ranks that differ": (
        lambda t: t.update({LINEAR: torch.zeros(3, 6)}),
        r"\[3, 6\] and B \[9, 2\]",
    ),
    "another rank than configured": (
        lambda t: t.update(
            {LINEAR: torch.zeros(3, 6), LINEAR.replace("_A", "_B"): torch.zeros(9, 3)}
        ),
        "rank 3, and adapter_config.json says 2",
    ),
    "whole numbers": (
        lambda t: t.update({LINEAR: torch.zeros(2, 6, dtype=torch.int8)}),
        f"{LINEAR} holds no floats",
    ),
    "a vector": (lambda t: t.update({LINEAR: torch.zeros(2)}), "make no rank"),
    "a magnitude": (
        lambda t: t.update(
            {"base_model.model.linear.lora_magnitude_vector": torch.ones(9)}
        ),
        "lora_magnitude_vector is no tensor of a plain LoRA",
    ),
    "a bias of B": (
        lambda t: t.update({LINEAR.replace("A.weight", "B.bias"): torch.ones(9)}),
        "lora_B.bias is no tensor",
    ),
    "another tool's name": (
        lambda t: t.update({"lora_unet_down.lora_up.weight": torch.ones(2, 2)}),
        "lora_unet_down.lora_up.weight is no tensor",
    ),
    "no prefix": (lambda t: t.update({"x": torch.ones(2)}), "x is no tensor"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    saved(folder)
    return folder


@pytest.mark.parametrize("how", BREAK)
def test_broken_tensors_are_told_by_file_and_name(how, plain, tmp_path):
    shutil.copytree(plain, tmp_path / "a")
    change, said = BREAK[how]
    retensor(tmp_path / "a", change)
    with pytest.raises(AdapterError, match=said) as caught:
        read_adapter(tmp_path / "a")
    assert caught.value.where == str(tmp_path / "a" / WEIGHTS)


def test_the_broken_layer_alone_is_refused_when_its_turn_comes(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "a")
    retensor(tmp_path / "a", BREAK["NaN"][0])
    opened = AdapterFolder.open(tmp_path / "a")
    assert opened.factors("gpt").rank == 2
    with pytest.raises(AdapterError, match="diverged"):
        opened.factors("linear")


def test_what_a_trainer_left_beside_the_adapter_stays_there(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "a")
    before = {file.name for file in other_files(tmp_path / "a")}
    for name in ("optimizer.pt", "training_args.bin", "rng_state.pth", "vocab.txt"):
        (tmp_path / "a" / name).write_text("x")
    after = {file.name for file in other_files(tmp_path / "a")}
    assert after - before == {"vocab.txt"}


def test_a_pickle_is_never_loaded(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "a")
    (tmp_path / "a" / WEIGHTS).rename(tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"adapter_model\.bin is a pickle"):
        AdapterFolder.open(tmp_path / "a")


def test_a_grouped_convolution_is_refused_by_name(tmp_path):
    saved(tmp_path, groups=2)
    with pytest.raises(AdapterError, match=r"two\.lora_A") as caught:
        AdapterFolder.open(tmp_path)
    assert "grouped" in caught.value.why


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True, "target_modules": ["linear"]},
        {"lora_bias": True, "target_modules": ["again.linear"]},
        {"bias": "lora_only"},
        {"bias": "all"},
        {"init_lora_weights": "pissa", "target_modules": ["linear"]},
        {"init_lora_weights": "olora", "target_modules": ["linear"]},
        {"init_lora_weights": "OLoRA", "target_modules": ["linear"]},
        {"trainable_token_indices": {"embed": [1, 2]}, "target_modules": ["linear"]},
        {"target_parameters": ["again.linear.weight"], "target_modules": ["embed"]},
    ],
    ids=lambda options: re.sub(r"\W+", " ", next(iter(options))),
)
def test_more_than_a_low_rank_product_is_refused_by_name(options, tmp_path):
    saved(tmp_path, **options)
    key = next(iter(options))
    with pytest.raises(AdapterError, match=key) as caught:
        AdapterFolder.open(tmp_path)
    assert caught.value.where == str(tmp_path / CONFIG)


@pytest.mark.parametrize(
    ("start", "changes"),
    [
        *((name, True) for name in ("OLoRA", "PiSSA", "pissa_niter_4", "CorDA")),
        *((name, True) for name in ("loftq", "lora_ga")),
        *((name, False) for name in (True, False, None, "gaussian", "EVA", "mica")),
    ],
)
def test_a_start_that_changes_the_base_is_refused_however_it_is_spelt(
    start, changes, tmp_path
):
    saved(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "init_lora_weights": start}))
    if not changes:
        assert AdapterFolder.open(tmp_path).modules
        return
    with pytest.raises(AdapterError, match=f"init_lora_weights={start} changed"):
        AdapterFolder.open(tmp_path)


def test_every_variant_of_the_installed_peft_is_refused():
    """A variant that a later PEFT adds is not read as a plain LoRA by mistake."""
    from dataclasses import fields

    from peft import LoraConfig

    from loralab.lowrank.settings import NOT_PLAIN

    variants = {f.name for f in fields(LoraConfig) if f.metadata.get("is_lora_variant")}
    assert variants and variants <= set(NOT_PLAIN)
