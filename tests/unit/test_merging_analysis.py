"""Adapters compared before a merge: mistakes are made, numbers are the dense ones."""

from __future__ import annotations

import json
import math
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.merging import Held, dense, drawn, drawn_factors

from loralab.errors import AdapterError
from loralab.lowrank.factors import Factors
from loralab.lowrank.update import frobenius
from loralab.merging.analysis.analyzer import MODES, THRESHOLDS, MergingAnalyzer
from loralab.merging.analysis.signs import sampled
from loralab.merging.analysis.similarity import directions, removed, suggested_threshold
from loralab.merging.analysis.verdicts import Limits
from loralab.merging.layer import Layer
from loralab.merging.merge import merge
from loralab.merging.method import method

SHAPES = {"a": (48, 40), "b": (40, 56), "c": (64, 40)}
QUICK = {"modes": ()}


def analysed(*sources, **options):
    return MergingAnalyzer(sources, **QUICK | options).report()


def kinds(found):
    return {verdict.kind: verdict for verdict in found.verdicts}


def named(source, name):
    return replace(source, name=name)


def each(source, change):
    """Return the adapter with every layer's factors changed."""
    return Held({m: change(f) for m, f in source.held.items()}, source.name)


def trained(seed, A_seed=None, move=0.3, rank=4):
    """Return an adapter as training leaves it: A near its draw, B of its own."""
    made = drawn(rank, SHAPES, seed)
    start = drawn(rank, SHAPES, seed if A_seed is None else A_seed)
    return Held(
        {m: replace(f, A=start.held[m].A + move * f.A) for m, f in made.held.items()},
        f"task-{seed}",
    )


def dense_cosine(one, other):
    flat = [
        torch.cat([dense(f).flatten() for f in s.held.values()]) for s in (one, other)
    ]
    return float(flat[0] @ flat[1] / flat[0].norm() / flat[1].norm())


def span_cosines(one, other):
    (Q, _), (Q2, _) = torch.linalg.qr(one), torch.linalg.qr(other)
    return torch.linalg.svdvals(Q.T @ Q2)


# ---- numbers are those of the dense matrices ----


@pytest.fixture(scope="module")
def sources():
    return [
        named(drawn(3, SHAPES, 1), "x"),
        named(trained(2, rank=5), "y"),
        named(drawn(4, {m: SHAPES[m] for m in "ac"}, 3), "z"),
    ]


@pytest.fixture(scope="module")
def found(sources):
    return analysed(*sources, rows=64)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), rank=st.integers(1, 6))
def test_only_the_rows_see_how_an_update_is_factored(seed, rank):
    """B → BG, A → G⁻¹A changes no number but the cosine of the rows of A."""
    tasks = [trained(seed + n, rank=rank) for n in range(3)]
    G = drawn_factors((rank, rank), rank, seed).A + 3 * torch.eye(rank).double()
    other = each(
        tasks[0], lambda f: replace(f, A=torch.linalg.solve(G, f.A), B=f.B @ G)
    )
    one, two = analysed(*tasks), analysed(other, *tasks[1:])
    assert two.similarity == pytest.approx(one.similarity, abs=1e-8)
    for before, after in zip(one.pairs, two.pairs, strict=True):
        assert after.cosine == pytest.approx(before.cosine, abs=1e-10)
        assert after.left.mean == pytest.approx(before.left.mean, abs=1e-8)
        assert after.right.mean == pytest.approx(before.right.mean, abs=1e-8)
    assert [t.norm for t in two.tasks] == pytest.approx([t.norm for t in one.tasks])
    assert two.sum_rank == one.sum_rank


def test_cosines_stand_in_a_matrix(found):
    cosines = found.cosines()
    assert cosines[0][0] == 1.0
    for pair in found.pairs:
        assert cosines[pair.one][pair.other] == pair.cosine
        assert cosines[pair.other][pair.one] == pair.cosine


def filled(source):
    """Return the adapter with a zero update where it has none."""
    zero = {
        m: Factors(torch.zeros(1, i).double(), torch.zeros(o, 1).double(), 1.0)
        for m, (o, i) in SHAPES.items()
    }
    return Held(zero | dict(source.held), source.name)


def test_cosines_and_norms_are_the_dense_ones(sources, found):
    for pair in found.pairs:
        one, other = (filled(sources[n]) for n in (pair.one, pair.other))
        one, other = (Held(dict(sorted(s.held.items()))) for s in (one, other))
        assert pair.cosine == pytest.approx(dense_cosine(one, other), abs=1e-10)
        for layer in found.layers:
            here = next(
                p for p in layer.pairs if (p.one, p.other) == (pair.one, pair.other)
            )
            if layer.name == "b" and pair.other == 2:
                assert here.cosine is here.left is here.right is None
                continue
            parts = [Held({layer.name: s.held[layer.name]}) for s in (one, other)]
            assert here.cosine == pytest.approx(dense_cosine(*parts), abs=1e-10)
    for task, source in zip(found.tasks, sources, strict=True):
        norm = math.hypot(*(float(dense(f).norm()) for f in source.held.values()))
        assert task.norm == pytest.approx(norm, rel=1e-12)
    norms = [task.norm for task in found.tasks]
    assert found.imbalance == pytest.approx(max(norms) / min(norms))


def test_angles_are_those_of_the_dense_spans(sources, found):
    for layer in found.layers:
        for pair in layer.pairs:
            if pair.left is None:
                continue
            one, other = (sources[n].held[layer.name] for n in (pair.one, pair.other))
            for side, cosines in (
                (pair.left, span_cosines(one.B, other.B)),
                (pair.right, span_cosines(one.A.T, other.A.T)),
            ):
                assert side.mean == pytest.approx(float(cosines.mean()), abs=1e-10)
                assert side.largest == pytest.approx(float(cosines.max()), abs=1e-10)
                assert side.overlap == pytest.approx(
                    float(cosines.square().mean()), abs=1e-10
                )
    pair = found.pairs[0]
    each_layer = [layer.pairs[0] for layer in found.layers]
    assert pair.left.mean == pytest.approx(sum(p.left.mean for p in each_layer) / 3)
    assert pair.right.largest == max(p.right.largest for p in each_layer)


def test_spectra_and_ranks_are_those_of_the_dense_matrices(sources, found):
    cut = {cut.rank: cut for cut in found.cuts}[8]
    whole = lost = 0.0
    for layer in found.layers:
        parts = [dense(filled(s).held[layer.name]) for s in sources]
        summed = sum(parts)
        sigma = torch.linalg.svdvals(summed)
        rank = int(torch.linalg.matrix_rank(summed))
        assert (layer.sum_rank, layer.total_rank) == (
            rank,
            8 if layer.name == "b" else 12,
        )
        torch.testing.assert_close(
            torch.tensor(layer.sum_spectrum, dtype=torch.float64), sigma[:rank]
        )
        for task, part in zip(layer.tasks, parts, strict=True):
            s = torch.linalg.svdvals(part)
            if task.used:
                stable = float((s / s[0]).square().sum())
                assert task.stable_rank == pytest.approx(stable)
        whole, lost = (
            whole + float(sigma.square().sum()),
            lost + float(sigma[8:].square().sum()),
        )
    assert cut.total == pytest.approx(1 - lost / whole)
    assert found.total_rank == 32


def test_what_a_cut_keeps_of_each_task(sources, found):
    for rank in (8, 16):
        shares = []
        for source in map(filled, sources):
            kept = whole = 0.0
            for module in SHAPES:
                summed = sum(dense(filled(s).held[module]) for s in sources)
                U, _, Vh = torch.linalg.svd(summed)
                task = dense(source.held[module])
                kept += float((U[:, :rank].T @ task @ Vh[:rank].T).square().sum())
                whole += float(task.square().sum())
            shares.append(kept / whole)
        cut = {cut.rank: cut for cut in found.cuts}[rank]
        assert cut.tasks == pytest.approx(shares)


def conflict(one, other):
    one, other = one.sign(), other.sign()
    return float((one * other < 0).sum()), float((one * other != 0).sum())


def test_sign_conflicts_are_exact_where_every_row_is_read(sources, found):
    for pair in found.pairs:
        one, other = (filled(sources[n]) for n in (pair.one, pair.other))
        counts = [conflict(dense(one.held[m]), dense(other.held[m])) for m in SHAPES]
        opposite, common = (sum(part) for part in zip(*counts, strict=True))
        assert pair.conflict.value == pytest.approx(opposite / common, abs=1e-12)
        assert pair.conflict.error == pytest.approx(0.0, abs=1e-9)


def test_the_error_of_a_sampled_conflict_is_what_it_says():
    """Many draws of few rows: their mean is the truth, their spread the error told."""
    tasks = tuple(drawn_factors((200, 24), 2, seed) for seed in (5, 6))
    sparse = tasks[0].B.clone()
    sparse[::3] = 0  # rows that only one task changes weigh nothing
    layer = Layer("w", (replace(tasks[0], B=sparse), tasks[1]))
    opposite, common = conflict(*map(dense, layer.tasks))
    made = [sampled(layer, 40, seed).share(0, 1) for seed in range(300)]
    values = torch.tensor([share.value for share in made])
    told = torch.tensor([share.error for share in made])
    assert float(values.std()) == pytest.approx(float(told.mean()), rel=0.15)
    assert float(values.mean()) == pytest.approx(
        opposite / common, abs=4 * float(values.std()) / math.sqrt(300)
    )
    within = ((values - opposite / common).abs() <= 2 * told).double().mean()
    assert float(within) > 0.9


# ---- what projection removes ----


def along(merged, new):
    """Take the part of a new core along the merged one out of it."""
    wide = torch.zeros_like(new)
    wide[: merged.shape[0], : merged.shape[1]] = merged
    return new - (wide * new).sum() / wide.square().sum() * wide


def test_energy_removed_is_that_of_the_dense_fold():
    layer = Layer("w", tuple(drawn_factors((20, 8), r, r) for r in (2, 3, 4)))
    S, expected = dense(layer.tasks[0]), [0.0]
    for ΔW in map(dense, layer.tasks[1:]):
        taken = ΔW - along(S, ΔW)
        expected.append(float(taken.square().sum()))
        S = S + ΔW - taken
    assert removed(directions(layer), along) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("mode", ["code", "paper", "stable"])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_what_projection_removes_is_what_opcm_removes(sources, mode, alpha):
    """P(ΔW_t) and what it removes are orthogonal, and ‖S_t‖² adds up."""
    for order in (sources, sources[::-1]):
        found = analysed(*order, modes=(mode,), thresholds=(alpha,))
        merged = merge(
            method("opcm", mode=mode, alpha_threshold=alpha, norm="none"), order
        )
        norms = [task.norm**2 for task in found.tasks]
        kept = sum(frobenius(update) ** 2 for update in merged.values())
        (removal,) = found.removals
        assert (removal.mode, removal.threshold) == (mode, alpha)
        # a layer that the first task leaves alone keeps all of the second
        assert removal.share == pytest.approx((sum(norms) - kept) / sum(norms[1:]))


def test_projection_does_nothing_for_tasks_apart_and_much_for_one_twice():
    found = analysed(*map(apart, range(3)), modes=MODES)
    said = kinds(found)["no-projection"]
    assert "this is a rescaled sum" in said.sentence
    assert len(found.removals) == len(MODES) * len(THRESHOLDS)
    assert all(one.share < 1e-12 for one in found.removals)
    one = trained(1)
    near = Held({m: replace(f, B=f.B + 0.01) for m, f in one.held.items()}, "near")
    found = analysed(one, near, modes=MODES)
    assert "no-projection" not in kinds(found)
    said = [v for v in found.verdicts if v.kind == "overprojection"]
    assert len(said) == len(MODES)
    assert all("little of a new task is left" in verdict.sentence for verdict in said)


def test_modes_in_which_projection_does_nothing_are_named():
    found = analysed(*map(trained, range(4)), modes=MODES)
    shares = {one.mode: one.share for one in found.removals if one.threshold == 0.5}
    limits = Limits(nothing=sorted(shares.values())[-1])  # all but the strongest
    said = kinds(analysed(*map(trained, range(4)), modes=MODES, limits=limits))
    assert max(shares, key=shares.get) == "paper"
    assert (
        "in the modes code and stable will do nothing" in said["no-projection"].sentence
    )
    assert "in the mode paper removes" in said["projection"].sentence


def test_projection_is_judged_at_the_threshold_that_is_named():
    limits = Limits(threshold=0.9, nothing=0.0)
    found = analysed(trained(1), trained(2), modes=("paper",), limits=limits)
    (judged,) = [one for one in found.removals if one.threshold == 0.9]
    said = kinds(found)["projection"]
    assert said.value == judged.share
    assert "at a threshold of 0.9" in said.sentence


def test_projection_between_its_limits_is_told_with_its_share():
    other = each(trained(2), lambda f: replace(f, B=2 * f.B))
    found = analysed(trained(1), against(trained(1), other), modes=("stable",))
    (judged,) = [one for one in found.removals if one.threshold == 0.5]
    said = kinds(found)["projection"]
    assert 0.01 < judged.share < 0.5
    assert f"removes {100 * judged.share:.1f} % of the energy" in said.sentence


# ---- mistakes and what is said of them ----


def test_one_seed_for_two_adapters_is_found():
    one, two, three = trained(1, A_seed=9), trained(2, A_seed=9), trained(3)
    found = analysed(one, two, three)
    said = [v for v in found.verdicts if v.kind == "same-seed"]
    assert [verdict.tasks for verdict in said] == [(0, 1)]
    assert "adapters 1 (task-1) and 2 (task-2) was drawn with the same seed" in (
        said[0].sentence
    )
    assert said[0].value > 0.8
    assert all(abs(pair.rows) < 0.1 for pair in found.pairs[1:])


def test_one_seed_for_two_ranks_is_found():
    """The first rows are what a generator draws first, whatever the rank."""
    one, two = trained(1, rank=4), trained(2, rank=6)
    A = {m: torch.cat([f.A, two.held[m].A[4:]]) for m, f in one.held.items()}
    two = Held({m: replace(f, A=A[m]) for m, f in two.held.items()}, "two")
    assert "same-seed" in kinds(analysed(one, two))


def test_one_span_in_two_gauges_is_found():
    one, two = trained(1, A_seed=9, move=0), trained(2, A_seed=9, move=0)
    said = kinds(analysed(one, turned(two)))
    assert "same-span" in said
    assert "same-seed" not in said


def test_a_span_that_fills_its_space_tells_nothing():
    """Any two A of full rank have one span: that is no common seed."""
    shapes = {"a": (40, 4)}
    said = kinds(analysed(drawn(4, shapes, 1), drawn(4, shapes, 2)))
    assert not {"same-span", "same-seed"} & set(said)


def test_a_copy_in_another_gauge_is_a_duplicate():
    one, other = trained(1), trained(2)
    found = analysed(one, other, named(turned(one), "copy"))
    said = [v for v in found.verdicts if v.kind == "duplicate"]
    assert [verdict.tasks for verdict in said] == [(0, 2)]
    assert "adapters 1 (task-1) and 3 (copy) are the same:" in said[0].sentence
    assert "same-seed" not in kinds(found)


def test_a_copy_at_another_scale_is_told_with_its_factor():
    one = trained(1)
    said = kinds(analysed(one, scaled(one, 2.0)))["duplicate"]
    assert "up to a factor of 2:" in said.sentence


def test_a_near_copy_is_no_duplicate_but_leaves_projection_something():
    one = trained(1)
    noise = trained(2)
    near = each(one, lambda f: replace(f, B=f.B * 1.01))
    near = Held(
        {m: replace(f, B=f.B + 0.01 * noise.held[m].B) for m, f in near.held.items()}
    )
    found = analysed(one, near)
    assert "duplicate" not in kinds(found)
    assert found.pairs[0].cosine > 0.99
    assert found.similarity > 0.9


@pytest.mark.parametrize(("times", "kind"), [(8.0, "loud"), (0.1, "quiet")])
def test_a_task_out_of_line_is_found(times, kind):
    tasks = [trained(seed) for seed in (1, 2, 3)]
    tasks.append(scaled(trained(4), times))
    found = analysed(*tasks, ranks=(4,))
    said = kinds(found)[kind]
    assert said.tasks == (3,)
    assert said.value == pytest.approx(times, rel=0.3)
    assert "adapter 4 (task-4) is" in said.sentence
    (cut,) = found.cuts
    best = max(cut.tasks) if kind == "loud" else min(cut.tasks)
    assert best == cut.tasks[3]


def test_tasks_of_one_loudness_are_not():
    assert not {"loud", "quiet"} & set(kinds(analysed(*map(trained, range(4)))))


def test_an_untrained_adapter_is_found():
    one, two = trained(1), each(trained(2), lambda f: replace(f, B=0 * f.B))
    found = analysed(one, two, trained(3))
    assert kinds(found)["untrained"].tasks == (1,)
    assert found.pairs[0].cosine is None
    assert found.tasks[1].effective_rank == 0.0
    assert json.dumps(found.record(), allow_nan=False)


def apart(number):
    """Return an adapter that reads and writes coordinates of its own."""
    made = {}
    for module, (out, inner) in SHAPES.items():
        f = drawn_factors((out, inner), 2, number)
        B, A = torch.zeros_like(f.B), torch.zeros_like(f.A)
        B[8 * number : 8 * number + 8] = f.B[:8]
        A[:, 8 * number : 8 * number + 8] = f.A[:, :8]
        made[module] = Factors(A, B, 1.0)
    return Held(made, f"block-{number}")


def test_orthogonal_tasks_are_told():
    found = analysed(*map(apart, range(4)))
    assert "orthogonal" in kinds(found)
    assert found.similarity == pytest.approx(0.0, abs=1e-12)
    assert all(pair.conflict is None for pair in found.pairs)
    assert "orthogonal" not in kinds(analysed(trained(1), trained(1)))


def test_tasks_that_pull_against_each_other_are_told():
    one = trained(1)
    said = kinds(analysed(one, against(one, trained(2))))
    assert said["against"].value < -0.3
    assert said["sign-conflict"].value > 0.6


def test_a_rank_that_cannot_hold_the_sum_is_told():
    found = analysed(*map(trained, range(6)), ranks=(4, 24))
    (said,) = [v for v in found.verdicts if v.kind == "rank"]
    low, high = found.cuts
    assert f"rank 4 keeps at most {100 * low.total:.1f} %" in said.sentence
    assert high.total == pytest.approx(1.0)


def scaled(source, times):
    return each(source, lambda f: replace(f, scale=times * f.scale))


def against(one, other):
    """Return an adapter that undoes the first and does the second."""
    made = {
        m: Factors(
            torch.cat([f.A, other.held[m].A]),
            torch.cat([-f.B, other.held[m].B], 1),
            f.scale,
        )
        for m, f in one.held.items()
    }
    return Held(made, "back")


def turned(source):
    """Return the same update with other factors: A → QA, B → BQᵀ."""
    turn, _ = torch.linalg.qr(drawn_factors((4, 4), 4, 3).A)
    return each(source, lambda f: replace(f, A=turn @ f.A, B=f.B @ turn.T))


LIMITED = {
    "same": ("duplicate", lambda: (trained(1), turned(trained(1))), -1.0),
    "rows": ("same-seed", lambda: (trained(1, 9), trained(2, 9)), 0.999),
    "span": ("same-span", lambda: (trained(1, 9, 0), turned(trained(2, 9, 0))), 1.1),
    "loud": ("loud", lambda: (trained(1), scaled(trained(2), 5.0)), 50.0),
    "orthogonal": ("orthogonal", lambda: (apart(1), apart(2)), 0.0),
    "against": ("against", lambda: (trained(1), against(trained(1), trained(2))), 0.99),
    "conflict": (
        "sign-conflict",
        lambda: (trained(1), against(trained(1), trained(2))),
        0.99,
    ),
    "kept": ("rank", lambda: tuple(map(trained, range(6))), 0.0),
}


@pytest.mark.parametrize("limit", LIMITED)
def test_every_limit_moves_its_sentence(limit):
    kind, adapters, silent = LIMITED[limit]
    assert kind in kinds(analysed(*adapters()))
    assert kind not in kinds(analysed(*adapters(), limits=Limits(**{limit: silent})))


def test_the_suggested_threshold_falls_with_similarity():
    given = [suggested_threshold(share / 10) for share in range(11)]
    assert given == sorted(given, reverse=True)
    assert (given[0], given[-1]) == (pytest.approx(0.7), pytest.approx(0.3))
    assert suggested_threshold(7.0) == given[-1]


def test_an_analysis_is_json_and_the_same_twice(sources, found):
    record = found.record()
    assert json.loads(json.dumps(record, allow_nan=False))["names"] == ["x", "y", "z"]
    assert analysed(*sources, rows=64) == found


def test_no_more_than_a_layer_and_the_next_is_held():
    alive = weakref.WeakSet()
    most = 0

    class Watched(Held):
        def factors(self, module):
            nonlocal most
            f = self.held[module]
            read = replace(f, A=f.A.clone())
            alive.add(read.A)
            most = max(most, len(alive))
            return read

    shapes = {f"layer {n}": (12, 10) for n in range(9)}
    sources = [Watched(drawn(2, shapes, seed).held, f"{seed}") for seed in range(3)]
    analysed(*sources)
    assert most <= 2 * len(sources)


def test_single_precision_finds_the_same(sources, found):
    single = analysed(*sources, named(sources[0], "again"), dtype=torch.float32)
    assert kinds(single)["duplicate"].tasks == (0, 3)
    for layer, exact in zip(single.layers, found.layers, strict=True):
        assert layer.sum_rank == exact.sum_rank
    by_pair = {(pair.one, pair.other): pair for pair in single.pairs}
    for pair in found.pairs:
        single_pair = by_pair[pair.one, pair.other]
        assert single_pair.cosine == pytest.approx(pair.cosine, abs=1e-5)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(AdapterError, match="1 adapter"):
        MergingAnalyzer([trained(1)])
    with pytest.raises(ValueError, match="at least 2"):
        MergingAnalyzer([trained(1), trained(2)], rows=1, **QUICK)
