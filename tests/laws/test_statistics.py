"""Laws of the statistics: what shifting, scaling, swapping and reordering must do."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from loralab.evaluation.intervals import Interval, paired_proportions
from loralab.evaluation.statistics.decisions import (
    holm,
    paired_permutation,
    tost,
    verdict,
)
from loralab.evaluation.statistics.noise import detectable_difference, noise_floor
from loralab.evaluation.statistics.reference import Reference
from loralab.evaluation.statistics.seeds import (
    mixed_interval,
    ratio_values,
    seed_interval,
    t_interval,
)
from loralab.evaluation.statistics.tasks import iqm, probability_of_improvement
from loralab.evaluation.statistics.trials import expected_best

settings.register_profile("laws", deadline=None)  # the first example imports
settings.load_profile("laws")

# multiples of 1/64: shifts and halvings are exact, differences never denormal
NUMBER = st.integers(-640, 640).map(lambda i: i / 64)
VALUES = st.lists(NUMBER, min_size=2, max_size=8)
MATRIX = arrays.arrays(
    np.float64,
    st.tuples(st.integers(3, 5), st.integers(2, 7)),
    elements=NUMBER,
)
CONFIDENCE = st.sampled_from([0.8, 0.9, 0.95, 0.99])
SCALE = st.sampled_from([0.25, 0.5, 2.0, 3.0])
close = pytest.approx


def ends(interval):
    return interval.low, interval.value, interval.high


def near(wanted):
    return close(wanted, rel=1e-7, abs=1e-9)


@given(MATRIX, NUMBER, SCALE, CONFIDENCE)
@settings(max_examples=40)
def test_intervals_shift_scale_and_mirror(values, shift, scale, confidence):
    for make in (
        lambda x: t_interval(x.mean(1), confidence),
        lambda x: mixed_interval(x, confidence).interval,
    ):
        low, value, high = ends(make(values))
        assert low <= value <= high
        moved = [scale * one + shift for one in (low, value, high)]
        # the spread of equal rows is rounding, not 0
        assert ends(make(scale * values + shift)) == close(moved, rel=1e-6, abs=1e-6)
        assert ends(make(-values)) == near((-high, -value, -low))


@given(MATRIX, st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_neither_the_order_of_seeds_nor_of_examples_matters(values, random):
    seeds = random.sample(range(len(values)), len(values))
    examples = random.sample(range(values.shape[1]), values.shape[1])
    ours = seed_interval(values).interval
    assert ends(seed_interval(values[seeds][:, examples]).interval) == close(
        ends(ours), rel=1e-6, abs=1e-6
    )


@given(MATRIX, CONFIDENCE)
@settings(max_examples=40)
def test_the_p_value_and_the_interval_agree(values, confidence):
    found = seed_interval(values, confidence)
    gap = abs(found.p_value - (1 - confidence))
    assume(gap > 1e-6)
    # a spread that is nothing but rounding says nothing of zero
    assume(found.standard_error > 1e-9)
    assert found.interval.excludes_zero == (found.p_value < 1 - confidence)


@given(
    st.floats(0, 1),
    st.sampled_from([1, 2, 4, 9]),
    st.sampled_from([1, 5, 30, 1000]),
    CONFIDENCE,
)
def test_reference_is_a_law(share, first, second, confidence):
    law = Reference(share, first, second)
    tails = [law.tail(t) for t in (-3, -1, 0, 1, 3, 9)]
    assert tails == sorted(tails, reverse=True)
    assert tails[1] + tails[3] == close(1)
    assert law.critical(0.5) < law.critical(confidence)
    swapped = Reference(1 - share, second, first)
    assert swapped.tail(2) == close(law.tail(2), rel=1e-6)


@given(MATRIX, st.lists(st.integers(1, 50), min_size=7, max_size=7))
def test_ratio_values_have_the_ratio_as_mean(numerators, denominators):
    below = np.array(denominators[: numerators.shape[1]], dtype=float)
    found = ratio_values(numerators, below)
    assert found.shape == numerators.shape
    assert found.mean(-1) == close(numerators.sum(-1) / below.sum(), abs=1e-9)
    one = ratio_values(numerators[0], below)
    assert one == close(found[0], abs=1e-9)
    # linear in the numerators, so a difference of arms is one of the numerators
    both = ratio_values(numerators[0] - numerators[1], below)
    assert both == close(found[0] - found[1], abs=1e-8)
    equal = np.full_like(below, 2.0)
    assert ratio_values(numerators, equal) == close(numerators / 2, abs=1e-9)


@settings(max_examples=8)  # statsmodels collects garbage at every call
@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_raises_and_keeps_the_order(values):
    raw = {f"h{i}": value for i, value in enumerate(values)}
    found = holm(raw)
    assert list(found) == list(raw)
    assert all(raw[name] <= found[name] + 1e-15 and found[name] <= 1 for name in raw)
    ordered = sorted(raw, key=lambda name: raw[name])
    corrected = [found[name] for name in ordered]
    assert corrected == sorted(corrected)
    if raw:
        assert found[ordered[0]] == close(min(1, len(raw) * raw[ordered[0]]))


@given(VALUES, st.integers(1, 320).map(lambda i: i / 64))
def test_equivalence_is_symmetric_and_is_its_interval(values, margin):
    d = np.array(values)
    found = tost(d, margin)
    assert tost(-d, margin).p_value == close(found.p_value)
    assert tost(d, 2 * margin).p_value <= found.p_value
    inside = max(abs(found.interval.low), abs(found.interval.high)) < margin
    if abs(found.p_value - 0.05) > 1e-6:
        assert found.passes == inside


@given(VALUES)
@settings(max_examples=40)
def test_permutation_is_symmetric_and_above_its_least(values):
    d = np.array(values)
    found = paired_permutation(d)
    assert found.smallest <= found.p_value <= 1
    assert paired_permutation(-d).p_value == found.p_value


@given(VALUES, st.booleans())
def test_swapping_the_arms_swaps_the_verdict(values, higher):
    d = np.array(values)
    names = {"better": "worse", "worse": "better"}

    def word(x):
        made = seed_interval(x)
        return verdict(
            made.interval,
            made.p_value,
            tost(x, 0.5),
            higher_is_better=higher,
            detectable=0.4,
        ).word

    assert word(-d) == names.get(word(d), word(d))


@given(VALUES)
def test_noise_floor_orders_what_it_shows(values):
    found = noise_floor(values)
    assert found.sd.low <= found.sd.value <= found.sd.high
    assert len(found.pairs) == len(values) * (len(values) - 1) // 2
    assert found.pairs[-1] == max(values) - min(values)
    assert found.halves[-1] <= found.pairs[-1] + 1e-12
    assert found.half_width(5, 0.0) >= found.half_width(5)  # fewer degrees of freedom
    assert found.half_width(5) >= found.half_width(6)


@given(st.integers(2, 40), st.floats(0.01, 100), st.sampled_from([0.5, 0.8, 0.95]))
@settings(max_examples=30)
def test_detectable_difference_shrinks_with_seeds_and_grows_with_noise(k, sd, power):
    found = detectable_difference(sd, k, power=power)
    assert detectable_difference(sd, k + 1, power=power) < found
    assert detectable_difference(2 * sd, k, power=power) == close(2 * found)


@given(st.lists(st.integers(0, 60), min_size=4, max_size=4), CONFIDENCE)
@settings(max_examples=30)
def test_proportions_hold_their_value_and_swap(counts, confidence):
    assume(sum(counts))
    both, first, second, neither = counts
    found = paired_proportions(*counts, confidence)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    swapped = paired_proportions(both, second, first, neither, confidence)
    assert ends(swapped) == near(tuple(-x for x in ends(found)[::-1]))


@given(MATRIX, NUMBER, SCALE)
@settings(max_examples=30)
def test_iqm_shifts_and_scales_and_stays_within(scores, shift, scale):
    found = iqm(scores, draws=50).interval
    assert scores.min() - 1e-9 <= found.low <= found.high <= scores.max() + 1e-9
    moved = iqm(scale * scores + shift, draws=50).interval
    assert ends(moved) == near([scale * one + shift for one in ends(found)])


@given(MATRIX, MATRIX)
@settings(max_examples=30)
def test_improvement_of_both_ways_sums_to_one(first, second):
    tasks = min(first.shape[1], second.shape[1])
    first, second = first[:, :tasks], second[:, :tasks]
    there = probability_of_improvement(first, second, draws=50).interval
    back = probability_of_improvement(second, first, draws=50).interval
    assert there.value + back.value == close(1)
    assert 0 <= there.low <= there.high <= 1
    same = probability_of_improvement(first, first, draws=50).interval
    assert same.value == close(0.5)
    assert ends(probability_of_improvement(first + 30, second, draws=9).interval) == (
        1,
        1,
        1,
    )


@given(st.lists(NUMBER, min_size=1, max_size=60), st.booleans())
def test_expected_best_starts_at_the_mean_and_never_gets_worse(values, higher):
    found = expected_best(values, higher)
    assert found[0] == close(np.mean(values), abs=1e-9)
    assert found[-1] == (max(values) if higher else min(values))
    steps = np.diff(found) if higher else -np.diff(found)
    assert (steps >= -1e-9).all()
    mirrored = expected_best([-one for one in values], not higher)
    assert mirrored == close(-found, abs=1e-9)


def test_an_interval_that_touches_zero_decides_nothing():
    found = verdict(
        Interval(0.1, 0.0, 0.2),
        0.01,
        tost([0.1, 0.2, 0.0], 0.01),
        higher_is_better=True,
        detectable=0.0,
    )
    assert found.word == "inconclusive"
