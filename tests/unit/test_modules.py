"""Which modules stand alone: each has several users, is found by name, or says why."""

import ast
from pathlib import Path

import pytest

from loralab.registry import PACKAGES

SRC = Path(__file__).parents[2] / "src"
SHORT = 250
"""Lines of a module and of its one user, together, from which on they are apart."""

REASONS = {
    "loralab.adapters.beside": "imports PEFT's layers, only where a base is affine",
    "loralab.data.own.facts": "makes passages; `rows` reads written ones, too",
    "loralab.data.own.names": "words and their splits; `invention` is chance",
    "loralab.evaluation.diagnose_artefact": "by subject, as its two sisters are",
    "loralab.evaluation.footprint": "a program of its own, in a process of its own",
    "loralab.inference.baked": "one of the folders that `open` tells apart",
    "loralab.models.vit_s14": "one package's names of tensors; `embedded` has them all",
}
"""Modules that one other of their folder uses, though both would be one short file."""


def modules():
    found = {}
    for file in sorted(SRC.rglob("*.py")):
        parts = file.relative_to(SRC).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = file
    return found


MODULES = modules()


def imported(name, file):
    """Yield the modules of ours that a file imports, at its head or in a function."""
    package = name if file.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            above = (
                package.split(".")[: 1 - node.level] if node.level > 1 else [package]
            )
            parts = [*above, node.module or ""] if node.level else [node.module]
            base = ".".join(part for part in parts if part)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


USERS = {name: set() for name in MODULES}
for user, file in MODULES.items():
    for one in imported(user, file):
        if one in USERS and one != user:
            USERS[one].add(user)


def lines(name):
    return len(MODULES[name].read_text(encoding="utf-8").splitlines())


def found_by_name(name):
    """Return whether a module is a verb, registered, or the face of its package."""
    folder = name.rpartition(".")[0]
    registered = folder in PACKAGES.values() and "._" not in name
    return registered or folder == "loralab.cli" or MODULES[name].stem == "__init__"


def lonely(name):
    """Return whether one other module of its folder uses it, and both are short."""
    users = [user for user in USERS[name] if MODULES[user].stem != "__init__"]
    if len(users) != 1 or found_by_name(name):
        return False
    (user,) = users
    near = user.rpartition(".")[0] == name.rpartition(".")[0]
    return near and lines(name) + lines(user) < SHORT


def test_a_module_that_only_one_other_uses_says_why():
    assert {name for name in MODULES if lonely(name)} == set(REASONS)


@pytest.mark.parametrize("name", [m for m in MODULES if not found_by_name(m)])
def test_a_module_is_used(name):
    """By another, by `loralab` itself, by a benchmark or study, or as a program."""
    if USERS[name]:
        return
    others = [SRC / "loralab/__init__.py", *MODULES.values()]
    for folder in ("benchmarks", "studies", "examples"):
        others += sorted((SRC.parent / folder).rglob("*.py"))
    assert any(
        name in other.read_text(encoding="utf-8")
        for other in others
        if other != MODULES[name]
    )
