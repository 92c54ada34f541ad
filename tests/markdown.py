"""Code blocks of Markdown, and whether their commands are such that loralab has.

A block that a test cannot run on this machine is marked by the line before it,

    <!-- checked only: needs a cluster -->

and is then read like the others: verbs, options, keys, presets and names must exist.
"""

import re
import shlex
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from loralab import compose, registry
from loralab.cli.main import app
from loralab.cli.options import OF_EXECUTOR, executor_params
from loralab.config import MergeConfig, RouteConfig, StorageConfig
from loralab.config.compose import presets
from loralab.config.named import named
from loralab.config.schema import Named
from loralab.experiments.space import grid, read_space

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(
    r"(?:`(?P<file>[\w./-]+)`:\n\n)?"
    r"(?:^<!-- checked only: (?P<why>.+?) -->\n)?"
    r"^(?P<fence>`{3,})(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=fence)$",
    re.M | re.S,
)
_VARIABLE = re.compile(r"^[A-Z_]+=\S+$")
SMALL = ["data.max_rows={train: 200, validation: 16, test: 32}", "training.max_steps=4"]
SETTINGS = {"method": MergeConfig, "to": StorageConfig, "route": RouteConfig}
"""Parameter of a verb -> the schema of what it names."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        file: What the line above it ends with, if that is a file's name.
        language: Of it.
        text: In it.
        line: Where it begins.
        why: It is not run, if so.
    """

    file: str | None
    language: str
    text: str
    line: int
    why: str | None


def blocks(text: str, language: str = "") -> list[Block]:
    """Return the fenced blocks of a page; those of one language, if it is named."""
    found = [
        Block(
            *(m["file"], m["language"], m["text"]),
            *(text.count("\n", 0, m.start("text")), m["why"]),
        )
        for m in _BLOCK.finditer(text)
    ]
    return [one for one in found if language in ("", one.language)]


def lines_of(block: str) -> list[str]:
    """Return the commands of a shell block: continued lines are one."""
    whole = block.replace("\\\n", " ").splitlines()
    return [line for line in whole if line.strip() and not line.startswith("#")]


def commands(text: str) -> list[str]:
    """Return the lines of shell blocks that call loralab."""
    lines = [line for one in blocks(text, "bash") for line in lines_of(one.text)]
    return [line for line in lines if line.startswith("loralab ")]


def words_of(line: str) -> list[str]:
    """Return a command's words, without variables before it and its comment."""
    words = shlex.split(line, comments=True)
    while words and _VARIABLE.match(words[0]):
        words.pop(0)
    return words


def smaller(words: list[str]) -> list[str]:
    """Return what a command is given besides, so that it takes seconds."""
    if words[0] == "train":
        return SMALL
    if words[0] == "publish":  # after four steps 8 bits turn many an answer
        return ["--force"]
    if words[0] == "sweep":
        return [
            *SMALL,
            "--no-cost",
            *(["--trials", "2"] if "--trials" in words else []),
        ]
    return []


class Wrong(AssertionError):
    """A command that loralab would refuse."""


def check(line: str) -> None:
    """Raise unless a line of a shell block could be called."""
    words = words_of(line)
    checks = {"loralab": _loralab, "python": _python, "pip": _pip, "make": _make}
    if words and words[0] in checks:
        try:
            checks[words[0]](words[1:])
        except Exception as error:
            raise Wrong(f"{line}\n{type(error).__name__}: {error}") from error


def _python(words: list[str]) -> None:
    target = words[1] if words[0] == "-m" else words[0]
    if words[0] == "-m" and target.split(".")[0] not in ("benchmarks", "studies"):
        return
    file = f"{target.replace('.', '/')}.py" if words[0] == "-m" else target
    assert (ROOT / file).is_file(), f"no {file}"


def _pip(words: list[str]) -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    section = project.partition("[project.optional-dependencies]")[2].partition("\n[")[
        0
    ]
    known = set(re.findall(r"^([\w-]+) = \[", section, re.M))
    for extra in re.findall(r"loralab\[([\w,-]+)\]", " ".join(words)):
        assert set(extra.split(",")) <= known, extra


def _make(words: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    assert set(words) <= set(targets), words


def _loralab(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    path: list[str] = []
    while hasattr(command, "commands") and words:
        if words[0] not in command.commands:
            assert "adapters" in command.commands, (
                f"no verb {' '.join([*path, words[0]])}"
            )
            words = ["adapters", *words]
        path.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    if hasattr(command, "commands") or "--help" in words:
        return  # a group alone prints its help
    given = command.make_context(path[-1], list(words)).params
    executor = given.get("executor")
    if executor:
        _executor(executor, given)
    _experiment(path, given)
    _named(path, given)


def _executor(name: str, given: dict[str, Any]) -> None:
    key = "overrides" if "overrides" in given else "params"
    _, params = executor_params(given.get(key) or (), given.get("workers"))
    registry.get("executor", name).schema.model_validate(params)


def _experiment(path: list[str], given: dict[str, Any]) -> None:
    """Compose what an experiment's preset and overrides say."""
    experiment = given.get("experiment")
    if experiment not in presets("experiment") or path == ["quantize"]:
        return
    pairs = [p for p in given["overrides"] or () if not p.startswith(OF_EXECUTOR)]
    if path != ["sweep"]:
        compose(experiment, pairs)
        return
    space = read_space(pairs)
    drawn = [f"{a.key}={a.number(a.low)}" for a in space.axes if not a.listed]
    listed = [axis for axis in space.axes if axis.listed]
    points = grid(type(space)(tuple(listed), space.fixed)) if listed else [()]
    for point in {points[0], points[-1]}:
        compose(experiment, [*space.fixed, *drawn, *point])
    registry.get("sampler", given["sampler"])


def _named(path: list[str], given: dict[str, Any]) -> None:
    """Judge ``key=value`` by the schema of the thing that an option names."""
    words = [*(given.get("pairs") or ()), *(given.get("words") or ())]
    pairs = [word for word in words if "=" in word]
    for key, schema in SETTINGS.items():
        if given.get(key) and path[0] in ("merge", "quantize"):
            mine = pairs if key != "route" else []
            _judge(schema, given[key], mine)
    if path == ["publish"]:
        kind = registry.get("publishing target", given["target"])
        params = dict(p.split("=", 1) for p in given["params"] or ())
        kind.schema.model_validate(params)
    if path == ["methods"] and given["name"]:
        registry.get("PEFT method", given["name"])
    if path == ["config", "list"] and given["group"]:
        assert presets(given["group"]), given["group"]


def _judge(schema: type[Named], name: str, pairs: list[str]) -> BaseModel:
    return named(schema, name, [p for p in pairs if not p.startswith("route.")])


def public_names(code: str) -> list[str]:
    """Return the attributes of `loralab`, or of its modules, that code names."""
    dotted = re.findall(r"\bloralab\.(\w+)", code)
    imported = re.findall(r"^from (loralab[\w.]*) import \(?([\w, \n]+)\)?", code, re.M)
    for module, names in imported:
        found = import_module(module)
        for name in re.findall(r"\w+", names):
            assert hasattr(found, name), f"{module}.{name}"
    return dotted
