"""`loralab sketch` on a real run: what it costs, what it writes, what it refuses."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace

import pytest
import torch

from loralab.errors import AdapterError
from loralab.evaluation.sketch import sketch_cost
from loralab.lowrank.files import AdapterFolder, Kind, read_adapter, write_adapter
from loralab.lowrank.sketch import INPUTS, Sketched
from loralab.merging.merge import merge
from loralab.merging.method import method
from loralab.runs import find_run
from tests.cli import loralab
from tests.merging import Held, dense, dense_update


@pytest.fixture
def run(minilm_run, tmp_path):
    """A copy: a sketch is written into the run."""
    shutil.copytree(minilm_run.path, tmp_path / minilm_run.path.name)
    return find_run(str(tmp_path / minilm_run.path.name), tmp_path)


def test_sketch_is_written_beside_the_adapter_and_merges(run):
    outcome = loralab("sketch", run.path, "--rows", 24, "--rank", 8)
    assert outcome.code == 0, outcome.err
    folder = run.path / "adapter"
    stored, found = read_adapter(folder), Sketched.open(folder)
    cost = sketch_cost(run, 24, 8)
    assert outcome.out.index("24 training rows") < outcome.out.index("wrote")
    assert (folder / INPUTS).stat().st_size <= cost.file_bytes
    facts = found.facts
    assert (facts["rows"], facts["rank"]) == (24, 8)
    assert facts["base"] == run.read()["base"]["fingerprint"]
    assert set(facts["modules"]) == set(stored.factors)
    sketches = {name: found.read(name) for name in stored.factors}
    tokens = {sketch.tokens for sketch in sketches.values()}
    assert min(tokens) == 24 < max(tokens)  # the pooler reads one token a row
    source = Held(stored.factors, "run", sketches)
    for name, update in merge(method("regmean"), [source, source]).items():
        ΔW = dense(stored.factors[name]).double()
        torch.testing.assert_close(dense_update(update), ΔW, rtol=1e-5, atol=1e-8)


def test_a_merge_of_folders_reads_the_sketch(run):
    folder = run.path / "adapter"
    source = AdapterFolder.open(folder)
    with pytest.raises(AdapterError, match="has no sketch"):
        merge(method("regmean"), [source, source])
    loralab("sketch", run.path, "--rows", 8, "--rank", 4)
    source = AdapterFolder.open(folder)
    for name, update in merge(method("regmean"), [source, source]).items():
        ΔW = dense(source.factors(name)).double()
        torch.testing.assert_close(dense_update(update), ΔW, rtol=1e-5, atol=1e-8)


def test_same_seed_same_sketch(run):
    made = []
    for seed in (0, 0, 1):
        loralab("sketch", run.path, "--rows", 4, "--rank", 4, "--seed", seed)
        made.append((run.path / "adapter" / INPUTS).read_bytes())
    assert made[0] == made[1] != made[2]


def test_cost_is_known_without_a_model(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "loralab.models.base", None)
    cost = sketch_cost(run, 100, 4)
    widths = [f.shape[1] for f in read_adapter(run.path / "adapter").factors.values()]
    assert cost.modules == len(widths)
    assert cost.memory_bytes == 8 * 13 * sum(widths)


@pytest.mark.parametrize("option", ["--rows", "--rank"])
def test_nothing_to_sketch_is_refused(run, option):
    outcome = loralab("sketch", run.path, option, 0)
    assert outcome.code == 2
    assert option in outcome.err
    assert "Traceback" not in outcome.err


def test_what_reads_no_vectors_is_refused_by_name(run):
    stored = read_adapter(run.path / "adapter")
    kinds = {"bert.pooler.dense": Kind("embedding")}
    write_adapter(run.path / "adapter", replace(stored, kinds=kinds))
    outcome = loralab("sketch", run.path)
    assert outcome.code == 2
    assert "bert.pooler.dense" in outcome.err
    assert "embedding" in outcome.err


def test_a_run_without_adapter_is_refused(run):
    shutil.rmtree(run.path / "adapter")
    outcome = loralab("sketch", run.path)
    assert outcome.code == 2
    assert "adapter" in outcome.err
