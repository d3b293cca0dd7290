"""Looks: sizes, colours, line styles, and percentiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

BAND: Final = (10.0, 50.0, 90.0)
WIDTH: Final = 7.0  # inches, two columns of a journal
HEIGHT: Final = 2.2  # of a row of panels
ROW: Final = 0.17  # of a line of text
LOG_RANGE: Final = 8.0  # from the least to the largest, what is positive gets a logarithmic axis

# Colours of Okabe & Ito, and line styles that tell them apart in print.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
_DASHES: Final[tuple[Any, ...]] = ("-", (0, (4, 1.2)), (0, (4, 1, 1, 1)), (0, (1, 1)))
STYLE: Final[Mapping[str, Any]] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.hashsalt": "scbjax",
}


def palette_of(count: int) -> tuple[list[Any], list[Any]]:
    """Colours and line styles; of many arms, colours in the order of the arms."""
    if count <= len(COLOURS):
        return list(COLOURS), [_DASHES[place % len(_DASHES)] for place in range(count)]
    from matplotlib import colormaps

    # The lightest colours can't be seen on white.
    colours = list(colormaps["viridis"](np.linspace(0.0, 0.9, count)))
    return colours, [_DASHES[place % len(_DASHES)] for place in range(count)]
