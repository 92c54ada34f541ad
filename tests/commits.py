"""The form of a commit's message: `type(scope)!: what holds now`; run by pre-commit.

`python -m tests.commits FILE` judges a message that is being written, and
`python -m tests.commits --log` the subjects of all that were.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TYPES = (
    *("feat", "fix", "docs", "test", "refactor", "perf", "style", "build", "ci"),
    *("bench", "study", "merge", "revert", "chore"),
)
FORM = re.compile(rf"(?:{'|'.join(TYPES)})(?:\([\w./-]+\))?!?: \S(?:.*[^\s.])?")
MADE_BY_GIT = ("Merge ", "fixup! ", "squash! ")


def wrong(message: str) -> str:
    """Return what is wrong with a message, or nothing."""
    lines = [line for line in message.splitlines() if not line.startswith("#")]
    subject, *rest = lines or [""]
    if subject.startswith(MADE_BY_GIT):
        return ""
    if not FORM.fullmatch(subject):
        said = f"{subject!r} is not `type: what holds now`, without a full stop"
        return f"{said}; types: {', '.join(TYPES)}"
    if rest and rest[0].strip():
        return "the second line is not empty"
    return ""


def subjects() -> list[str]:
    """Return the subject of every commit of the branch."""
    git = ["git", "log", "--format=%s"]
    return subprocess.run(
        git, check=True, capture_output=True, text=True
    ).stdout.splitlines()


def main(asked: str) -> int:
    """Print what is wrong; return 1 if anything is."""
    given = subjects() if asked == "--log" else [Path(asked).read_text("utf-8")]
    found = [problem for problem in map(wrong, given) if problem]
    print("\n".join(found) or "messages have their form")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
