"""What merge methods claim, held against every one of them; and what they leave out.

A method says in its registration which laws it keeps and with which params:
``laws={"identity": {"density": 1.0}, "gauge": {}, …}``. What it needs of a layer is
data too: ``most_tasks=2``; sketches of inputs are in every layer here.

    identity     one adapter merges to itself
    gauge        B → BG, A → G⁻¹A, which is the same update, changes nothing
    scale        all updates times c > 0 give the merged update times c
    permutation  the order of the tasks does not matter
    rank         rank ≤ Σ ranks
    driver       other singular vectors, where they are not unique, change nothing
"""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralab import registry
from loralab.lowrank.factors import Factors, frobenius_norm
from loralab.lowrank.sketch import Sketcher
from loralab.lowrank.update import Update, frobenius
from loralab.merging.layer import Layer
from loralab.merging.merge import MergedLayer, scale_of
from loralab.merging.method import method
from tests.merging import dense, dense_update, drawn_layer

FEW = settings(max_examples=6, deadline=None)
METHODS = {
    name: registry.get("merge method", name) for name in registry.names("merge method")
}
KIND = "merge method"


# --- the laws: each raises AssertionError where it is broken


def result(rule, layer):
    """Return the merged ΔW as a matrix, norm rule included."""
    update = rule.merged(layer)
    norms = tuple(frobenius_norm(task) for task in layer.tasks)
    scale = scale_of(rule, [MergedLayer(layer.name, update, norms)])
    return scale * dense_update(update)


def same(found, expected, layer, factor=1.0):
    size = factor * max(float(dense(task).norm()) for task in layer.tasks)
    apart = float((found - expected).norm())
    assert apart <= 1e-10 * size, f"{apart / size:.2g} of the largest update apart"


def with_tasks(layer, order, change=lambda task: task):
    """Return a layer of some of the tasks, changed."""
    inputs = tuple(layer.inputs[i] for i in order)
    return replace(
        layer, tasks=tuple(change(layer.tasks[i]) for i in order), inputs=inputs
    )


def identity(rule, layer, random):
    lone = with_tasks(layer, [0])
    same(result(rule, lone), dense(lone.tasks[0]), lone)


def gauge(rule, layer, random):
    def turned(task):
        G = torch.linalg.qr(_normal(random, task.rank, task.rank)).Q
        G = G * torch.exp(torch.rand(task.rank, generator=random).double() * 2 - 1)
        return Factors(torch.linalg.inv(G) @ task.A, task.B @ G, task.scale)

    every = range(len(layer.tasks))
    same(result(rule, with_tasks(layer, every, turned)), result(rule, layer), layer)


def scale(rule, layer, random):
    c = float(torch.empty(1).uniform_(0.1, 10, generator=random))
    larger = with_tasks(
        layer, range(len(layer.tasks)), lambda task: replace(task, scale=c * task.scale)
    )
    same(result(rule, larger), c * result(rule, layer), layer, c)


def permutation(rule, layer, random):
    order = torch.randperm(len(layer.tasks), generator=random).tolist()
    for other in (order, order[::-1]):  # one of them is not the same
        same(result(rule, with_tasks(layer, other)), result(rule, layer), layer)


def rank(rule, layer, random):
    most = sum(task.rank for task in layer.tasks)
    sigma = torch.linalg.svdvals(result(rule, layer))
    rest, size = float(sigma[most:].sum()), float(sigma.max())
    assert rest <= 1e-10 * size, f"rank {int((sigma > 1e-10 * size).sum())} > {most}"


def driver(rule, layer, random):
    expected = result(rule, layer)
    with another_lapack(random):
        same(result(rule, layer), expected, layer)


LAWS = {
    law.__name__: law for law in (identity, gauge, scale, permutation, rank, driver)
}


@contextmanager
def another_lapack(random):
    """Let `torch.linalg` return other vectors: all that another driver may choose.

    The SVD is LAPACK's gesvd (torch's is gesdd), pairs of vectors have other signs, and
    the vectors of σ = 0 are turned; the columns of a QR have other signs.
    """
    svd, qr = torch.linalg.svd, torch.linalg.qr

    def other_svd(A, full_matrices=True, **kwargs):
        if not A.numel():
            return svd(A, full_matrices=full_matrices, **kwargs)
        found = scipy.linalg.svd(A.numpy(), full_matrices, lapack_driver="gesvd")
        U, s, Vh = (torch.from_numpy(x.copy()) for x in found)
        count, signs = len(s), _signs(random, len(s))
        U[:, :count] *= signs
        Vh[:count] *= signs[:, None]
        none = int((s > 1e-13 * s[0]).sum())
        U[:, none:] @= qr(_normal(random, U.shape[1] - none, U.shape[1] - none)).Q
        Vh[none:] = qr(_normal(random, len(Vh) - none, len(Vh) - none)).Q @ Vh[none:]
        return torch.return_types.linalg_svd((U, s, Vh))

    def other_qr(A, mode="reduced"):
        Q, R = qr(A, mode)
        signs = _signs(random, len(R))
        Q = Q if mode == "r" else Q * signs  # without its Q it is empty
        return torch.return_types.linalg_qr((Q, signs[:, None] * R))

    torch.linalg.svd, torch.linalg.qr = other_svd, other_qr
    try:
        yield
    finally:
        torch.linalg.svd, torch.linalg.qr = svd, qr


def _signs(random, count):
    return torch.randint(0, 2, (count,), generator=random).double() * 2 - 1


def _normal(random, *shape):
    return torch.randn(*shape, generator=random, dtype=torch.float64)


# --- every method against every law that it claims


def layer_for(entry, shape, ranks, seed):
    """Return a layer that a method can merge."""
    layer = drawn_layer(shape, ranks[: entry.facts.get("most_tasks")], seed)
    return layer, torch.Generator().manual_seed(seed)


shapes = st.tuples(st.integers(8, 11), st.integers(8, 11))
ranks_of_tasks = st.lists(st.integers(1, 3), min_size=1, max_size=3).flatmap(
    lambda ranks: st.sampled_from([ranks, [*ranks[:2], 0]])
)
CLAIMS = [
    (name, law, params)
    for name, entry in METHODS.items()
    for law, params in entry.facts["laws"].items()
]


@pytest.mark.parametrize(
    ("name", "law", "params"), CLAIMS, ids=[f"{n}-{law}" for n, law, _ in CLAIMS]
)
@FEW
@given(shape=shapes, ranks=ranks_of_tasks, seed=st.integers(0, 10**6))
def test_a_method_keeps_the_laws_that_it_claims(name, law, params, shape, ranks, seed):
    layer, random = layer_for(METHODS[name], shape, tuple(ranks), seed)
    LAWS[law](method(name, **params), layer, random)


def sketch_of_full_rank(inner, seed):
    """Return the sketch of inputs whose spread falls to a thousandth: D is rounding."""
    random = torch.Generator().manual_seed(seed)
    made = Sketcher(inner)
    spread = torch.logspace(0, -3, inner, dtype=torch.float64)
    turn = torch.linalg.qr(_normal(random, inner, inner)).Q
    made.add((_normal(random, 300, inner) * spread) @ turn)
    return made.sketch()


SINGLE = [(name, params) for name, law, params in CLAIMS if law == "identity"] + [
    ("regmean", {"alpha": 1.0}),
    ("core-space", {"inner": {"name": "regmean", "params": {"alpha": 1.0}}}),
]


@pytest.mark.parametrize(("name", "params"), SINGLE)
def test_one_adapter_merges_to_itself_in_single_precision_too(name, params):
    task = drawn_layer((40, 64), (3,), 1).tasks[0]
    inputs = (sketch_of_full_rank(64, 1),)
    lone = Layer("w", (task,), inputs, dtype=torch.float32)
    found = result(method(name, **params), lone).double()
    apart = float((found - dense(task)).norm() / dense(task).norm())
    assert apart <= 1e-5, f"{apart:.2g} of the update apart"


# --- nothing is claimed or left out by accident

KEPT_WITHOUT_PROMISE = {
    ("lora-lego", "driver"): "a unit as near to two centroids goes where rounding says"
}
"""(method, law) -> why a law that no example breaks is not claimed all the same."""


def broken(rule, law, tries=20):
    """Return whether some layer breaks a law."""
    for seed in range(tries):
        layer, random = layer_for(rule.entry, (9, 8), (2, 3, 2), seed)
        try:
            LAWS[law](rule, layer, random)
        except AssertionError:
            return True
    return False


LEFT_OUT = [
    (name, law)
    for name, entry in METHODS.items()
    for law in LAWS
    if law not in entry.facts["laws"]
]


@pytest.mark.parametrize(("name", "law"), LEFT_OUT, ids=map("-".join, LEFT_OUT))
def test_a_law_that_a_method_does_not_claim_is_one_that_it_breaks(name, law):
    held = (name, law) in KEPT_WITHOUT_PROMISE
    assert broken(method(name), law) is not held


def test_every_claim_is_of_a_law_that_is_checked():
    assert {law for _, law, _ in CLAIMS} == set(LAWS)
    assert set(KEPT_WITHOUT_PROMISE) <= set(LEFT_OUT)


# --- the laws against methods that break them

CLAIMS_ALL = {law: {} for law in LAWS}


def _sum(layer):
    return layer.space.update(sum(layer.space.cores[1:], layer.space.cores[0]))


def _vectors_with_signs(params, layer):
    whole = _sum(layer)
    U, s, _ = torch.linalg.svd(whole.C, full_matrices=False)
    return whole.with_core(
        whole.C + s[0] * U[:, :1] @ torch.ones(1, whole.C.shape[1]).double()
    )


def _diagonal_of_a_null_space(params, layer):
    """OPCM as it is published: the whole diagonal, wherever S has no direction."""
    merged = dense(layer.tasks[0])
    for task in layer.tasks[1:]:
        U, _, Vh = torch.linalg.svd(merged)
        p = U.T @ dense(task) @ Vh.T
        p.diagonal().fill_(0)
        merged = merged + U @ p @ Vh
    return _as_it_is(merged)


def _as_it_is(matrix):
    out, inner = matrix.shape
    eye = partial(torch.eye, dtype=matrix.dtype)
    return Update(eye(out), matrix, eye(inner))


MUTANTS = {
    "twice": ("identity", lambda params, layer: _sum(layer) * 2),
    "by the norm of a factor": (
        "gauge",
        lambda params, layer: _sum(layer) * float(layer.tasks[0].B.norm()),
    ),
    "by its own norm": (
        "scale",
        lambda params, layer: _sum(layer) * frobenius(_sum(layer)),
    ),
    "by the first task": (
        "permutation",
        lambda params, layer: _sum(layer) * frobenius_norm(layer.tasks[0]),
    ),
    "entry by entry": (
        "rank",
        lambda params, layer: _as_it_is(dense_update(_sum(layer)).abs()),
    ),
    "vectors with signs": ("driver", _vectors_with_signs),
    "diagonal of a null space": ("driver", _diagonal_of_a_null_space),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_method_that_breaks_a_law_is_found(name, monkeypatch):
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    law, rule = MUTANTS[name]
    registry.register(KIND, name, laws=CLAIMS_ALL)(rule)
    assert broken(method(name), law)


def test_a_sum_breaks_no_law(monkeypatch):
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    registry.register(KIND, "sum", laws=CLAIMS_ALL)(lambda params, layer: _sum(layer))
    assert not any(broken(method("sum"), law) for law in LAWS)


def test_another_lapack_is_another_one_and_right():
    layer = drawn_layer((9, 8), (2, 1), 1)
    ΔW = dense(layer.tasks[0])
    random = torch.Generator().manual_seed(3)
    U, s, _ = torch.linalg.svd(ΔW)
    with another_lapack(random):
        U2, s2, Vh2 = torch.linalg.svd(ΔW)
        Q, R = torch.linalg.qr(ΔW)
    torch.testing.assert_close(s2, s)
    for made in (U2 @ torch.eye(9, 8).double() @ torch.diag(s2) @ Vh2, Q @ R):
        torch.testing.assert_close(made, ΔW)
    for X in (U2, Vh2):
        torch.testing.assert_close(X.T @ X, torch.eye(len(X)).double())
    assert float((U[:, 2:] - U2[:, 2:]).norm()) > 0.1
    assert float((U[:, :2] - U2[:, :2]).norm()) > 0.1
    assert torch.linalg.svd(ΔW).U.equal(U)  # and it is gone again
