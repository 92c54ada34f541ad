"""Draw docs/images/demo.svg: what `make demo` prints of its two runs, as a terminal.

    make picture

The commands are those of the Makefile's `demo`, so the picture cannot show others; they
read the runs that the demo has trained, and what they print is drawn as it is.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).parents[2]
PICTURE = Path(__file__).with_suffix(".svg")
SHOWN = "compare", "infer"
WIDTH = 100
FONT = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)
"""A page that shows the picture shall load no font from elsewhere."""


def commands() -> list[list[str]]:
    """Return the demo's commands that read its runs, without the path before them."""
    asked = ["make", "--dry-run", "--always-make", "demo"]
    told = subprocess.run(asked, cwd=ROOT, check=True, capture_output=True, text=True)
    lines = told.stdout.replace("\\\n", " ").splitlines()
    words = [shlex.split(line) for line in lines]
    found = [one[1:] for one in words if one and one[0].endswith("/loralab")]
    return [one for one in found if one[0] in SHOWN]


def output(words: list[str], runs_dir: Path) -> str:
    """Return what a command prints on a terminal, with its colours."""
    terminal = {"FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    made = subprocess.run(
        [sys.executable, "-m", "loralab.cli.main", *words, "--runs-dir", str(runs_dir)],
        env=os.environ | terminal,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return made.stdout


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "runs")
    runs_dir = parser.parse_args().runs_dir
    with Path(os.devnull).open("w") as nowhere:
        terminal = Console(
            record=True, width=WIDTH, file=nowhere, highlight=False, emoji=False
        )
        for words in commands():
            terminal.print(Text(f"$ loralab {shlex.join(words)}", style="bold green"))
            terminal.print(Text.from_ansi(output(words, runs_dir)))
    drawn = terminal.export_svg(title="make demo", theme=MONOKAI, unique_id="demo")
    PICTURE.write_text(FONT.sub("", drawn), encoding="utf-8")


if __name__ == "__main__":
    main()
