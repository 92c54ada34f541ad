"""The algebra of s·B·A against the dense matrix, for every shape, rank and scale."""

import math
import tempfile
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralab.lowrank.budget import (
    energy_curve,
    largest_within,
    largest_within_parameters,
    smallest_in_parameters,
    smallest_in_ranks,
)
from loralab.lowrank.factors import (
    Factors,
    concatenate,
    effective_rank,
    frobenius_norm,
    singular_values,
    stable_rank,
    truncate,
)
from loralab.lowrank.files import StoredAdapter, read_adapter, write_adapter
from loralab.lowrank.settings import alpha_of, pattern_value, rank_settings

FEW = settings(max_examples=30, deadline=None)
MODULES = ["layer.0.q", "layer.0.v", "layer.1.q", "layer.10.q", "0.q"]


@st.composite
def updates(draw, out=None, into=None, dtype=torch.float64):
    """Draw factors of any shape; some have directions that say the same, or nothing."""
    out, into = out or draw(st.integers(1, 9)), into or draw(st.integers(1, 9))
    rank = draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    A = torch.randn(rank, into, generator=generator, dtype=dtype)
    B = torch.randn(out, rank, generator=generator, dtype=dtype)
    if draw(st.booleans()):
        B[:, -1] = draw(st.sampled_from([0.0, 1e-9, 1e3])) * B[:, 0]
    return Factors(A, B, draw(st.sampled_from([0.25, 1.0, 2.0, 16 / 3])))


def dense(factors):
    return factors.scale * (factors.B.double() @ factors.A.double())


spectra_of = st.lists(
    st.lists(st.floats(0, 100), min_size=1, max_size=4).map(
        lambda values: sorted(values, reverse=True)
    ),
    min_size=1,
    max_size=3,
).map(lambda found: {f"m{i}": values for i, values in enumerate(found)})


@FEW
@given(updates())
def test_singular_values_are_those_of_the_dense_update(factors):
    whole = torch.linalg.svdvals(dense(factors))
    ours = singular_values(factors)
    assert len(ours) == min(factors.rank, *factors.shape)
    torch.testing.assert_close(
        ours, whole[: len(ours)], rtol=1e-9, atol=1e-12 * float(whole[0])
    )
    assert float(whole[len(ours) :].sum()) <= 1e-12 * float(whole[0])
    norm = torch.linalg.matrix_norm(dense(factors)).item()
    assert frobenius_norm(factors) == pytest.approx(norm, rel=1e-12)


@pytest.mark.parametrize("shape", [(9, 7), (7, 9)])
def test_a_bad_gauge_does_not_change_the_norm(shape):
    random = torch.Generator().manual_seed(0)
    B, A, one, two = (
        torch.randn(*size, generator=random, dtype=torch.float64)
        for size in ((shape[0], 4), (4, shape[1]), (4, 4), (4, 4))
    )
    left, right = torch.linalg.qr(one).Q, torch.linalg.qr(two).Q
    stretch = torch.logspace(-3, 3, 4, dtype=torch.float64)
    turned = Factors(
        right.T @ (left.T @ A / stretch[:, None]), B @ left * stretch @ right, 0.5
    )
    norm = float((0.5 * B @ A).norm())
    assert frobenius_norm(turned) == pytest.approx(norm, rel=1e-10)


@FEW
@given(updates(), st.integers(0, 6))
def test_truncation_loses_the_tail_and_nothing_else(factors, rank):
    cut = truncate(factors, rank)
    tail = singular_values(factors)[rank:].norm().item()
    whole = torch.linalg.matrix_norm(dense(factors)).item()
    lost = torch.linalg.matrix_norm(dense(factors) - dense(cut.factors)).item()
    if rank >= factors.rank:
        assert cut.factors is factors and cut.error == 0
        return
    assert lost == pytest.approx(tail, rel=1e-9, abs=1e-12 * whole)
    assert cut.error == pytest.approx(tail, abs=1e-12 * whole)
    share = tail / whole if whole else 0
    assert cut.relative_error == pytest.approx(share, abs=1e-12)
    assert cut.factors.scale == factors.scale and cut.factors.shape == factors.shape
    assert cut.factors.rank == min(rank, *factors.shape)
    sides = [part.norm().item() for part in (cut.factors.A, cut.factors.B)]
    assert sides[0] == pytest.approx(sides[1], rel=1e-9, abs=1e-12)  # balanced


@FEW
@given(updates(out=5, into=7), st.lists(updates(out=5, into=7), max_size=2))
def test_concatenation_is_the_sum(first, more):
    found = concatenate(first, *more)
    total = sum((dense(part) for part in more), dense(first))
    assert found.rank == first.rank + sum(part.rank for part in more)
    torch.testing.assert_close(dense(found), total, rtol=1e-12, atol=1e-9)


def test_updates_of_other_weights_do_not_add():
    with pytest.raises(ValueError, match="shapes"):
        concatenate(
            Factors(torch.ones(1, 2), torch.ones(3, 1), 1.0),
            Factors(torch.ones(1, 3), torch.ones(3, 1), 1.0),
        )


@pytest.mark.parametrize("count", [1, 3, 7])
def test_effective_and_stable_rank_count_equal_directions(count):
    assert effective_rank([2.5] * count + [0.0]) == pytest.approx(count)
    assert stable_rank([2.5] * count + [0.0]) == pytest.approx(count)


def test_effective_rank_is_between_one_and_all_and_zero_of_nothing():
    assert 1 < effective_rank([3.0, 1.0]) < 2
    p = [0.75, 0.25]
    assert effective_rank([3.0, 1.0]) == pytest.approx(
        math.exp(-sum(x * math.log(x) for x in p))
    )
    assert effective_rank([0.0, 0.0]) == stable_rank([0.0, 0.0]) == 0


def energy(spectra, ranks):
    return sum(x * x for name, k in ranks.items() for x in spectra[name][:k])


def choices(spectra):
    names = list(spectra)
    for ranks in product(*(range(len(spectra[name]) + 1) for name in names)):
        yield dict(zip(names, ranks, strict=True))


@FEW
@given(spectra_of, st.floats(0.01, 1))
def test_the_smallest_budget_keeps_enough_and_one_less_does_not(spectra, keep):
    costs = {name: 3 + 5 * i for i, name in enumerate(spectra)}
    whole = sum(x * x for values in spectra.values() for x in values)
    found = smallest_in_ranks(spectra, costs, keep)
    greedy = smallest_in_parameters(spectra, costs, keep)
    assert found.total_rank == sum(found.ranks.values())
    if not whole:
        assert found.total_rank == greedy.total_rank == 0
        return
    for budget in (found, greedy):
        assert budget.energy >= keep
        assert budget.energy == pytest.approx(energy(spectra, budget.ranks) / whole)
        spent = sum(rank * costs[name] for name, rank in budget.ranks.items())
        assert budget.parameters == spent
    legal = list(choices(spectra))
    fewer = [r for r in legal if sum(r.values()) == found.total_rank - 1]
    slack = 1e-9 * whole
    assert all(energy(spectra, r) < keep * whole + slack for r in fewer)
    cheapest = min(
        sum(rank * costs[name] for name, rank in ranks.items())
        for ranks in legal
        if energy(spectra, ranks) >= keep * whole - slack
    )
    assert greedy.parameters < cheapest + max(costs.values())


def test_counted_in_parameters_a_wide_module_must_be_worth_its_width():
    spectra, costs = {"wide": [1.1], "thin": [1.0, 1.0, 1.0]}, {"wide": 100, "thin": 1}
    assert smallest_in_ranks(spectra, costs, 0.5).ranks == {"wide": 1, "thin": 1}
    found = smallest_in_parameters(spectra, costs, 0.7)
    assert found.ranks == {"wide": 0, "thin": 3} and found.parameters == 3


@FEW
@given(spectra_of, st.integers(0, 12), st.integers(0, 2))
def test_a_given_budget_keeps_the_most_energy(spectra, total, least):
    firsts = sum(min(least, len(values)) for values in spectra.values())
    if total < firsts:
        with pytest.raises(ValueError, match="fewer"):
            largest_within(spectra, total, least)
        return
    found = largest_within(spectra, total, least)
    everything = sum(len(values) for values in spectra.values())
    assert sum(found.values()) == min(total, everything)
    legal = [
        ranks
        for ranks in choices(spectra)
        if sum(ranks.values()) <= total
        and all(k >= min(least, len(spectra[n])) for n, k in ranks.items())
    ]
    best = max(energy(spectra, ranks) for ranks in legal)
    assert energy(spectra, found) == pytest.approx(best)


@FEW
@given(spectra_of, st.lists(st.integers(1, 5), min_size=3), st.integers(0, 40))
def test_a_budget_of_parameters_is_kept_and_nothing_more_would_fit(
    spectra, prices, budget
):
    costs = dict(zip(spectra, prices, strict=False))
    found = largest_within_parameters(spectra, costs, budget)
    spent = sum(rank * costs[name] for name, rank in found.items())
    assert spent <= budget
    open_ones = [costs[n] for n, s in spectra.items() if found[n] < len(s)]
    assert all(spent + cost > budget for cost in open_ones)
    legal = (
        dict(zip(spectra, ranks, strict=True))
        for ranks in product(*(range(len(s) + 1) for s in spectra.values()))
    )
    affordable = (
        ranks
        for ranks in legal
        if sum(rank * costs[name] for name, rank in ranks.items()) <= budget
    )
    best = max(energy(spectra, ranks) for ranks in affordable)
    one = max((s**2 / costs[n] for n in spectra for s in spectra[n]), default=0.0)
    most = max(costs.values())
    assert energy(spectra, found) >= best - one * most - 1e-9  # less than a direction
    if len(set(costs.values())) == 1:
        assert energy(spectra, found) == pytest.approx(best)


def test_the_energy_curve_rises_to_one_by_ever_smaller_steps():
    curve = energy_curve({"a": [3.0, 1.0], "b": [2.0]})
    assert curve.tolist() == pytest.approx([0, 9 / 14, 13 / 14, 1])


@FEW
@given(
    st.lists(updates(dtype=torch.float32), min_size=1, max_size=5),
    st.booleans(),
)
def test_files_give_back_what_was_written(found, zeroed):
    factors = dict(zip(MODULES, found, strict=False))
    factors = {name: factors[name] for name in sorted(factors)}
    rest = {"base_model.model.classifier.weight": torch.arange(6.0).half()}
    if zeroed and len(factors) > 1:  # a module without directions is not adapted
        name = next(iter(factors))
        gone = truncate(factors.pop(name), 0).factors
        written = {name: gone, **factors}
    else:
        written = factors
    config = {"peft_type": "LORA", "task_type": "SEQ_CLS", "use_rslora": True}
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(Path(folder) / "a", StoredAdapter(written, rest, config))
        back = read_adapter(Path(folder) / "a")
    assert list(back.factors) == list(factors)
    for name, was in factors.items():
        now = back.factors[name]
        assert torch.equal(now.A, was.A) and torch.equal(now.B, was.B)
        assert now.scale == pytest.approx(was.scale, rel=2**-52, abs=0)
    assert back.rest.keys() == rest.keys()
    assert all(torch.equal(back.rest[k], v) for k, v in rest.items())
    assert back.config["task_type"] == "SEQ_CLS"
    assert back.config["target_modules"] == list(factors)


@FEW
@given(st.dictionaries(st.sampled_from(MODULES), st.integers(1, 4), min_size=1))
def test_patterns_give_each_module_its_own_rank_as_peft_reads_them(ranks):
    from peft.utils.other import get_pattern_key

    made = rank_settings({name: (k, 2.0 * k) for name, k in ranks.items()})
    for name, rank in ranks.items():
        key = get_pattern_key(made["rank_pattern"].keys(), name)
        assert made["rank_pattern"].get(key, made["r"]) == rank
        assert pattern_value(made["rank_pattern"], name, made["r"]) == rank
        assert pattern_value(made["alpha_pattern"], name, made["lora_alpha"]) == (
            2 * rank
        )
    assert made["rank_pattern"].keys() == made["alpha_pattern"].keys()


@FEW
@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 256))
def test_alpha_follows_rank_so_that_the_scale_stays(alpha, rank, new):
    scale = alpha / rank
    assert alpha_of(scale, rank) / rank == scale
    assert alpha_of(scale, new) / new == pytest.approx(scale, rel=2**-52, abs=0)
