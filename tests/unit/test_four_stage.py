"""The study of four stages: every piece composes, its numbers are what they say."""

import json

import numpy as np
import pytest
from studies.four_stage import analyse, measure, page
from studies.four_stage.plan import (
    FORMATS,
    LORA,
    MERGED,
    NONE,
    PROBE,
    SIZES,
    Way,
    pieces,
)

from loralab import registry
from loralab.config import RouteConfig


@pytest.mark.parametrize("size", SIZES)
def test_every_piece_is_one_of_its_own_and_stands_on_a_training(size):
    found = list(pieces(size))
    assert len({one.key for one in found}) == len(found)
    for base in SIZES[size]:
        trained = [way.method for way in base.ways if way.route == NONE]
        assert trained[:2] == [PROBE, LORA]
        for way in base.ways:
            assert way.method in trained
            if way.route != NONE:
                made = FORMATS[way.format].config
                registry.get("storage format", made.name).schema(**made.params)
                assert isinstance(way.routed, RouteConfig)


def test_a_training_of_the_evidence_is_what_the_plan_says():
    text, sight, chat = SIZES["evidence"]
    runs = {
        base.config(method, seed).run_id
        for base in (text, sight)
        for method in (PROBE, LORA)
        for seed in range(base.seeds)
    }
    assert len(runs) == 12
    assert chat.config(PROBE, 0) == chat.config(LORA, 0)  # it needs no probe
    assert {way.format for way in chat.ways} <= {"", "bf16", "int4 g64", "NF4"}
    assert chat.caution


def test_a_share_is_one_where_nothing_was_lost_and_none_where_nothing_was_gained():
    rng = np.random.default_rng(0)
    probe, gain = rng.normal(2, 0.3, (3, 60)), rng.normal(1, 0.3, (3, 60))
    ways = {name: Way(LORA, MERGED, name) for name in ("whole", "half", "worse")}
    scored = object.__new__(analyse.Scored)
    losses = {
        Way(PROBE): probe,
        Way(LORA): probe - gain,
        ways["whole"]: probe - gain,
        ways["half"]: probe - gain / 2,
        ways["worse"]: probe + 1,
    }
    scored._known = {
        (way, analyse.LOSS): (loss, np.ones_like(loss)) for way, loss in losses.items()
    }
    kept = {n: scored.kept(w, Way(LORA), Way(PROBE)) for n, w in ways.items()}
    assert kept["whole"]["value"] == kept["whole"]["low"] == pytest.approx(1)
    assert kept["half"]["value"] == pytest.approx(0.5)
    assert kept["worse"]["high"] < 0
    assert scored.kept(ways["whole"], ways["worse"], Way(PROBE)) is None
    change = scored.change(ways["half"], Way(LORA), analyse.LOSS)
    assert change["value"] == pytest.approx(gain.mean() / 2, rel=1e-4)
    assert change["low"] > 0


def test_one_seed_has_an_interval_over_its_rows():
    rng = np.random.default_rng(0)
    found = analyse.over(rng.normal(1, 0.2, (1, 200)), np.ones((1, 200)))
    assert 0.9 < found["low"] < found["value"] < found["high"] < 1.1


def test_the_speed_of_smollm2_is_that_of_the_committed_benchmark():
    told = page.speed()
    table = page.speed_table()
    assert [row[0] for row in table.rows] == list(told["bytes"])
    first = told["batches"]["batch 1"]["transformers fp32"][page.DECODE]["value"]
    assert table.rows[0][3].value == first


def test_the_committed_page_and_figures_are_those_of_the_results(tmp_path):
    found = json.loads(measure.RESULTS.read_text(encoding="utf-8"))
    page.write(found, tmp_path)
    made = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(made) == 1 + len(page.tables(found)) + 2
    for file in made:
        committed = measure.HERE / file.relative_to(tmp_path)
        assert committed.read_bytes() == file.read_bytes(), file.name


def test_the_committed_results_are_of_the_whole_plan():
    found = json.loads(measure.RESULTS.read_text(encoding="utf-8"))
    assert found["size"] == measure.PRIMARY
    assert set(found["seconds"]) == {one.key for one in pieces(measure.PRIMARY)}
    for base in page.primary(found):
        assert base["seeds"] >= 3
        for one in page.adapters(base):
            if one["route"] == "side-path":
                assert one["survival"]["least"] == 1


@pytest.mark.slow
def test_the_smoke_study_runs_goes_on_and_is_told(tmp_path, monkeypatch):
    told = []
    assert measure.ledger("smoke", tmp_path, told.append) > 0
    first = next(iter(measure.left("smoke", tmp_path)))
    real = measure.made

    def stop(piece, folder):
        if piece != first:
            raise KeyboardInterrupt
        return real(piece, folder)

    monkeypatch.setattr(measure, "made", stop)
    with pytest.raises(KeyboardInterrupt):
        measure.run_all("smoke", tmp_path, told.append)
    monkeypatch.undo()
    assert first not in measure.left("smoke", tmp_path)
    measure.run_all("smoke", tmp_path, told.append)
    found = json.loads(json.dumps(measure.results("smoke", tmp_path)))
    page.write(found, tmp_path / "page")
    assert (tmp_path / "page" / "figures" / "survival.svg").is_file()
    text, _ = found["bases"]
    (merged, shifted) = page.adapters(text)
    assert merged["survival"]["kept"] == pytest.approx(1, abs=0.1)
    assert shifted["survival"]["kept"] == pytest.approx(1, abs=1e-3)
    changed = json.loads(json.dumps(found))
    changed["bases"][0]["stored"][1]["loss_change"]["value"] += 0.5
    assert page.page(changed) != page.page(found)
