"""OPCM in factored form against the rule on whole matrices, and what it must leave."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralab.errors import ConfigError, MergeError
from loralab.lowrank.factors import Factors
from loralab.lowrank.update import extend, frobenius, inner, orthonormal
from loralab.merging.layer import Layer
from loralab.merging.merge import merge
from loralab.merging.method import Step, method
from loralab.merging.projection import OrthogonalProjector, Sketch, protected_count
from tests.laws.test_merging import LAWS
from tests.merging import Held, dense, dense_update, drawn_factors, drawn_layer

FEW = settings(max_examples=25, deadline=None)
MODES = ["code", "paper", "stable"]
CONTINUAL = ["opcm", "c-task-arithmetic", "swa", "nufilt-filter"]
alphas = st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0])
modes = st.sampled_from(MODES)


def close(found, expected, scale=None):
    size = max(float(expected.norm()), scale or 0.0, 1e-300)
    assert float((found - expected).norm()) <= 1e-10 * size


# --- the rule on whole matrices


def fusion_bench(tasks, alpha):
    """FusionBench's loop (opcm.py, commit 2c3df133) for one weight with W_0 = 0."""
    merged, previous, norms = tasks[0], 1.0, [tasks[0].norm()]
    for tau in tasks[1:]:
        norms.append(tau.norm())
        average = torch.stack(norms).mean()
        u, s, vh = torch.linalg.svd(merged, full_matrices=True)
        split = int((s.cumsum(0) / s.sum() > alpha).float().argmax())
        p = u.T @ tau @ vh.T
        p.diagonal().fill_(0)
        p[:split, :split] = 0
        merged = previous * merged + u @ p @ vh
        previous = merged.norm() / average
        merged = merged / previous
    return merged


def whole(S, tau, alpha, mode):
    """P(τ) entry by entry in the full SVD of S, where S has directions at all."""
    u, s, vh = torch.linalg.svd(S, full_matrices=True)
    k = int((s > 1e-12 * s[0]).sum()) if s[0] > 0 else 0
    share = [float(s[: i + 1].sum() / s.sum()) for i in range(k)]
    if mode == "paper":  # the fewest directions that hold alpha
        count = next((r for r in range(k) if sum(s[:r]) >= alpha * s.sum()), k)
    else:  # as many as there are before the first share above alpha
        count = next((i for i in range(k) if share[i] > alpha), k)
    if alpha == 1:
        count = k
    p = u.T @ tau @ vh.T
    kept = torch.ones_like(p)
    kept[:count, :count] = 0
    if mode == "paper":
        kept[:count], kept[:, :count] = 0, 0
    if mode != "stable":
        kept.diagonal()[:k] = 0
        return u @ (p * kept) @ vh
    rest = torch.zeros_like(p)
    rest.diagonal()[count:k] = s[count:k]
    p = p * kept
    if count < k:
        p = p - (p * rest).sum() / rest.square().sum() * rest
    return u @ p @ vh


def rank_aware(tasks, alpha, mode):
    """S_T on whole matrices."""
    S = tasks[0]
    for tau in tasks[1:]:
        S = S + whole(S, tau, alpha, mode)
    return S


def opcm(layer, **params):
    return method("opcm", **params).merged(layer)


@st.composite
def drawn_tasks(draw):
    """Draw a layer whose tasks overlap, repeat, do nothing, or leave it alone."""
    shape = draw(st.tuples(st.integers(3, 10), st.integers(3, 10)))
    ranks = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=5)))
    seed = draw(st.integers(0, 10**6))
    tasks = list(drawn_layer(shape, ranks, seed).tasks)
    kind = draw(st.sampled_from(["as drawn", "repeated", "zero", "overlapping"]))
    if kind == "repeated":
        tasks.append(tasks[0])
    if kind == "zero":
        nothing = drawn_factors(shape, 2, seed + 1)
        tasks.insert(seed % 2, Factors(nothing.A, 0 * nothing.B, 1.0))
    if kind == "overlapping":
        mixed = drawn_factors((tasks[0].rank, shape[1]), 2, seed + 2)
        tasks.append(Factors(mixed.A, tasks[0].B @ mixed.B, 1.0))
    return Layer("w", tuple(tasks))


@FEW
@given(
    st.sampled_from([(6, 6), (5, 9), (9, 5), (12, 12)]),
    st.integers(0, 1000),
    st.integers(2, 5),
    st.sampled_from([0.0, 0.3, 0.5, 0.9]),
)
def test_it_is_the_reference_where_that_is_well_defined(shape, seed, count, alpha):
    tasks = drawn_layer(shape, (min(shape),) * count, seed).tasks
    adapters = [Held({"w": task}) for task in tasks]
    ours = merge(method("opcm", alpha_threshold=alpha), adapters)["w"]
    close(dense_update(ours), fusion_bench([dense(task) for task in tasks], alpha))


def test_the_reference_is_not_defined_by_low_ranks():
    layer = drawn_layer((12, 12), (2, 2, 2), 3)
    ours = merge(method("opcm"), [Held({"w": task}) for task in layer.tasks])["w"]
    theirs = fusion_bench([dense(task) for task in layer.tasks], 0.5)
    assert torch.linalg.matrix_rank(theirs) == 12  # of ranks that sum to 6
    assert torch.linalg.matrix_rank(dense_update(ours)) == 6


@pytest.mark.parametrize("mode", MODES)
@FEW
@given(layer=drawn_tasks(), alpha=alphas)
def test_it_is_the_rule_on_whole_matrices(mode, layer, alpha):
    ours = opcm(layer, mode=mode, alpha_threshold=alpha)
    theirs = rank_aware([dense(task) for task in layer.tasks], alpha, mode)
    close(dense_update(ours), theirs, max(map(frobenius, updates(layer))))


def updates(layer):
    return [task.update() for task in layer.tasks]


@pytest.mark.parametrize("mode", MODES)
def test_float32_is_near_to_it(mode):
    layer = drawn_layer((60, 50), (4, 6, 3, 5), 1)
    exact = opcm(layer, mode=mode)
    rough = opcm(Layer("w", layer.tasks, dtype=torch.float32), mode=mode)
    assert rough.C.dtype == torch.float32
    off = (dense_update(rough).double() - dense_update(exact)).norm()
    assert float(off) <= 2e-5 * frobenius(exact)


# --- what it must leave


@FEW
@given(drawn_tasks(), alphas, modes)
def test_a_step_is_orthogonal_to_what_was_merged_and_keeps_to_the_rank(
    layer, alpha, mode
):
    rule = method("opcm", mode=mode, alpha_threshold=alpha)
    merged, squares, ranks = None, [], 0
    for count, task in enumerate(layer.tasks):
        before, merged = merged, rule.add(merged, task, Step("w", count))
        ranks += task.rank
        assert merged.rank <= ranks
        for basis in (merged.L, merged.R):
            eye = torch.eye(basis.shape[1], dtype=basis.dtype)
            assert float((basis.T @ basis - eye).abs().sum()) < 1e-12
        if before is None:
            squares.append(frobenius(merged) ** 2)
            continue
        step = dense_update(merged) - dense_update(before)
        size = max(frobenius(before), float(dense(task).norm())) ** 2
        assert abs(float((step * dense_update(before)).sum())) <= 1e-12 * size
        squares.append(float(step.norm()) ** 2)
    assert frobenius(merged) == pytest.approx(math.sqrt(sum(squares)), rel=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_a_projection_done_twice_is_done_once(mode):
    S, T = (
        torch.randn(7, 6, generator=_random(i), dtype=torch.float64) for i in (1, 2)
    )
    project = OrthogonalProjector(0.5, mode)
    once = project(S, T)
    close(project(S, once), once)
    close(project(3 * S, T), once)
    assert float((once * (T - once)).sum()) == pytest.approx(0, abs=1e-12)


def test_the_ends_of_the_threshold():
    S, T = (
        torch.randn(5, 5, generator=_random(i), dtype=torch.float64) for i in (3, 4)
    )
    u, _, vh = torch.linalg.svd(S)

    def left(alpha, mode):
        return u.T @ OrthogonalProjector(alpha, mode)(S, T) @ vh.T

    Z = u.T @ T @ vh.T
    for mode in ("code", "paper"):
        close(left(0.0, mode), Z - torch.diag(Z.diagonal()))
        close(left(1.0, mode), torch.zeros_like(Z), 1.0)  # S spans everything here
    close(left(0.0, "stable"), u.T @ (T - (T * S).sum() / S.square().sum() * S) @ vh.T)
    close(left(1.0, "stable"), torch.zeros_like(Z), 1.0)


def test_all_of_a_span_is_less_than_all_of_its_rows_and_columns():
    layer = drawn_layer((12, 11), (3, 3), 5)
    first, second = updates(layer)
    L, R = first.L, first.R
    for mode in MODES:
        step = dense_update(opcm(layer, mode=mode, alpha_threshold=1)) - dense_update(
            first
        )
        close(L.T @ step @ R, torch.zeros(3, 3, dtype=step.dtype), frobenius(second))
        across = float((L.T @ step).norm())
        assert across < 1e-12 if mode == "paper" else across > 0.1


def test_how_many_directions_a_threshold_protects():
    s = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)  # shares 1/2, 5/6, 1
    counts = {
        mode: [protected_count(s, a, mode) for a in (0.0, 0.4, 0.5, 0.6, 0.9, 1.0)]
        for mode in MODES
    }
    assert counts == {
        "code": [0, 0, 1, 1, 2, 3],
        "paper": [0, 1, 1, 2, 3, 3],
        "stable": [0, 0, 1, 1, 2, 3],
    }
    assert protected_count(s[:0], 0.5) == 0


@FEW
@given(drawn_tasks(), alphas, modes)
def test_the_recursion_of_lambda_is_the_sum_scaled_once(layer, alpha, mode):
    """λ_t W_t = λ_{t−1} W_{t−1} + P(τ_t) with ‖W_t‖ = n̄_t, step by step."""
    tasks = [dense(task) for task in layer.tasks]
    W, λ = tasks[0], 1.0
    for count, tau in enumerate(tasks[1:], 2):
        raw = λ * W + (whole(W, tau, alpha, mode))
        mean = sum(float(task.norm()) for task in tasks[:count]) / count
        λ = float(raw.norm()) / mean if mean and raw.norm() else 1.0
        W = raw / λ
    adapters = [Held({"w": task}) for task in layer.tasks]
    ours = merge(method("opcm", mode=mode, alpha_threshold=alpha), adapters)["w"]
    close(dense_update(ours), W, max(map(frobenius, updates(layer))))


def test_stable_does_not_cut_between_two_values_that_are_equal():
    S = torch.diag(torch.tensor([2.0, 1.0, 1.0, 0.5], dtype=torch.float64))
    turn = torch.eye(4, dtype=torch.float64)
    turn[1:3, 1:3], _ = orthonormal(torch.randn(2, 2, generator=_random(7)).double())
    T = torch.randn(4, 4, generator=_random(8), dtype=torch.float64)
    project = OrthogonalProjector(0.7, "stable")  # 2, 1: a share of 3/4.5
    assert project.directions(S).count == 3
    close(turn @ project(S, T) @ turn.T, project(turn @ S @ turn.T, turn @ T @ turn.T))
    lone = OrthogonalProjector(0.7, "code")
    apart = turn @ lone(S, T) @ turn.T - lone(S, turn @ T @ turn.T)
    assert float(apart.norm()) > 0.1  # S is the same, its vectors are not


@pytest.mark.parametrize("law", method("opcm").entry.facts["laws"])
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=6, deadline=None)
@given(alpha=alphas, seed=st.integers(0, 10**6))
def test_every_mode_keeps_the_laws_that_the_default_claims(mode, law, alpha, seed):
    rule = method("opcm", mode=mode, alpha_threshold=alpha)
    layer = drawn_layer((9, 8), (2, 3, 1, 2), seed)
    LAWS[law](rule, layer, _random(seed))


# --- sketches


def decaying(size, rate, seed=11):
    U, _ = orthonormal(torch.randn(size, size, generator=_random(seed)).double())
    V, _ = orthonormal(torch.randn(size, size, generator=_random(seed + 1)).double())
    return U @ torch.diag(rate ** torch.arange(size, dtype=torch.float64)) @ V.T


def test_a_sketch_finds_what_an_svd_does_and_knows_its_error():
    S = decaying(80, 0.9)
    T = torch.randn(80, 80, generator=_random(12), dtype=torch.float64)
    sketched = OrthogonalProjector(0.5, "stable", Sketch(size=24, tolerance=0.05))
    exact = OrthogonalProjector(0.5, "stable").directions(S)
    found = sketched.directions(S)
    assert found.count == exact.count
    assert found.error <= 0.005
    share = float(exact.s[: found.count].sum() / exact.s.sum())
    guess = float(found.s[: found.count].sum()) / float(exact.s.sum())
    assert abs(share - guess) <= 0.05
    near = S - (S @ found.V - found.U * found.s)[:, : found.count] @ (
        found.V[:, : found.count].T
    )  # the update whose exact directions these are
    assert float((near - S).norm() / S.norm()) == pytest.approx(found.error)
    close(near.T @ found.U[:, :3], found.V[:, :3] * found.s[:3])
    close(near @ found.V[:, :3], found.U[:, :3] * found.s[:3])
    step = sketched(S, T)
    assert abs(float((step * S).sum())) <= 1e-12 * float(S.norm() * T.norm())
    U, V = found.U[:, : found.count], found.V[:, : found.count]
    close(U.T @ step @ V, torch.zeros(found.count, found.count).double(), 1.0)


@FEW
@given(st.sampled_from([0.8, 0.95, 1.0]), st.integers(0, 100), st.integers(2, 29))
def test_the_nuclear_norm_is_within_the_bracket_of_a_sketch(rate, seed, size):
    from loralab.merging.projection import _tail

    S = decaying(30, rate, seed)[:, : 20 + seed % 11]
    Q, _ = orthonormal(S @ torch.randn(S.shape[1], size, generator=_random(1)).double())
    Q = Q[:, : min(size, S.shape[1] - 1)]
    _, s, vh = torch.linalg.svd(Q.T @ S, full_matrices=False)
    low, high = _tail(S - Q @ Q.T @ S, vh.T)
    nuclear = float(torch.linalg.svdvals(S).sum())
    rounding = 1e-10 * nuclear
    assert float(s.sum()) + low - rounding <= nuclear
    assert nuclear <= float(s.sum()) + high + rounding


def test_a_sketch_that_cannot_tell_says_so():
    slow = decaying(60, 0.99)
    for sketch, message in (
        (Sketch(size=8, where="q_proj"), "q_proj: a sketch of 8 directions holds less"),
        (Sketch(size=40, tolerance=1e-4), "known to .* by a sketch of 40, and"),
    ):
        with pytest.raises(MergeError, match=message):
            OrthogonalProjector(0.4, "stable", sketch)(slow, slow)


def test_a_sketched_merge_is_near_and_the_same_every_time():
    layer = drawn_layer((70, 60), (20, 20, 20), 9)
    params = {"mode": "stable", "alpha_threshold": 0.4}
    sketch = {"projection_method": "sketch", "sketch_size": 16}
    exact = opcm(layer, **params)
    found, again = (opcm(layer, **params, **sketch) for _ in range(2))
    assert found.C.equal(again.C)
    off = (dense_update(found) - dense_update(exact)).norm()
    assert 0 < float(off) <= 0.02 * frobenius(exact)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"projection_method": "sketch"}, "mode=code removes a diagonal"),
        ({"projection_method": "sketch", "mode": "paper"}, "mode=paper removes"),
        (
            {"projection_method": "sketch", "mode": "stable", "alpha_threshold": 1},
            "alpha_threshold=1 protects every direction",
        ),
        ({"sketch_size": 16}, "sketch_size needs projection_method=sketch"),
        ({"alpha_threshold": 1.5}, "less than or equal to 1"),
        ({"mode": "codes"}, "mode"),
    ],
)
def test_what_makes_no_sense_is_refused(params, message):
    with pytest.raises(ConfigError, match=message):
        method("opcm", **params)


def test_a_projector_takes_no_sketch_for_a_diagonal():
    with pytest.raises(ValueError, match="stable"):
        OrthogonalProjector(0.5, "code", Sketch())


# --- the bases that it stands on


@FEW
@given(drawn_tasks())
def test_a_basis_grows_by_what_is_new_and_stays_orthonormal(layer):
    blocks = [task.B for task in layer.tasks]
    L, _ = orthonormal(blocks[0])
    for B in blocks:
        wider, X = extend(L, B)
        eye = torch.eye(wider.shape[1], dtype=B.dtype)
        assert float((wider.T @ wider - eye).abs().sum()) < 1e-12
        assert wider[:, : L.shape[1]].equal(L)
        assert wider.shape[1] <= L.shape[1] + torch.linalg.matrix_rank(B)
        assert float((wider @ X - B).norm()) <= 1e-12 * float(B.norm())
        L = wider
    held = extend(L, torch.cat(blocks, 1))[0]
    assert held.shape == L.shape  # all of it is there already


# --- the others


@pytest.mark.parametrize("name", CONTINUAL)
@FEW
@given(layer=drawn_tasks())
def test_adding_one_task_at_a_time_is_the_joint_call(name, layer):
    rule = method(name)
    merged = None
    for count, task in enumerate(layer.tasks):
        merged = rule.add(merged, task, Step("w", count))
    size = max(map(frobenius, updates(layer)))
    close(dense_update(merged), dense_update(rule.merged(layer)), size)


@FEW
@given(drawn_tasks())
def test_the_baselines_are_their_sums(layer):
    tasks = [dense(task) for task in layer.tasks]
    size = max(map(frobenius, updates(layer)))
    mean = method("swa").merged(layer)
    close(dense_update(mean), sum(tasks) / len(tasks), size)
    scaled = method("c-task-arithmetic", scale=0.3).merged(layer)
    close(dense_update(scaled), 0.3 * sum(tasks), size)


def separate(layer, alpha):
    """The rule on factors, literally, for tasks of one rank and full-rank factors."""
    B, A = layer.tasks[0].scale * layer.tasks[0].B, layer.tasks[0].A
    λ, norms = 1.0, [math.hypot(B.norm(), A.norm())]
    for task in layer.tasks[1:]:
        new = [task.scale * task.B, task.A]
        norms.append(math.hypot(*(x.norm() for x in new)))
        for x, held in zip(new, (B, A), strict=True):
            u, s, vh = torch.linalg.svd(held, full_matrices=False)
            p = int((s.cumsum(0) / s.sum() >= alpha).float().argmax()) + 1
            dyads = [torch.outer(u[:, i], vh[i]) for i in range(p)]
            parts = [float((x * dyad).sum()) for dyad in dyads]
            for part, dyad in zip(parts, dyads, strict=True):
                x -= part * dyad
        B, A = λ * B + new[0], λ * A + new[1]
        λ = math.hypot(B.norm(), A.norm()) / (sum(norms) / len(norms))
        B, A = B / λ, A / λ
    return B @ A


@FEW
@given(st.integers(0, 1000), st.integers(1, 4), st.sampled_from([0.3, 0.5, 0.9]))
def test_opcm_separate_is_its_rule(seed, count, alpha):
    layer = drawn_layer((9, 7), (3,) * count, seed)
    ours = method("opcm-separate", alpha_threshold=alpha).merged(layer)
    close(dense_update(ours), separate(layer, alpha))


def test_opcm_separate_fails_as_its_page_says():
    layer = drawn_layer((64, 64), (4,) * 6, 2)
    rule, mean = method("opcm-separate"), method("swa").merged(layer)
    assert _cosine(rule.merged(layer), mean) < 0.7
    assert _cosine(opcm(layer), mean) > 0.98
    first, *others = layer.tasks
    same = Layer("w", (Factors(-first.A, -first.B, first.scale), *others))
    assert _cosine(rule.merged(layer), rule.merged(same)) < 0.9


def test_opcm_separate_pads_smaller_ranks():
    layer = drawn_layer((9, 7), (2, 0, 4), 3)
    assert method("opcm-separate").merged(layer).rank == 4


def _cosine(one, other):
    return inner(one, other) / frobenius(one) / frobenius(other)


def _random(seed):
    return torch.Generator().manual_seed(seed)
