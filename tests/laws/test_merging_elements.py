"""Element-wise methods against literal dense ones, and what they are built of."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralab.errors import ConfigError
from loralab.lowrank import rows
from loralab.lowrank.factors import Factors
from loralab.lowrank.rows import factorised, kth_smallest
from loralab.merging.layer import Layer
from loralab.merging.method import method
from loralab.merging.methods._elements import Entries
from loralab.merging.methods.della import keep_probability
from tests.merging import dense, dense_update, drawn_factors, drawn_layer

FEW = settings(max_examples=20, deadline=None)
SHAPE, RANKS = (13, 9), (3, 2, 4)
FULL = min(SHAPE)
SIGNS = ["total", "frequency"]


def exact(layer, name, **params):
    """Return a merged layer whose factorisation may have full rank."""
    merged = method(name, rank=min(layer.shape), **params).merged(layer)
    assert merged.lost == pytest.approx(0, abs=1e-20)
    return dense_update(merged)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def all_dense(layer):
    return torch.stack([dense(task) for task in layer.tasks])


def top(ΔW, density):
    """Keep the int(density·n) largest magnitudes by sorting all of them."""
    kept = torch.zeros(ΔW.numel(), dtype=torch.bool)
    order = ΔW.abs().flatten().argsort(descending=True)
    kept[order[: int(density * ΔW.numel())]] = True
    return ΔW * kept.view_as(ΔW)


def elect_and_mean(parts, sign):
    """TIES' election and disjoint mean, an entry at a time."""
    merged = torch.zeros_like(parts[0])
    for i, j in np.ndindex(*merged.shape):
        values = [float(part[i, j]) for part in parts]
        votes = values if sign == "total" else [np.sign(v) for v in values]
        elected = 1 if math.fsum(votes) >= 0 else -1
        agree = [v for v in values if v * elected > 0]
        merged[i, j] = sum(agree) / len(agree) if agree else 0.0
    return merged


# --- order statistics


@FEW
@given(
    st.lists(
        st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -1.5]),
        min_size=1,
        max_size=60,
    ),
    st.data(),
)
def test_order_statistic_is_that_of_all_values(values, data):
    whole = torch.tensor(values, dtype=torch.float64)
    k = data.draw(st.integers(1, len(values)))
    blocks = whole[:, None].split(data.draw(st.integers(1, 7)))
    expected = float(whole.abs().kthvalue(k).values)
    assert kth_smallest(lambda: blocks, k) == expected


@pytest.mark.parametrize("held", [1, 5, 1 << 20])
def test_order_statistic_does_not_hold_a_crowded_bin(held, monkeypatch):
    monkeypatch.setattr(rows, "HELD", held)
    values = torch.randn(40, 10, generator=torch.Generator().manual_seed(0)).double()
    values[::2] = 1.25  # half of all entries are one number
    values[1, :5] = torch.linspace(1.25, 1.25 + 1e-14, 5)
    for k in (1, 57, 200, 290, 400):
        expected = float(np.sort(values.abs().numpy(), axis=None)[k - 1])
        assert kth_smallest(lambda: values.split(7), k) == expected


def test_order_statistic_takes_two_passes():
    values = torch.randn(300, 40, generator=torch.Generator().manual_seed(2)).double()
    passes = []

    def blocks():
        passes.append(1)
        return values.split(16)

    assert kth_smallest(blocks, 9000) == float(values.abs().flatten().kthvalue(9000)[0])
    assert len(passes) == 2


def test_order_statistic_of_float32_is_a_float32():
    values = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    found = kth_smallest(lambda: values.split(8), 70)
    assert found == float(values.abs().flatten().kthvalue(70).values)


# --- factorisation


@FEW
@given(st.integers(0, 99), st.integers(1, 8), st.integers(0, 3), st.integers(1, 11))
def test_loss_is_the_dense_error(seed, rank, oversample, height):
    M = torch.randn(24, 17, generator=torch.Generator().manual_seed(seed)).double()
    random = torch.Generator().manual_seed(seed)
    made = factorised(
        lambda: M.split(height), (24, 17), rank, random, oversample=oversample, power=1
    )
    assert made.rank == rank
    error = float((M - dense_update(made)).square().sum())
    assert made.lost == pytest.approx(error, rel=1e-10)


def test_wide_enough_sketch_is_the_best_approximation():
    M = torch.randn(30, 12, generator=torch.Generator().manual_seed(0)).double()
    for matrix in (M, M.T):
        random = torch.Generator().manual_seed(0)
        made = factorised(
            lambda m=matrix: m.split(5), matrix.shape, 4, random, oversample=8, power=0
        )
        best = float(torch.linalg.svdvals(M)[4:].square().sum())
        assert made.lost == pytest.approx(best, rel=1e-12)


def test_power_iterations_come_near_the_best():
    layer = drawn_layer((120, 90), (4, 4, 4))
    whole = {p: method("ties", power=p, oversample=4).merged(layer) for p in (0, 3)}
    M = exact(layer, "ties")
    best = float(torch.linalg.svdvals(M)[12:].square().sum())
    assert best <= whole[3].lost < whole[0].lost
    assert whole[3].lost < 1.01 * best


def test_known_loss_of_a_merge_is_the_dense_error():
    layer = drawn_layer((40, 30), (3, 3))
    merged = method("magnitude-prune", density=0.3, oversample=2).merged(layer)
    assert merged.rank == 6
    M = sum(top(dense(task), 0.3) for task in layer.tasks)
    error = float((M - dense_update(merged)).square().sum())
    assert error > 0.01 * float(M.square().sum())  # there is something to know
    assert merged.lost == pytest.approx(error, rel=1e-10)


# --- methods, against dense literal ones


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_ties(sign, density):
    layer = drawn_layer(SHAPE, RANKS)
    parts = [top(ΔW, density) for ΔW in all_dense(layer)]
    expected = 0.7 * elect_and_mean(parts, sign)
    close(exact(layer, "ties", density=density, sign=sign, scale=0.7), expected)


def test_ties_keeps_all_that_tie():
    """Three rows alike: 5 of 12 entries asked for, and the last of them is tied."""
    B = torch.ones(3, 1, dtype=torch.float64)
    A = torch.tensor([[4.0, -3.0, 2.0, 1.0]], dtype=torch.float64)
    layer = Layer("w", (Factors(A, B, 1.0),), (None,))
    found = exact(layer, "ties", density=5 / 12)
    close(found, torch.tensor([[4.0, -3.0, 0.0, 0.0]] * 3, dtype=torch.float64))


def test_ties_is_not_that_of_the_factors():
    """Another choice of factors of the same updates: the same merge."""
    layer = drawn_layer(SHAPE, RANKS)
    G = torch.randn(3, 3, generator=torch.Generator().manual_seed(5)).double()
    first = layer.tasks[0]
    turned = Factors(torch.linalg.solve(G, first.A), first.B @ G, first.scale)
    other = Layer("w", (turned, *layer.tasks[1:]), layer.inputs)
    close(exact(other, "ties", density=0.3), exact(layer, "ties", density=0.3))


def test_magnitude_prune():
    layer = drawn_layer(SHAPE, RANKS)
    expected = sum(top(ΔW, 0.35) for ΔW in all_dense(layer))
    close(exact(layer, "magnitude-prune", density=0.35), expected)


def test_magmax():
    layer = drawn_layer(SHAPE, RANKS)
    ΔW = all_dense(layer)
    best = ΔW.abs().argmax(0, keepdim=True)
    close(exact(layer, "magmax"), 0.5 * ΔW.gather(0, best)[0])


def test_magmax_takes_the_later_of_equal_ones():
    task = drawn_factors(SHAPE, 2, 0)
    opposite = Factors(-task.A, task.B, task.scale)
    layer = Layer("w", (task, opposite), (None, None))
    close(exact(layer, "magmax", scale=1.0), -dense(task))


@pytest.mark.parametrize(("beta", "gamma"), [(0.5, 0.1), (0.0, 0.2), (0.6, 0.0)])
def test_breadcrumbs(beta, gamma):
    layer = drawn_layer(SHAPE, RANKS)
    expected = torch.zeros(SHAPE, dtype=torch.float64)
    for ΔW in all_dense(layer):
        flat = ΔW.flatten().clone()
        order = flat.abs().argsort()
        flat[order[: int(beta * len(flat))]] = 0
        flat[order[len(flat) - int(gamma * len(flat)) :]] = 0
        expected += flat.view(SHAPE)
    close(exact(layer, "breadcrumbs", beta=beta, gamma=gamma), expected)


def uniforms(layer, seed):
    """Return the masks' random numbers of whole matrices."""
    whole = Entries(layer, layer.shape[0])
    return [whole.uniform(seed, task, 0) for task in range(len(layer.tasks))]


def test_dare_and_dare_ties():
    layer = drawn_layer(SHAPE, RANKS)
    parts = [
        torch.where(u < 0.4, ΔW / 0.4, 0)
        for ΔW, u in zip(all_dense(layer), uniforms(layer, 3), strict=True)
    ]
    close(exact(layer, "dare", density=0.4, seed=3), sum(parts))
    for sign in SIGNS:
        found = exact(layer, "dare-ties", density=0.4, seed=3, sign=sign)
        close(found, elect_and_mean(parts, sign))


def test_dare_is_right_on_average():
    """The mean of 400 draws is task arithmetic, to 5 standard errors of each entry."""
    layer = drawn_layer((7, 5), (2, 3))
    draws = 400
    made = [exact(layer, "dare", density=0.3, seed=s, power=0) for s in range(draws)]
    ΔW = all_dense(layer)
    error = (ΔW.square().sum(0) * (0.7 / 0.3) / draws).sqrt()
    off = (torch.stack(made).mean(0) - ΔW.sum(0)).abs()
    assert (off < 5 * error).all()
    assert (off > 0.1 * error).any()  # and it is random


def test_della():
    layer = drawn_layer(SHAPE, RANKS)
    parts = []
    for ΔW, u in zip(all_dense(layer), uniforms(layer, 1), strict=True):
        part = torch.zeros_like(ΔW)
        for i, j in np.ndindex(*SHAPE):
            rank = sum(abs(float(x)) < abs(float(ΔW[i, j])) for x in ΔW[i])
            keep = 0.4 - 0.15 + 0.3 * rank / (SHAPE[1] - 1)
            part[i, j] = ΔW[i, j] / keep if u[i, j] < keep else 0
        parts.append(part)
    found = exact(layer, "della", density=0.4, epsilon=0.3, seed=1)
    close(found, elect_and_mean(parts, "total"))


def test_della_keeps_the_largest_of_a_row_most_often():
    row = torch.tensor([[0.1, -5.0, 2.0], [7.0, 1.0, -3.0]])
    keep = keep_probability(row, 0.5, 0.2)
    expected = torch.tensor([[0.4, 0.6, 0.5], [0.6, 0.4, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(keep, expected)
    assert keep_probability(row[:, :1], 0.5, 0.2).eq(0.5).all()


@pytest.mark.parametrize("fuse", ["sum", "mean"])
def test_c_ties(fuse):
    layer = drawn_layer(SHAPE, RANKS)
    first, *more = all_dense(layer)
    merged = 0.4 * first
    for new in more:
        parts = [top(merged, 0.3), top(new, 0.3)]
        agreed = elect_and_mean(parts, "total")
        if fuse == "sum":
            both = (parts[0] * parts[1]) > 0
            agreed = torch.where(both, parts[0] + parts[1], agreed)
        merged = merged + 0.4 * agreed
    found = exact(layer, "c-ties", density=0.3, scale=0.4, fuse=fuse)
    close(found, merged)
    other = Layer(layer.name, layer.tasks[::-1], layer.inputs)
    assert not exact(other, "c-ties", density=0.3).allclose(found)


# --- what is the same however it is done

METHODS = {
    "ties": {"density": 0.4},
    "dare": {"density": 0.4},
    "dare-ties": {"density": 0.4},
    "magnitude-prune": {"density": 0.4},
    "magmax": {},
    "breadcrumbs": {"beta": 0.3, "gamma": 0.1},
    "della": {"density": 0.4},
    "c-ties": {"density": 0.4},
}


@pytest.mark.parametrize("name", METHODS)
def test_size_of_blocks_changes_nothing(name):
    layer = drawn_layer(SHAPE, RANKS)
    whole = exact(layer, name, rows=SHAPE[0], **METHODS[name])
    for height in (1, 5, 100):
        close(exact(layer, name, rows=height, **METHODS[name]), whole)
    close(exact(layer, name, **METHODS[name]), whole)


@pytest.mark.parametrize("name", METHODS)
def test_float32_is_near_float64(name):
    layer = drawn_layer(SHAPE, RANKS)
    expected = exact(layer, name, **METHODS[name])
    rule = method(name, rank=FULL, **METHODS[name])
    found = rule.merged(replace(layer, dtype=torch.float32))
    assert found.C.dtype == torch.float32
    assert found.lost < 1e-10
    torch.testing.assert_close(
        dense_update(found).double(), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_task_that_leaves_the_layer_alone_is_zero(name):
    task = drawn_factors(SHAPE, 2, 0)
    nothing = Factors(torch.zeros(0, 9).double(), torch.zeros(13, 0).double(), 1.0)
    zero = Factors(torch.zeros(1, 9).double(), torch.zeros(13, 1).double(), 1.0)
    both = [Layer("w", (task, rest), (None, None)) for rest in (nothing, zero)]
    close(*(exact(layer, name, **METHODS[name]) for layer in both))


def test_masks_are_a_layers_a_tasks_and_a_seeds_own():
    layer = drawn_layer(SHAPE, RANKS)
    whole = Entries(layer, SHAPE[0])
    again = Entries(drawn_layer(SHAPE, (1, 1), name="v"), SHAPE[0])
    same = whole.uniform(0, 1, 0)
    assert same.equal(Entries(drawn_layer(SHAPE, (5, 5)), SHAPE[0]).uniform(0, 1, 0))
    for other in (
        whole.uniform(0, 0, 0),
        whole.uniform(1, 1, 0),
        again.uniform(0, 1, 0),
    ):
        assert not same.isclose(other).any()
    assert float(same.min()) >= 0
    assert float(same.max()) < 1


def test_no_block_is_higher_than_said(monkeypatch):
    layer, heights = drawn_layer((10, 4), (2, 2)), []
    of = Entries.of

    def watched(self, task, start):
        made = of(self, task, start)
        heights.append(len(made))
        return made

    monkeypatch.setattr(Entries, "of", watched)
    method("ties", rows=3).merged(layer)
    assert set(heights) == {3, 1}


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("breadcrumbs", {"beta": 0.6, "gamma": 0.4}),
        ("della", {"density": 0.1, "epsilon": 0.2}),
        ("della", {"density": 0.95, "epsilon": 0.2}),
        ("ties", {"density": 0.0}),
    ],
)
def test_what_masks_everything_is_refused(name, params):
    with pytest.raises(ConfigError, match=r"density|beta"):
        method(name, **params)
