"""Figures of results: frozen data in, a matplotlib figure out, an interval on each."""

from loralab.reporting.figures.curves import Curve, learning_curves
from loralab.reporting.figures.files import save
from loralab.reporting.figures.forest import ForestRow, forest
from loralab.reporting.figures.heat import heat_map
from loralab.reporting.figures.pareto import Point, pareto
from loralab.reporting.figures.rank_history import (
    RankHistory,
    rank_history,
    read_rank_history,
)
from loralab.reporting.figures.ranks import rank_map
from loralab.reporting.figures.spectra import Spectrum, spectra_map
from loralab.reporting.figures.strips import Strip, strip

__all__ = [
    "Curve",
    "ForestRow",
    "Point",
    "RankHistory",
    "Spectrum",
    "Strip",
    "forest",
    "heat_map",
    "learning_curves",
    "pareto",
    "rank_history",
    "rank_map",
    "read_rank_history",
    "save",
    "spectra_map",
    "strip",
]
