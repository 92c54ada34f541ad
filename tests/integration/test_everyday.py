"""The five commands of docs/how-to/everyday.md are verbs, and do what is said."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer

from loralab import compose
from loralab.cli.main import app
from tests.cli import loralab
from tests.conftest import CLASSIFY

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "everyday.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    for line in block.splitlines()
]


def test_there_are_five_and_each_is_one_verb():
    verbs = typer.main.get_command(app).commands
    first = [words[0] for words in COMMANDS[:5]]
    assert first == ["train", "train", "compare", "study", "paper"]
    built = [words[0] for words in COMMANDS if words[0] != "paper"]
    assert set(built) <= set(verbs)
    assert COMMANDS[3][1] in verbs["study"].commands
    assert (ROOT / COMMANDS[3][2] / "analysis.json").is_file()


def test_both_trainings_are_the_task_at_the_same_rank():
    baseline, adaptive = (compose(words[1], words[2:]) for words in COMMANDS[:2])
    assert baseline.data == adaptive.data
    assert baseline.peft.params["rank"] == adaptive.peft.params["rank"] == 8
    assert baseline.peft.params["ranks"] is None
    assert adaptive.peft.params["ranks"]["name"] == "gradient"
    assert COMMANDS[2][1:] == [baseline.name, adaptive.name]


@pytest.mark.slow
def test_they_run_as_they_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "studies" / "adaptive_rank", "studies/adaptive_rank")
    for words in COMMANDS:
        if words[0] == "paper":  # has its own tests
            continue
        small = CLASSIFY if words[0] == "train" else []
        out = loralab(*words, *small)
        assert out.code == 0, f"{words}\n{out.out}\n{out.err}"
    log = (tmp_path / "RESEARCH_LOG.md").read_text(encoding="utf-8")
    assert "### baseline-" in log
    assert "### adaptive-" in log
