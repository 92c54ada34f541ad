"""The study of adapter survival: its grids are grids, its ways do what they say."""

import json

import pytest
import torch
from studies.adapter_survival import measure, page
from studies.adapter_survival.formats import (
    INTEGER,
    ZEROS,
    affine,
    grids,
    shifted,
    with_integer_zeros,
)

from loralab.lowrank.factors import Factors

DRAWN = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(48, 128, generator=DRAWN)


@pytest.mark.parametrize("name", grids())
def test_a_grid_holds_what_stands_on_it(name):
    rounded = grids()[name]
    once = rounded(WEIGHT)
    assert 0 < float((once - WEIGHT).norm() / WEIGHT.norm()) < 0.2
    # affine grids are made anew from extremes: a rounding apart
    again = float((rounded(once) - once).norm() / once.norm())
    assert again < (0.02 if "bf16" in name else 1e-3)


def test_integer_zeros_are_codes():
    packed = with_integer_zeros(WEIGHT, 32)
    assert torch.equal(packed.zeros, packed.zeros.round().clamp(0, 15))
    assert (packed.scales > 0).all()
    error = affine(WEIGHT, 4, 32, INTEGER) - WEIGHT
    steps = packed.scales.repeat_interleave(32, dim=1)
    assert (error.abs() <= steps * 1.01).all()


@pytest.mark.parametrize("zeros", ZEROS)
def test_a_shift_moves_whole_groups(zeros):
    delta = torch.randn(48, 4, generator=DRAWN) * 0.01
    before, after = shifted(WEIGHT, delta, 32, zeros)
    moved = (after - before).reshape(48, 4, 32)
    assert float((moved - moved[..., :1]).abs().max()) < 1e-5
    if zeros == "fp32":
        torch.testing.assert_close(moved[..., 0], delta, rtol=0, atol=1e-5)
    if zeros == INTEGER:
        assert float((moved == 0).float().mean()) > 0.5


def test_an_adapter_is_scaled_to_its_targets():
    update = Factors(
        torch.randn(2, 128, generator=DRAWN), torch.randn(48, 2, generator=DRAWN), 0.5
    )
    layers = [("a", WEIGHT, update), ("b", 2 * WEIGHT, update)]
    ways = measure.merges({"NF4": grids()["NF4"]})
    cells = measure.survivals(layers, ways, (0.01, 0.3))
    sizes = {(c["start"], c["scaled_to"]): c["size"] for c in cells}
    assert sizes["float", 0.01] == pytest.approx(0.01, rel=1e-4)
    assert sizes["float", None] == pytest.approx(measure.total(layers), rel=1e-4)
    kept = {(c["start"], c["scaled_to"]): c["kept"] for c in cells}
    assert kept["grid", 0.01] < 0.2 < 0.9 < kept["grid", 0.3]


@pytest.mark.slow
def test_the_smoke_study_runs(tmp_path):
    found = measure.study(measure.SMOKE, tmp_path)
    page.write(json.loads(json.dumps(found)), tmp_path)
    assert (tmp_path / "figures" / "survival.svg").is_file()
    merged = {a["arm"]: a["change"] for a in found["adapters"][1]["answers"]}
    assert abs(merged["merged into zeros"]["value"]) < 0.01
