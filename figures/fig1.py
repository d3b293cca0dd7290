"""Distances to the truth against the iteration, proximal arm and SGD at two rates (figure 1).

The dataset comes from `scbjax run fig1`: the paper's main setting as printed, over many tasks.
What to see: whether, after the end of stage 1, proximal steps fall faster than SGD and their
rounded solution is near 0, as the paper claims of one task. With the printed numbers they do not:
the two arms at one rate nearly coincide, none is near the truth after 1000 iterations, and some
runs go to the mirrored solution. SGD at the lower rate is slow, as claimed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import xarray as xr
from _shared import (
    ATTENTION,
    DOUBLE_COLUMN,
    VALUE,
    add_legend,
    arms_of,
    distance_limits,
    draw_distance,
    main,
    render,
    symbol,
    tidy,
    title,
)
from matplotlib.figure import Figure

STUDY: Final = "fig1"
VARIABLES: Final = (*VALUE.variables, *ATTENTION.variables)


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    data = tidy(dataset)
    arms = arms_of(data)
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.9))
    for axes, distance in zip(figure.subplots(1, 2), (VALUE, ATTENTION), strict=True):
        axes.set_ylim(distance_limits(data, distance))
        draw_distance(axes, data, arms, distance)
        title(axes, "", data, arms)
        axes.set_xlabel("iteration")
        axes.set_ylabel(f"{distance.name}, {symbol(data, distance.drawn)}")
    add_legend(figure, data, arms, "population", "rounded")
    return figure


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("fig1", STUDY, VARIABLES, plot, results, out)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__))
