"""One matrix over all PEFT methods: it learns, it moves, it comes back, it merges."""

import json
import re
import subprocess
import sys

import pytest
import torch

from loralab.adapters import abilities
from loralab.adapters.attach import attach
from loralab.config import PEFTConfig
from loralab.errors import AdapterError
from tests.methods import base_of, cells, logits_of, train_cell

CELLS = {label: (method, params) for label, method, params in cells()}
ABLE = {row.method: row.able for row in abilities.table()}
# MiniLM is the text model; what cannot adapt an encoder is tried on SmolLM2
TEXT = {label: "smollm2" if able.encoder else "minilm" for label, able in ABLE.items()}
GRID = [("vit", label) for label in CELLS] + [(TEXT[x], x) for x in CELLS]
# these train on another base than the one they were given
CHANGES_BASE = re.compile("pissa|olora|corda|lora-ga|loftq|qa-lora")
KIND = {"vit": "vision", "minilm": "encoder", "smollm2": "decoder"}
LEARNT = [cell for cell in GRID if not getattr(ABLE[cell[1]], KIND[cell[0]])]
# on MiniLM the others take a minute: `make test-all`
QUICK = ("adalora", "full", "ia3", "lora", "p-tuning", "qa-lora")
SLOW = [c for c in LEARNT if c[0] == "minilm" and c[1] not in QUICK]
MARKED = [
    pytest.param(*cell, marks=[pytest.mark.slow] if cell in SLOW else [])
    for cell in LEARNT
]
REFUSED = [cell for cell in GRID if cell not in LEARNT]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    """Train each cell once; then one fresh process reads all of them."""
    folder, found = tmp_path_factory.mktemp("methods"), {}
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    asked = {(c.params.get("model"), c.params.get("label")) for c in calls if c}
    for model in KIND:
        own = folder / model
        own.mkdir()
        names = [x for m, x in LEARNT if m == model and (m, x) in asked]
        for label in names:
            place = own / label.replace(" ", "_")
            made = train_cell(model, *CELLS[label], place)
            found[model, label] = {**made, "merged": merged(made, label), "at": place}
        listed = {label.replace(" ", "_"): CELLS[label] for label in names}
        (own / "cells.json").write_text(json.dumps(listed))
    command = [sys.executable, "-m", "tests.methods", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return found


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Return each base's own logits."""
    folder = tmp_path_factory.mktemp("bases")
    found = {model: base_of(model, folder) for model in KIND}
    return {model: logits_of(base.model, base) for model, base in found.items()}


def merged(made, label):
    """Return the merged model's logits, or None where it cannot merge."""
    if ABLE[label].merge:
        return None
    net = made.pop("model").merge_and_unload()
    return logits_of(net, made["base"])


@pytest.mark.parametrize(("model", "label"), MARKED)
def test_it_learns_moves_comes_back_and_merges(trained, bases, model, label):
    made = trained[model, label]
    assert sum(made["losses"][-5:]) < sum(made["losses"][:5])
    assert made["still"] == []
    back = torch.tensor(json.loads((made["at"] / "logits.json").read_text()))
    torch.testing.assert_close(back, made["logits"], atol=2e-5, rtol=1e-4)
    if model != "smollm2":
        names = {name for name in made["head"] if "original_module" not in name}
        assert len(names) >= 2  # the new head's weight and bias are in the file
    if not CHANGES_BASE.search(label):
        torch.testing.assert_close(made["plain"], bases[model], atol=1e-5, rtol=1e-5)
    if made["merged"] is not None:
        torch.testing.assert_close(made["merged"], made["logits"], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(("model", "label"), REFUSED)
def test_what_a_method_cannot_adapt_is_refused_with_the_reason(model, label, tmp_path):
    method, params = CELLS[label]
    base = base_of("vit" if model == "vit" else "minilm", tmp_path)
    with pytest.raises(AdapterError) as told:
        attach(base, PEFTConfig(name=method, params=params))
    assert getattr(ABLE[label], KIND[model] if model == "vit" else "encoder") in str(
        told.value
    )
