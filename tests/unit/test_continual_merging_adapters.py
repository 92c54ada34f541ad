"""The adapters that the study of merging trains: what is asked for, and the runs."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from studies.continual_merging import train as study
from studies.continual_merging.plan import read_study

from loralab.data.embedded import EMBEDDED_SETS

GROUPS = ("minilm", "smollm2", "vit-s14", "smoke")
LARGER = ("bert-glue", "llama-2-7b", "mistral-7b", "clip-vit-b32", "clip-vit-l14")


@pytest.mark.parametrize("group", GROUPS)
def test_every_adapter_is_a_configuration_of_its_own(group):
    found = study.adapters(group)
    configs = [one.compose() for one in found]
    assert len({config.run_id for config in configs}) == len(found)
    assert len({one.seed for one in found}) == len(found)
    assert len({config.model.path for config in configs}) == 1
    for one, config in zip(found, configs, strict=True):
        assert config.training.seed == one.seed
        assert config.peft.params["rank"] == one.rank
        assert config.peft.params["alpha"] == one.alpha == 2 * one.rank
        assert config.training.max_steps == one.steps
        data = one.name or one.experiment
        assert config.data.source.params == {"set": data}
        assert EMBEDDED_SETS[data].task == config.task.name


@pytest.mark.parametrize("group", LARGER)
def test_every_adapter_of_a_larger_suite_can_be_meant(group):
    configs = [one.compose() for one in study.adapters(group)]
    assert len({config.run_id for config in configs}) == len(configs)
    assert {config.data.source.name for config in configs} == {"hub"}


def test_the_ten_are_all_classification_sets_at_three_ranks():
    found = study.adapters("minilm")
    sets = {n for n, s in EMBEDDED_SETS.items() if s.task == "text-classification"}
    assert {one.experiment for one in found} == sets
    ranks = Counter(one.rank for one in found)
    assert ranks.keys() == {4, 8, 16}
    assert min(ranks.values()) >= 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder, study.train_all(study.adapters("smoke"), folder)


def test_adapters_are_trained_once_and_found_again(trained, capsys):
    folder, runs = trained
    chosen = study.adapters("smoke")
    assert all(study.stands(one.run(folder)) for one in chosen)
    started = [run.read()["started"] for run in runs]
    again = study.train_all(chosen, folder)
    assert [run.read()["started"] for run in again] == started
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["n"] for row in rows] == [24, 24]
    assert all(0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1 for row in rows)
    assert rows[0]["trained"] < rows[1]["trained"]
    study.tell_cost(chosen, folder)
    assert capsys.readouterr().out.count("stands") == 2


def test_adapters_of_several_bases_are_refused(trained):
    _, runs = trained
    chosen = study.adapters("smoke")
    study.check_bases(chosen, runs)
    base = runs[0].read()["base"]
    runs[0].update(base={**base, "fingerprint": "another"})
    try:
        with pytest.raises(ValueError, match="another"):
            study.check_bases(chosen, runs)
        study.check_bases([replace(chosen[0], group="other"), chosen[1]], runs)
    finally:
        runs[0].update(base=base)


def test_every_size_is_of_so_many_adapters():
    for size in read_study().sizes.values():
        assert len(study.adapters(size.group)) >= max(2, size.tasks or 0)
