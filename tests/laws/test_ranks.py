"""Laws of rank allocation: what budgets, orders, scales and controls must do."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from loralab.adapters.allocation import (
    Budget,
    Module,
    allocate,
    apportion,
    spent,
    take_best,
    uniform_budget,
)
from loralab.config import RankStrategyConfig
from loralab.errors import AdapterError

settings.register_profile("laws", deadline=None)  # the first example imports
settings.load_profile("laws")

SIDES = st.sampled_from([4, 6, 8, 12, 16])
WEIGHTS = st.one_of(st.integers(0, 40).map(float), st.floats(1e-30, 1e6))
"""Smaller ones than those underflow where they are squared, and are 0."""
SCALE = st.sampled_from([1e-9, 0.1, 0.5, 3.0, 7.7, 1e12])
SEED = st.integers(0, 99)
KINDS = ("attention", "mlp", "other")


def modules_like(shapes):
    return [
        Module(f"layers.{i // 2}.{'ab'[i % 2]}", KINDS[i % 2], i // 2, *shape)
        for i, shape in enumerate(shapes)
    ]


MODULES = st.lists(st.tuples(SIDES, SIDES), min_size=2, max_size=7).map(modules_like)
ALIKE = st.integers(2, 8).map(lambda n: modules_like([(16, 24)] * n))


@st.composite
def problems(draw, modules=MODULES, weights=WEIGHTS):
    """Return modules, weights and a budget that some ranks can meet."""
    modules = draw(modules)
    count = len(modules)
    found = draw(st.lists(weights, min_size=count, max_size=count).filter(any))
    minimum = draw(st.integers(1, 3))
    maximum = draw(st.one_of(st.none(), st.integers(minimum, 9)))
    budget = Budget(0, draw(st.sampled_from(["parameters", "rank"])), minimum, maximum)
    least, most = (
        sum(budget.price(m) * budget.bounds(m)[side] for m in modules)
        for side in (0, 1)
    )
    return modules, found, replace(budget, amount=draw(st.integers(least, most)))


def check_law(ranks, modules, budget):
    bounds = [budget.bounds(m) for m in modules]
    for rank, module, (low, high) in zip(ranks, modules, bounds, strict=True):
        assert low <= rank <= high <= min(module.inputs, module.outputs)
        assert rank >= min(budget.minimum, high)
        assert budget.maximum is None or rank <= budget.maximum
    named = {m.name: rank for m, rank in zip(modules, ranks, strict=True)}
    left = budget.amount - spent(named, modules, budget.unit)
    prices = [m.cost if budget.unit == "parameters" else 1 for m in modules]
    growing = [
        price
        for price, rank, (_, high) in zip(prices, ranks, bounds, strict=True)
        if rank < high
    ]
    assert 0 <= left < min(growing, default=math.inf)


@given(problems())
@settings(max_examples=150)
def test_the_budget_is_met_to_one_unit_within_the_bounds(problem):
    modules, weights, budget = problem
    check_law(apportion(weights, modules, budget), modules, budget)


@given(problems(), st.data())
@settings(max_examples=60)
def test_the_best_components_meet_the_budget_too(problem, data):
    modules, _, budget = problem
    gains = [
        sorted(data.draw(st.lists(st.floats(0.01, 1), min_size=16, max_size=16)))[::-1]
        for _ in modules
    ]
    ranks = take_best(gains, modules, budget)
    check_law(ranks, modules, budget)
    if budget.unit == "rank":  # nobody was passed over for a worse component
        taken = [
            own[rank - 1]
            for own, rank, m in zip(gains, ranks, modules, strict=True)
            if rank > budget.bounds(m)[0]
        ]
        refused = [
            own[rank]
            for own, rank, m in zip(gains, ranks, modules, strict=True)
            if rank < budget.bounds(m)[1]
        ]
        assert min(taken, default=1) >= max(refused, default=0)


@given(problems(), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_order_of_modules_does_not_matter(problem, random):
    modules, weights, budget = problem
    order = random.sample(range(len(modules)), len(modules))
    moved = apportion([weights[i] for i in order], [modules[i] for i in order], budget)
    ranks = apportion(weights, modules, budget)
    assert moved == [ranks[i] for i in order]


@given(problems(), SCALE)
@settings(max_examples=60)
def test_the_scale_of_weights_does_not_matter(problem, scale):
    modules, weights, budget = problem
    weights = [round(weight, 3) for weight in weights]
    assume(any(weights))
    scaled = apportion([scale * weight for weight in weights], modules, budget)
    assert scaled == apportion(weights, modules, budget)


@given(problems())
@settings(max_examples=100)
def test_more_weight_at_the_same_shape_never_gets_less_rank(problem):
    modules, weights, budget = problem
    ranks = apportion(weights, modules, budget)
    for i, one in enumerate(modules):
        for j, other in enumerate(modules):
            if (one.cost, one.width) == (other.cost, other.width):
                assert not (weights[i] > weights[j] and ranks[i] < ranks[j])
                assert weights[i] != weights[j] or abs(ranks[i] - ranks[j]) <= 1


@given(problems())
@settings(max_examples=60)
def test_ranks_as_weights_give_themselves(problem):
    modules, weights, budget = problem
    ranks = apportion(weights, modules, budget)
    assert apportion(ranks, modules, budget) == ranks


@given(problems(ALIKE), st.integers(1, 40))
@settings(max_examples=60)
def test_a_larger_budget_takes_rank_from_nobody(problem, more):
    modules, weights, budget = problem
    most = sum(budget.price(m) * budget.bounds(m)[1] for m in modules)
    larger = replace(budget, amount=min(most, budget.amount + more))
    before, after = (apportion(weights, modules, b) for b in (budget, larger))
    assert all(x <= y for x, y in zip(before, after, strict=True))


@given(ALIKE, st.integers(2, 8), SEED)
@settings(max_examples=40)
def test_without_rounding_ranks_are_in_proportion(modules, unit, seed):
    weights = [1 + (seed + 3 * i) % 2 for i in range(len(modules))]
    budget = Budget(unit * sum(weights), "rank")
    assert apportion(weights, modules, budget) == [unit * w for w in weights]


@given(MODULES, st.integers(1, 4))
@settings(max_examples=30)
def test_uniform_is_uniform(modules, rank):
    ranks = allocate(
        RankStrategyConfig(), modules, uniform_budget(modules, rank), None, 0
    )
    assert set(ranks.values()) == {rank}
    assert spent(ranks, modules) == uniform_budget(modules, rank).amount


def control(name, of, **params):
    return RankStrategyConfig(name=name, params={"of": of, **params})


def fisher(weights, modules):
    return {m.name: weight for m, weight in zip(modules, weights, strict=True)}


@given(problems(weights=st.integers(1, 10**6)))
@settings(max_examples=60)
def test_inverted_twice_is_the_strategy_and_once_turns_it_round(problem):
    modules, weights, budget = problem
    assume(len(set(weights)) == len(weights))
    measured = fisher(weights, modules)
    once = control("inverted", "fisher")
    twice = control("inverted", once.model_dump())
    same = [
        allocate(s, modules, budget, measured, 0)
        for s in (RankStrategyConfig(name="fisher"), twice)
    ]
    assert same[0] == same[1]
    rising = sorted(weights)
    turned = [rising[-1 - rising.index(weight)] for weight in weights]
    named = zip(modules, apportion(turned, modules, budget), strict=True)
    assert allocate(once, modules, budget, measured, 0) == {m.name: r for m, r in named}


@given(problems(ALIKE), SEED)
@settings(max_examples=60)
def test_controls_keep_the_multiset_of_ranks_at_equal_cost(problem, seed):
    modules, weights, budget = problem
    measured = fisher(weights, modules)
    own = allocate(RankStrategyConfig(name="fisher"), modules, budget, measured, 0)
    for strategy in (
        control("shuffled", "fisher", seed=seed),
        control("inverted", "fisher"),
    ):
        ranks = allocate(strategy, modules, budget, measured, 0)
        assert Counter(ranks.values()) == Counter(own.values())


@given(problems(), st.randoms(use_true_random=False), SEED)
@settings(max_examples=30)
def test_no_strategy_looks_at_the_order_of_modules(problem, random, seed):
    modules, weights, budget = problem
    measured = fisher(weights, modules)
    mixed = random.sample(modules, len(modules))
    for strategy in (
        RankStrategyConfig(name="random"),
        RankStrategyConfig(name="gradient"),
        control("shuffled", "fisher"),
        control("inverted", "fisher"),
    ):
        given_so = allocate(strategy, modules, budget, measured, seed)
        assert allocate(strategy, mixed, budget, measured, seed) == given_so


@given(problems(), st.integers(1, 50), st.booleans())
@settings(max_examples=40)
def test_a_budget_that_the_bounds_forbid_is_refused(problem, off, above):
    modules, weights, budget = problem
    edge = sum(budget.price(m) * budget.bounds(m)[int(above)] for m in modules)
    wrong = replace(budget, amount=edge + off if above else edge - off)
    with pytest.raises(AdapterError, match=r"at most" if above else "least ranks"):
        apportion(weights, modules, wrong)


@pytest.mark.parametrize("scale", [0.1, 0.7, 1e-7])
def test_equal_worth_goes_to_more_weight_whatever_the_scale(scale):
    modules = modules_like([(16, 16)] * 2)
    for small in range(1, 8):
        for odd in (3, 5, 7, 9):  # worth ties: odd × small / odd is small / 1
            weights = [small, small * odd]
            tied = [1, (3 * odd - 1) // 2]  # small / 3 = odd × small / (2 rank + 1)
            budget = Budget(sum(tied) + 1, "rank")
            scaled = [scale * weight for weight in weights]
            assert apportion(scaled, modules, budget) == [tied[0], tied[1] + 1]
