"""Signals and distances to the population path against the iteration (figure 3).

The dataset comes from `scbjax run fig3`: the tasks and batches of figure 1. What to see: the
paper claims that the attention of SGD leaves the path and drowns its signal, that proximal steps
stay near it, and that the value matrix is near it in all arms. With the printed numbers the last
holds, and proximal steps are nearer to the path than SGD at the same rate; but they too drift
away from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import xarray as xr
from _shared import (
    DOUBLE_COLUMN,
    add_legend,
    arms_of,
    band,
    draw_arm,
    draw_population,
    draw_stages,
    horizontal,
    linear_limits,
    main,
    population_of,
    render,
    runs_of,
    symbol,
    tidy,
    title,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STUDY: Final = "fig3"
POPULATION: Final = {
    "alpha_value": "population_alpha_value",
    "alpha_attention": "population_alpha_attention",
}
NAMES: Final = {
    "alpha_value": "signal in the value matrix",
    "alpha_attention": "signal in the attention",
    "delta_value": "distance to the path",
    "delta_attention": "distance to the path",
}
VARIABLES: Final = ("stage", *NAMES, *POPULATION.values())


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    data = tidy(dataset)
    arms = arms_of(data)
    figure = Figure(figsize=(DOUBLE_COLUMN, 4.4))
    grid = figure.subplots(2, 2, sharex=True)
    for axes, variable in zip(grid.flat, NAMES, strict=True):
        draw_panel(axes, data, variable)
        axes.set_ylabel(f"{NAMES[variable]}, {symbol(data, variable)}")
    for axes in grid[0]:
        title(axes, "", data, arms)
    for axes in grid[1]:
        axes.set_xlabel("iteration")
    add_legend(figure, data, arms, "population")
    return figure


def draw_panel(axes: Axes, data: xr.Dataset, variable: str) -> None:
    """Draw one variable of every arm with, for a signal, its population path."""
    arms = arms_of(data)
    x = [horizontal(data, arm, "step") for arm in arms]
    drawn = [runs_of(data, variable, arm) for arm in arms]
    for here, values, arm in zip(x, drawn, arms, strict=True):
        draw_arm(axes, here, values, arm)
    paths = []
    if variable in POPULATION:
        paths = [band(population_of(data, POPULATION[variable], arm))[1] for arm in arms]
        draw_population(axes, x, paths, arms)
    axes.set_ylim(linear_limits([*drawn, *(path[None] for path in paths)]))
    draw_stages(axes, data, arms, x)


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("fig3", STUDY, VARIABLES, plot, results, out)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__))
