"""What all figures share: checks of what they are given, an empty figure, axes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from loralab.evaluation.intervals import Interval
from loralab.reporting.style import LEGEND_KEY, LEGEND_ROW, RC, SMALL, TEXT

Better: TypeAlias = Literal["higher", "lower"]

POINTS_PER_INCH = 72
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PLAIN_EXPONENTS = range(-3, 6)
_DECADES_WITH_STEPS, _DECADES_WITHOUT, _TICKS = 2, 0.8, 4
"""Up to how many decades 2 and 5 have ticks; below how few ticks are evenly spaced."""
_STEPS = (1.0, 2.0, 5.0)


_ROUNDING = 1e-9
"""Below this a logarithm is that of a power of ten."""


def check_label(label: str) -> str:
    """Return the label of an axis.

    Raises:
        ValueError: it does not end with a unit in parentheses.
    """
    if not re.search(r"\S \([^()]*\S[^()]*\)$", label):
        raise ValueError(
            f"label {label!r} has no unit; end it with one in parentheses, such as "
            "'accuracy (share)', 'loss (nats/token)', 'size (MB)'"
        )
    return label


def check_interval(interval: Interval, where: str) -> Interval:
    """Return the interval.

    Raises:
        ValueError: a bound is missing, not finite, or above the other.
    """
    if not isinstance(interval, Interval):
        raise ValueError(f"{where}: {interval!r} is not an Interval")
    numbers = (interval.value, interval.low, interval.high)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{where}: {interval} is not finite")
    if interval.low > interval.high:
        raise ValueError(f"{where}: {interval} has its bounds the wrong way round")
    return interval


def check_some(items: Sequence[object], what: str) -> None:
    """Refuse to draw nothing.

    Raises:
        ValueError: no items.
    """
    if not len(items):
        raise ValueError(f"no {what} to draw")


def check_better(better: str) -> None:
    """Refuse a direction that is none.

    Raises:
        ValueError: neither ``higher`` nor ``lower``.
    """
    if better not in ("higher", "lower"):
        raise ValueError(f"better is 'higher' or 'lower', not {better!r}")


def empty_figure(width: float, height: float, constrained: bool = True) -> Figure:
    """Return a figure on the Agg canvas, in inches; no global state is touched."""
    figure = Figure((width, height), layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)
    return figure


def freeze(figure: Figure) -> Figure:
    """Lay the figure out once, so that every format is laid out alike."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def text_width(text: str, size: float = TEXT, weight: str = "normal") -> float:
    """Return how wide a text is drawn, in points."""
    font = FontProperties(family=RC["font.sans-serif"], weight=weight)
    lines = [line for line in text.splitlines() if line.strip()]
    paths = [TextPath((0, 0), line, size=size, prop=font) for line in lines]
    return max((path.get_extents().x1 for path in paths), default=0.0)


def log_tick(value: float, _: object = None) -> str:
    """Return a tick of a logarithmic axis: 0.01, 5,000, 10⁶, 2×10⁶."""
    if value <= 0:  # evenly spaced ticks begin one beside the axis
        return ""
    exponent = math.floor(math.log10(value) + _ROUNDING)
    if exponent in _PLAIN_EXPONENTS:
        return f"{value:,.12g}"
    power = f"10{str(exponent).translate(_SUPERSCRIPT)}"
    mantissa = f"{value / 10**exponent:.4g}"
    return power if mantissa == "1" else f"{mantissa}×{power}"


def log_axis(axis: Axis, low: float, high: float) -> None:
    """Put ticks without formulas on a logarithmic axis from `low` to `high`."""
    decades = math.log10(high / low)
    steps = (1.0,) if decades > _DECADES_WITH_STEPS else _STEPS
    narrow = decades < _DECADES_WITHOUT
    axis.set_major_locator(MaxNLocator(_TICKS) if narrow else LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(log_tick))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def legend_above(figure: Figure, handles: Sequence[Any]) -> None:
    """Put a legend above the axes, as wide as there is room; its rows add height."""
    names = [str(handle.get_label()) for handle in handles]
    widest = max(text_width(name, SMALL) for name in names) + LEGEND_KEY
    room = figure.get_figwidth() * POINTS_PER_INCH
    columns = max(1, min(len(names), int(room // widest)))
    more_rows = math.ceil(len(names) / columns) - 1
    figure.set_figheight(figure.get_figheight() + more_rows * LEGEND_ROW)
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)


def no_spines(axes: Axes, *sides: str) -> None:
    """Take away the lines at these sides."""
    for side in sides:
        axes.spines[side].set_visible(False)
