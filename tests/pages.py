"""README, guide and tutorials as data: their commands, code, files and links."""

import re
from pathlib import Path

from tests import markdown

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDE = sorted(path for path in (ROOT / "docs/guide").glob("*.md"))
TUTORIALS = sorted((ROOT / "docs/tutorial").glob("[0-9]*.md"))
PAGES = [README, *GUIDE, *TUTORIALS]


def name(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page):
    return markdown.blocks(page.read_text(encoding="utf-8"))


def files(page):
    return {one.file: one for one in blocks(page) if one.file}


def lines(page):
    """Yield what a reader types into a shell, and what into Python, in its order."""
    for block in blocks(page):
        if block.language == "bash":
            whole = block.text.replace("\\\n", " ").splitlines()
            yield from (("bash", line) for line in whole if line.strip())
        elif block.language == "python":
            yield "python", block.text


def commands(page):
    return [
        line
        for language, line in lines(page)
        if language == "bash" and line.startswith("loralab ")
    ]


def links(page):
    """Return the targets of its links and pictures that are paths, without anchors."""
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    found = re.findall(r"\]\(([^)\s]+)\)", prose)
    own = (one for one in found if not re.match(r"[a-z]+:|#", one))
    return [one.partition("#")[0] for one in own]
