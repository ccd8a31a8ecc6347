"""The look that all charts of the package share, and their rendering without pyplot's global state or a display.

Needs matplotlib.
"""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# Ten colours told apart under the common colour-vision deficiencies (Petroff 2021, arXiv 2107.02270).
PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
MARKERS = "osD^vPX*hp"
LINES = ("-", "--", ":")
GRID: dict[str, Any] = {"color": "#e3e6ea", "linewidth": 0.8}
INK, SOFT = "#1f2328", "#57606a"
STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a929c",
    "axes.labelcolor": "#30363d",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    # Glyphs as outlines: the same picture on a machine without the font.
    "svg.fonttype": "path",
    "svg.hashsalt": "hybrid-kernels",
    # A $ in a label is a $.
    "text.parse_math": False,
}


def colour(index: int) -> str:
    """The colour of the entry at this place, the same in every figure and table."""
    return PALETTE[index % len(PALETTE)]


def marker(index: int) -> str:
    """After a round of colours the order is shifted: no two of a hundred entries share colour and marker."""
    return MARKERS[(index + 3 * (index // len(PALETTE))) % len(MARKERS)]


def line_style(index: int) -> str:
    """Another one for each round of colours."""
    return LINES[index // len(PALETTE) % len(LINES)]


def svg(figure: Figure) -> str:
    """SVG text of a figure that was drawn in `STYLE`; the same figure always gives the same text."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue().decode()


def png(figure: Figure, dpi: int = 160) -> bytes:
    """PNG on white, for pages of any background; the same figure always gives the same bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
