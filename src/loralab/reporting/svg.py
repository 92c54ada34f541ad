"""A figure as SVG that may stand inside an HTML page beside others.

matplotlib writes a whole document: a style sheet for every element of the page, ids
that another figure has too (glyphs, clip paths), addresses of name spaces. Here ids get
the figure's own prefix, the style sheet becomes two attributes, name spaces go.
"""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

from matplotlib.figure import Figure

from loralab.reporting.style import METADATA, style

_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_LINES = {"stroke-linejoin": "round", "stroke-linecap": "butt"}
_CSS_PIXELS_PER_POINT = 96 / 72


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]


def _attribute(name: str, value: str, prefix: str) -> tuple[str, str]:
    name = _local(name)
    if name == "id":
        return name, prefix + value
    if name == "href" and value.startswith("#"):
        return name, f"#{prefix}{value[1:]}"
    return name, _REFERENCE.sub(rf"url(#{prefix}\1)", value)


def _bare(element: ElementTree.Element, prefix: str) -> ElementTree.Element:
    """Return the element without name spaces, style sheets and white space."""
    attributes = element.attrib.items()
    made = ElementTree.Element(
        _local(element.tag), dict(_attribute(k, v, prefix) for k, v in attributes)
    )
    made.extend(
        _bare(child, prefix)
        for child in element
        if _local(child.tag) not in ("style", "metadata")
    )
    made.text = (element.text or "").strip() or None
    return made


def inline_svg(figure: Figure, prefix: str, alt: str) -> str:
    """Return a figure as an ``svg`` element for an HTML page.

    Args:
        figure: Made by `loralab.reporting.figures`.
        prefix: Of all its ids; another one for each figure of a page.
        alt: What the figure shows, for those who do not see it.
    """
    out = io.BytesIO()
    with style():
        figure.savefig(out, format="svg", metadata=METADATA["svg"])
    root = _bare(ElementTree.fromstring(out.getvalue()), prefix)
    width = float(root.attrib["width"].removesuffix("pt")) * _CSS_PIXELS_PER_POINT
    title = ElementTree.Element("title", {"id": f"{prefix}title"})
    title.text = alt
    root.insert(0, title)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "width": f"{width:.0f}",
        "style": f"--natural: {width:.0f}px",
        "role": "img",
        "aria-label": alt,
        **_LINES,
    }
    return ElementTree.tostring(root, encoding="unicode")
