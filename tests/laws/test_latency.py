"""A median's interval covers it, whatever the law; too few rounds are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loralab.errors import EvidenceError
from loralab.evaluation.latency import median_interval

numbers = st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=40)


@settings(max_examples=60)
@given(numbers, st.floats(0.5, 4), st.floats(-10, 10))
def test_it_holds_the_median_and_moves_with_the_scale(values, scale, shift):
    found = median_interval(values)
    assert min(values) <= found["low"] <= found["value"] <= found["high"] <= max(values)
    moved = median_interval([scale * x + shift for x in values])
    for key, value in found.items():
        assert moved[key] == pytest.approx(scale * value + shift, abs=1e-6 * scale)


@pytest.mark.parametrize("n", [6, 10, 15, 30])
def test_it_covers_the_median_of_a_skewed_law(n):
    rng = np.random.default_rng(0)
    draws = rng.lognormal(sigma=1.5, size=(4000, n))  # median 1
    found = [median_interval(one) for one in draws]
    covered = np.mean([one["low"] <= 1 <= one["high"] for one in found])
    assert covered >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 4000)


@pytest.mark.parametrize("n", [1, 5])
def test_too_few_are_refused(n):
    with pytest.raises(EvidenceError, match="measurements give no 95 % interval"):
        median_interval([1.0] * n)
