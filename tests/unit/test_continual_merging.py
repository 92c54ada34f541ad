"""The study of merging at smoke size: stopped, resumed, analysed, and its page."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from studies.continual_merging import measure, page
from studies.continual_merging.analyse import analysed, read_found
from studies.continual_merging.plan import (
    OWN,
    TUNED,
    Measurement,
    check_methods,
    measurements,
    orders_of,
    read_study,
    told,
)
from studies.continual_merging.session import open_session
from studies.continual_merging.train import adapters, train_all

from loralab.errors import ConfigError, ConfigErrors, RunError
from loralab.lowrank.update import truncated
from loralab.merging.merge import merge
from loralab.merging.method import method

SUGGESTION = 0.625


def changed(study, **changes):
    return type(study).model_validate({**study.model_dump(), **changes})


def small():
    """The study with few arms, so that it takes seconds."""
    study = read_study()
    keep = ("norm rule alone", "opcm code")
    return changed(
        study,
        norms=[1.0, 2.0],
        ranks=[2],
        joint={"average": study.joint["average"], "regmean": study.joint["regmean"]},
        continual={name: study.continual[name] for name in keep},
        sweep={"method": "opcm", "modes": ["code"], "thresholds": [0.5, "suggested"]},
    )


def test_every_measurement_is_made_once_and_after_what_it_needs():
    study = read_study()
    for size in study.sizes.values():
        found = measurements(study, size, 10, SUGGESTION)
        keys = [one.key for one in found]
        assert len(set(keys)) == len(keys)
        for number, one in enumerate(found):
            if one.scale == TUNED:
                wanted = Measurement("", one.method, "validation", study.norms[0]).key
                assert wanted in keys[:number]
        half = told(study.swept(SUGGESTION)["opcm code 0.5"])
        (same,) = [
            o for o in found if o.method == half and o.order == 1 and o.scale == OWN
        ]
        assert (same.arm, same.cells) == ("opcm code", "seen")


def test_the_budget_of_tuning_is_the_same_for_every_method():
    study = read_study()
    found = measurements(study, study.sizes["evidence"], 10, SUGGESTION)
    tried = {told(arm): 0 for arm in study.merged.values()}
    for one in found:
        if one.split == "validation":
            tried[one.method] += 1
    assert set(tried.values()) == {len(study.norms)}


def test_orders_are_those_of_the_file_and_then_the_same_for_all():
    size = read_study().sizes["evidence"]
    first, *drawn = orders_of(size, list("abcdefghij"))
    assert first == tuple("abcdefghij")
    assert len(drawn) == len(set(drawn)) == size.orders


def test_methods_that_are_not_there_are_told_all_at_once():
    study = read_study()
    wrong = {
        "one": {"method": "no-such"},
        "two": {"method": "average", "params": {"x": 1}},
    }
    with pytest.raises(ConfigErrors) as caught:
        check_methods(changed(study, joint=wrong), None)
    assert len(caught.value.problems) == 2
    assert "arm 'one'" in str(caught.value)
    assert "no merge method 'no-such'" in str(caught.value)
    assert "arm 'two'" in str(caught.value)


def test_a_size_leaves_out_arms_that_there_are_and_never_the_reference():
    study = read_study()
    for name, size in study.sizes.items():
        assert set(study.of_size(name).merged) == set(study.merged) - set(size.without)
    smoke = study.sizes["smoke"]
    for wrong in ("no-such", study.reference):
        sizes = {"smoke": smoke.model_copy(update={"without": (wrong,)})}
        with pytest.raises(ConfigError, match="no arm to leave out"):
            study.model_copy(update={"sizes": sizes}).of_size("smoke")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merging")
    train_all(adapters("smoke"), folder / "runs")
    return folder / "runs", folder / "measured"


@pytest.fixture(scope="module")
def session(folders):
    """Measured to the end; its last line was half when it was killed."""
    first = open_session("smoke", *folders, small())
    assert not first.done
    cut = first.left[:5]
    for one in cut:
        found = measure.measured(first, one)
        line = {"key": one.key, "arm": one.arm, "seconds": 0.0, "commit": "", **found}
        with first.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        first.done[one.key] = line
    with first.file.open("a") as file:
        file.write('{"key": "half')
    second = open_session("smoke", *folders, small())
    assert list(second.done) == [one.key for one in cut]
    measure.run(second)
    return second


def test_nothing_is_left_and_each_stands_once(session, folders):
    lines = session.file.read_text().splitlines()
    assert len(lines) == len(session.all)
    assert not open_session("smoke", *folders, small()).left
    header = json.loads(session.file.with_suffix(".json").read_text())
    assert header["left_out"] == ["regmean"]  # the adapters have no sketches
    assert all(len(digest) == 64 for _, digest in header["adapters"].values())


def test_the_ledger_counts_what_is_left(session, folders, capsys):
    opened = open_session("smoke", folders[0], folders[1] / "other", small())
    entries = {one.kind: one for one in measure.ledger(opened)}
    assert sum(one.count for one in entries.values()) == len(session.all)
    assert entries["tuning"].count == 3 * 2
    assert entries["tuning"].rows == 3 * 2 * 2 * 8
    measure.tell_ledger(opened)
    assert "each tuned over 2 scales on validation rows" in capsys.readouterr().out


def test_there_is_no_page_of_half_a_study(session, folders, tmp_path):
    half = tmp_path / "half"
    half.mkdir()
    for file in session.file.parent.glob("smoke.json*"):
        lines = file.read_text().splitlines(keepends=True)
        whole = file.suffix == ".json"
        (half / file.name).write_text("".join(lines if whole else lines[:-3]))
    with pytest.raises(RunError, match="3 measurements are left"):
        page.write_results(half, "smoke", tmp_path)


def test_measurements_of_another_study_are_not_mixed(session, folders):
    with pytest.raises(RunError, match="of another study"):
        open_session("smoke", *folders, changed(small(), norms=[1.0, 3.0]))


def test_a_tuned_update_is_as_large_as_validation_rows_chose(session):
    arm = told(session.study.joint["average"])
    norm = measure.best_norm(session, arm)
    of = {
        n: session.done[Measurement("", arm, "validation", n).key]["matrix"][-1]
        for n in session.study.norms
    }
    assert np.mean(of[norm]) == max(map(np.mean, of.values()))
    one = Measurement("average", arm, scale=TUNED, rank=2)
    factor = measure.factor_of(session, one)
    updates = merge(method("average"), session.test.sources())
    size = factor * measure.norm_of(updates)
    assert size == pytest.approx(norm * session.mean_norm())
    cut = {m: truncated(u * factor, 2) for m, u in updates.items()}
    said = session.test.measure(cut)
    stands = session.done[one.key]
    assert stands["matrix"][-1] == [said[name].accuracy for name in session.names]
    assert stands["parameters"] == 2 * sum(sum(u.shape) for u in updates.values())
    assert 0 < stands["lost"] < 1


def test_a_tuned_scale_that_is_its_own_is_not_measured_twice(session):
    arm = told(session.study.continual["norm rule alone"])
    norms = session.study.norms
    keys = {n: Measurement("", arm, "validation", n).key for n in norms}
    stands = {
        **session.done,
        keys[1.0]: {"matrix": [[1.0]]},
        keys[2.0]: {"matrix": [[0]]},
    }
    other = replace(session, done=stands)  # the norm rule's own size is the best
    one = Measurement("", arm, scale=TUNED, order=1)
    own = session.done[replace(one, scale=OWN).key]
    found = measure.measured(other, one)
    assert found["matrix"][-1] == own["matrix"][-1]
    assert found["right"] == own["right"]
    assert set(found["matrix"][0]) == {None}
    assert own["matrix"][0][0] is not None


def test_the_page_says_what_was_measured(session, tmp_path):
    found = analysed(read_found(session.file.parent, "smoke"))
    page.write_results(session.file.parent, "smoke", tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert (tmp_path / "figures" / "merging.svg").is_file()
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(
        json.dumps(found)
    )
    row = next(r for r in found["joint"] if (r["arm"], r["scale"]) == ("average", OWN))
    arm = told(session.study.joint["average"])
    line = session.done[Measurement("", arm).key]
    assert row["accuracy"]["value"] == pytest.approx(np.mean(line["matrix"][-1]))
    assert f"{len(session.all)} measurements" in text
    assert {one["first"] for one in found["comparisons"]} >= {"average", "opcm code"}
    for one in found["comparisons"]:
        assert one["p_holm"] >= one["p"]


WRITTEN = sorted(page_of.parent for page_of in measure.HERE.glob("**/results.json"))


@pytest.mark.parametrize("folder", WRITTEN, ids=lambda folder: folder.name)
def test_every_number_of_a_committed_page_follows_from_its_results(folder):
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert (folder / "README.md").read_text(encoding="utf-8") == page.page(found)
    lines = (folder / "measurements.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == found["measurements"]
    for name, table in page.tables(found).items():
        text = (folder / "tables" / f"{name}.md").read_text(encoding="utf-8")
        assert text == page.to_markdown(table)
