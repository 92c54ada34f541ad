"""Figures of results: frozen data in, a matplotlib figure out, an interval on each."""

from loralab.reporting.figures.curves import Curve, learning_curves
from loralab.reporting.figures.decay import Decay, decay
from loralab.reporting.figures.files import save
from loralab.reporting.figures.forest import ForestRow, forest
from loralab.reporting.figures.heat import heat_map, similarity_map
from loralab.reporting.figures.panels import MergingPanels, merging_panels
from loralab.reporting.figures.pareto import Point, Zone, pareto
from loralab.reporting.figures.performance import efficiency, performance
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
    "Decay",
    "ForestRow",
    "MergingPanels",
    "Point",
    "RankHistory",
    "Spectrum",
    "Strip",
    "Zone",
    "decay",
    "efficiency",
    "forest",
    "heat_map",
    "learning_curves",
    "merging_panels",
    "pareto",
    "performance",
    "rank_history",
    "rank_map",
    "read_rank_history",
    "save",
    "similarity_map",
    "spectra_map",
    "strip",
]
