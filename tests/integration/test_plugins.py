"""Packages of others add things by entry point; broken ones end in one clear error."""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import loralab
from loralab import ConfigError, registry
from loralab.adapters.allocation import Module, allocate, uniform_budget
from loralab.config import RankStrategyConfig
from loralab.errors import AdapterError, MergeError
from loralab.lowrank.files import AdapterFolder
from loralab.merging.method import method
from tests import cli
from tests.merge_folders import SHAPES, adapter
from tests.merging import drawn_layer

ROOT = Path(__file__).parents[2]
SMALL = [
    "data.max_rows={train: 32, validation: 8, test: 8}",
    "training.max_steps=2",
    "evaluation.resamples=200",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The example package, installed into a folder of its own as pip does it."""
    folder = tmp_path_factory.mktemp("installed")
    source = shutil.copytree(ROOT / "examples/plugin", folder / "source")
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
        "--no-build-isolation", "--disable-pip-version-check",
        "--target", str(folder / "site"), str(source),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, text=True)
    return folder / "site"


def with_package(site, *words):
    """Run the command line in a process that sees the package."""
    ours = Path(loralab.__file__).parents[1]
    paths = {"PYTHONPATH": f"{site}{os.pathsep}{ours}"}
    done = subprocess.run(
        [sys.executable, "-m", "loralab.cli.main", *map(str, words)],
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def dense(folder, module):
    factors = AdapterFolder.open(folder).factors(module)
    return factors.scale * factors.B.double() @ factors.A.double()


def test_a_merge_method_of_a_package(site, tmp_path):
    one, two = (adapter(tmp_path / name, seed) for seed, name in enumerate("ab"))
    both = tmp_path / "both"
    with_package(site, "merge", one, two, "--out", both, "--method", "equal-norm")
    for name in SHAPES:
        parts = [dense(folder, name) for folder in (one, two)]
        norms = [part.norm() for part in parts]
        mean = sum(norms) / 2
        wanted = sum(p * mean / n for p, n in zip(parts, norms, strict=True)) / 2
        torch.testing.assert_close(dense(both, name), wanted, rtol=1e-5, atol=1e-6)


def test_a_rank_strategy_of_a_package(site):
    words = ["trec-6", "peft.params.ranks=by-size", *SMALL, "--json"]
    found = json.loads(with_package(site, "ranks", *words))
    assert found["strategy"] == "by-size"
    assert 0 <= found["budget"] - found["met"] < 2 * 384  # the cheapest unit
    at = "encoder.layer.0."
    ranks = {n.partition(at)[2]: r for n, r in found["ranks"].items() if at in n}
    assert ranks["intermediate.dense"] > ranks["attention.self.query"]


@pytest.mark.slow
def test_a_peft_method_of_a_package(site, tmp_path):
    words = ["trec-6", "peft=top-layers", "peft.params.layers=2", *SMALL]
    told = with_package(site, "train", *words, "--runs-dir", tmp_path)
    (run,) = loralab.list_runs(tmp_path)
    assert run.status == "complete" and run.id in told
    assert run.read()["environment"]["packages"]["loralab-example"] == "1.0"
    names = list(load_file(run.adapter / "adapter_model.safetensors"))
    assert all("layer.4." in n or "layer.5." in n or "classifier" in n for n in names)
    assert any("layer.4." in name for name in names)
    without = cli.loralab("infer", run.id, "Who?", "--runs-dir", tmp_path)
    assert without.code == 2 and "no PEFT method 'top-layers'" in without.err


GOOD = {
    "merge_method": "def theirs(params, layer): ...",
    "rank_strategy": "def theirs(params, modules, statistics, seed): ...",
    "peft_method": "def theirs(params, site): ...",
    "metric": "def theirs(params, answers): ...",
}
USED = {
    "merge_method": ["merge", "A", "B", "--out", "C", "--method", "theirs"],
    "rank_strategy": ["ranks", "trec-6", "peft.params.ranks=theirs"],
    "peft_method": ["train", "trec-6", "peft=theirs"],
    "metric": ["train", "trec-6", "evaluation.metrics=[theirs]"],
}


def registered(kind, body, said=""):
    return f"import loralab\n@loralab.register({kind!r}, 'theirs'{said})\n{body}\n"


BROKEN = {
    "a library is missing": ("merge_method", "import no_such", "no module named 'no_"),
    "it raises": ("rank_strategy", "raise OSError('no licence')", "no licence"),
    "it is no Python": ("metric", "def (", "invalid syntax"),
    "it registers nothing": ("merge_method", "", "registers no merge method 'theirs'"),
    "it registers another kind": (
        "peft_method",
        registered("rank strategy", GOOD["rank_strategy"]),
        "registers no peft method 'theirs'",
    ),
    "it takes too little": (
        "rank_strategy",
        registered("rank strategy", "def theirs(params, modules): ..."),
        "cannot be called with (params, modules, statistics, seed)",
    ),
    "it takes too much": (
        "merge_method",
        registered("merge method", "def theirs(params, layer, more): ..."),
        "missing a required argument: 'more'",
    ),
    "a continual one takes what a joint one does": (
        "merge_method",
        registered("merge method", GOOD["merge_method"], ", continual=True"),
        "(params, merged, new, step)",
    ),
    "a fact is not said": (
        "metric",
        registered("metric", GOOD["metric"], ", better='higher'"),
        "answers=…",
    ),
    "abilities are not said": (
        "peft_method",
        registered("PEFT method", GOOD["peft_method"]),
        "able=…",
    ),
    "its schema is none": (
        "merge_method",
        registered("merge method", GOOD["merge_method"], ", dict"),
        "no subclass of params",
    ),
}
numbers = count()


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """Return what installs a package of one module, as an installer would leave it."""
    monkeypatch.chdir(tmp_path)
    before = set(registry._entries)

    def forget():
        registry._points.cache_clear()
        registry._claims.cache_clear()
        for key in set(registry._entries) - before:
            if not registry._entries[key].module.startswith("loralab."):
                del registry._entries[key]

    def install(source, group, name="theirs", package="their-package"):
        module = f"their_module_{next(numbers)}"
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        head = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        (info / "METADATA").write_text(head)
        said = f"[loralab.{group}]\n{name} = {module}\n"
        (info / "entry_points.txt").write_text(said)
        monkeypatch.syspath_prepend(tmp_path)
        forget()
        return module

    yield install
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_package_is_named_with_what_is_wrong(case, plug_in, tmp_path):
    group, source, fragment = BROKEN[case]
    plug_in(source, group)
    before = set(tmp_path.iterdir())
    outcome = cli.loralab(*USED[group])
    assert outcome.code == 2, outcome.out + outcome.err
    assert "Traceback" not in outcome.err
    told = outcome.err.lower()
    for words in (fragment, "their-package 1.0", "pip uninstall their-package"):
        assert words in told, outcome.err
    assert {p.name for p in set(tmp_path.iterdir()) - before} <= {"__pycache__"}


@pytest.mark.parametrize("group", GOOD)
def test_the_same_package_unbroken_is_found(group, plug_in):
    kind = group.replace("_", " ").replace("peft", "PEFT")
    said = {
        "metric": ", answers='class', better='higher'",
        "PEFT method": ", able=Abilities()",
    }
    source = registered(kind, GOOD[group], said.get(kind, ""))
    plug_in("from loralab.adapters.abilities import Abilities\n" + source, group)
    assert "theirs" in registry.names(kind)
    assert registry.get(kind, "theirs").target.__name__ == "theirs"


def test_a_package_registers_a_function_of_another(plug_in):
    source = (
        "import json, loralab\nloralab.register('merge method', 'theirs')(json.dump)"
    )
    plug_in(source, "merge_method")
    assert registry.get("merge method", "theirs").target is json.dump


def test_a_name_that_two_packages_have_is_refused_and_no_other(plug_in):
    plug_in(GOOD["merge_method"], "merge_method", "average")
    outcome = cli.loralab("merge", "A", "B", "--out", "C", "--method", "average")
    assert outcome.code == 2 and "Traceback" not in outcome.err
    assert "loralab and their-package 1.0 each have" in outcome.err
    assert "pip uninstall their-package" in outcome.err
    assert registry.get("merge method", "ties").name == "ties"


def test_a_name_that_is_taken_is_not_registered(plug_in):
    taken = registry.register("metric", "accuracy", answers="class", better="higher")

    def theirs(params, answers): ...

    with pytest.raises(ConfigError, match="which loralab has already"):
        taken(theirs)
    fresh = registry.register("metric", "fresh", answers="class", better="higher")
    fresh(theirs)
    fresh(theirs)  # a cell of a notebook is run again
    assert registry.get("metric", "fresh").target is theirs


@pytest.mark.parametrize("kind", registry.PACKAGES)
def test_every_kind_has_a_contract_and_a_group_that_builders_accept(kind):
    assert kind in registry.CONTRACTS
    assert re.fullmatch(r"\w+(\.\w+)*", registry.group_of(kind), re.ASCII)


def test_an_entry_point_in_a_group_of_no_kind_is_told(plug_in):
    plug_in(registered("merge method", GOOD["merge_method"]), "merge-method")
    outcome = cli.loralab(*USED["merge_method"])
    assert outcome.code == 2
    assert "their-package has it in the group loralab.merge-method" in outcome.err
    assert "nearest: loralab.merge_method" in outcome.err


def test_what_a_thing_of_others_returns_is_checked(plug_in):
    registry.register("rank strategy", "short")(lambda *_: [1.0])
    modules = [Module(f"layer.{i}", "other", i, 8, 8) for i in range(3)]
    chosen = RankStrategyConfig(name="short")
    with pytest.raises(AdapterError, match="'short' gave 1 values for 3 modules"):
        allocate(chosen, modules, uniform_budget(modules, 2), None, 0)
    registry.register("merge method", "bare")(lambda params, layer: layer.space.total)
    with pytest.raises(MergeError, match="'bare' gave Tensor"):
        method("bare").merged(drawn_layer((6, 5), (2, 1), 0))


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ("storage_format", ["quantize", "--help"]),
        ("peft_method", ["methods"]),
        ("metric", ["config", "schema"]),
    ],
)
def test_what_lists_things_leaves_a_broken_one_out_and_says_so(group, words, plug_in):
    plug_in("import no_such", group)
    outcome = cli.loralab(*words)
    assert outcome.code == 0, outcome.err
    listed = {"quantize": "onnx-int8", "methods": "qa-lora", "config": "accuracy"}
    assert listed[words[0]] in outcome.out and "theirs" not in outcome.out
    told = " ".join(outcome.err.split())
    assert "left out: their-package 1.0" in told and "'theirs'" in told
