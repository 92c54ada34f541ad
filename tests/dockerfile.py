"""A Dockerfile without an engine: its instructions, and its RUN steps in a clean place.

`python -m tests.dockerfile FILE FOLDER [NAME=VALUE …]` runs the steps of the first
stage with ``/bin/sh``, in their order, on a copy of what the build context would hold.
What the image has below ``/opt/loralab`` goes below FOLDER; NAME=VALUE is a build
argument.
A command that is the machine's own affair (packages of the system, users, paths outside
the image's folder) is parsed by ``sh -n``, said to be so, and not run.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
OWN = "/opt/loralab"
"""The image's folder that steps may write to."""
SYSTEM = ("apt-get", "useradd", "chown")
"""Commands that change the machine itself."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, its continued lines joined by a space."""

    name: str
    value: str


def parse(file: Path) -> list[Instruction]:
    """Return a Dockerfile's instructions."""
    lines = file.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    return [Instruction(*line.split(maxsplit=1)) for line in joined if line.strip()]


def stages(instructions: Iterable[Instruction]) -> list[list[Instruction]]:
    """Return the instructions of each stage, each begun by its FROM."""
    found: list[list[Instruction]] = []
    for one in instructions:
        if one.name == "FROM":
            found.append([])
        found[-1].append(one)
    return found


def assigned(value: str) -> dict[str, str]:
    """Return what an ENV or an ARG sets."""
    return dict(part.split("=", 1) for part in shlex.split(value))


def commands(run: str) -> list[str]:
    """Return the commands that a RUN chains by ``&&``."""
    return [part.strip() for part in run.split("&&")]


def is_system(command: str) -> bool:
    """Whether a command would change the machine and not the image's folder."""
    first, *rest = shlex.split(command)
    outside = [word for word in rest if word.startswith("/")]
    return first in SYSTEM or any(not word.startswith(OWN) for word in outside)


def context(folder: Path) -> Path:
    """Copy what git has and .dockerignore lets into the build's context."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    wanted = [line[1:] for line in lines if line.startswith("!")]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *wanted],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


class Build:
    """The first stage of a Dockerfile, on this machine.

    Args:
        folder: Holds the context, and in ``image`` what the image would.
        arguments: Build arguments.
    """

    def __init__(self, folder: Path, arguments: Mapping[str, str]) -> None:
        self.context = context(folder / "context")
        self.image = folder / "image"
        self.arguments = arguments
        self.cwd = self.image
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        python = f"{sys.base_prefix}/bin"  # the base image's, as it were
        path = f"{python}:{os.environ['PATH']}"
        self.environment = {**kept, "HOME": str(folder), "PATH": path}

    def here(self, text: str) -> str:
        """Return a text with the image's folder where it is on this machine."""
        return text.replace(OWN, f"{self.image}{OWN}")

    def take(self, one: Instruction) -> None:
        """Do what an instruction says."""
        getattr(self, one.name.lower(), lambda value: None)(one.value)

    def arg(self, value: str) -> None:
        """Set a build argument."""
        (name, default), *_ = assigned(value).items()
        self.environment[name] = self.arguments.get(name, default)

    def env(self, value: str) -> None:
        """Set variables; ``$PATH`` is the machine's."""
        for name, given in assigned(self.here(value)).items():
            self.environment[name] = re.sub(
                r"\$(\w+)", lambda m: self.environment[m[1]], given
            )

    def workdir(self, value: str) -> None:
        """Make a folder and go there."""
        self.cwd = Path(self.here(value))
        self.cwd.mkdir(parents=True, exist_ok=True)

    def copy(self, value: str) -> None:
        """Copy from the context."""
        *names, target = value.split()
        for name in names:
            source = self.context / name
            if source.is_dir():
                shutil.copytree(source, self.cwd / target, dirs_exist_ok=True)
            else:
                shutil.copy(source, self.cwd / target)

    def run(self, value: str) -> None:
        """Run the commands of a step that are the image's own, check the others.

        Raises:
            CalledProcessError: one fails, or is no shell.
        """
        for command in commands(value):
            only = is_system(command)
            print(f"{'checked' if only else 'running'}: {command}", flush=True)
            shell = ["/bin/sh", "-n"] if only else ["/bin/sh"]
            subprocess.run(
                [*shell, "-c", self.here(command)],
                cwd=self.cwd,
                env=self.environment,
                check=True,
            )


def main(file: str, folder: str, *arguments: str) -> None:
    """Build the first stage."""
    build = Build(Path(folder).absolute(), assigned(shlex.join(arguments)))
    for one in stages(parse(Path(file)))[0]:
        build.take(one)


if __name__ == "__main__":
    main(*sys.argv[1:])
