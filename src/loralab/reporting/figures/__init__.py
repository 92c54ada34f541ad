"""Figures of results: frozen data in, a matplotlib figure out, an interval on each."""

from loralab.reporting.figures.curves import Curve, learning_curves
from loralab.reporting.figures.files import save
from loralab.reporting.figures.forest import ForestRow, forest
from loralab.reporting.figures.heat import heat_map
from loralab.reporting.figures.pareto import Point, pareto
from loralab.reporting.figures.strips import Strip, strip

__all__ = [
    "Curve",
    "ForestRow",
    "Point",
    "Strip",
    "forest",
    "heat_map",
    "learning_curves",
    "pareto",
    "save",
    "strip",
]
