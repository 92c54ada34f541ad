"""Known cases: scipy, statsmodels, brute force, and tables worked out by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from loralab.errors import EvidenceError
from loralab.evaluation.intervals import Interval, paired_proportions, wilson
from loralab.evaluation.statistics import coverage as simulation
from loralab.evaluation.statistics.coverage import Case, coverage, proportion_coverage
from loralab.evaluation.statistics.decisions import (
    holm,
    paired_permutation,
    tost,
    tost_of,
    verdict,
)
from loralab.evaluation.statistics.noise import (
    detectable_difference,
    noise_floor,
    seeds_needed,
)
from loralab.evaluation.statistics.reference import Reference, student
from loralab.evaluation.statistics.seeds import (
    LEAST_SEEDS,
    mean_squares,
    mixed_interval,
    offered,
    ratio_values,
    seed_interval,
    t_interval,
)
from loralab.evaluation.statistics.tasks import iqm, probability_of_improvement
from loralab.evaluation.statistics.trials import expected_best

VALUES = [0.71, 0.74, 0.69, 0.78, 0.73]


def crossed(seeds=4, examples=15, seed=3):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(0, 0.6, (seeds, 1))
        + rng.normal(2, 1.0, (1, examples))
        + rng.normal(0, 0.4, (seeds, examples))
    )


# --- seeds -----------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_t_interval_is_that_of_scipy(confidence):
    wanted = stats.ttest_1samp(VALUES, 0).confidence_interval(confidence)
    ours = t_interval(VALUES, confidence)
    assert ours.value == pytest.approx(np.mean(VALUES))
    assert (ours.low, ours.high) == pytest.approx((wanted.low, wanted.high))
    p = stats.ttest_1samp(VALUES, 0).pvalue
    assert seed_interval(VALUES).p_value == pytest.approx(p, rel=1e-9)


def test_variance_components_are_those_of_statsmodels():
    import pandas as pd
    from statsmodels.regression.mixed_linear_model import MixedLM

    values = crossed()
    k, n = values.shape
    seed, example = np.divmod(np.arange(k * n), n)
    frame = pd.DataFrame({"y": values.ravel(), "seed": seed, "example": example})
    crossed_terms = {"seed": "0 + C(seed)", "example": "0 + C(example)"}
    model = MixedLM.from_formula(
        "y ~ 1", frame, groups=np.ones(k * n), vc_formula=crossed_terms, re_formula="0"
    )
    fitted = model.fit(reml=True)
    by_name = dict(zip(model.exog_vc.names, fitted.vcomp, strict=True))
    ours = mixed_interval(values, 0.95)
    assert ours.variances == pytest.approx(
        (by_name["seed"], by_name["example"], fitted.scale), rel=2e-3
    )
    assert ours.standard_error == pytest.approx(float(fitted.bse.iloc[0]), rel=2e-3)


def test_mean_squares_are_those_of_the_definition():
    values = crossed()
    k, n = values.shape
    rest = values - values.mean(1)[:, None] - values.mean(0) + values.mean()
    found = mean_squares(values)
    assert found.residual == pytest.approx((rest**2).sum() / ((k - 1) * (n - 1)))
    assert mean_squares(values[None]).seed == pytest.approx([found.seed])
    # nothing but seeds: no variance of examples, and none is made up
    only_seeds = np.repeat(np.array(VALUES)[:, None], 7, axis=1)
    assert mixed_interval(only_seeds, 0.95).interval.low == pytest.approx(
        t_interval(VALUES, 0.95).low
    )


def test_reference_at_its_ends_and_between():
    assert student(4).critical(0.95) == pytest.approx(stats.t.ppf(0.975, 4))
    assert Reference(0.0, 2, 50).critical(0.9) == pytest.approx(stats.t.ppf(0.95, 50))
    for share, df in ((1 - 1e-10, 2), (1e-10, 199)):
        near = Reference(share, 2, 199).critical(0.95)
        assert near == pytest.approx(stats.t.ppf(0.975, df), rel=1e-5)
    ours = Reference(0.4, 2, 99)
    assert 2 * ours.tail(ours.critical(0.95)) == pytest.approx(0.05)
    assert ours.tail(0) == pytest.approx(0.5)
    # the posterior by brute force: draws of both variances, weighed by the prior
    rng = np.random.default_rng(0)
    first = 0.4 * 2 / rng.chisquare(3, 400_000)
    second = 0.6 * 99 / rng.chisquare(100, 400_000)
    weights = np.sqrt(first + second)
    tails = stats.norm.sf(2.5 / np.sqrt(first + second))
    assert ours.tail(2.5) == pytest.approx(
        (weights * tails).sum() / weights.sum(), rel=0.02
    )


def test_seed_interval_takes_the_widest_claim_that_covers():
    values = crossed(3)
    assert seed_interval(values).method == "mixed"
    assert seed_interval(values[:2]).method == "t"
    assert seed_interval(values.mean(1)).method == "t"
    assert seed_interval(values[:, :1]).method == "t"
    assert "population" in seed_interval(values).claim
    assert seed_interval(values).df == (2, 14)
    assert "no spread" in seed_interval([0.5, 0.5, 0.5]).claim
    with pytest.raises(EvidenceError, match="at least 3 seeds"):
        seed_interval(values[:2], method="mixed")
    with pytest.raises(EvidenceError, match="one seed"):
        seed_interval(values[:1])
    with pytest.raises(EvidenceError, match="not finite"):
        seed_interval([0.1, math.nan, 0.3])
    with pytest.raises(ValueError, match="unknown method"):
        seed_interval(values, method="bootstrap")
    with pytest.raises(ValueError, match="shape"):
        seed_interval(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="confidence"):
        seed_interval(VALUES, 95)


def test_a_ratio_has_the_interval_that_the_bootstrap_gives_it():
    from loralab.evaluation.intervals import score_intervals
    from loralab.evaluation.scores import ratio_of

    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 80, 400).astype(float)
    nll = tokens * rng.gamma(4, 0.4, 400)
    values = ratio_values(nll, tokens)
    error = values.std(ddof=1) / 20
    boot = score_intervals([{"x": ratio_of(nll, tokens)}], 0.95, 8000, 0)["x"][0]
    assert values.mean() == pytest.approx(boot.value)
    assert (boot.high - boot.low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    with pytest.raises(ValueError, match="denominators"):
        ratio_values(nll, tokens[:-1])


# --- what is offered, against the simulation -------------------------------

BAND = (0.93, 0.97)


@pytest.fixture(scope="module")
def measured():
    methods = ["t", "mixed", "bootstrap of seeds"]
    return {case: coverage(case, methods, 1000, seed=1) for case in simulation.grid()}


def test_what_is_offered_covers(measured):
    for case, found in measured.items():
        for method in LEAST_SEEDS:
            assert offered(method, case.seeds)
            assert BAND[0] <= found[method] <= BAND[1], (method, case, found)
    two = Case(2, 10.0)
    assert offered("t", 2)
    assert BAND[0] <= coverage(two, ["t"], 4000)["t"] <= BAND[1]


def test_what_is_refused_does_not_cover(measured):
    assert not offered("mixed", 2)
    worst = coverage(Case(2, 30.0, 0.0), ["mixed"], 20_000, seed=1)["mixed"]
    assert worst < BAND[0]
    for case, found in measured.items():  # which `offered` does not know at all
        assert found["bootstrap of seeds"] < BAND[0], case
    with pytest.raises(ValueError, match="unknown method"):
        offered("bootstrap of seeds", 10)


def test_satterthwaite_misses_where_the_mixed_interval_covers():
    found = coverage(Case(3, 10.0), ["mixed", "Satterthwaite"], 8000, seed=1)
    assert found["Satterthwaite"] < BAND[0] < found["mixed"]


@pytest.mark.parametrize("method", ["t", "mixed"])
def test_the_simulation_uses_the_intervals_that_are_offered(method):
    rng = np.random.default_rng(0)
    values, *_ = simulation.draw(Case(3, 1.0, examples=30), 5, rng)
    low, high = simulation.METHODS[method][1](values, 0.95)
    for i in range(5):
        ours = seed_interval(values[i], 0.95, method).interval
        assert (low[i], high[i]) == pytest.approx((ours.low, ours.high), rel=1e-3)


# --- proportions -----------------------------------------------------------


def test_coverage_of_proportions_over_all_proportions():
    for n in (10, 30, 100):
        grid = np.linspace(0.02, 0.98, 49)
        found = [proportion_coverage(wilson, n, p) for p in grid]
        assert 0.94 < np.mean(found) < 0.97


@pytest.mark.parametrize("counts", [(60, 12, 5, 23), (20, 20, 5, 5), (10, 0, 0, 0)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_paired_proportions_are_those_of_dirichlet_draws(counts, confidence):
    drawn = np.random.default_rng(0).dirichlet(np.array(counts) + 0.5, 1_000_000)
    tail = (1 - confidence) / 2
    wanted = np.quantile(drawn[:, 1] - drawn[:, 2], [tail, 1 - tail])
    ours = paired_proportions(*counts, confidence)
    assert ours.value == pytest.approx((counts[1] - counts[2]) / sum(counts))
    assert (ours.low, ours.high) == pytest.approx(tuple(wanted), abs=5e-3)


def test_paired_proportions_of_no_rows_or_negative_ones_are_refused():
    with pytest.raises(EvidenceError, match="no rows"):
        paired_proportions(0, 0, 0, 0, 0.95)
    with pytest.raises(ValueError, match="negative"):
        paired_proportions(3, -1, 0, 0, 0.95)


# --- decisions -------------------------------------------------------------


def test_holm_by_hand():
    # sorted .005 .011 .02 .04 .13, times 5 4 3 2 1 = .025 .044 .06 .08 .13
    raw = {"a": 0.02, "b": 0.005, "c": 0.13, "d": 0.011, "e": 0.04}
    wanted = {"a": 0.06, "b": 0.025, "c": 0.13, "d": 0.044, "e": 0.08}
    assert holm(raw) == pytest.approx(wanted)
    # .01 x 3 = .03; .04 x 2 = .08; .05 x 1 is raised to .08
    assert holm({"x": 0.05, "y": 0.01, "z": 0.04}) == pytest.approx(
        {"x": 0.08, "y": 0.03, "z": 0.08}
    )
    assert holm({}) == {}
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm({"a": 1.2})


def test_tost_by_hand():
    # mean 0.2, sd 0.2, n 4: standard error 0.1. t to 0.5: 3, to -0.5: 7; df 3.
    # P(t3 > 3) = 0.02883 (tables: t3 at 0.975 is 3.182, at 0.95 is 2.353)
    d = 0.2 + 0.2 * np.array([-1, -1, 1, 1]) * math.sqrt(3) / 2
    found = tost(d, 0.5)
    assert found.p_value == pytest.approx(0.02883, abs=1e-5)
    assert found.passes
    assert (found.interval.low, found.interval.high) == pytest.approx(
        (0.2 - 0.2353, 0.2 + 0.2353), abs=1e-4
    )
    assert not tost(d, 0.4).passes  # t = 2 < 2.353, and 0.4353 is outside
    # a margin of 0.1 with the mean beyond it: t = -1, p = 1 - P(t3 > 1) = 1 - 0.1955
    assert tost(d, 0.1).p_value == pytest.approx(1 - 0.1955, abs=1e-4)
    same = tost_of(-0.2, 0.1, 3, 0.5)
    assert same.p_value == pytest.approx(found.p_value)
    assert tost_of(0.0, 0.0, 3, 0.1).passes
    with pytest.raises(ValueError, match="margin"):
        tost(d, 0.0)


def test_tost_is_that_of_statsmodels_and_works_with_the_mixed_model():
    from statsmodels.stats.weightstats import DescrStatsW

    d = np.array([0.1, -0.3, 0.2, 0.05, 0.4])
    assert tost(d, 0.35).p_value == pytest.approx(
        DescrStatsW(d).ttost_mean(-0.35, 0.35)[0]
    )
    mixed = mixed_interval(crossed(3) - 2.0, 0.90)
    value, error = mixed.interval.value, mixed.standard_error
    margin = abs(value) + 0.5
    found = tost_of(value, error, mixed.reference, margin)
    assert found.interval == mixed.interval
    inside = -margin < mixed.interval.low and mixed.interval.high < margin
    assert found.passes == inside


@pytest.mark.parametrize("k", [3, 5, 8])
def test_permutation_by_enumeration(k):
    d = np.random.default_rng(k).normal(0.5, 1, k)
    flips = np.array(list(itertools.product([1, -1], repeat=k)))
    reached = np.abs((flips * d).mean(1)) >= abs(d.mean()) - 1e-12
    found = paired_permutation(d)
    assert found.p_value == pytest.approx(reached.mean())
    assert found.exact
    assert found.smallest == 2 / 2**k
    assert paired_permutation(np.arange(1, k + 1)).p_value == found.smallest


def test_permutation_of_many_seeds_is_drawn():
    d = np.random.default_rng(0).normal(0.3, 1, 20)
    found = paired_permutation(d)
    assert not found.exact
    assert found.p_value == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.02)
    with pytest.raises(EvidenceError, match="fewer than two"):
        paired_permutation([0.1])


@pytest.mark.parametrize(
    ("low", "high", "p", "higher", "margin", "detectable", "wanted"),
    [
        (0.1, 0.3, 0.01, True, 0.05, 0.04, ("better", False, False)),
        (0.1, 0.3, 0.01, False, 0.05, 0.04, ("worse", False, False)),
        (-0.3, -0.1, 0.01, False, 0.05, 0.04, ("better", False, False)),
        (0.1, 0.3, 0.06, True, 0.05, 0.04, ("inconclusive", False, False)),
        (-0.1, 0.3, 0.01, True, 0.05, 0.3, ("inconclusive", False, True)),
        (0.01, 0.03, 0.01, True, 0.05, 0.04, ("better", True, False)),
        (-0.02, 0.02, 0.9, True, 0.05, 0.04, ("equivalent", False, False)),
        (-0.2, 0.2, 0.9, True, 0.05, math.nan, ("inconclusive", False, True)),
    ],
)
def test_verdict(low, high, p, higher, margin, detectable, wanted):
    value = (low + high) / 2
    equal = tost_of(value, (high - low) / 5, 9, margin)
    found = verdict(
        Interval(value, low, high),
        p,
        equal,
        higher_is_better=higher,
        detectable=detectable,
    )
    assert (found.word, found.negligible, found.underpowered) == wanted


# --- noise -----------------------------------------------------------------


@pytest.mark.parametrize("seeds", [3, 5, 10, 30])
def test_detectable_difference_is_that_of_statsmodels(seeds):
    from statsmodels.stats.power import TTestPower

    found = detectable_difference(0.02, seeds)
    power = TTestPower().power(found / 0.02, seeds, 0.05, alternative="two-sided")
    assert power == pytest.approx(0.8, abs=1e-6)
    assert seeds_needed(0.02, found * 1.0001) == seeds
    assert seeds_needed(0.02, found * 0.999) == seeds + 1


def test_seeds_needed_at_its_ends():
    assert seeds_needed(0.0, 0.1) == 2
    assert seeds_needed(0.1, 100.0) == 2
    with pytest.raises(EvidenceError, match="seeds"):
        seeds_needed(1.0, 1e-4)
    with pytest.raises(ValueError, match="positive"):
        seeds_needed(1.0, 0.0)
    with pytest.raises(ValueError, match="two seeds"):
        detectable_difference(1.0, 1)


def test_noise_floor_by_hand():
    found = noise_floor([1.0, 2.0, 3.0, 6.0])
    sd = math.sqrt(14 / 3)  # deviations -2 -1 0 3
    assert found.sd.value == pytest.approx(sd)
    low, high = sd * np.sqrt(3 / stats.chi2.ppf([0.975, 0.025], 3))
    assert (found.sd.low, found.sd.high) == pytest.approx((low, high))
    assert found.pairs.tolist() == [1, 1, 2, 3, 4, 5]
    # 12|36: 3, 13|26: 2, 16|23: 1
    assert found.halves.tolist() == [1, 2, 3]
    assert found.half_width(3) == pytest.approx(2.776445 * sd * math.sqrt(2 / 3))
    assert found.half_width(3, 0.0) == pytest.approx(4.302653 * sd * math.sqrt(2 / 3))
    assert found.half_width(3, 0.5) == pytest.approx(4.302653 * sd * math.sqrt(1 / 3))
    # odd: two of five against two of the other three, each once
    assert len(noise_floor(VALUES).halves) == 15
    with pytest.raises(EvidenceError, match="two finite runs"):
        noise_floor([1.0])
    with pytest.raises(ValueError, match="correlation"):
        found.half_width(3, 2.0)


# --- tasks and trials ------------------------------------------------------


def test_iqm_and_improvement_by_hand():
    scores = np.array([[0.1, 0.5], [0.2, 0.6], [0.3, 0.7], [0.4, 9.0]])
    # sorted .1 .2 | .3 .4 .5 .6 | .7 9: the middle four
    found = iqm(scores)
    assert found.interval.value == pytest.approx(0.45)
    assert (found.seeds, found.tasks, found.undercovers) == (4, 2, True)
    other = np.array([[0.15, 0.5], [0.25, 0.5], [0.35, 0.5]])
    # task 1: 0 + 1 + 2 + 3 of 12; task 2: one tie row (1.5) + 3 x 3 of 12
    won = probability_of_improvement(scores, other)
    assert won.interval.value == pytest.approx((6 / 12 + 10.5 / 12) / 2)
    assert won.seeds == 3
    u = stats.mannwhitneyu(scores[:, 0], other[:, 0]).statistic
    assert u / 12 == pytest.approx(6 / 12)
    with pytest.raises(EvidenceError, match="2 seeds"):
        iqm(scores[:2])
    with pytest.raises(ValueError, match="tasks"):
        probability_of_improvement(scores, other[:, :1])
    with pytest.raises(ValueError, match="finite"):
        iqm(np.full((4, 2), np.nan))


@pytest.mark.parametrize("higher", [True, False])
def test_expected_best_over_all_subsets(higher):
    values = [0.3, 0.9, 0.5, 0.5, 0.1, 0.7]
    best = max if higher else min
    wanted = [
        np.mean([best(some) for some in itertools.combinations(values, n)])
        for n in range(1, 7)
    ]
    assert expected_best(values, higher) == pytest.approx(wanted)
    with pytest.raises(EvidenceError, match="diverged"):
        expected_best([0.1, math.inf], higher)
    with pytest.raises(ValueError, match="one a trial"):
        expected_best([[0.1]], higher)
