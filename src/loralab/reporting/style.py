"""How every figure looks, as data; and all constants of layout.

Colours are Okabe & Ito's (2008), safe for the colour-blind; each comes with a marker
and a dash of its own, so that a grey print says the same. Text is drawn as it
stands (a `$` in a name starts no formula). Files of the same data are the same bytes:
no date, no random ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE, SKY, BLACK = "#CC79A7", "#E69F00", "#56B4E9", "#000000"
COLOURS: Final = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: Final[tuple[Any, ...]] = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1.2)),
    (0, (6, 1.5, 1, 1.5)),
    (0, (3, 1, 1, 1, 1, 1)),
)
INK, PALE_INK, GRID, ZONE = "#1a1a1a", "#5c5c5c", "#e3e3e3", "#ececec"
SEQUENTIAL, DIVERGING = "cividis", "RdBu_r"
HATCH = "////"

# inches
COLUMN_WIDTH, COLUMN_HEIGHT = 5.2, 3.4
PAGE_WIDTH, PANEL_HEIGHT = 7.2, 2.8
PLOT_WIDTH, ROW_HEIGHT, STRIP_HEIGHT, MARGIN = 2.5, 0.24, 0.46, 0.12
AXIS_HEIGHT, NOTE_HEIGHT = 0.53, 0.15
LEGEND_ROW, TITLE_LINE = 0.17, 0.19
CELL_WIDTH, CELL_HEIGHT, CELL_PAD = 0.5, 0.34, 0.12
LEVEL_NAMES = 0.8
BAR_WIDTH, BAR_SHARE = 1.0, 0.05

# points
TEXT, SMALL = 9.0, 8.0
LINE, THIN, HAIR, HALO = 1.6, 0.9, 0.6, 2.0
INTERVAL_LINE = 1.8
MARK, DOT = 5.0, 4.2
GAP, COLUMN_GAP = 6.0, 14.0
INDENT = 8.0
LEGEND_KEY = 46.0

# shares
BAND, PALE, HALF, FULL = 0.18, 0.4, 0.5, 1.0
DPI = 200

RC: Final[dict[str, Any]] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": TEXT,
    "axes.labelsize": TEXT,
    "axes.titlesize": TEXT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "text.color": INK,
    "text.parse_math": False,
    "text.usetex": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": PALE_INK,
    "axes.linewidth": HAIR,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "axes.xmargin": 0.03,
    "axes.ymargin": 0.05,
    "grid.color": GRID,
    "grid.linewidth": HAIR,
    "xtick.color": PALE_INK,
    "ytick.color": PALE_INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": HAIR,
    "ytick.major.width": HAIR,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "lines.linewidth": LINE,
    "lines.markersize": MARK,
    "lines.solid_capstyle": "butt",
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "hatch.linewidth": HAIR,
    "hatch.color": PALE_INK,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 100,
    "savefig.dpi": DPI,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "loralab",
    "path.simplify": True,
}

METADATA: Final[dict[str, dict[str, Any]]] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    "png": {"Software": None},
}
"""What a file says of itself: nothing, so that its bytes are its data's."""


@dataclass(frozen=True)
class Look:
    """How one series is drawn.

    Attributes:
        colour: As ``#rrggbb``.
        marker: matplotlib's marker.
        dash: matplotlib's line style.
    """

    colour: str
    marker: str
    dash: Any

    @property
    def line(self) -> dict[str, Any]:
        """How matplotlib draws a line of this look, its markers ringed in white."""
        return {
            "color": self.colour,
            "linestyle": self.dash,
            "marker": self.marker,
            "markersize": MARK,
            "markeredgecolor": "white",
            "markeredgewidth": HAIR,
        }


def look(index: int) -> Look:
    """Return the look of the series with this number; 280 of them differ."""
    return Look(
        COLOURS[index % len(COLOURS)],
        MARKERS[index % len(MARKERS)],
        DASHES[index % len(DASHES)],
    )


@contextmanager
def style() -> Iterator[None]:
    """Draw and save in this style, whatever the user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        rc: dict[Any, Any] = RC
        matplotlib.rcParams.update(rc)
        yield
