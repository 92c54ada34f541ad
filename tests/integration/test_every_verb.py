"""Every verb is held to one form; they are found in the app, so a new one is, too.

A new verb needs a row in `WRONG`, and in `RIGHT` or, if it prints no table, `NO_TABLE`.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer

from loralab.cli.main import app
from loralab.cli.merge_inputs import adapter_of
from loralab.config import compose
from loralab.runs.files import write_json
from tests.cli import loralab
from tests.conftest import CLASSIFY
from tests.merge_folders import adapter
from tests.published import INTERVAL, adapter_run

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "studies" / "aa_floor" / "study.yaml"
HUB = """
question: Does a higher rank pay on a model that is not here?
experiment: text-classification
overrides:
  - data.source.params.path=no-such.jsonl
  - model.path=google-bert/bert-base-uncased
arms: {rank-8: [peft.params.rank=8], rank-16: [peft.params.rank=16]}
baseline: rank-8
budgets: [steps, tokens]
smallest_difference: 0.02
sizes: {smoke: {seeds: 2, overrides: [training.max_steps=3]}, evidence: {seeds: 3}}
"""


def walk(command, name=()):
    """Yield the words of each verb, and the verb."""
    if not hasattr(command, "commands"):
        yield " ".join(name), command
        return
    for word, one in command.commands.items():
        yield from walk(one, name if one.hidden else (*name, word))


APP = typer.main.get_command(app)
VERBS = dict(walk(APP))
NO_TABLE = {
    *("config show", "config schema", "data fetch", "log", "merge add", "merge init"),
    *("merge undo", "paper build", "sketch", "study figures", "study report"),
    *("study run", "unpack"),
}
"""Verbs that print lines, or a document of their own."""

# verb -> what it is called with, in `here`, to print JSON
RIGHT = {
    "compare": "spam",
    "config list": "model",
    "data list": "",
    "merge": "one two --out out --method average",
    "merge check": "one two",
    "merge export": "many --out small --rank 1",
    "merge log": "many --verify",
    "methods": "lora",
    "paper numbers": f"aa_floor sms-spam --root {ROOT}",
    "plan": "trec-6 --offline",
    "publish": "spam archive path=spam.zip --dry-run",
    "ranks": "--from spam --no-measure --out cut",
    "runs": "--status complete",
}
LEDGER = {"study plan": "hub.yaml --machine gpu.yaml"}
"""Likewise, with what it must come to: `test_the_ledger_…`."""
SMALL = shlex.join(CLASSIFY).replace("{", "{{").replace("}", "}}")
RUNS_A_MODEL = {
    "doctor": "{run}",
    "evaluate": "{run} --split validation",
    "infer": "{run} hello",
    "train": f"trec-6 {SMALL} --runs-dir {{runs}}",
}
"""Likewise, of a run that was trained: `run` in `runs`."""
MINUTES = {
    "data show": "trec-6 --samples 1",
    "pipeline": "minilm-four-stage training.max_steps=2 --runs-dir {here}",
    "quantize": "{run} --to affine-int8 --rows 8 --runs-dir {here}",
    "reproduce": "{run}",
    "study analyse": "{here}/study.yaml --runs-dir {here}",
    "sweep": f"trec-6 {SMALL} seed=1,2 --no-cost --runs-dir {{here}}",
}
"""Likewise, and slow."""

# verb -> [what is wrong, what the error says]
WRONG = {
    "compare": ["nothing", "no run 'nothing'"],
    "config list": ["modle", "nearest: model"],
    "config schema": ["extra", "extra"],
    "config show": ["trec-6 training.sed=1", "nearest: seed"],
    "data fetch": ["trec-7", "nearest: trec-6"],
    "data list": ["extra", "extra"],
    "data show": ["binary.yaml", "utf-8"],
    "doctor": ["broken", "an evaluation of this run cannot be read"],
    "evaluate": ["spam --split tset", "tset"],
    "infer": ["spam hello --file lines.txt", "not both"],
    "log": ["log.md --runs-dir lines.txt", "lines.txt"],
    "merge": ["one two --out full --method average", "not replaced"],
    "merge add": ["empty one", "not a merge state"],
    "merge check": ["one empty", "adapter_config.json"],
    "merge export": ["one --out x", "not a merge state"],
    "merge init": ["full --method average", "is not empty"],
    "merge log": ["empty", "not a merge state"],
    "merge undo": ["many-and-more", "not a merge state"],
    "methods": ["lorra", "nearest: lora"],
    "paper build": ["binary.yaml", "the draft cannot be read"],
    "paper numbers": ["runs/broken-0123456789", "cannot be read"],
    "pipeline": ["binary.yaml", "utf-8"],
    "plan": ["trec-6 --machine binary.yaml", "utf-8"],
    "publish": ["many archive path=x.zip", "loralab merge export many"],
    "quantize": ["spam --to nf5", "nearest: nf4"],
    "ranks": ["--from spam --out full", "not replaced"],
    "reproduce": ["no-adapter", "has no adapter yet"],
    "runs": ["--runs-dir nowhere", "no such directory"],
    "sketch": ["spam --rows 0", "--rows"],
    "study analyse": ["binary.yaml", "cannot be read as a study"],
    "study figures": ["empty", "no analysis of a study"],
    "study plan": ["hub.yaml --offline --size big", "smoke, evidence"],
    "study report": ["empty", "cannot be read as a study"],
    "study run": ["hub.yaml --executor locl", "nearest: local"],
    "sweep": ["trec-6 seed=1,2 --workers 0", "--workers"],
    "train": ["binary.yaml", "utf-8"],
    "unpack": ["lines.txt out", "lines.txt"],
}


def machine(name, memory):
    """Return a file that tells of a machine that is meant."""
    told = {"name": name, "flops_per_second": 1e14, "memory_bytes": memory}
    return json.dumps({**told, "source": "made up for a test"})


def run_of(folder):
    """Return a run whose adapter is a plain LoRA; its figures are a fixture's."""
    run = adapter_run(folder)
    shutil.rmtree(run.adapter)
    adapter(run.adapter, seed=3)
    base = {**run.read()["base"], "parameters": 99}
    spent = {"seconds": 1.5, "tokens_per_second": 2.0, "steps": 3, "step_seconds": 1.0}
    run.update(
        base=base,
        training={**spent, "tokens": 9, "loss": 0.5},
        plan={"trainable": 9, "total": 99, "rows": {"train": 9}, "steps": 3},
        adapter_bytes=9,
        numerics={"dtype": "fp32", "device": "cpu"},
        peak_memory_bytes=9,
        resumes=[],
    )
    result = run.evaluations()["test"]
    gap = {"value": 0.1, "low": -0.1, "high": 0.3}
    result["metrics"]["accuracy"]["difference"] = gap
    write_json(run.path / "eval" / "test.json", result)
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with runs, adapters, a merge, a study, and what is broken."""
    folder = tmp_path_factory.mktemp("made")
    run = run_of(folder / "runs")
    for name, part in (("broken", "eval/test.json"), ("no-adapter", "adapter")):
        other = folder / "runs" / f"{name}-0123456789"
        shutil.copytree(run.path, other)
        if name == "broken":
            (other / part).write_text("{", encoding="utf-8")
        else:
            shutil.rmtree(other / part)
    for seed, name in enumerate(("one", "two")):
        adapter(folder / name, seed)
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "thesis.md").write_text("years of work", encoding="utf-8")
    (folder / "lines.txt").write_text("a line\n", encoding="utf-8")
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (folder / "hub.yaml").write_text(HUB, encoding="utf-8")
    (folder / "gpu.yaml").write_text(machine("a GPU", 8e10), encoding="utf-8")
    assert loralab("merge", "init", folder / "many", "--method", "average").code == 0
    assert loralab("merge", "add", folder / "many", folder / "one").code == 0
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "here"


def content(folder):
    files = (file for file in folder.rglob("*") if file.name != ".lock")
    return {file: file.read_bytes() if file.is_file() else None for file in files}


def told_keys(verb):
    """Return the words of what a verb's help says of its JSON."""
    found = re.search(r"With --json (.*?)\n\n", VERBS[verb].help + "\n\n", re.S)
    return set(re.findall(r"\w+", found[1])) if found else set()


def test_every_verb_is_in_the_matrix():
    assert set(WRONG) == set(VERBS)
    tables = [set(one) for one in (RIGHT, LEDGER, RUNS_A_MODEL, MINUTES, NO_TABLE)]
    assert set.union(*tables) == set(VERBS)
    assert sum(map(len, tables)) == len(VERBS)


@pytest.mark.parametrize("verb", sorted(set(VERBS) - NO_TABLE))
def test_a_table_is_also_json_and_the_help_says_its_keys(verb):
    assert "--json" in {opt for one in VERBS[verb].params for opt in one.opts}
    assert told_keys(verb)


@pytest.mark.parametrize("verb", sorted(RIGHT))
def test_json_is_all_that_stands_on_stdout(here, verb):
    assert_json(verb, RIGHT[verb])


@pytest.mark.parametrize("verb", sorted(RUNS_A_MODEL))
def test_json_of_verbs_that_read_a_trained_run(minilm_run, verb):
    runs = minilm_run.path.parent
    assert_json(verb, RUNS_A_MODEL[verb].format(run=minilm_run.path, runs=runs))


@pytest.mark.slow
@pytest.mark.parametrize("verb", sorted(MINUTES))
def test_json_of_verbs_that_run_for_minutes(minilm_run, tmp_path, verb):
    if verb == "study analyse":
        arms = "{a: [peft.params.rank=8], b: [peft.params.rank=4]}"
        text = HUB.replace("text-classification", "trec-6")
        text = text.partition("overrides:")[0] + f"overrides: {json.dumps(CLASSIFY)}\n"
        text += f"arms: {arms}\nbaseline: a\nbudgets: []\n"
        text += "smallest_difference: 0.02\nsizes: {smoke: {seeds: 2}}\n"
        (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
        study = (tmp_path / "study.yaml", "--runs-dir", tmp_path)
        assert loralab("study", "run", *study).code == 0
    assert_json(verb, MINUTES[verb].format(run=minilm_run.path, here=tmp_path))


def assert_json(verb, words):
    """Return the one document that a verb prints, with the keys that its help says."""
    done = loralab(*verb.split(), *shlex.split(words), "--json")
    assert done.code in (0, 1), done.err
    found = json.loads(done.out, parse_constant=pytest.fail)  # no NaN
    assert "\n" not in done.out.strip()
    if verb != "methods":  # its keys are the methods
        first = found[0] if isinstance(found, list) else found
        assert first
        assert set(first) <= told_keys(verb)
    return found


def test_figures_are_not_rounded_in_json(here):
    shown = loralab("runs").out
    (run, *_) = json.loads(loralab("runs", "--json").out)
    assert run["metric"] == {"name": "accuracy", **INTERVAL}
    assert "accuracy 0.500 [0.250, 0.750]" in shown
    assert "left out: " in loralab("runs", "--json").err  # the broken one


def test_numbers_that_are_left_out_of_json_are_told(here):
    words = ("paper", "numbers", "aa_floor", "--root", ROOT, "--json", "--most", 2)
    done = loralab(*words)
    assert len(json.loads(done.out)) == 2
    assert "more than 2" in done.err


def test_a_base_to_bake_into_is_looked_for_before_anything_is_computed(here):
    words = ("one", "two", "--out", "out", "--method", "average", "--bake", "./none")
    done = loralab("merge", *words)
    assert done.code == 2 and "none" in done.err
    assert not done.out
    assert not (here / "out").exists()


def test_an_adapter_alone_is_not_stored_as_a_model(here):
    done = loralab("quantize", "./one", "--to", "affine-int8")
    assert done.code == 2 and "an adapter alone, and this takes a run" in done.err
    assert not done.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("merge one two --out c --method opmc", "error: --method: no merge method"),
        ("merge one two --out c --method zzz", "known: average, "),
        ("merge one two --out c --method opcm alpha=3", "error: alpha: unknown key"),
        ("merge one two --out c", "average, breadcrumbs"),
        ("merge init new", "average, breadcrumbs"),
        ("quantize spam --to nf4 groop=3", "error: groop: unknown key"),
        ("quantize spam --to nf4 --route sidepath", "error: --route: no route"),
        ("quantize spam --to nf4 --route qa-lora route.x=3", "error: route.x: unknown"),
        ("publish spam archiv", "error: TARGET: no publishing target"),
        ("publish spam archive", "fix: add path=VALUE"),
    ],
)
def test_an_error_calls_a_key_as_it_is_typed(here, words, told):
    done = loralab(*words.split())
    assert done.code == 2
    assert told in re.sub(r"[\s│]+", " ", done.err)


def test_a_folder_without_an_adapter_does_not_hide_the_run_of_its_name(here):
    (run,) = (here / "runs").glob("spam-*")
    (here / "spam").mkdir()
    (here / "spam" / "cat.png").write_bytes(b"")
    assert adapter_of("spam", Path("runs")) == Path("runs") / run.name / "adapter"
    shutil.copytree(here / "one", here / "spam", dirs_exist_ok=True)
    assert adapter_of("spam", Path("runs")) == Path("spam")
    assert adapter_of("empty", Path("runs")) == Path("empty")  # told what it lacks


def test_a_head_of_what_is_not_there_is_no_matter_of_heads(here):
    done = loralab("infer", "both", "--head", "odd", "hi")
    assert done.code == 2 and "no run 'both' in runs" in done.err
    assert "chooses a task of one" in loralab("infer", "spam", "--head", "x", "hi").err


def test_a_cosine_has_a_true_minus(here):
    adapter(here / "three", seed=5)
    shown = loralab("merge", "check", "one", "two", "three").out
    cosines = [line.split("│")[2].strip() for line in shown.splitlines() if "·" in line]
    assert {text[0] for text in cosines} <= {"+", "−"} and len(cosines) == 3


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_wrong_input_is_one_error_and_nothing_is_written(here, verb):
    words, fragment = WRONG[verb]
    before = content(here)
    done = loralab(*verb.split(), *shlex.split(words))
    assert done.code == 2, done.out + done.err
    assert fragment in " ".join(done.err.split()), done.err
    assert "Traceback" not in done.err
    assert content(here) == before


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_an_option_that_there_is_not_ends_with_2(here, verb):
    done = loralab(*verb.split(), "--no-such-option")
    assert done.code == 2
    assert "--no-such-option" in done.err
    assert not done.out


def parsed(command, name, words):
    """Return the context of a command line, as the command itself parses it."""
    context = command.make_context(name, list(words))
    if not hasattr(command, "commands"):
        return context
    rest = [*context._protected_args, *context.args]
    name, one, rest = command.resolve_command(context, rest)
    return parsed(one, name, rest)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_the_help_has_an_example_that_parses(verb):
    found = re.findall(r"^Example: loralab (.*(?:\n\S.*)*)", VERBS[verb].help, re.M)
    assert found
    for example in found:
        words = shlex.split(" ".join(example.split()))
        context = parsed(APP, "loralab", words)
        assert context.command is VERBS[verb]
        experiment = context.params.get("experiment")
        if experiment and verb not in ("sweep", "quantize"):
            compose(experiment, context.params.get("overrides") or ())


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_is_shown(verb):
    done = loralab(
        *verb.split(), *(["--method", "opcm"] if verb == "merge" else []), "--help"
    )
    assert done.code == 0
    assert "Example:" in done.out


def test_the_ledger_of_a_hub_model_is_told_offline(here):
    (verb,) = LEDGER
    eight, sixteen = assert_json(verb, LEDGER[verb])["ledger"]
    assert sixteen["budgets"]["trainable"] > 1.5 * eight["budgets"]["trainable"]
    assert eight["budgets"]["steps"] == 3
    assert eight["memory"] > 2 * 109e6  # BERT in bf16, and then some
    assert eight["disk"] > 0
    assert eight["seconds"] > 0
    text = HUB.replace("overrides: [training.max_steps=3]", "overrides: []")
    (here / "open.yaml").write_text(text, encoding="utf-8")
    opened = loralab("study", "plan", "open.yaml", "--offline")
    assert opened.code == 0, opened.err
    assert "at most" in opened.out
    assert "set training.max_steps" in opened.out  # without, neither steps nor hours
    assert "hours, and whether it fits" in opened.out
    assert "~" not in opened.out
    (here / "small.yaml").write_text(machine("small", 1e8), encoding="utf-8")
    small = loralab("study", "plan", "hub.yaml", "--machine", "small.yaml")
    assert small.code == 2
    assert "does not fit into memory" in small.err


def completed(words, begun, monkeypatch):
    """Return what bash is told for a line whose last word is `begun`."""
    line = " ".join(["loralab", *words, begun])
    monkeypatch.setenv("_LORALAB_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) + 1))
    found = loralab()
    monkeypatch.delenv("_LORALAB_COMPLETE")
    return found.out.split()


@pytest.mark.parametrize(
    ("words", "begun", "wanted"),
    [
        (["train"], "tre", "trec-6"),
        (["train", "trec-6"], "pe", "peft="),
        (["train", "trec-6"], "peft=ada", "peft=adalora"),
        (["infer"], "sp", "spam-"),
        (["evaluate"], "sp", "spam-"),
        (["quantize", "x", "--to"], "nf", "nf4"),
        (["publish", "x"], "arc", "archive"),
        (["merge", "init", "x", "--method"], "op", "opcm"),
        (["sweep", "trec-6", "--sampler"], "op", "optuna"),
        (["study", "run", "x", "--executor"], "sl", "slurm"),
        (["pipeline"], "mini", "minilm-four-stage"),
        (["methods"], "qa", "qa-lora"),
        (["config", "list"], "mod", "model"),
    ],
)
def test_the_shell_completes(here, monkeypatch, words, begun, wanted):
    found = completed(words, begun, monkeypatch)
    assert any(one.startswith(wanted) for one in found), found


def test_completion_is_shown_for_a_shell(monkeypatch):
    # Typer asks which process has called it; a test may have no shell above it
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    done = loralab("--show-completion", "bash")
    assert done.code == 0
    assert "_LORALAB_COMPLETE=complete_bash" in done.out
