"""Ranks of a live model that shrink and grow."""

import copy
import functools
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.tiny import tiny

from loralab.adapters.files import save_weights
from loralab.adapters.resize import (
    Resized,
    carry_optimizer,
    factors_of,
    fit_shapes,
    lora_parameters,
    put_factors,
    ranks_of,
    resize,
)
from loralab.errors import AdapterError, RunError, TrainingError
from loralab.lowrank.factors import Factors, singular_values
from loralab.lowrank.files import read_adapter
from loralab.models.quiet import quiet_libraries
from loralab.training.checkpoint import put_trained, read_trained, write_trained
from loralab.training.schedule import RankScheduleCallback, by_spectrum, grow

IDS = torch.arange(24).reshape(2, 12)


@functools.cache
def written():
    return tiny("llama", Path(tempfile.mkdtemp()) / "llama")


def base():
    from transformers import AutoModelForCausalLM

    with quiet_libraries():
        return AutoModelForCausalLM.from_pretrained(written(), dtype=torch.float32)


def adapted(**changes):
    """Return a PEFT model of q and down projections whose B is not zero."""
    from peft import LoraConfig, get_peft_model

    settings = {
        "r": 4,
        "lora_alpha": 6,
        "lora_dropout": 0.25,
        "target_modules": ["q_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
    }
    torch.manual_seed(0)
    with quiet_libraries():
        model = get_peft_model(base(), LoraConfig(**{**settings, **changes}))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def all_at(model, rank):
    return dict.fromkeys(ranks_of(model), rank)


def dense(factors):
    return factors.scale * factors.B.double() @ factors.A.double()


def plain(folder):
    from peft import PeftModel

    with quiet_libraries():
        return PeftModel.from_pretrained(base(), folder).eval()


def test_growth_leaves_the_function_as_it_is_to_the_bit():
    model = adapted()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    with torch.no_grad():  # whole numbers: no order of summation rounds
        for linear in (layer.lora_A.default, layer.lora_B.default, layer.base_layer):
            linear.weight.copy_(torch.randint(-3, 4, linear.weight.shape))
    x = torch.randint(-3, 4, (5, 32)).float()
    before = layer(x)
    resize(model, all_at(model, 9), seeded())
    assert layer.lora_A.default.weight.shape == (9, 32)
    assert torch.equal(layer(x), before)
    assert not torch.equal(layer(x), layer.base_layer(x))


def test_growth_keeps_the_old_directions_and_draws_new_ones():
    model = adapted()
    before, old = logits(model), {k: v.clone() for k, v in factors_by_name(model)}
    report = resize(model, all_at(model, 7), seeded())
    assert set(report.values()) == {Resized(4, 7, 0.0)}
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)
    drawn = []
    for name, tensor in factors_by_name(model):
        if name.endswith("A"):
            assert torch.equal(tensor[:4], old[name])
            bound = tensor.shape[1] ** -0.5
            assert 0.5 * bound < tensor[4:].abs().max() <= bound
            drawn.append(tensor[4:].flatten()[:8])
        else:
            assert torch.equal(tensor[:, :4], old[name])
            assert tensor[:, 4:].eq(0).all()
    assert len({tuple(d.tolist()) for d in drawn}) == len(drawn)
    again = adapted()
    resize(again, all_at(again, 7), seeded())
    for (_, one), (_, two) in zip(
        factors_by_name(model), factors_by_name(again), strict=True
    ):
        assert torch.equal(one, two)


def factors_by_name(model):
    return [(k, v.detach()) for k, v in lora_parameters(model).items()]


@pytest.mark.parametrize("rslora", [False, True])
def test_shrinking_is_the_best_there_is_and_says_what_it_lost(rslora):
    model = adapted(use_rslora=rslora)
    before = factors_of(model)
    report = resize(model, all_at(model, 2), seeded())
    for path, now in factors_of(model).items():
        was = before[path]
        tail = singular_values(was)[2:].norm() / singular_values(was).norm()
        lost = (dense(was) - dense(now)).norm() / dense(was).norm()
        assert report[path].relative_error == pytest.approx(tail.item(), rel=1e-6)
        assert lost.item() == pytest.approx(tail.item(), rel=1e-5)
        assert now.scale == was.scale
        assert now.rank == report[path].after == 2


def test_dropout_dtype_scale_and_what_is_trained_stay():
    model = adapted().to(torch.bfloat16)
    first = "model.layers.0.self_attn.q_proj"
    layer = model.base_model.model.get_submodule(first)
    scale, dropout = layer.scaling["default"], layer.lora_dropout["default"]
    frozen = model.base_model.model.model.layers[1].self_attn.q_proj
    frozen.lora_A.default.weight.requires_grad_(False)
    resize(model, all_at(model, 6), seeded())
    assert layer.scaling["default"] == scale == 1.5
    assert layer.lora_alpha["default"] == 9
    assert layer.lora_dropout["default"] is dropout and dropout.p == 0.25
    assert {p.dtype for p in lora_parameters(model).values()} == {torch.bfloat16}
    assert not frozen.lora_A.default.weight.requires_grad
    assert frozen.lora_B.default.weight.requires_grad
    assert layer.lora_A.default.out_features == layer.lora_B.default.in_features == 6


@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_saved_loads_in_plain_peft_with_equal_logits(rslora, tmp_path):
    model = adapted(use_rslora=rslora)
    ranks = dict(zip(ranks_of(model), (1, 4, 7, 4), strict=True))
    resize(model, ranks, seeded())
    save_weights(model, tmp_path)
    loaded = plain(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert ranks_of(loaded) == ranks == ranks_of(model)
    stored = read_adapter(tmp_path)
    assert {name: f.rank for name, f in stored.factors.items()} == ranks
    for name, factors in stored.factors.items():
        assert factors.scale == pytest.approx(factors_of(model)[name].scale, rel=1e-15)


@pytest.mark.parametrize(
    ("settings", "ranks", "said"),
    [
        ({"use_dora": True}, {}, "DoraLinear"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, {}, "lora_bias"),
        ({"target_modules": ["embed_tokens"]}, {}, "not a linear"),
        ({}, {"model.layers.0.self_attn.q_proj": 0}, "between 1 and 32"),
        ({}, {"model.layers.0.self_attn.q_proj": 33}, "between 1 and 32"),
        ({}, {"layers.0.nothing": 2}, "no LoRA layer"),
    ],
)
def test_what_has_no_ranks_is_refused_and_left_alone(settings, ranks, said):
    model = adapted(**settings)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(AdapterError, match=said):
        resize(model, ranks, seeded())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def train_step(model, optimizer):
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def optimizer_of(model):
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=0.01, weight_decay=0.0)


def test_training_goes_on_after_a_resize_and_every_tensor_moves():
    model = adapted(lora_dropout=0.0)
    optimizer = optimizer_of(model)
    losses = [train_step(model, optimizer) for _ in range(3)]
    before = lora_parameters(model)
    ranks = dict(zip(ranks_of(model), (2, 6, 4, 3), strict=True))
    resize(model, ranks, seeded())
    carry_optimizer(optimizer, before, lora_parameters(model))
    start = dict(factors_by_name(model))
    start = {name: tensor.clone() for name, tensor in start.items()}
    losses += [train_step(model, optimizer) for _ in range(8)]
    assert all(torch.isfinite(torch.tensor(losses)))
    assert losses[-1] < losses[3]
    for name, tensor in factors_by_name(model):
        across = tensor if name.endswith("A") else tensor.T
        was = start[name] if name.endswith("A") else start[name].T
        moved = (across != was).any(dim=1)
        assert moved.all(), name  # each direction of it, the new ones too


def test_without_its_optimizer_a_resized_model_stands_still():
    model = adapted()
    optimizer = optimizer_of(model)
    resize(model, all_at(model, 6), seeded())
    start = {name: tensor.clone() for name, tensor in factors_by_name(model)}
    train_step(model, optimizer)
    assert all(torch.equal(t, start[name]) for name, t in factors_by_name(model))


def test_growth_carries_the_moments_and_shrinking_begins_anew():
    model = adapted()
    optimizer = optimizer_of(model)
    for _ in range(2):
        train_step(model, optimizer)
    before = lora_parameters(model)
    old = {name: optimizer.state[p] for name, p in before.items()}
    paths = list(ranks_of(model))
    resize(model, {paths[0]: 6, paths[1]: 2}, seeded())
    after = lora_parameters(model)
    anew = carry_optimizer(optimizer, before, after)
    assert anew == [f"{paths[1]}.A", f"{paths[1]}.B"]
    held = optimizer.param_groups[0]["params"]
    assert {id(p) for p in held} == {id(p) for p in after.values()}
    assert set(optimizer.state) == {p for n, p in after.items() if n not in anew}
    for key in ("exp_avg", "exp_avg_sq"):
        rows = optimizer.state[after[f"{paths[0]}.A"]][key]
        columns = optimizer.state[after[f"{paths[0]}.B"]][key]
        assert torch.equal(rows[:4], old[f"{paths[0]}.A"][key])
        assert torch.equal(columns[:, :4], old[f"{paths[0]}.B"][key])
        assert rows[4:].eq(0).all() and columns[:, 4:].eq(0).all()
    assert optimizer.state[after[f"{paths[0]}.A"]]["step"] == 2
    same = after[f"{paths[2]}.A"]
    assert same is before[f"{paths[2]}.A"]
    assert optimizer.state[same] is old[f"{paths[2]}.A"]


def test_state_of_another_shape_begins_anew():
    from transformers import Adafactor

    model = adapted()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = Adafactor(trained, lr=0.01, relative_step=False)
    train_step(model, optimizer)
    before = lora_parameters(model)
    resize(model, all_at(model, 6), seeded())
    anew = carry_optimizer(optimizer, before, lora_parameters(model))
    assert set(anew) == set(before)
    train_step(model, optimizer)


def test_stored_shapes_decide_before_a_checkpoint_is_loaded(tmp_path):
    model = adapted()
    ranks = dict(zip(ranks_of(model), (1, 6, 3, 4), strict=True))
    resize(model, ranks, seeded())
    write_trained(tmp_path, model)
    tensors, fresh = read_trained(tmp_path), adapted()
    with pytest.raises(RunError, match="of another model"):
        put_trained(fresh, tensors, tmp_path)
    fit_shapes(fresh, tensors)
    put_trained(fresh, tensors, tmp_path)
    assert torch.equal(logits(fresh), logits(model))
    one, two = (m.peft_config["default"] for m in (fresh, model))
    for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern"):
        assert getattr(one, key) == getattr(two, key)


def test_factors_are_put_in_place_and_none_is_a_zero_update():
    model, other = adapted(), adapted()
    given = factors_of(model)
    first, *rest = given
    gone = Factors(torch.empty(0, 32), torch.empty(32, 0), 1.5)
    put_factors(other, {first: gone, **{name: given[name] for name in rest}})
    assert dense(factors_of(other)[first]).eq(0).all()
    assert torch.equal(factors_of(other)[rest[0]].A, given[rest[0]].A)
    with pytest.raises(AdapterError, match="only one"):
        put_factors(other, {first: gone})


class Log:
    """Keeps what is emitted."""

    def __init__(self):
        self.events = []

    def emit(self, event, **fields):
        self.events.append(json.loads(json.dumps({"event": event, **fields})))


def scheduled(model, shares, ranks_at, steps, seed=3):
    """Train with the callback, as the trainer calls it; return its events."""
    log, optimizer = Log(), optimizer_of(model)
    callback = RankScheduleCallback(dict.fromkeys(shares, ranks_at), log, seed)
    args = SimpleNamespace(world_size=1)
    state = SimpleNamespace(global_step=0, max_steps=steps)
    callback.on_train_begin(args, state, None)
    while state.global_step < steps:
        train_step(model, optimizer)
        state.global_step += 1
        callback.on_step_end(args, state, None, model=model, optimizer=optimizer)
    return log.events


def test_the_schedule_resizes_at_its_steps_and_writes_it_down():
    model = adapted(lora_dropout=0.0)
    events = scheduled(model, [0.25, 0.5], by_spectrum(8, explore=0.25), 8)
    assert [event["step"] for event in events] == [2, 4]
    for event in events:
        assert event["total_rank"] == sum(event["ranks"].values()) == 8
    assert events[-1]["ranks"] == ranks_of(model)
    first = events[0]
    shrunk = {name for name, rank in first["ranks"].items() if rank < 4}
    assert set(first["truncation_errors"]) == shrunk
    assert all(0 < error < 1 for error in first["truncation_errors"].values())
    again = adapted(lora_dropout=0.0)
    scheduled(again, [0.25, 0.5], by_spectrum(8, explore=0.25), 8)
    for (_, one), (_, two) in zip(
        factors_by_name(model), factors_by_name(again), strict=True
    ):
        assert torch.equal(one, two)


def test_by_spectrum_keeps_the_strongest_directions_of_all_modules():
    model = adapted()
    spectra = {n: singular_values(f).tolist() for n, f in factors_of(model).items()}
    ranks = by_spectrum(9)(model, 0)
    assert sum(ranks.values()) == 9
    kept = [x for name, k in ranks.items() for x in spectra[name][:k]]
    lost = [x for name, k in ranks.items() for x in spectra[name][max(k, 1) :]]
    above_least = [x for name, k in ranks.items() for x in spectra[name][1:k]]
    assert min(above_least) >= max(lost)
    assert len(kept) == 9
    with pytest.raises(TrainingError, match="fewer"):
        by_spectrum(3)(model, 0)


def test_what_is_set_aside_goes_round_all_modules():
    model = adapted()
    next(iter(lora_parameters(model).values())).data.mul_(4)
    assert by_spectrum(16)(model, 0) == all_at(model, 4)  # nothing is weaker than rest
    chosen = by_spectrum(8)(model, 0)
    assert max(chosen.values()) > min(chosen.values())
    more = {name: rank + 2 for name, rank in chosen.items()}
    assert by_spectrum(16, explore=0.5)(model, 0) == more


def test_growth_goes_to_those_cut_off_at_the_highest_level():
    spectra = {"a": [9.0, 1.0], "b": [8.0, 5.0], "c": [3.0]}
    ranks, most = {"a": 2, "b": 2, "c": 1}, {"a": 9, "b": 3, "c": 9}
    assert grow(ranks, spectra, most, 1) == {"a": 2, "b": 3, "c": 1}
    assert grow(ranks, spectra, most, 2) == {"a": 2, "b": 3, "c": 2}
    assert grow(ranks, spectra, most, 5) == {"a": 4, "b": 3, "c": 3}
    assert grow(ranks, spectra, most, 99) == most


def test_a_schedule_that_cannot_be_is_refused():
    with pytest.raises(TrainingError, match="cannot change at 1"):
        RankScheduleCallback({0.5: by_spectrum(8), 1.0: by_spectrum(8)}, Log(), 0)
    callback = RankScheduleCallback({0.5: by_spectrum(8)}, Log(), 0)
    with pytest.raises(TrainingError, match="2 processes"):
        state = SimpleNamespace(max_steps=8)
        callback.on_train_begin(SimpleNamespace(world_size=2), state, None)
    both = {0.5: by_spectrum(8), 0.6: by_spectrum(9)}
    with pytest.raises(TrainingError, match="fall on one of 4 steps"):
        RankScheduleCallback(both, Log(), 0).steps(4)
