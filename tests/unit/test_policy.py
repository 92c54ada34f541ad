"""docs/policy.md: each format has the number told there, and a later one is refused."""

import json
import re
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.published import adapter_run

from loralab.adapters.files import read_note as adapter_note
from loralab.errors import LoralabError
from loralab.experiments.cells import read_cells
from loralab.experiments.study import find_study
from loralab.experiments.sweep import Sweep, SweepConfig
from loralab.inference.artefact import read_note as artefact_note
from loralab.inference.open import open_merged
from loralab.lowrank.sketch import Sketched
from loralab.merging.export.heads import head_index
from loralab.merging.state.log import STATE, read_log
from loralab.publishing.archive import read_manifest
from loralab.reporting.paper import lock
from loralab.runs import Run
from loralab.training.checkpoint import read_state

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
CELL = r"([^|]*)"
FORMATS = {
    module: (re.findall("`([^`]+)`", file)[0], int(number))
    for file, number, module in re.findall(
        rf"^\|{CELL}\|[^|]*\| (\d+) `([\w.]+)` \|$", PAGE, re.MULTILINE
    )
}
"""Module -> file, and the number told."""
WRITTEN = "FORMAT_VERSION = "
"""How a module says that it has a format."""
RECORDS = {
    "loralab.evaluation.evaluate",
    "loralab.evaluation.autopsy",
    "loralab.export.parity",
    "loralab.experiments.analyse",
    "loralab.experiments.pipeline",
    "loralab.merging.export.bake",
    "loralab.publishing.publish",
    "loralab.reporting.paper.manifest",
}
"""Written for people and reports: a later one is not refused."""


def put(file, **content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def _run(folder, later):
    put(folder / "run.json", format=later, status="complete")
    return Run(folder).read()


def _merged(folder, later):
    run = adapter_run(folder / "runs")
    put(folder / "merge.json", format=later, adapters=[])
    return open_merged(run, folder)


def _sketch(folder, later):
    told = {"loralab": json.dumps({"format": later, "adapter": ""})}
    save_file({"x": torch.zeros(1)}, folder / "inputs.safetensors", metadata=told)
    return Sketched.open(folder)


def _sweep(folder, later):
    config = SweepConfig("sms-spam", ("seed=1,2",))
    path = Sweep(config, folder).path
    put(path / "sweep.json", format=later, trials=[])
    return Sweep(config, folder)


def _study(folder, later):
    file = put(folder / "study.json", format=later, cells=[])
    with pytest.raises(LoralabError, match="update loralab"):
        find_study(str(folder), "smoke", folder)
    return read_cells(file)


def _archive(folder, later):
    file = folder / "a.zip"
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("manifest.json", json.dumps({"format": later}))
    return read_manifest(file)


def _checkpoint(folder, later):
    put(folder / "state.json", format=later)
    save_file({"x": torch.zeros(1)}, folder / "state.safetensors")
    return read_state(folder)


def _lock(folder, later):
    draft = folder / "draft.md"
    put(lock.path_of(draft), format=later, sources={}, numbers={})
    return lock.read(draft)


def _note(reader):
    def read(folder, later):
        return reader(put(folder / "loralab.json", format=later).parent)

    return read


def _heads(folder, later):
    put(folder / "heads" / "index.json", format=later, tasks={})
    return head_index(folder)


def _log(folder, later):
    return read_log(put(folder / STATE, format=later).parent)


READERS = {
    "loralab.runs.run": _run,
    "loralab.adapters.files": _note(adapter_note),
    "loralab.inference.artefact": _note(artefact_note),
    "loralab.merging.state.log": _log,
    "loralab.merging.export.exported": _merged,
    "loralab.merging.export.heads": _heads,
    "loralab.lowrank.sketch": _sketch,
    "loralab.experiments.sweep": _sweep,
    "loralab.experiments.cells": _study,
    "loralab.publishing.files": _archive,
    "loralab.training.checkpoint": _checkpoint,
    "loralab.reporting.paper.lock": _lock,
}
OF_ONE_VERSION = ("loralab.training.checkpoint", "loralab.reporting.paper.lock")


@pytest.mark.parametrize("module", FORMATS)
def test_a_format_has_the_number_that_the_policy_tells(module):
    assert FORMATS[module][1] == import_module(module).FORMAT_VERSION


def test_the_policy_tells_of_every_format():
    found = {
        ".".join(file.relative_to(ROOT / "src").with_suffix("").parts)
        for file in (ROOT / "src").rglob("*.py")
        if re.search(rf"^{WRITTEN}\d", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert found == FORMATS.keys() | RECORDS
    assert found - RECORDS == READERS.keys()


@pytest.mark.parametrize("module", READERS)
def test_a_later_one_is_one_error_that_names_the_file(module, tmp_path):
    _, number = FORMATS[module]
    with pytest.raises(LoralabError) as caught:
        READERS[module](tmp_path, number + 1)
    said = str(caught.value)
    assert f"format {number + 1}" in said
    assert str(tmp_path) in said
    if module not in OF_ONE_VERSION:
        assert f"is later than the {number} known here" in said
        assert "update loralab" in said


@pytest.mark.parametrize("module", OF_ONE_VERSION)
def test_an_earlier_one_is_refused_where_one_version_alone_is_read(module, tmp_path):
    with pytest.raises(LoralabError, match="format 0"):
        READERS[module](tmp_path, 0)
