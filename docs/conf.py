"""The site: `make docs`. What is read off the code is made in generated.py."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]\[]+)\]\((?P<path>[^)\s:#]+)(?:#[^)]*)?\)")
sys.path.insert(0, str(HERE))

import pypandoc  # noqa: E402

import generated  # noqa: E402
import loralab  # noqa: E402

project = "loralab"
author = "The loralab authors"
project_copyright = author
release = version = loralab.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "loralab"
html_copy_source = False
# a table of 100 columns, as a terminal shows it, fits
html_theme_options = {"light_css_variables": {"code-font-size": "0.75rem"}}
html_show_copyright = False

nitpicky = True
# Types of other libraries, and ours that are no public name, have no page here.
nitpick_ignore_regex = [(r"py:(class|obj|data|exc|func|meth|mod|attr)", r".*")]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
default_role = "code"  # docstrings set names in single backticks

copybutton_exclude = ".linenos, .gp, .go"


def fill(app: Any, name: str, source: list[str]) -> None:
    """Put what is generated where a page has ``<!-- generated: NAME -->``."""
    source[0] = outside(generated.fill(source[0]), (HERE / name).parent)


def outside(page: str, folder: Path) -> str:
    """Return a page whose links to files that the site has not are their paths.

    On a page of the repository they lead there; the site is also read without it.
    """

    def written(match: re.Match[str]) -> str:
        target = (folder / match["path"]).resolve()
        if HERE in target.parents or not target.exists():
            return match[0]
        return f"{match['text']} (`{target.relative_to(HERE.parent).as_posix()}`)"

    return LINK.sub(written, page)


@cache
def mathml(formula: str, display: bool) -> str:
    """Return a formula as MathML: no script, and no network, shows it."""
    fence = "$$" if display else "$"
    html = pypandoc.convert_text(
        f"{fence}{formula.strip()}{fence}",
        "html",
        format="markdown",
        extra_args=["--mathml"],
    )
    return html.strip().removeprefix("<p>").removesuffix("</p>")


def visit_inline(translator: Any, node: Any) -> None:
    """Write a formula within a line."""
    import docutils.nodes

    translator.body.append(mathml(node.astext(), display=False))
    raise docutils.nodes.SkipNode


def visit_display(translator: Any, node: Any) -> None:
    """Write a formula on lines of its own."""
    import docutils.nodes

    formula = mathml(node.astext(), display=True)
    translator.body.append(f"<div class='math' style='margin: 1em 0'>{formula}</div>")
    raise docutils.nodes.SkipNode


html_math_renderer = "mathml"


def setup(app: Any) -> None:
    """Register both with Sphinx."""
    app.connect("source-read", fill)
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
