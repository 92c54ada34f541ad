"""AdaLoRA: the rule step by step, what PEFT does to it, and what is saved of it."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from tests.tiny import VOCABULARY, tiny
from tests.vision import SIDE, fused, fused_base, save
from torch.nn.functional import cross_entropy

from loralab.adapters.adalora import (
    allocator_state,
    config_of,
    effective_scale,
    kept_triplets,
    layers_of,
    load_allocator_state,
    orthogonality,
    realised_ranks,
    set_schedule,
    to_plain_lora,
    update,
)
from loralab.adapters.attach import attach
from loralab.adapters.files import save_weights
from loralab.config import ModelConfig, PEFTConfig
from loralab.errors import AdapterError, ConfigError, TrainingError
from loralab.models.base import load_base
from loralab.models.numerics import seed_everything
from loralab.registry import get
from loralab.training.adaptive import check_final, result
from loralab.training.checkpoint import (
    put_trained,
    read_state,
    read_trained,
    write_state,
    write_trained,
)

LABELS = ("a", "b", "c")
SMALL = {"init_rank": 3, "target_rank": 2, "alpha": 6}
STEPS = 14
HEADS = {
    "bert": "sequence-classification",
    "gpt2": "causal-lm",
    "vit": "image-classification",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = tmp_path_factory.mktemp("models")
    found = {kind: tiny(kind, made / kind) for kind in ("bert", "gpt2")}
    return {**found, "vit": save("vit", made / "vit"), "fused": made}


def adapted(folder, kind="bert", steps=STEPS, shares=(0.1, 0.3), **params):
    """An AdaLoRA model on a tiny base, its schedule set."""
    seed_everything(0)
    if kind == "fused":
        base = fused_base()
    else:
        config = ModelConfig(path=str(folder), dtype="fp32", device="cpu")
        base = load_base(config, HEADS[kind], () if kind == "gpt2" else LABELS)
    made = attach(base, PEFTConfig(name="adalora", params={**SMALL, **params}))
    set_schedule(made.model, steps, *shares)
    return made.model


def batch(kind, step):
    drawn = torch.Generator().manual_seed(step)
    if kind in ("vit", "fused"):
        pixels = torch.randn(8, 3, SIDE, SIDE, generator=drawn)
        return {"pixel_values": pixels}, torch.randint(0, 3, (8,), generator=drawn)
    ids = torch.randint(5, VOCABULARY, (8, 12), generator=drawn)
    labels = ids if kind == "gpt2" else torch.randint(0, 3, (8,), generator=drawn)
    return {"input_ids": ids}, labels


def loss_of(model, kind, step):
    inputs, labels = batch(kind, step)
    logits = model(**inputs).logits
    if kind == "gpt2":
        return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return cross_entropy(logits, labels)


def run(model, first, last, kind="bert", optimizer=None, seen=lambda *_: None):
    """Train by hand from step `first` to `last`, allocating after each step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer or torch.optim.AdamW(trained, lr=2e-2, weight_decay=0)
    for step in range(first, last + 1):
        (loss_of(model, kind, step) + 0.5 * orthogonality(model)).backward()
        before = snapshot(model)
        optimizer.step()
        after = snapshot(model)
        done = update(model, step)
        seen(step, before, after, done)
        optimizer.zero_grad()
    return optimizer


def snapshot(model):
    """By module and letter: weight and gradient, in double precision."""
    letters = {"P": "lora_B", "L": "lora_E", "Q": "lora_A"}
    return {
        (name, letter): (held.detach().double().clone(), held.grad.double().clone())
        for name, layer in layers_of(model).items()
        for letter, part in letters.items()
        for held in [getattr(layer, part)["default"]]
    }


class Rule:
    """The rule written out: sensitivity, uncertainty, scores, budget, the best b(t)."""

    def __init__(self, modules, start=3, target=2, total=STEPS, shares=(0.1, 0.3)):
        self.modules, self.b0, self.bT = modules, start * modules, target * modules
        self.total = total
        self.ti, self.tf = int(shares[0] * total), int(shares[1] * total)
        self.mean, self.spread = {}, {}

    def budget(self, t):
        if t <= self.ti:
            return None
        last = self.total - self.tf
        if t >= last:
            return self.bT
        falls = (1 - (t - self.ti) / (last - self.ti)) ** 3
        return int(self.bT + (self.b0 - self.bT) * falls)

    def observe(self, tensors):
        for key, (w, g) in tensors.items():
            now = (w * g).abs()
            zero = torch.zeros_like(now)
            self.mean[key] = 0.85 * self.mean.get(key, zero) + 0.15 * now
            gap = (now - self.mean[key]).abs()
            self.spread[key] = 0.85 * self.spread.get(key, zero) + 0.15 * gap

    def kept(self, t):
        """Which triplets are better than the (b0 − b)-th worst; ties go, as in PEFT."""
        score = {key: self.mean[key] * self.spread[key] for key in self.mean}
        triplets = {
            name: score[name, "L"].flatten()
            + score[name, "P"].mean(0)
            + score[name, "Q"].mean(1)
            for name, letter in score
            if letter == "L"
        }
        worst = torch.cat(list(triplets.values())).sort().values
        threshold = worst[self.b0 - self.budget(t) - 1]
        return {name: (s > threshold).tolist() for name, s in triplets.items()}


def test_each_step_is_the_rule_written_out(folders):
    model = adapted(folders["bert"])
    modules = len(layers_of(model))
    rule, paper = Rule(modules), Rule(modules)
    last = STEPS - rule.tf
    masked, apart = [], []

    def seen(step, before, after, done):
        kept = kept_triplets(model)
        if step < last:
            rule.observe(after)  # PEFT: weights after the step, gradients before it
            paper.observe({k: (before[k][0], after[k][1]) for k in after})
        if rule.budget(step) is None:
            assert not done.masked
            assert all(all(k) for k in kept.values())
            return
        expected = rule.kept(min(step, last))
        assert done.budget == rule.budget(step)
        assert kept == expected, step
        assert sum(realised_ranks(model).values()) == done.budget
        for name, layer in layers_of(model).items():
            keep = torch.tensor(kept[name])[:, None]
            wanted = after[name, "L"][0] * keep
            assert torch.equal(layer.lora_E["default"].double(), wanted)
            assert torch.equal(
                layer.lora_A["default"].double(), after[name, "Q"][0]
            )  # a triplet that is masked keeps P and Q: it can come back
        if step <= last:
            masked.append(kept)
            apart.append(paper.kept(step) != kept)

    run(model, 1, STEPS, seen=seen)
    assert len(masked) == last - rule.ti
    back = sum(
        not one and two
        for first, second in itertools.pairwise(masked)
        for name in first
        for one, two in zip(first[name], second[name], strict=True)
    )
    assert back > 0  # triplets did come back
    # The paper's weights before the step choose others at 8 of these 9 allocations.
    assert sum(apart) >= len(apart) // 2
    ranks = realised_ranks(model)
    assert sum(ranks.values()) == 2 * modules
    assert len(set(ranks.values())) > 1
    check_final(model)


def test_triplets_that_tie_with_the_threshold_go_too(folders):
    model = adapted(folders["bert"], shares=(0.0, 0.0))
    run(model, 1, 1)  # an allocation that is not final
    names = [*layers_of(model)]
    best = names[: len(names) // 2]

    def scored(kept):
        ones = {}
        for n, p in model.base_model.model.named_parameters():
            if "lora_" in n and p.requires_grad:
                inside = any(n.startswith(f"{name}.lora") for name in kept)
                ones[n] = torch.full_like(p, 2.0 if inside else 1.0)
        return {"sensitivity": ones, "uncertainty": ones, "rank_pattern": None}

    load_allocator_state(model, scored(best))
    done = update(model, STEPS)
    assert done.final and done.budget == 2 * len(names)
    # 2·n are allowed; the 1.5·n worst all score the same, and all of them go
    assert sum(realised_ranks(model).values()) == 3 * len(best) < done.budget
    with pytest.raises(TrainingError, match="triplets tie in importance"):
        check_final(model)


def test_an_allocator_that_was_never_called_is_found(folders):
    model = adapted(folders["bert"])
    with pytest.raises(TrainingError, match="never driven"):
        result(model)


def test_a_schedule_that_does_not_end_is_found(folders):
    model = adapted(folders["bert"])
    run(model, 1, 5)
    with pytest.raises(TrainingError, match="ended before the final allocation"):
        result(model)


def test_triplets_that_grow_again_after_the_end_are_found(folders):
    model = adapted(folders["bert"])
    optimizer = run(model, 1, STEPS)
    (loss_of(model, "bert", 0) + orthogonality(model)).backward()
    optimizer.step()  # and no allocation after it
    with pytest.raises(TrainingError, match="are not zero"):
        result(model)


def test_a_module_without_gradient_is_named(folders):
    model = adapted(folders["bert"])
    loss_of(model, "bert", 0).backward()
    name, layer = next(iter(layers_of(model).items()))
    layer.lora_E["default"].grad = None
    with pytest.raises(AdapterError, match="no gradient reaches") as caught:
        update(model, 1)
    assert caught.value.where == name
    with pytest.raises(TypeError):  # PEFT's own word for it
        model.base_model.update_and_allocate(1)


def test_the_allocator_reads_the_configuration_that_the_schedule_writes(folders):
    model = adapted(folders["bert"], steps=100, shares=(0.125, 0.25))
    config = config_of(model)
    assert model.base_model.rankallocator.peft_config is config
    assert (config.total_step, config.tinit, config.tfinal) == (100, 12, 25)


def test_phases_that_leave_no_step_are_refused(folders):
    with pytest.raises(ConfigError, match="of 14 steps 1 are warm-up and 12 final"):
        adapted(folders["bert"], shares=(0.1, 0.88))
    with pytest.raises(ConfigError, match="fewer than 2 times"):
        adapted(folders["bert"], delta_t=5)


@pytest.mark.parametrize("start", [8, 7])
def test_a_budget_that_does_not_fall_is_refused_and_crashes_peft(start):
    schema = get("PEFT method", "adalora").schema
    with pytest.raises(ValueError, match="nothing to take away"):
        schema(init_rank=start, target_rank=8)
    config = AdaLoraConfig(
        target_modules=["layer"], total_step=3, init_r=start, target_r=8
    )
    model = get_peft_model(Plain(16), config)
    model.base_model(torch.randn(4, 16)).loss.backward()
    with pytest.raises((RuntimeError, IndexError), match=r"k(th)?value|index k"):
        model.base_model.update_and_allocate(1)


def test_phases_that_fill_all_steps_are_refused():
    with pytest.raises(ValueError, match="no step to fall in"):
        get("PEFT method", "adalora").schema(warmup_share=0.5, final_share=0.5)


def test_the_default_scale_is_that_of_lora(folders):
    schemas = [get("PEFT method", name).schema() for name in ("adalora", "lora")]
    own, plain = schemas
    names = ("init_rank", "target_rank", "alpha")
    model = adapted(folders["bert"], **{n: getattr(own, n) for n in names})
    assert effective_scale(model) == pytest.approx(plain.alpha / plain.rank, rel=1e-6)
    layer = next(iter(layers_of(model).values()))
    torch.nn.init.normal_(layer.lora_E["default"])
    p, values, q = (getattr(layer, f"lora_{x}")["default"] for x in "BEA")
    wanted = effective_scale(model) * p @ torch.diag(values.flatten()) @ q
    torch.testing.assert_close(layer.get_delta_weight("default"), wanted)


class Plain(torch.nn.Module):
    """One linear layer with the loss that PEFT adds its regulariser to."""

    def __init__(self, width):
        super().__init__()
        self.layer = torch.nn.Linear(width, width)

    def forward(self, x):
        return SimpleNamespace(loss=self.layer(x).square().mean())


def test_pefts_loss_is_cross_entropy_and_more_than_a_nat():
    """At SmolLM2's width, rank 12 and PEFT's weight, before the first step."""
    torch.manual_seed(0)
    base = Plain(576)
    x = torch.randn(4, 576)
    clean = base(x).loss.detach()
    config = AdaLoraConfig(target_modules=["layer"], total_step=1, init_r=12)
    model = get_peft_model(base, config).eval()  # in evaluation too
    added = model.base_model(x).loss - clean
    torch.testing.assert_close(added, 0.5 * orthogonality(model))
    assert 1.2 < float(added.detach()) < 1.45
    # a PEFT model that knows no task calls past it: no regulariser, and no word
    assert config.task_type is None
    assert model(x).loss == clean


def fresh(folder, kind):
    """Return a base as transformers alone gives it."""
    import transformers

    if kind == "fused":
        return fused()
    if kind == "gpt2":
        return transformers.AutoModelForCausalLM.from_pretrained(folder)
    auto = transformers.AutoModelForSequenceClassification
    if kind == "vit":
        auto = transformers.AutoModelForImageClassification
    return auto.from_pretrained(folder, num_labels=3, ignore_mismatched_sizes=True)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "vit", "fused"])
def test_what_is_saved_is_plain_lora_with_the_same_logits(folders, kind, tmp_path):
    model = adapted(folders[kind], kind, init_rank=2, target_rank=1, alpha=40)
    run(model, 1, STEPS, kind)
    inputs, _ = batch(kind, 99)
    model.eval()
    trained = model(**inputs).logits.detach()
    ranks, scale = realised_ranks(model), effective_scale(model)
    with model.disable_adapter():
        untrained = model(**inputs).logits.detach()
    assert (trained - untrained).abs().max() > 0.05
    assert max(ranks.values()) == 2  # where it is wanted more than elsewhere
    assert sum(ranks.values()) == len(ranks)  # the budget: one a module
    made, _ = to_plain_lora(model)
    for name, rank in ranks.items():
        if rank:
            key = f"^{name}$".replace(".", "\\.")
            alpha = made.alpha_pattern.get(key, made.lora_alpha)
            width = made.rank_pattern.get(key, made.r)
            assert width == rank
            assert alpha / width == pytest.approx(scale, rel=1e-15)

    plain = result(model)
    with plain.disable_adapter():  # the base keeps its own head
        again = plain.eval()(**inputs).logits
    torch.testing.assert_close(again, untrained)
    save_weights(plain, tmp_path)
    said = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
    assert said["peft_type"] == "LORA"
    assert said["target_modules"] == sorted(n for n, rank in ranks.items() if rank)
    assert said["modules_to_save"] == (None if kind == "gpt2" else ["classifier"])

    base = fresh(folders[kind], kind)
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(loaded(**inputs).logits, trained)


@pytest.mark.parametrize("stop", [1, 5, 12])
def test_a_checkpoint_continues_bit_for_bit(folders, stop, tmp_path):
    whole = adapted(folders["bert"])
    run(whole, 1, STEPS)
    model = adapted(folders["bert"])
    optimizer = run(model, 1, stop)
    masked = [not kept for held in kept_triplets(model).values() for kept in held]
    assert any(masked) == (stop > 1)
    write_trained(tmp_path, model)
    state = allocator_state(model)
    write_state(tmp_path, optimizer=optimizer.state_dict(), allocator=state)

    torch.manual_seed(5)
    again = adapted(folders["bert"])
    held = read_state(tmp_path)
    load_allocator_state(again, held["allocator"])
    put_trained(again, read_trained(tmp_path), tmp_path)  # masked triplets too
    trained = [p for p in again.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-2, weight_decay=0)
    optimizer.load_state_dict(held["optimizer"])
    run(again, stop + 1, STEPS, optimizer=optimizer)
    ended = [dict(m.named_parameters()) for m in (whole, again)]
    assert all(torch.equal(ended[0][name], ended[1][name]) for name in ended[0])
    assert realised_ranks(again) == realised_ranks(whole)


def test_what_the_scale_is_divided_by_is_no_trained_parameter(folders):
    config = ModelConfig(path=str(folders["bert"]), dtype="bf16", device="cpu")
    base = load_base(config, "sequence-classification", LABELS)
    model = attach(base, PEFTConfig(name="adalora", params=SMALL)).model
    numbers = [p for n, p in model.named_parameters() if ".ranknum." in n]
    assert numbers and not any(p.requires_grad for p in numbers)


def test_peft_trains_what_the_scale_is_divided_by(folders):
    """The reason for the guard: once this fails, PEFT has mended it."""
    config = ModelConfig(path=str(folders["bert"]), dtype="bf16", device="cpu")
    base = load_base(config, "sequence-classification", LABELS)
    asked = AdaLoraConfig(init_r=3, target_r=2, total_step=10, target_modules=["query"])
    model = get_peft_model(base.model, asked)
    numbers = [p for n, p in model.named_parameters() if ".ranknum." in n]
    assert numbers and all(p.requires_grad for p in numbers)
