"""Closed-form merges against their dense originals, and where those are not defined."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from torch import Tensor, nn

from loralab.errors import AdapterError, ConfigError
from loralab.lowrank.factors import Factors
from loralab.lowrank.update import Update, frobenius
from loralab.merging.layer import Layer
from loralab.merging.method import Normed, method
from loralab.merging.methods._inner import merged_within
from loralab.registry import register
from tests.merging import dense, dense_update, drawn_factors, drawn_layer

SHAPES = [(6, 8), (8, 6), (6, 6)]
SEEDS = [0, 1]
TIES = {"name": "ties", "params": {"density": 0.3}}
ALL = {
    "average": {},
    "cat": {},
    "core-space": {"inner": "cat"},
    "iso-c": {},
    "iso-cts": {},
    "karcher": {},
    "knots": {"inner": "cat"},
    "lora-lego": {},
    "nufilt-filter": {},
    "svd": {},
    "task-arithmetic": {"scale": 1.0},
    "tsv-m": {},
}
"""All but slerp, which takes no more than two tasks."""
WITH_SLERP = sorted([*ALL, "slerp"])
KEEPS_ONE = sorted(set(WITH_SLERP) - {"iso-c", "iso-cts"})


def merged(name: str, layer: Layer, **params) -> Tensor:
    return dense_update(method(name, **params).merged(layer))


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * float(other.norm() + 1))


def taus(layer: Layer) -> list[Tensor]:
    return [dense(task) for task in layer.tasks]


def assert_orthonormal(update: Update) -> None:
    for basis in (update.L, update.R):
        close(basis.T @ basis, torch.eye(basis.shape[1], dtype=basis.dtype))


def layer_of(*tasks: Factors) -> Layer:
    return Layer("h.0.q", tasks, (None,) * len(tasks))


def full(shape: tuple[int, int], tasks: int, seed: int) -> Layer:
    """Draw tasks whose updates are of full rank, as those of full fine-tuning."""
    return drawn_layer(shape, (min(shape),) * tasks, seed)


def low(seed: int = 0) -> Layer:
    """Draw adapters of different ranks; one leaves the layer alone."""
    return drawn_layer((14, 11), (3, 1, 0, 2), seed)


def zero(shape: tuple[int, int] = (14, 11)) -> Factors:
    out, inner = shape
    A = torch.ones(2, inner, dtype=torch.float64)
    return Factors(A, torch.zeros(out, 2, dtype=torch.float64), 1.0)


def triplets(X: Tensor, cut: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, s, Vᵀ as the originals have them, or without null directions."""
    U, s, Vh = torch.linalg.svd(X, full_matrices=False)
    k = int((s > 1e-9 * s[0]).sum()) if cut else len(s)
    return U[:, :k], s[:k], Vh[:k]


# --- the originals, dense and literal -------------------------------------------------


def dense_tsv_m(
    taus: list[Tensor], cut: bool = False, lossless: bool = False
) -> Tensor:
    """AntoAndGar/task_singular_vectors, compute_and_sum_svd_mem_reduction, lossless."""
    k = min(taus[0].shape) if lossless else int(min(taus[0].shape) * (1 / len(taus)))
    found = [triplets(tau, cut) for tau in taus]
    U = torch.cat([u[:, :k] for u, _, _ in found], 1)
    s = torch.cat([s[:k] for _, s, _ in found])
    Vh = torch.cat([vh[:k] for _, _, vh in found])
    u_u, _, vh_u = triplets(U, cut)
    u_v, _, vh_v = triplets(Vh, cut)
    return u_u @ vh_u @ torch.diag(s) @ u_v @ vh_v


def dense_iso_c(taus: list[Tensor], cut: bool = False) -> Tensor:
    """danielm1405/iso-merging, iso_c."""
    U, s, Vh = triplets(sum(taus), cut)
    return U @ torch.diag(torch.ones_like(s) * s.mean()) @ Vh


def dense_iso_cts(
    taus: list[Tensor], common_space_fraction: float, cut: bool = False
) -> Tensor:
    """danielm1405/iso-merging, iso_cts."""
    u, s, vh = triplets(sum(taus), cut)
    size = len(s)
    common = int(size * common_space_fraction)
    own = round((size - common) / len(taus)) * len(taus)
    common = size - own
    per_task = int((size - common) / len(taus))
    found = []
    for tau in taus:
        u_t, s_t, vh_t = triplets(tau - u[:, :common] @ u[:, :common].T @ tau, cut)
        found.append((u_t[:, :per_task], s_t[:per_task], vh_t[:per_task]))
    found.append((u[:, :common], s[:common], vh[:common]))
    U, S, Vh = (
        torch.cat([part[i] for part in found], 1 if i == 0 else 0) for i in range(3)
    )
    u_u, _, vh_u = triplets(U, cut)
    u_v, _, vh_v = triplets(Vh, cut)
    flat = torch.diag(torch.ones_like(S) * S.mean())
    return u_u @ vh_u @ flat @ u_v @ vh_v


def dense_ties(stack: Tensor, density: float) -> Tensor:
    """Yadav et al. 2023, trim, elect, disjoint mean; [T, …] -> […]."""
    flat = stack.flatten(1).clone()
    kept = max(1, int(density * flat.shape[1]))
    floor = flat.abs().sort(1, descending=True).values[:, kept - 1 : kept]
    flat[flat.abs() < floor] = 0
    elected = flat.sum(0).sign()
    agree = (flat.sign() == elected) & (flat != 0)
    return ((flat * agree).sum(0) / agree.sum(0).clamp(min=1)).view(stack.shape[1:])


def dense_knots(taus: list[Tensor], density: float) -> Tensor:
    """gstoica27/KnOTS, apply_svd and merge, its threshold taken within the layer."""
    U, s, Vh = triplets(torch.cat(taus, 1), cut=True)
    blocks = [torch.diag(s) @ block for block in Vh.split(taus[0].shape[1], 1)]
    return U @ dense_ties(torch.stack(blocks), density)


def dense_core_space(layer: Layer, density: float) -> Tensor:
    """apanariello4/core-space-merging, get_core_matrices and its TIES."""
    A = torch.cat([task.A for task in layer.tasks])
    B = torch.cat([task.B for task in layer.tasks], 1)
    Vh = torch.linalg.svd(A, full_matrices=False)[2]
    U = torch.linalg.svd(B, full_matrices=False)[0]
    cores = torch.stack([U.T @ tau @ Vh.T for tau in taus(layer)])
    return U @ dense_ties(cores, density) @ Vh


def dense_karcher(taus: list[Tensor], tol: float = 1e-12) -> Tensor:
    """mergekit, karcher_merge_tensors; all weights 1/T."""
    norms = [float(tau.norm()) for tau in taus]
    units = [tau / norm for tau, norm in zip(taus, norms, strict=True)]
    mean = sum(units) / len(units)
    mean = mean / mean.norm()
    for _ in range(2000):
        tangent = torch.zeros_like(mean)
        for unit in units:
            dot = (mean * unit).sum().clamp(-1.0, 1.0)
            theta = torch.arccos(dot)
            tangent += (theta / torch.sin(theta)) * (unit - dot * mean) / len(units)
        step = tangent.norm()
        if step < tol:
            break
        mean = torch.cos(step) * mean + torch.sin(step) * (tangent / step)
        mean = mean / mean.norm()
    return sum(norms) / len(norms) * mean


def dense_slerp(one: Tensor, two: Tensor, t: float) -> Tensor:
    u, v = one / one.norm(), two / two.norm()
    theta = torch.arccos((u * v).sum())
    mixed = torch.sin((1 - t) * theta) * u + torch.sin(t * theta) * v
    return ((1 - t) * one.norm() + t * two.norm()) * mixed / torch.sin(theta)


def dense_nufilt(taus: list[Tensor], null_rank: int) -> Tensor:
    """zihuanqiu/NUFILT, ResidualProjGate without its LoRA."""
    S = taus[0]
    for tau in taus[1:]:
        V = triplets(S, cut=True)[2][:null_rank].T
        S = S + tau @ (torch.eye(len(V), dtype=V.dtype) - V @ V.T)
    return S


@register("merge method", "literal-ties", Normed)
def literal_ties(params: Normed, layer: Layer) -> Update:
    """Merge densely: what an element-wise inner method is to a change of bases."""
    M = dense_ties(torch.stack(taus(layer)), 0.3)
    L, R = (torch.eye(size, dtype=M.dtype) for size in M.shape)
    return Update(L, M, R)


# --- equal to the original wherever that is defined -----------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tasks", [2, 3])
def test_spectral_merges_equal_the_dense_ones_at_full_rank(
    shape: tuple[int, int], tasks: int, seed: int
) -> None:
    layer = full(shape, tasks, seed)
    close(merged("tsv-m", layer, scale=0.7), 0.7 * dense_tsv_m(taus(layer)))
    close(merged("tsv-m", layer, keep=1), dense_tsv_m(taus(layer), lossless=True))
    close(merged("iso-c", layer, scale=0.7), 0.7 * dense_iso_c(taus(layer)))
    for fraction in (0.8, 0.3):
        close(
            merged("iso-cts", layer, common_space_fraction=fraction, scale=0.7),
            0.7 * dense_iso_cts(taus(layer), fraction),
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_at_low_rank_null_directions_are_left_out(seed: int) -> None:
    layer = low(seed)
    present = [tau for tau in taus(layer) if tau.any()]
    close(merged("tsv-m", layer), dense_tsv_m(present, cut=True))
    close(merged("iso-c", layer), dense_iso_c(present, cut=True))
    for fraction in (0.8, 0.3):
        close(
            merged("iso-cts", layer, common_space_fraction=fraction),
            dense_iso_cts(present, fraction, cut=True),
        )


@pytest.mark.parametrize("ranks", [(2, 2, 1), (1, 1), (3, 2, 2, 3)])
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 1.0])
def test_iso_cts_has_one_length_at_any_fraction(
    fraction: float, ranks: tuple[int, ...]
) -> None:
    layer = drawn_layer((12, 11), ranks)
    s = torch.linalg.svdvals(merged("iso-cts", layer, common_space_fraction=fraction))
    close(s[: sum(ranks)], s[0].expand(sum(ranks)))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ranks", [(6, 6), (3, 1, 2), (2, 2, 2, 2)])
def test_the_others_equal_the_dense_ones_at_any_rank(
    shape: tuple[int, int], ranks: tuple[int, ...], seed: int
) -> None:
    layer = drawn_layer(shape, ranks, seed)
    dense_taus = taus(layer)
    total = sum(dense_taus)
    close(merged("average", layer), total / len(ranks))
    close(merged("cat", layer), total)
    close(merged("task-arithmetic", layer), 0.3 * total)
    close(merged("karcher", layer), dense_karcher(dense_taus))
    close(
        merged("slerp", layer_of(*layer.tasks[:2]), t=0.3),
        dense_slerp(*dense_taus[:2], 0.3),
    )
    close(merged("nufilt-filter", layer), dense_nufilt(dense_taus, 128))
    close(merged("nufilt-filter", layer, null_rank=2), dense_nufilt(dense_taus, 2))
    U, s, Vh = torch.linalg.svd(total)
    for rank, given in [(max(ranks), {}), (2, {"rank": 2})]:
        best = U[:, :rank] @ torch.diag(s[:rank]) @ Vh[:rank]
        close(merged("svd", layer, **given), best)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("inner", ["literal-ties", TIES])
@pytest.mark.parametrize("ranks", [(3, 1, 2), (2, 2)])
def test_changes_of_bases_equal_the_dense_ones(
    ranks: tuple[int, ...], inner: object, seed: int
) -> None:
    layer = drawn_layer((14, 11), ranks, seed)
    close(merged("knots", layer, inner=inner), dense_knots(taus(layer), 0.3))
    close(merged("core-space", layer, inner=inner), dense_core_space(layer, 0.3))


def test_svd_and_cat_equal_pefts() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(9, 7)), _lora(2, 4), "one")
    model.add_adapter("two", _lora(3, 9))
    linear = model.base_model.model[0]
    tasks = []
    for seed, name in enumerate(["one", "two"]):
        drawn = drawn_factors((7, 9), model.peft_config[name].r, seed)
        linear.lora_A[name].weight.data = drawn.A.float()
        linear.lora_B[name].weight.data = drawn.B.float()
        tasks.append(replace(drawn, scale=linear.scaling[name] * (0.5 + seed)))
    for kind, rank in [("svd", 3), ("cat", 5)]:
        model.add_weighted_adapter(["one", "two"], [0.5, 1.5], kind, kind)
        ours = method(kind).merged(layer_of(*tasks))
        assert ours.rank == rank
        torch.testing.assert_close(
            dense_update(ours).float(),
            linear.get_delta_weight(kind).detach(),
            rtol=0,
            atol=1e-5,
        )


def _lora(rank: int, alpha: int) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"])


# --- what bases decide ----------------------------------------------------------------


def test_signs_of_a_basis_cancel_and_its_rotation_does_not() -> None:
    layer = low()
    U, V = layer.space.L, layer.space.R
    inner = method("knots", inner="literal-ties").params.inner
    flip_U, flip_V = (
        1.0 - 2.0 * (torch.arange(Q.shape[1]) % 2).double() for Q in (U, V)
    )
    within = dense_update(merged_within(layer, inner, U))
    close(dense_update(merged_within(layer, inner, U * flip_U)), within)
    both = dense_update(merged_within(layer, inner, U, V))
    close(dense_update(merged_within(layer, inner, U * flip_U, V * flip_V)), both)
    random = torch.Generator().manual_seed(0)
    turn = torch.randn(U.shape[1], U.shape[1], dtype=U.dtype, generator=random)
    turn = torch.linalg.qr(turn).Q
    turned = dense_update(merged_within(layer, inner, U @ turn))
    assert (turned - within).norm() > 0.01 * within.norm()


def test_only_bases_of_the_updates_do_not_see_the_gauge() -> None:
    layer = low()
    tasks = list(layer.tasks)
    G = torch.tensor([[2.0, 1, 0], [0, 1, 1], [0, 0, 0.5]], dtype=torch.float64)
    tasks[0] = replace(tasks[0], B=tasks[0].B @ G, A=torch.linalg.solve(G, tasks[0].A))
    regauged = layer_of(*tasks)
    for reference, sees in [("factors", True), ("updates", False)]:
        given = {"inner": "literal-ties", "reference": reference}
        before = merged("core-space", layer, **given)
        change = (merged("core-space", regauged, **given) - before).norm()
        assert (change > 0.01 * before.norm()) == sees
        assert sees or change < 1e-10


@pytest.mark.parametrize("outer", ["knots", "core-space"])
@pytest.mark.parametrize("inner", ["tsv-m", "iso-c", "iso-cts", "karcher", "svd"])
def test_a_spectral_method_is_the_same_in_any_bases(outer: str, inner: str) -> None:
    layer = low()
    # min(out, in) of the cores is smaller: the only thing of a shape in these rules
    given = {"name": inner, "params": {"keep": 1.0} if inner == "tsv-m" else {}}
    close(merged(outer, layer, inner=given), merged(inner, layer, **given["params"]))


@pytest.mark.parametrize("outer", ["knots", "core-space"])
def test_the_usual_inner_method_is_ties(outer: str) -> None:
    layer = low()
    assert merged(outer, layer).equal(merged(outer, layer, inner="ties"))


def test_an_inner_norm_rule_is_refused() -> None:
    inner = {"name": "average", "params": {"norm": "mean"}}
    with pytest.raises((ConfigError, ValidationError), match="whole model"):
        method("knots", inner=inner)


# --- what holds at the edges ----------------------------------------------------------


@pytest.mark.parametrize("name", KEEPS_ONE)
def test_one_task_is_merged_to_itself(name: str) -> None:
    (tau,) = taus(layer := drawn_layer((14, 11), (3,)))
    update = method(name, **ALL.get(name, {})).merged(layer)
    close(dense_update(update), tau)
    assert update.rank == 3


@pytest.mark.parametrize("name", sorted(ALL))
def test_tasks_of_any_rank_and_without_the_layer(name: str) -> None:
    layer = low()
    update = method(name, **ALL[name]).merged(layer)
    assert update.shape == (14, 11)
    assert torch.linalg.matrix_rank(dense_update(update)) <= layer.total_rank == 6
    assert float(dense_update(update).norm()) == pytest.approx(frobenius(update))
    assert_orthonormal(update)
    assert frobenius(update) > 0.1


@pytest.mark.parametrize("name", sorted(set(ALL) - {"lora-lego"}))
def test_a_task_that_leaves_the_layer_alone_is_one_of_zeros(name: str) -> None:
    one, two = (drawn_factors((14, 11), r, r) for r in (3, 2))
    without = drawn_layer((14, 11), (0,)).tasks[0]
    params = ALL[name]
    close(
        merged(name, layer_of(one, without, two), **params),
        merged(name, layer_of(one, zero(), two), **params),
    )


@pytest.mark.parametrize("name", WITH_SLERP)
@pytest.mark.parametrize("task", [zero(), drawn_layer((14, 11), (0,)).tasks[0]])
def test_nothing_merges_to_nothing(name: str, task: Factors) -> None:
    update = method(name, **ALL.get(name, {})).merged(layer_of(task, task))
    assert update.shape == (14, 11)
    assert frobenius(update) == 0


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("average", 1),
        ("cat", 3),
        ("core-space", 3),
        ("karcher", 1),
        ("knots", 3),
        ("lora-lego", 1),
        ("nufilt-filter", 1),
        ("svd", 3),
        ("task-arithmetic", 3),
        ("tsv-m", 1),
    ],
)
def test_three_times_the_same_task(name: str, times: int) -> None:
    task = drawn_factors((14, 11), 3, 0)
    update = method(name, **ALL[name]).merged(layer_of(task, task, task))
    close(dense_update(update), times * dense(task))
    assert_orthonormal(update)


def test_iso_of_duplicates_is_iso_of_their_sum() -> None:
    task = drawn_factors((14, 11), 5, 0)
    U, s, Vh = triplets(dense(task), cut=True)
    doubled = layer_of(task, task)
    close(merged("iso-c", doubled), 2 * s.mean() * U @ Vh)
    # 5 directions, one for each task beyond the common 3: the same one, half as heavy
    weights = torch.cat([2 * s[:3], s[3:4], s[3:4]])
    close(
        merged("iso-cts", doubled, common_space_fraction=0.6),
        weights.mean() * U[:, :4] @ Vh[:4],
    )


@pytest.mark.parametrize("name", sorted(ALL))
def test_single_precision_is_the_same_to_its_precision(name: str) -> None:
    layer = low()
    single = method(name, **ALL[name]).merged(replace(layer, dtype=torch.float32))
    assert single.C.dtype == torch.float32
    precise = merged(name, layer, **ALL[name])
    rest = (dense_update(single).double() - precise).norm()
    assert 0 < rest < 1e-5 * precise.norm()


# --- one by one -----------------------------------------------------------------------


def test_tsv_m_keeps_a_share_of_each_tasks_own_rank() -> None:
    layer = drawn_layer((14, 11), (4, 3))
    assert torch.linalg.matrix_rank(merged("tsv-m", layer)) == 7
    assert torch.linalg.matrix_rank(merged("tsv-m", layer, keep=0.5)) == 2 + 2
    with pytest.raises(ConfigError):
        method("tsv-m", keep=0)


def test_tsv_m_singular_values_survive() -> None:
    layer = drawn_layer((14, 11), (3, 2))
    parts = torch.cat([torch.linalg.svdvals(tau)[:3] for tau in taus(layer)])
    wanted = parts.sort(descending=True).values[:5]
    close(torch.linalg.svdvals(merged("tsv-m", layer))[:5], wanted)


def test_slerp_is_karcher_of_two_halfway_and_ends_at_the_tasks() -> None:
    layer = drawn_layer((14, 11), (3, 2))
    close(merged("slerp", layer), merged("karcher", layer))
    one, two = taus(layer)
    close(merged("slerp", layer, t=0), one)
    close(merged("slerp", layer, t=1), two)
    lengths = [float(merged("slerp", layer, t=t / 4).norm()) for t in range(5)]
    steps = [b - a for a, b in pairwise(lengths)]
    assert steps == pytest.approx([steps[0]] * 4)


def test_slerp_takes_no_third_task() -> None:
    with pytest.raises(ConfigError, match="two adapters, not 3"):
        merged("slerp", drawn_layer((5, 4), (1, 1, 1)))


@pytest.mark.parametrize("name", ["slerp", "karcher"])
def test_opposite_updates_are_refused(name: str) -> None:
    one = drawn_factors((14, 11), 3, 0)
    with pytest.raises(AdapterError, match="opposite") as error:
        merged(name, layer_of(one, replace(one, B=-2 * one.B)))
    assert "h.0.q" in str(error.value)


@pytest.mark.parametrize("name", ["slerp", "karcher"])
def test_on_the_sphere_a_zero_update_has_a_length_but_no_direction(name: str) -> None:
    one = drawn_factors((14, 11), 3, 0)
    close(merged(name, layer_of(one, zero())), dense(one) / 2)
    close(merged(name, layer_of(zero(), one)), dense(one) / 2)
    close(merged(name, layer_of(one, one)), dense(one))


def test_the_karcher_mean_that_is_not_reached_is_an_error() -> None:
    layer = drawn_layer((14, 11), (3, 2, 1))
    with pytest.raises(AdapterError, match="within 1 steps"):
        merged("karcher", layer, max_iter=1)
    rough = merged("karcher", layer, tol=1e-3)
    assert 1e-12 < (rough - merged("karcher", layer)).norm() < 1e-2


def test_the_filter_leaves_what_is_there_as_it_is() -> None:
    one, two = low().tasks[0], low().tasks[3]
    V = torch.linalg.svd(dense(one), full_matrices=False)[2]
    change = merged("nufilt-filter", layer_of(one, two)) - dense(one)
    close(change @ V[:3].T, torch.zeros(14, 3, dtype=V.dtype))
    assert change.norm() > 0.1
    close(
        merged("nufilt-filter", layer_of(one, two), null_rank=0),
        dense(one) + dense(two),
    )


@pytest.mark.parametrize("rank", range(4))
def test_the_filter_protects_as_few_directions_as_hold_the_share(rank: int) -> None:
    one, two = low().tasks[0], low().tasks[3]
    s = torch.linalg.svdvals(dense(one))[:3]
    share = float(s[:rank].sum() / s.sum())
    alpha = max(0.0, share - 1e-9)
    layer = layer_of(one, two)
    close(
        merged("nufilt-filter", layer, alpha_threshold=alpha),
        merged("nufilt-filter", layer, null_rank=rank),
    )


def test_lego_puts_like_units_together() -> None:
    """Two tasks of the same three units, one in another order and a bit apart."""
    one = drawn_factors((14, 11), 3, 0, scale=0.25)
    order = torch.tensor([2, 0, 1])
    two = Factors(1.1 * one.A[order], 0.9 * one.B[:, order], 0.25)
    expected = torch.zeros(14, 11, dtype=torch.float64)
    for i in range(3):
        pair = [
            0.5 * torch.cat([x * one.B[:, i], y * one.A[i]])
            for x, y in [(1, 1), (0.9, 1.1)]
        ]
        centre = (pair[0] + pair[1]) / 2
        centre = centre * (pair[0].norm() + pair[1].norm()) / 2 / centre.norm()
        expected += torch.outer(centre[:14], centre[14:])
    close(merged("lora-lego", layer_of(one, two)), expected)


def test_lego_of_as_many_clusters_as_units_is_the_sum() -> None:
    layer = drawn_layer((14, 11), (3, 2))
    close(merged("lora-lego", layer, rank=5), math.sqrt(3 / 5) * merged("cat", layer))
    close(merged("lora-lego", layer, rank=99), merged("lora-lego", layer, rank=5))


def test_lego_has_the_rank_asked_for_and_follows_its_seed() -> None:
    layer = drawn_layer((30, 25), (6, 6, 6))
    given = {"rank": 7, "restarts": 1}
    one = merged("lora-lego", layer, **given)
    assert method("lora-lego", **given).merged(layer).rank == 7
    assert torch.linalg.matrix_rank(one) == 7
    assert one.equal(merged("lora-lego", layer, **given))
    assert not one.equal(merged("lora-lego", layer, seed=1, **given))


def test_lego_has_no_more_clusters_than_different_units() -> None:
    task = drawn_factors((14, 11), 3, 0)
    layer = layer_of(task, task, task)
    close(merged("lora-lego", layer, rank=5), math.sqrt(3 / 5) * dense(task))


def test_lego_finds_the_best_clusters_there_are() -> None:
    """Against every partition of six units in two."""
    layer = drawn_layer((14, 11), (3, 3), seed=4)
    b = torch.cat([0.5**0.5 * task.B.T for task in layer.tasks])
    a = torch.cat([0.5**0.5 * task.A for task in layer.tasks])
    units, found = torch.cat([b, a], 1), []
    for bits in range(1, 2**5):
        first = torch.tensor([bool(bits >> i & 1) for i in range(6)])
        parts = [units[first], units[~first]]
        loss = sum((part - part.mean(0)).square().sum() for part in parts)
        found.append((float(loss), parts))
    best = min(found, key=lambda start: start[0])[1]
    expected = torch.zeros(14, 11, dtype=torch.float64)
    for part in best:
        centre = part.mean(0) * part.norm(dim=1).mean() / part.mean(0).norm()
        expected += torch.outer(centre[:14], centre[14:])
    given = {"rank": 2, "restarts": 30}
    close(merged("lora-lego", layer, **given), math.sqrt(3 / 2) * expected)


def test_lego_goes_on_until_no_unit_moves() -> None:
    layer = drawn_layer((3, 2), (6, 6, 6), seed=5)
    steps = [
        merged("lora-lego", layer, rank=4, restarts=1, max_iter=steps)
        for steps in (1, 2, 300)
    ]
    assert (steps[0] - steps[1]).norm() > 0.01
    assert steps[1].equal(steps[2])


def test_lego_minds_the_sign_of_a_weight() -> None:
    task = drawn_factors((14, 11), 3, 0)
    negated = layer_of(replace(task, scale=-task.scale))
    close(merged("lora-lego", negated), -dense(task))
