"""What survival must be, whatever the layer, the update and the noise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralab.errors import ExportError
from loralab.export.survival import (
    THRESHOLD,
    LayerSurvival,
    Survival,
    layer_survival,
    measure,
    warning,
    whole,
)
from loralab.lowrank.factors import Factors

FEW = settings(max_examples=20, deadline=None)


def dense(factors):
    return factors.scale * (factors.B.double() @ factors.A.double())


@st.composite
def layers(draw):
    """Draw W and a ΔW that is not 0, of any shape."""
    out, into = draw(st.integers(2, 12)), draw(st.integers(2, 12))
    rank = draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    scale = draw(st.sampled_from([1e-3, 0.25, 2.0]))
    factors = Factors(normal(rank, into), normal(out, rank), scale)
    return normal(out, into), factors, normal(out, into)


def kept_and_noise(weight, without, stored, update):
    found = layer_survival(weight, without, stored, update)
    return found.kept, found.noise


@FEW
@given(layers())
def test_an_exact_merge_keeps_all_and_adds_nothing(layer):
    weight, update, _ = layer
    kept, noise = kept_and_noise(weight, weight, weight + dense(update), update)
    assert kept == pytest.approx(1, abs=1e-9)
    assert noise < 1e-9


@FEW
@given(layers())
def test_no_merge_keeps_nothing(layer):
    weight, update, _ = layer
    assert kept_and_noise(weight, weight, weight, update) == (0, 0)


@FEW
@given(layers(), st.floats(-2, 2))
def test_a_share_of_the_update_is_what_is_kept(layer, share):
    weight, update, _ = layer
    stored = weight + share * dense(update)
    kept, noise = kept_and_noise(weight, weight, stored, update)
    assert kept == pytest.approx(share, abs=1e-9)
    assert noise < 1e-9


@FEW
@given(layers())
def test_orthogonal_noise_leaves_what_is_kept_and_is_told(layer):
    weight, update, noise = layer
    delta = dense(update)
    noise -= delta * (noise * delta).sum() / delta.square().sum()
    kept, told = kept_and_noise(weight, weight, weight + 0.5 * delta + noise, update)
    assert kept == pytest.approx(0.5, abs=1e-9)
    assert told == pytest.approx(float(noise.norm() / delta.norm()), rel=1e-9)


@FEW
@given(layers(), st.sampled_from([1e-3, 0.5, 7.0]))
def test_units_do_not_matter(layer, unit):
    weight, update, noise = layer
    scaled = Factors(update.A, update.B, update.scale * unit)
    one = layer_survival(weight, noise, weight, update)
    other = layer_survival(unit * weight, unit * noise, unit * weight, scaled)
    assert other.kept == pytest.approx(one.kept, rel=1e-9)
    assert other.noise == pytest.approx(one.noise, rel=1e-9)
    assert other.size == pytest.approx(one.size, rel=1e-9)
    assert one.size == pytest.approx(float(dense(update).norm() / weight.norm()))


@FEW
@given(layers())
def test_factors_say_what_the_dense_update_says(layer):
    weight, update, noise = layer
    one = layer_survival(weight, noise, weight, update)
    other = layer_survival(weight, noise, weight, dense(update))
    assert one.as_dict() == pytest.approx(other.as_dict(), rel=1e-9)


@FEW
@given(st.lists(layers(), min_size=1, max_size=4))
def test_the_total_is_that_of_one_long_vector(drawn):
    found = Survival(
        {
            str(i): layer_survival(weight, noise, weight, update)
            for i, (weight, update, noise) in enumerate(drawn)
        }
    )
    change = torch.cat([(w - n).flatten() for w, _, n in drawn])
    delta = torch.cat([dense(u).flatten() for _, u, _ in drawn])
    weight = torch.cat([w.flatten() for w, _, _ in drawn])
    kept = float(change @ delta / (delta @ delta))
    noise = float((change - kept * delta).norm() / delta.norm())
    assert found.kept == pytest.approx(kept, rel=1e-9, abs=1e-9)
    assert found.noise == pytest.approx(noise, rel=1e-9)
    assert found.size == pytest.approx(float(delta.norm() / weight.norm()))


def test_a_grid_swallows_what_is_less_than_half_a_step():
    weight = torch.arange(12.0).reshape(3, 4)
    for amount, kept in ((0.49, 0), (0.51, 1 / 0.51)):
        update = torch.full((3, 4), amount)
        found = layer_survival(weight, weight, (weight + update).round(), update)
        assert found.kept == pytest.approx(kept)


def stream(weights, updates, values, names=None, rounded=None):
    return measure(
        iter(values), names or tuple(updates), weights.get, updates.get, rounded
    )


def test_layers_are_measured_against_what_the_format_makes_of_the_base():
    weights = {"a": torch.tensor([[0.4, 1.4]]), "b": torch.tensor([[2.2, 3.2]])}
    updates = {name: torch.ones(1, 2) for name in weights}
    values = [(name, (weights[name] + 1).round()) for name in weights]
    found = stream(weights, updates, values, rounded=torch.round)
    assert found.kept == pytest.approx(1)
    assert found.noise < 1e-9
    # against W itself the base's own rounding would look like the adapter's
    assert stream(weights, updates, values).kept < 0.8


def test_modules_without_update_do_not_count_and_float_ones_are_named():
    weights = {name: torch.ones(1, 2) for name in "abcd"}
    updates = {
        "a": torch.ones(1, 2),
        "b": torch.zeros(1, 2),
        "c": torch.ones(1, 2),
    }
    values = [("d", torch.ones(1, 2)), ("a", 2 * torch.ones(1, 2)), ("b", weights["b"])]
    found = stream(weights, updates, values)
    assert list(found.layers) == ["a"]
    assert found.float_layers == ("c",)
    assert stream(weights, updates, [("d", weights["d"])]) is None


def test_broken_values_are_refused():
    weights, updates = {"a": torch.ones(1, 2)}, {"a": torch.ones(1, 2)}
    with pytest.raises(ExportError, match="twice"):
        stream(weights, updates, [("a", weights["a"])] * 2)
    with pytest.raises(ExportError, match="not finite"):
        stream(weights, updates, [("a", torch.full((1, 2), math.nan))])
    with pytest.raises(ValueError, match="shapes"):
        stream(weights, updates, [("a", torch.ones(2, 1))])


def test_what_was_not_merged_is_whole():
    update = Factors(torch.ones(1, 3), torch.ones(2, 1), 0.5)
    found = whole(("a",), lambda _: torch.ones(2, 3), lambda _: update)
    assert (found.kept, found.noise, found.size) == pytest.approx((1, 0, 0.5))
    nothing = Factors(torch.ones(1, 3), torch.zeros(2, 1), 0.5)
    assert whole(("a",), lambda _: torch.ones(2, 3), lambda _: nothing) is None


@pytest.mark.parametrize(("kept", "warned"), [(0.89, True), (THRESHOLD, False)])
def test_it_warns_below_the_threshold_and_names_a_better_route(kept, warned):
    good = LayerSurvival(kept, 0.1, 1.0, 100.0)
    text = warning(Survival({"a": good}), "merge-into-nf4", "take --route side-path")
    assert bool(text) == warned
    if warned:
        assert "merge-into-nf4 kept 89.0 %" in text
        assert "side-path" in text


def test_it_reads_back_as_plain_json():
    found = Survival({"a": LayerSurvival(0.5, 0.1, 1.0, 4.0)}, ("b",)).as_dict()
    assert found["kept"] == 0.5
    assert found["layers"]["a"]["size"] == 0.25
    assert found["float_layers"] == ["b"]
