"""One way of showing bytes, intervals and times; what is in brackets is no markup."""

import pytest
from rich.table import Table

from loralab.cli import render
from loralab.cli.render import budget
from loralab.units import percent, size


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1 kB"),
        (999_700, "1.0 MB"),
        (1_449_000, "1.4 MB"),
        (999_960_000, "1.0 GB"),
        (2.5e12, "2500.0 GB"),
    ],
)
def test_bytes_have_the_unit_they_are_rounded_in(count, shown):
    assert size(count) == shown


def test_one_step_is_no_steps():
    spent = {"tokens": 9, "step_seconds": 1.0, "steps": 1}
    assert budget(spent).endswith("in 1 step")
    assert budget({**spent, "steps": 2000}).endswith("in 2,000 steps")


def test_a_share_has_its_decimals_and_a_space():
    assert (percent(0.1234), percent(1, 0)) == ("12.3 %", "100 %")
    assert (percent(0.95, None), percent(0.995, None)) == ("95 %", "99.5 %")


def test_an_interval_has_a_true_minus_and_no_signed_zero():
    found = {"value": -0.02, "low": -0.0001, "high": 0.03}
    assert render.interval(found, sign=True) == "−0.020 [0.000, +0.030]"
    assert render.interval(None) == "–"


@pytest.mark.parametrize("text", ["[q_proj,v_proj]", "[/neg]", "[bold]"])
def test_a_value_in_brackets_is_shown_as_it_is(text, capsys):
    table = Table("label", title=text)
    table.add_row(text)
    console = render.console()
    console.print(table)
    console.print(f"run {text}")
    assert capsys.readouterr().out.count(text) == 3
