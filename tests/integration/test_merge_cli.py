"""`loralab merge`, as it is typed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from loralab.units import percent
from tests.cli import loralab
from tests.merge_folders import SHAPES, adapter, weights_of


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter(tmp_path / "one", 1, 2)
    adapter(tmp_path / "two", 2, 3)
    adapter(tmp_path / "add", 3, 1)
    return tmp_path


def done(*words):
    outcome = loralab("merge", *words)
    assert outcome.code == 0, outcome.out + outcome.err
    return outcome.out


def refused(*words):
    outcome = loralab("merge", *words)
    assert outcome.code == 2 and "Traceback" not in outcome.err, outcome.err
    return outcome.err


def test_one_after_another(here):
    done("init", "state", "--method", "average", "norm=mean")
    out = done("add", "state", "one", "two")
    assert "added    one" in out and "2: one, two" in out
    done("add", "state", "./add", "--name", "third", "--weight", "0.5")
    assert "undone   third" in done("undo", "state")
    entries = json.loads(done("log", "state", "--json"))
    assert [e["action"] for e in entries] == ["add", "add", "add", "undo"]
    assert entries[2]["weight"] == 0.5
    assert "verified" in done("log", "state", "--verify")


def test_at_once_and_one_after_another_write_the_same(here):
    method = ["--method", "opcm", "alpha_threshold=0.3", "mode=paper"]
    out = done("one", "two", "./add", "--out", "at-once", *method)
    assert "exact" in out and "(0.00 %)" in out and "add 7" in out
    assert "without  tokenizer.txt, which not all adapters have alike" in out
    done("init", "state", *method)
    done("add", "state", "one", "two", "./add")
    done("export", "state", "--out", "later")
    first, second = weights_of(here / "at-once"), weights_of(here / "later")
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight)
    record = json.loads((here / "later" / "merge.json").read_text())
    assert record["params"]["mode"] == "paper"


def test_an_average_is_the_average(here):
    done("one", "two", "--weights", "1,-3", "--out", "out", "--method", "average")
    one, two, out = (weights_of(here / name) for name in ("one", "two", "out"))
    for name, weight in out.items():
        torch.testing.assert_close(
            weight, (one[name] - 3 * two[name]) / 2, rtol=1e-5, atol=1e-6
        )


def test_a_cut_tells_what_it_cost_and_may_be_replaced(here):
    done("init", "state", "--method", "task-arithmetic")
    done("add", "state", "one", "two")
    for option, ranks in ((["--rank", "1"], {1}), (["--energy", "0.5"], {0, 1, 2})):
        outcome = loralab("merge", "export", "state", "--out", "out", *option)
        assert outcome.code == 0 and "of truncation" in outcome.out
        found = json.loads((here / "out" / "merge.json").read_text())
        assert {layer["rank"] for layer in found["layers"]} <= ranks
        assert percent(found["relative_error"], 2) in outcome.out
        assert f"one {percent(found['kept']['one'])}" in outcome.out
    assert "WARNING" in outcome.err


def test_two_folders_of_one_name(here):
    adapter(here / "other" / "one", 7)
    done("one", "other/one", "--out", "out", "--method", "average")
    kept = json.loads((here / "out" / "merge.json").read_text())["kept"]
    assert list(kept) == ["1:one", "2:other/one"]


def test_adapters_are_compared_before(here):
    out = done("check", "one", "two", "./add")
    assert "one · two" in out and "adapters 1 (one)" in out
    found = json.loads(done("check", "one", "two", "--json", "--figures", "drawn"))
    assert found["names"] == ["one", "two"]
    stems = {file.stem for file in (here / "drawn").iterdir()}
    assert stems == {"cosines", "spectra"}


def test_of_many_adapters_the_pairs_most_alike_are_shown(here):
    names = [f"a{seed}" for seed in range(7)]
    for seed, name in enumerate(names):
        adapter(here / name, seed + 20)
    cosines = {}
    for pair in json.loads(done("check", *names, "--json"))["pairs"]:
        two = f"{names[pair['one']]} · {names[pair['other']]}"
        cosines[two] = abs(pair["cosine"])
    out = done("check", *names)
    assert "the 15 most alike of 21" in out
    shown = [line.split("│")[1].strip() for line in out.splitlines() if " · " in line]
    assert shown == sorted(cosines, key=lambda two: -cosines[two])[:15]


def test_adapters_of_other_bases_are_not_compared(here):
    adapter(here / "other", 5, base="org/else")
    assert "of different bases" in refused("check", "one", "other")
    done("check", "one", "other", "--force")
    adapter(here / "deep" / "one", 6)
    assert "2:deep/one" in done("check", "one", "deep/one")


def test_a_run_is_an_adapter(here, minilm_run):
    out = done(
        minilm_run.id,
        minilm_run.path / "adapter",
        "--force",
        "--runs-dir",
        minilm_run.path.parent,
        "--out",
        "out",
        "--method",
        "average",
    )
    assert "exact" in out


def test_what_somebody_put_into_a_merged_folder_is_not_deleted_with_it(here):
    done("one", "two", "--out", "both", "--method", "average")
    done("one", "two", "--out", "both", "--method", "cat")  # a merge is replaced
    (here / "both" / "merge.json").write_text("[]", encoding="utf-8")
    done("one", "two", "--out", "both", "--method", "cat")  # and a broken record
    (here / "both" / "notes.txt").write_text("mine", encoding="utf-8")
    (here / "both" / "eval").mkdir()
    before = weights_of(here / "both")
    refused = loralab("merge", "one", "two", "--out", "both", "--method", "average")
    assert refused.code == 2 and "holds eval, notes.txt besides" in refused.err
    assert all(torch.equal(a, before[n]) for n, a in weights_of(here / "both").items())
    assert (here / "both" / "notes.txt").read_text() == "mine"


def test_two_seeds_of_one_task_ask_for_a_head(here, minilm_run):
    shutil.copytree(minilm_run.adapter, here / "seed")  # its note is the same
    file = here / "seed" / "adapter_model.safetensors"
    changed = {name: 2 * tensor for name, tensor in load_file(file).items()}
    save_file(changed, file, {"format": "pt"})
    done(minilm_run.path, "seed", "--out", "both", "--method", "average")
    asked = loralab("infer", "both", "Who?")
    assert asked.code == 2 and "--head with one of" in asked.err
    told = loralab("infer", "both", "--head", "seed", "Who?", "--json")
    assert json.loads(told.out)["adapter"]["label"], told.err


def test_what_is_merged_of_runs_says_how_to_use_it(here, minilm_run, monkeypatch):
    monkeypatch.setenv("LORALAB_RUNS", str(minilm_run.path.parent))
    shutil.copytree(minilm_run.adapter, here / "other")
    file = here / "other" / "adapter_model.safetensors"
    twice = {name: 2 * tensor for name, tensor in load_file(file).items()}
    save_file(twice, file, {"format": "pt"})
    out = done(minilm_run.id, "other", "--out", "both", "--method", "average")
    assert f"try: loralab infer both --head {minilm_run.id} TEXT" in out
    assert "without" not in out
    found = loralab("infer", "both", "--head", "other", "How far is Aspen?", "--json")
    assert json.loads(found.out)["adapter"]["label"], found.err
    said = loralab("evaluate", minilm_run.id, "--merged", "both", "--no-base")
    assert said.code == 0 and "both/eval/" in said.out, said.err
    again = shutil.copytree(minilm_run.path, here / "again")
    words = [minilm_run.id, again, "--merged", "both", "--no-base"]
    *_, first, second, mean, _ = loralab("evaluate", *words).out.splitlines()
    assert first.split("│")[2:] == second.split("│")[2:]
    assert first.split("│")[4].split()[0] == mean.split("│")[4].strip()
    for words in (["compare", "both"], ["publish", "both", "archive", "path=x.zip"]):
        outcome = loralab(*words)
        assert outcome.code == 2 and "an adapter alone" in outcome.err


def base(folder):
    """Write a model folder whose weights are those that the adapters change."""
    folder.mkdir()
    weights = {f"{name}.weight": torch.ones(shape) for name, shape in SHAPES.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "llama", "architectures": ["LlamaModel"]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def test_a_merge_is_baked_into_its_base(here):
    base(here / "base")
    done("one", "two", "--out", "out", "--method", "cat")
    said = done("one", "two", "--out", "baked", "--method", "cat", "--bake", "./base")
    assert "baked    2 weights" in said
    found = load_file(here / "baked" / "model.safetensors")
    for name, weight in weights_of(here / "out").items():
        torch.testing.assert_close(found[f"{name}.weight"], 1 + weight.float())
    assert json.loads((here / "baked" / "merge.json").read_text())["method"] == "cat"
    left = {file.name for file in here.iterdir()}
    assert left == {"one", "two", "add", "base", "out", "baked"}


def test_a_baked_model_answers_as_its_adapter_did(minilm_run, here):
    words = ["--out", "baked", "--method", "average", "--bake", "embedded:minilm"]
    done(minilm_run.path, *words)
    text = "Who wrote Hamlet?"
    own = loralab("infer", minilm_run.path, text, "--json")
    baked = loralab("infer", "baked", text, "--json")
    assert baked.code == 0, baked.err
    first, second = (json.loads(one.out)["adapter"] for one in (own, baked))
    assert second["label"] == first["label"]
    assert second["probabilities"] == pytest.approx(first["probabilities"], abs=1e-4)
    base_too = loralab("infer", "baked", text, "--with-base")
    assert base_too.code == 2
    assert "its base cannot answer" in base_too.err
    sent = loralab("publish", "baked", "archive", "path=x.zip")
    assert sent.code == 2
    assert "hf upload ORG/NAME baked" in sent.err


def test_another_base_is_not_baked_into(here):
    base(here / "base")
    note = {"base": {"path": "org/base", "fingerprint": "a" * 64}}
    (here / "one" / "loralab.json").write_text(json.dumps(note), encoding="utf-8")
    words = ["one", "--out", "x", "--method", "cat", "--bake", "./base"]
    assert "trained on org/base (aaaaaaaaaaaa)" in refused(*words)
    assert not (here / "x").exists()
    done(*words, "--force")


def test_help_tells_the_keys_of_a_method(here):
    out = done("--method", "average", "--help")
    assert "norm=none" in out and "mean scales the whole update" in out
    assert "average" in done("--help")
    assert "norm=none" in done("init", "--help")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["one", "two", "--out", "x", "--method", "avrage"], "nearest: average"),
        (["one", "two", "--out", "x", "--method", "average", "nrm=1"], "nrm"),
        (["one", "nowhere", "--out", "x", "--method", "average"], "nowhere"),
        (["one", "one", "--out", "x", "--method", "average"], "same adapter"),
        (["one", "--out", "x"], "--method"),
        (
            ["one", "two", "--tune-scale", "--out", "x", "--method", "average"],
            "without --tune",
        ),
        (["norm=mean", "--out", "x", "--method", "average"], "no adapter"),
        (
            ["one", "two", "--weights", "1", "--out", "x", "--method", "average"],
            "1 weights for 2 adapters",
        ),
        (
            ["one", "two", "--weights", "1,x", "--out", "x", "--method", "average"],
            "--weights",
        ),
        (
            ["one", "two", "--rank", "many", "--out", "x", "--method", "average"],
            "--rank",
        ),
        (
            ["one", "--rank", "2", "--energy", "0.9", "--out", "x", "--method=average"],
            "rank and energy",
        ),
        (["one", "two", "--tune", "3", "--out", "x", "--method", "average"], "one"),
        (
            ["one", "--tune=3", "--weights=1", "--out=x", "--method", "average"],
            "--tune",
        ),
        (["add", "nowhere", "one"], "not a merge state"),
        (["add", "one", "two"], "not a merge state"),
        (["add", "one", "--out", "x", "--method", "average"], "--out"),
        (["export", "nowhere", "--out", "x"], "not a merge state"),
    ],
)
def test_bad_input_ends_with_one_error(here, words, said):
    assert said in refused(*words)
    assert not (here / "x").exists()
