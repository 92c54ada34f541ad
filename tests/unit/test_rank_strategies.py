"""What each rank strategy does with a model's modules, and that PEFT does it too."""

import json
import math
import subprocess
import sys

import pytest
import torch
from peft import EvaConfig, LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.eva import get_eva_state_dict
from pydantic import ValidationError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)

from loralab import registry
from loralab.adapters.allocation import (
    Budget,
    Module,
    allocate,
    apportion,
    modules_of,
    needs_of,
    patterns,
    spent,
    uniform_budget,
)
from loralab.adapters.files import WEIGHTS
from loralab.adapters.ranks.from_run import adapter_ranks
from loralab.config import RankStrategyConfig
from loralab.errors import AdapterError, RunError
from loralab.models.architecture import facts_of
from loralab.reporting.figures import rank_map
from loralab.reporting.ranks import OUTSIDE, rank_matrix

LAYERS, HIDDEN, INNER = 4, 16, 40
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
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
_STACKS = {
    "d_model": HIDDEN,
    "encoder_layers": 3,
    "num_layers": 3,
    "decoder_layers": 2,
    "num_decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_heads": 2,
    "d_kv": 8,
    "d_ff": INNER,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
    "vocab_size": 50,
}


def model_of(model_type, device="cpu"):
    stacks = model_type in ("t5", "bart")
    made = AutoModelForSeq2SeqLM if stacks else AutoModelForCausalLM
    made = AutoModelForMaskedLM if model_type == "albert" else made
    sizes = _STACKS if stacks else SIZES
    torch.manual_seed(0)
    with torch.device(device):
        return made.from_config(AutoConfig.for_model(model_type, **sizes))


def modules(model_type="llama"):
    model = model_of(model_type, "meta")
    facts = facts_of(model)
    return modules_of(facts, model, facts.linear)


LLAMA = modules()


def ranks_of(name, found=LLAMA, rank=6, statistics=None, seed=0, **params):
    strategy = RankStrategyConfig(name=name, params=params)
    return allocate(strategy, found, uniform_budget(found, rank), statistics, seed)


def mean(ranks, found, chosen):
    own = [ranks[m.name] for m in found if chosen(m)]
    return sum(own) / len(own)


def by_layer(ranks, found=LLAMA):
    layers = sorted({m.depth for m in found})
    return [mean(ranks, found, lambda m, d=depth: m.depth == d) for depth in layers]


# what is known of modules


def test_modules_are_the_models_own():
    (query,) = [m for m in LLAMA if m.name == "model.layers.2.self_attn.q_proj"]
    assert query == Module(query.name, "attention", 2, HIDDEN, HIDDEN)
    (down,) = [m for m in LLAMA if m.name == "model.layers.3.mlp.down_proj"]
    assert down == Module(down.name, "mlp", 3, INNER, HIDDEN)
    assert (down.cost, down.width) == (INNER + HIDDEN, HIDDEN)
    assert len(LLAMA) == 7 * LAYERS


def test_transposed_weights_are_read_the_right_way_round():
    (fused,) = [m for m in modules("gpt2") if m.name == "transformer.h.1.attn.c_attn"]
    assert fused == Module(fused.name, "attention", 1, HIDDEN, 3 * HIDDEN)


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_a_decoder_comes_after_its_encoder(model_type):
    found = modules(model_type)
    depths = {side: set() for side in ("encoder", "decoder")}
    for module in found:
        depths["decoder" if "decoder" in module.name else "encoder"].add(module.depth)
    assert depths == {"encoder": {0, 1, 2}, "decoder": {3, 4}}
    assert {m.kind for m in found} == {"attention", "mlp"}


def test_what_is_outside_the_layers_has_the_depth_beside_it():
    model = model_of("albert", "meta")
    facts = facts_of(model)
    found = modules_of(facts, model, facts.linear)
    assert "embedding_hidden_mapping_in" in found[0].name
    assert (found[0].depth, found[0].kind) == (0, "other")


def test_an_unknown_family_has_no_kinds():
    model = model_of("llama", "meta")
    model.config.model_type = "unheard-of"
    facts = facts_of(model)
    found = modules_of(facts, model, facts.linear)
    assert {m.kind for m in found} == {"other"}
    with pytest.raises(AdapterError, match="same rank"):
        ranks_of("attention-heavy", found)


def test_ranks_are_rounded_to_the_nearest_not_in_favour_of_the_large():
    found = [Module(f"layers.{i}.q", "attention", i, 16, 16) for i in range(4)]
    ranks = apportion([5.4, 1.55, 1.55, 1.5], found, Budget(10, "rank"))
    assert ranks == [5, 2, 2, 1]  # the largest divisor method (D'Hondt) says 6, 2, 1, 1


def test_a_module_of_no_weight_gets_rank_last_and_then_as_evenly_as_can_be():
    found = [Module(f"layers.{i}.q", "attention", i, 4, 4) for i in range(4)]
    for amount, ranks in ((5, [1, 2, 1, 1]), (7, [1, 4, 1, 1]), (10, [2, 4, 2, 2])):
        assert apportion([0, 1, 0, 0], found, Budget(amount, "rank")) == ranks


# strategies by shape


def test_linear_decay_falls_and_linear_growth_is_its_mirror():
    falling = by_layer(ranks_of("linear-decay", rank=8, ratio=4))
    assert falling == sorted(falling, reverse=True)
    assert falling[0] / falling[-1] == pytest.approx(4, rel=0.15)
    assert falling[0] > falling[1] > falling[2] > falling[3]
    growing = by_layer(ranks_of("linear-growth", rank=8, ratio=4))
    assert growing == pytest.approx(falling[::-1], abs=0.5)


def test_u_shape_is_deep_in_the_middle():
    ends, inner, other, end = by_layer(ranks_of("u-shape", ratio=3))
    assert min(ends, end) > max(inner, other)
    assert ends / inner == pytest.approx(1 + 2 * (1 - 1 / 3), rel=0.5)


@pytest.mark.parametrize(
    ("name", "kind"), [("attention-heavy", "attention"), ("mlp-heavy", "mlp")]
)
def test_heavy_is_the_ratio_of_the_kinds(name, kind):
    ranks = ranks_of(name, ratio=3)
    own = mean(ranks, LLAMA, lambda m: m.kind == kind)
    others = mean(ranks, LLAMA, lambda m: m.kind != kind)
    assert own / others == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("attention-heavy", lambda m: m.kind == "attention"),
        ("mlp-heavy", lambda m: m.kind == "attention"),
        ("linear-decay", lambda m: m.depth == 1),
        ("linear-growth", lambda m: m.depth == 1),
        ("u-shape", lambda m: m.depth in (1, 2)),
    ],
)
def test_a_shape_that_would_be_uniform_is_refused(name, kept):
    with pytest.raises(AdapterError, match="same rank"):
        ranks_of(name, [m for m in LLAMA if kept(m)])


@pytest.mark.parametrize("name", ["linear-decay", "u-shape", "mlp-heavy"])
def test_a_ratio_of_one_or_less_is_refused(name):
    with pytest.raises(ValidationError, match="ratio"):
        RankStrategyConfig(name=name, params={"ratio": 1})


def test_a_strategy_may_be_named_with_underscores_and_is_the_same():
    strategy = RankStrategyConfig.model_validate("linear_decay")
    assert strategy == RankStrategyConfig(name="linear-decay")
    assert "linear_decay" not in strategy.model_dump_json()


# strategies by measurement


def linear_statistics():
    return {m.name: 1.0 + i for i, m in enumerate(LLAMA)}


def test_fisher_follows_the_statistic():
    ranks = ranks_of("fisher", statistics=linear_statistics())
    alike = [ranks[m.name] for m in LLAMA if "q_proj" in m.name]
    assert alike == sorted(alike)
    assert alike[-1] > 2 * alike[0]


def test_gradient_is_normalised_as_gora_does():
    small = Module("layers.0.small", "mlp", 0, 50, 50)
    large = Module("layers.0.large", "mlp", 0, 200, 200)
    measured = {small.name: 1.0, large.name: 1.0}
    budget = Budget(30, "rank")
    strategy = RankStrategyConfig(name="gradient")
    ranks = allocate(strategy, [small, large], budget, measured, 0)
    assert ranks[small.name] / ranks[large.name] == math.sqrt(400 / 100)


@pytest.mark.parametrize("name", ["gradient", "fisher", "eva"])
def test_missing_statistics_are_refused(name):
    with pytest.raises(AdapterError, match="calibrate"):
        ranks_of(name)
    first, *rest = (m.name for m in LLAMA)
    value = [0.5] * 20 if name == "eva" else 1.0
    with pytest.raises(AdapterError, match=first.replace(".", r"\.")):
        ranks_of(name, statistics=dict.fromkeys(rest, value))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("name", ["gradient", "fisher", "eva", "inverted"])
def test_broken_statistics_are_refused_with_the_module(name, bad):
    params = {"of": "fisher"} if name == "inverted" else {}
    broken = LLAMA[3].name
    good = [0.5] * 20 if name == "eva" else 1.0
    measured = {m.name: good for m in LLAMA}
    measured[broken] = [0.5] * 19 + [bad] if name == "eva" else bad
    with pytest.raises(AdapterError, match=broken.replace(".", r"\.")):
        ranks_of(name, statistics=measured, **params)


@pytest.mark.parametrize("name", ["gradient", "fisher", "eva"])
def test_statistics_of_nothing_but_zeros_are_refused(name):
    value = [0.0] * 20 if name == "eva" else 0.0
    with pytest.raises(AdapterError, match="every weight is 0"):
        ranks_of(name, statistics={m.name: value for m in LLAMA})


def test_needs_are_those_of_what_a_control_is_of():
    shuffled = {"name": "shuffled", "params": {"of": "eva"}}
    nested = RankStrategyConfig(name="inverted", params={"of": shuffled})
    assert needs_of(nested) == "eva"
    assert needs_of(RankStrategyConfig(name="u-shape")) == ""
    named = {n: needs_of(RankStrategyConfig(name=n)) for n in ("gradient", "fisher")}
    assert named == {"gradient": "gradient", "fisher": "fisher"}


def test_eva_takes_the_best_components_up_to_its_cap():
    count, rank = len(LLAMA), 4
    strong, weak = LLAMA[0].name, LLAMA[1].name
    measured = {m.name: [0.1 / (k + 1) for k in range(12)] for m in LLAMA}
    measured[strong] = [0.5] * 12
    measured[weak] = [0.001] * 12
    budget = Budget(rank * count, "rank")
    for rho, most in ((1.5, 6), (2, 8)):
        strategy = RankStrategyConfig(name="eva", params={"rho": rho})
        ranks = allocate(strategy, LLAMA, budget, measured, 0)
        assert (ranks[strong], ranks[weak]) == (most, 1)
        assert sum(ranks.values()) == budget.amount
    alike = RankStrategyConfig(name="eva", params={"rho": 1})
    assert set(allocate(alike, LLAMA, budget, measured, 0).values()) == {rank}


def test_eva_never_gives_more_rank_than_components_were_measured():
    measured = {m.name: [0.5, 0.1, 0.05] for m in LLAMA}
    assert set(ranks_of("eva", rank=3, statistics=measured).values()) == {3}
    with pytest.raises(AdapterError, match="at most"):
        ranks_of("eva", rank=4, statistics=measured)
    measured[LLAMA[0].name] = []
    with pytest.raises(AdapterError, match="measure more"):
        ranks_of("eva", rank=2, statistics=measured)


def test_eva_allocates_as_peft_does():
    model = model_of("llama")
    config = LoraConfig(
        r=3,
        target_modules=["o_proj", "down_proj", "up_proj"],
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=2),
    )
    torch.manual_seed(1)
    batches = [{"input_ids": torch.randint(3, 50, (4, 24))}]
    facts = facts_of(model)
    targets = [n for n in facts.linear if n.rpartition(".")[2] in config.target_modules]
    ratios = {}

    def measure(name):
        def hook(_, inputs, __):
            rows = inputs[0].detach().double().flatten(0, -2)
            variance = torch.linalg.svdvals(rows - rows.mean(0)) ** 2
            ratios[name] = (variance / variance.sum()).tolist()

        return hook

    hooks = [model.get_submodule(n).register_forward_hook(measure(n)) for n in targets]
    with torch.no_grad():
        model.eval()(**batches[0])
    for hook in hooks:
        hook.remove()
    state = get_eva_state_dict(
        model,
        batches,
        config,
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,  # every row of every input
        show_progress_bar=False,
    )
    theirs = {name: len(tensor) for name, tensor in state.items()}
    found = modules_of(facts, model, targets)
    budget = Budget(config.r * len(found), "rank")
    ours = allocate(RankStrategyConfig(name="eva"), found, budget, ratios, 0)
    assert min(theirs.values()) >= 1
    assert len(set(theirs.values())) > 2
    assert ours == theirs


# controls


def test_random_depends_on_its_seed_only():
    first, again, other = (ranks_of("random", seed=s) for s in (1, 1, 2))
    assert first == again != other
    assert ranks_of("random", seed=1) != ranks_of("uniform")
    strategy = RankStrategyConfig(name="random", params={"seed": 2})
    budget = uniform_budget(LLAMA, 6)
    assert allocate(strategy, LLAMA, budget, None, 1) == other


def test_shuffled_has_the_strategys_ranks_elsewhere():
    own = ranks_of("linear-growth")
    shuffles = [
        ranks_of(
            "shuffled", of={"name": "linear-growth", "params": {"ratio": 3}}, seed=s
        )
        for s in range(5)
    ]
    assert len({tuple(s.values()) for s in (own, *shuffles)}) == 6


def test_inverted_growth_is_decay():
    decay, inverted = (
        by_layer(r)
        for r in (ranks_of("linear-decay"), ranks_of("inverted", of="linear_growth"))
    )
    assert inverted == pytest.approx(decay, abs=1)
    assert inverted[0] > inverted[-1]


def test_a_control_of_eva_inverts_the_ranks_it_comes_to():
    measured = {
        m.name: [0.9 / (k + 1) ** (1 + m.depth) for k in range(16)] for m in LLAMA
    }
    own = by_layer(ranks_of("eva", statistics=measured))
    turned = by_layer(ranks_of("inverted", statistics=measured, of="eva"))
    assert own[0] > own[-1]
    assert turned[0] < turned[-1]


# fixed ranks

TABLE = {r"self_attn\.\w+": 4, "gate_proj": 2, "up_proj": 2, "down_proj": 8}


def table(ranks, budget=None, found=LLAMA):
    strategy = RankStrategyConfig(name="table", params={"ranks": ranks})
    return allocate(strategy, found, budget, None, 0)


def test_a_table_is_taken_as_it_stands():
    ranks = table(TABLE)
    for name, rank in ranks.items():
        tail = name.rpartition(".")[2]
        assert rank == TABLE.get(tail, 4)


def test_a_budget_checks_a_table_and_does_not_change_it():
    total = spent(table(TABLE), LLAMA)
    cheapest = min(m.cost for m in LLAMA)
    assert table(TABLE, Budget(total, "parameters")) == table(TABLE)
    assert table(TABLE, Budget(total + cheapest - 1, "parameters")) == table(TABLE)
    for amount in (total - 1, total + cheapest):
        with pytest.raises(AdapterError, match=f"set the budget to {total:,}"):
            table(TABLE, Budget(amount, "parameters"))
    with pytest.raises(AdapterError, match="outside 1 to 7"):
        table(TABLE, Budget(total, "parameters", maximum=7))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"w_proj": 2}, "matches no targeted module"),
        ({"proj": 2}, "matches no targeted module"),
        ({r"layers\.0\.self_attn\.q_proj": 2}, "is matched by"),
        ({"(": 2}, "no regular expression"),
        ({"down_proj": HIDDEN + 1}, f"outside 1 to {HIDDEN}"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(change, said):
    with pytest.raises(AdapterError, match=said):
        table(TABLE | change)


def test_a_table_must_name_every_module():
    with pytest.raises(AdapterError, match="down_proj has no rank"):
        table({k: v for k, v in TABLE.items() if k != "down_proj"})


def test_a_control_of_a_table_has_the_tables_budget():
    strategy = RankStrategyConfig(
        name="shuffled", params={"of": {"name": "table", "params": {"ranks": TABLE}}}
    )
    ranks = allocate(strategy, LLAMA, None, None, 3)
    left = spent(table(TABLE), LLAMA) - spent(ranks, LLAMA)
    assert 0 <= left < min(m.cost for m in LLAMA)
    assert ranks != table(TABLE)


@pytest.mark.parametrize("strategy", ["uniform", "random", "inverted"])
def test_what_gives_no_ranks_needs_a_budget(strategy):
    params = {"of": "linear-decay"} if strategy == "inverted" else {}
    strategy = RankStrategyConfig(name=strategy, params=params)
    with pytest.raises(AdapterError, match="needs a budget"):
        allocate(strategy, LLAMA, None, None, 0)


@pytest.mark.parametrize("bounds", [{"minimum": 0}, {"minimum": 3, "maximum": 2}])
def test_bounds_that_no_rank_meets_are_refused(bounds):
    with pytest.raises(AdapterError, match="minimum"):
        Budget(100, "rank", **bounds)


# plain PEFT


@pytest.fixture(scope="module")
def adapted():
    model = model_of("llama")
    ranks = ranks_of("random", seed=4)
    rank_pattern, alpha_pattern = patterns(ranks, 2.0)
    config = LoraConfig(
        r=1,
        lora_alpha=1000,  # would show wherever the pattern does not hold
        target_modules=sorted({name.rpartition(".")[2] for name in ranks}),
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
    )
    return get_peft_model(model, config), ranks


def test_peft_gives_every_module_its_rank_and_the_same_scale(adapted):
    model, ranks = adapted
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert {name: layer.r["default"] for name, layer in layers.items()} == ranks
    assert {layer.scaling["default"] for layer in layers.values()} == {2.0}
    assert len(set(ranks.values())) > 3
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == spent(ranks, LLAMA)


def test_a_pattern_is_of_one_module_even_if_another_ends_alike():
    inner = torch.nn.ModuleDict({"q": torch.nn.Linear(8, 8)})
    both = torch.nn.ModuleDict({"q": torch.nn.Linear(8, 8), "x": inner})
    rank_pattern, alpha_pattern = patterns({"q": 2, "x.q": 5}, 0.5)
    config = LoraConfig(
        target_modules=["q"], rank_pattern=rank_pattern, alpha_pattern=alpha_pattern
    )
    made = get_peft_model(both, config).base_model.model
    found = [made["q"], made["x"]["q"]]
    assert [layer.r["default"] for layer in found] == [2, 5]
    assert [layer.scaling["default"] for layer in found] == [0.5, 0.5]


def write_run(folder, model):
    model.save_pretrained(folder / "adapter")
    (folder / "run.json").write_text(
        json.dumps(
            {
                "format": 1,
                "kind": "adapter",
                "status": "complete",
                "name": "trained",
                "hash": "0123456789",
                "started": "2026-01-01T00:00:00+00:00",
            }
        )
    )
    return str(folder)


def test_ranks_come_from_a_run_as_they_are(adapted, tmp_path):
    model, ranks = adapted
    run = write_run(tmp_path, model)
    strategy = RankStrategyConfig(name="from_run", params={"run": run})
    assert allocate(strategy, LLAMA, None, None, 0) == ranks
    assert adapter_ranks(tmp_path / "adapter" / WEIGHTS) == ranks
    with pytest.raises(AdapterError, match="only that run adapts"):
        allocate(strategy, LLAMA[1:], None, None, 0)
    extra = Module("model.layers.9.q", "attention", 9, 16, 16)
    with pytest.raises(AdapterError, match="only this one adapts"):
        allocate(strategy, [*LLAMA, extra], None, None, 0)
    (tmp_path / "adapter" / WEIGHTS).write_bytes(b"\x10\0\0\0\0\0\0\0not json")
    with pytest.raises(AdapterError, match="not safetensors"):
        allocate(strategy, LLAMA, None, None, 0)


def test_a_run_that_is_none_is_refused(tmp_path):
    strategy = RankStrategyConfig(name="from-run", params={"run": str(tmp_path / "x")})
    with pytest.raises(RunError):
        allocate(strategy, LLAMA, None, None, 0)


# tables and figures


def test_the_matrix_has_every_rank_once():
    ranks = {m.name: i + 1 for i, m in enumerate(LLAMA)}
    columns, rows = rank_matrix(ranks)
    assert columns == [
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    ]
    assert [row for row, _ in rows] == ["0", "1", "2", "3"]
    assert [rank for _, own in rows for rank in own] == list(ranks.values())


def test_columns_and_rows_are_told_apart():
    bert = [
        "bert.encoder.layer.0.attention.output.dense",
        "bert.encoder.layer.0.intermediate.dense",
        "bert.encoder.layer.0.output.dense",
        "bert.pooler.dense",
    ]
    columns, rows = rank_matrix(dict(zip(bert, (1, 2, 3, 4), strict=True)))
    assert columns[:2] == ["attention.output.dense", "intermediate.dense"]
    assert len(set(columns)) == 4
    assert rows == [("0", [1, 2, 3, None]), (OUTSIDE, [None, None, None, 4])]
    _, rows = rank_matrix({m.name: 1 for m in modules("t5")})
    assert [row for row, _ in rows] == [
        *("encoder 0", "encoder 1", "encoder 2", "decoder 0", "decoder 1")
    ]
    twins = ["text.encoder.layers.0.q", "vision.encoder.layers.0.q"]
    _, rows = rank_matrix(dict.fromkeys(twins, 2))
    assert [own for _, own in rows] == [[2], [2]]
    experts = ["layers.0.experts.0.up", "layers.0.experts.1.up"]
    columns, rows = rank_matrix(dict(zip(experts, (1, 2), strict=True)))
    assert rows == [("0", [1, 2])]
    assert len(set(columns)) == 2


def test_the_map_shows_whole_ranks_and_what_they_cost():
    ranks = table(TABLE)
    total = spent(ranks, LLAMA)
    figure = rank_map(ranks, "table", total, total, "parameters", total)
    cells = [text.get_text() for text in figure.axes[0].texts]
    assert cells == [str(rank) for rank in ranks.values()]
    ticks = figure.axes[-1].get_yticklabels()
    assert all(float(tick.get_text()).is_integer() for tick in ticks)
    title = figure.get_suptitle()
    assert title.startswith(f"table: {total:,} of {total:,} parameters")
    assert f"{total:,} parameters in {len(ranks)} modules" in title
    inside = figure._suptitle.get_window_extent()
    assert inside.x0 >= 0
    assert inside.x1 <= figure.bbox.x1
    assert inside.y0 >= figure.axes[0].get_window_extent().y1


# the kind


def test_allocation_needs_no_torch():
    code = (
        "import sys, loralab.adapters.allocation as a\n"
        "from loralab import registry\n"
        "for name in registry.names('rank strategy'):\n"
        "    registry.get('rank strategy', name)\n"
        "assert not {'torch', 'peft', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_strategy_declares_facts_that_are_known():
    names = registry.names("rank strategy")
    assert len(names) == 14
    for name in names:
        facts = registry.get("rank strategy", name).facts
        assert facts.get("needs", "") in ("", "gradient", "eva", "fisher", "of")
        assert facts.get("gives", "weights") in ("weights", "gains", "ranks")
