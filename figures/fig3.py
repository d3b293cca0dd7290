"""Signals and distances to the population path against the iteration (figure 3).

The dataset comes from `scbjax run fig1`, which figures 1 and 4 are drawn from too. What to see: the
paper claims that the attention of SGD leaves the path and drowns its signal, that proximal steps
stay near it, and that the value matrix is near it in all arms. With the printed numbers the last
holds, and proximal steps are little nearer to the path than SGD at the same rate. With settings
that work all of it holds: the larger lambda, the smaller what is off the path.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import xarray as xr
from _shared import (
    DOUBLE_COLUMN,
    POPULATION,
    Arm,
    Values,
    add_legend,
    arms_of,
    band,
    columns_of,
    draw_arm,
    draw_population,
    draw_stages,
    horizontal,
    linear_limits,
    main,
    population_of,
    render,
    runs_of,
    samples_above,
    symbol,
    tidy,
    title,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STUDY: Final = "fig1"
NAMES: Final = {
    "alpha_value": "signal in the value matrix",
    "alpha_attention": "signal in the attention",
    "delta_value": "distance to the path",
    "delta_attention": "distance to the path",
}
VARIABLES: Final = ("stage", "samples", *NAMES, *POPULATION.values())


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    data = tidy(dataset)
    columns = columns_of(data)
    figure = Figure(figsize=(DOUBLE_COLUMN, 7.2))
    grid = figure.subplots(len(NAMES), len(columns), squeeze=False, sharex=True, sharey="row")
    for row, variable in zip(grid, NAMES, strict=True):
        for axes, column in zip(row, columns, strict=True):
            draw_panel(axes, data, variable, column.arms)
        row[0].set_ylim(row_limits(data, variable))
        row[0].set_ylabel(f"{NAMES[variable]}\n{symbol(data, variable)}")
    for axes, column in zip(grid[0], columns, strict=True):
        title(axes, column.title, data, column.arms)
        samples_above(axes, data, column.arms)
    for axes in grid[-1]:
        axes.set_xlabel("iteration")
    add_legend(figure, data, arms_of(data, "geometry"), "population")
    return figure


def draw_panel(axes: Axes, data: xr.Dataset, variable: str, arms: Sequence[Arm]) -> None:
    """Draw one variable of some arms with, for a signal, their population path."""
    x = [horizontal(data, arm, "step") for arm in arms]
    for here, arm in zip(x, arms, strict=True):
        draw_arm(axes, here, runs_of(data, variable, arm), arm)
    if variable in POPULATION:
        draw_population(axes, x, [path_of(data, variable, arm) for arm in arms], arms)
    draw_stages(axes, data, arms, x)


def path_of(data: xr.Dataset, variable: str, arm: Arm) -> Values:
    """Give a signal of the population path, median over runs [steps]."""
    median: Values = band(population_of(data, POPULATION[variable], arm))[1]
    return median


def row_limits(data: xr.Dataset, variable: str) -> tuple[float, float]:
    """Choose limits that hold a variable of all arms, and their population paths."""
    arms = arms_of(data, "geometry")
    drawn = [runs_of(data, variable, arm) for arm in arms]
    if variable in POPULATION:
        drawn += [path_of(data, variable, arm)[None] for arm in arms]
    return linear_limits(drawn)


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("fig3", STUDY, VARIABLES, plot, results, out)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__))
