"""Names beside points, where they cover nothing as far as there is room.

Greedy: the most crowded point first; for each, the cheapest of some places around it.
What a place costs: the area it shares with names that stand already, marks, intervals
and the outside of the axes; then its distance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from loralab.reporting.style import HAIR, HALO, MARK, PALE_INK, SMALL

Place: TypeAlias = tuple[float, float]
Segment: TypeAlias = tuple[Place, Place]

_DISTANCES = (1.0, 1.8, 3.0, 4.5, 6.5)
"""Of a name from its point, in marks."""
_DIRECTIONS = 16
_LEADER_FROM = 1.5
"""A name further than this, in marks, is tied to its point with a line."""
_OUTSIDE, _OVER_NAME, _OVER_MARK, _OVER_LINE = 20.0, 10.0, 8.0, 4.0
"""How bad it is to cover what, by the share of the name's area."""
_NEARER_TO_ANOTHER, _DISTANCE_COST = 0.3, 7.0
"""How bad it is to stand nearer to another point, or far (by the axes' width)."""


_MARK_SHARE = 0.8
"""Of a marker that a label must not cover."""


def _overlap(first: Bbox, second: Bbox) -> float:
    width: float = min(first.x1, second.x1) - max(first.x0, second.x0)
    height: float = min(first.y1, second.y1) - max(first.y0, second.y0)
    return max(width, 0.0) * max(height, 0.0)


def _boxes(width: float, height: float, x: float, y: float, mark: float) -> list[Bbox]:
    """Return the places around a point, nearest first, right of it first."""
    found = []
    for distance in _DISTANCES:
        for step in range(_DIRECTIONS):
            angle = math.tau * step / _DIRECTIONS
            across, up = math.cos(angle), math.sin(angle)
            centre_x = x + across * (width / 2 + distance * mark)
            centre_y = y + up * (height / 2 + distance * mark)
            corner = (centre_x - width / 2, centre_y - height / 2)
            found.append(Bbox.from_bounds(*corner, width, height))
    return found


def _distance(box: Bbox, x: float, y: float) -> float:
    """Return how far a point is from a box."""
    across = max(box.x0 - x, 0.0, x - box.x1)
    return math.hypot(across, max(box.y0 - y, 0.0, y - box.y1))


def _pixel(axes: Axes, place: Place) -> Place:
    x, y = axes.transData.transform(place)
    return float(x), float(y)


def _around(x: float, y: float, half: float) -> Bbox:
    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def _line_box(axes: Axes, segment: Segment, half: float) -> Bbox:
    """Return the box around a level or upright line, in pixels."""
    corners = axes.transData.transform(segment)
    return Bbox([np.min(corners, axis=0) - half, np.max(corners, axis=0) + half])


def place_labels(
    axes: Axes,
    names: Sequence[str],
    places: Sequence[Place],
    segments: Sequence[Segment],
    colours: Sequence[str],
) -> None:
    """Write each name beside its point.

    Args:
        axes: Already laid out.
        names: [N].
        places: The points, [N], in data.
        segments: Upright and level lines that names should not cross, in data.
        colours: Of the names, [N].
    """
    scale = axes.figure.dpi / 72
    mark = MARK * scale
    inside = axes.get_window_extent()
    pixels = [_pixel(axes, place) for place in places]
    marks = [_around(x, y, mark * _MARK_SHARE) for x, y in pixels]
    lines = [_line_box(axes, segment, scale) for segment in segments]
    standing: list[Bbox] = []

    def cost(box: Bbox, x: float, y: float) -> float:
        area = box.width * box.height
        covered = _OUTSIDE * (area - _overlap(box, inside))
        covered += _OVER_NAME * sum(_overlap(box, other) for other in standing)
        covered += _OVER_MARK * sum(_overlap(box, other) for other in marks)
        covered += _OVER_LINE * sum(_overlap(box, other) for other in lines)
        own = _distance(box, x, y)
        nearest = min(_distance(box, *other) for other in pixels)
        nearer = _NEARER_TO_ANOTHER if nearest < own else 0.0
        return covered / area + nearer + _DISTANCE_COST * own / inside.width

    for index in _crowded_first(pixels):
        x, y = pixels[index]
        text = axes.annotate(names[index], places[index], fontsize=SMALL)
        text.set_color(colours[index])
        size = text.get_window_extent()
        box = min(
            _boxes(size.width, size.height, x, y, mark),
            key=lambda box: cost(box, x, y),
        )
        standing.append(box)
        text.remove()
        _write(axes, names[index], places[index], (x, y), box, colours[index])


def _crowded_first(pixels: Sequence[Place]) -> list[int]:
    def room(index: int) -> float:
        others = [p for n, p in enumerate(pixels) if n != index]
        return min((math.dist(pixels[index], other) for other in others), default=0.0)

    return sorted(range(len(pixels)), key=room)


def _write(
    axes: Axes,
    name: str,
    place: Place,
    pixel: Place,
    box: Bbox,
    colour: str,
) -> None:
    scale = axes.figure.dpi / 72
    x, y = pixel
    far = _distance(box, x, y) > _LEADER_FROM * MARK * scale
    line = {"arrowstyle": "-", "color": PALE_INK, "linewidth": HAIR, "shrinkA": 0}
    axes.annotate(
        name,
        place,
        xytext=((box.x0 - x) / scale, (box.y0 - y) / scale),
        textcoords="offset points",
        fontsize=SMALL,
        color=colour,
        ha="left",
        va="bottom",
        arrowprops=line | {"shrinkB": MARK} if far else None,
        annotation_clip=False,
        path_effects=[withStroke(linewidth=HALO, foreground="white")],
    )
