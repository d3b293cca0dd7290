"""Signals and distances to the truth at N = 100 and 500, T = 100000, one row of panels for each N.

The dataset comes from `scbjax run scale`: mini-batches at the sizes that the paper only simulated.
What to see: whether the signals follow the population path through stage 1 and on to the end of
stage 2, and whether rounding then finds the attention.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr
from _arms import Arm, arms_of
from _axes import linear_limits
from _curves import draw_arms, draw_population, draw_stages
from _data import symbol, tidy
from _distances import ATTENTION, VALUE, population_distance
from _legend import add_legend, note_findings
from _numbers import Table, last, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import band, horizontal, median, population_of, runs_of, stage_ends
from _stars import draw_rounded
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

STUDY: Final = "scale"
PATHS: Final = {
    "alpha_value": VALUE.population_alpha,
    "alpha_attention": ATTENTION.population_alpha,
    "value_distance": VALUE.population_alpha,
    "attention_distance": ATTENTION.population_alpha,
}
# How far the population path is from the truth follows from the signal that there is to learn.
LEARNED: Final = {"value_distance": VALUE.signal, "attention_distance": ATTENTION.signal}
FEW: Final = MaxNLocator(nbins=3, steps=[1, 2, 5, 10])  # ticks, of a narrow panel
VARIABLES: Final = ("stage", *PATHS, ATTENTION.rounded, *PATHS.values(), *LEARNED.values())


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    data = tidy(dataset, ["num_tokens"])
    arms = arms_of(data)
    sizes = data["num_tokens"].to_numpy()
    figure = Figure(figsize=(DOUBLE_COLUMN, 0.8 + 1.6 * len(sizes)))
    grid = figure.subplots(len(sizes), len(PATHS), squeeze=False, sharex="col")
    names = [f"$N = {size}$" if "num_tokens" in dataset.coords else "" for size in sizes]
    for row in range(len(sizes)):
        panel = data.isel(num_tokens=row)
        for axes, variable in zip(grid[row], PATHS, strict=True):
            draw_panel(axes, panel, arms, variable)
            axes.set_title(symbol(data, variable) if row == 0 else "", pad=8)
        grid[row, 0].set_ylabel(names[row])
    panels = [(name, data.isel(num_tokens=row), arms) for row, name in enumerate(names)]
    note_findings(figure, panels, "iteration")
    # V is not refitted here: the samples would be too many.
    add_legend(figure, data, arms, "population", "rounded alone")
    return figure


def draw_panel(axes: Axes, panel: xr.Dataset, arms: list[Arm], variable: str) -> None:
    """Draw one variable of every arm, its population path and, for the attention, the stars."""
    x = [horizontal(panel, arm, "step") for arm in arms]
    drawn = [runs_of(panel, variable, arm) for arm in arms]
    draw_arms(axes, x, drawn, arms)
    draw_population(axes, x, [path_of(panel, variable, arm) for arm in arms], arms)
    low, high = linear_limits(drawn)
    axes.set_ylim(0.0 if variable in LEARNED else low, high)
    if variable == ATTENTION.drawn:
        finals = [runs_of(panel, ATTENTION.rounded, arm)[:, -1] for arm in arms]
        draw_rounded(axes, x[0], finals, arms)
        axes.set_xticks([tick for tick in FEW.tick_values(x[0][0], x[0][-1]) if tick <= x[0][-1]])
    draw_stages(axes, panel, arms, x)


def path_of(panel: xr.Dataset, variable: str, arm: Arm) -> NDArray[np.float64]:
    """Give a variable on the population path [steps], median over runs."""
    alphas = population_of(panel, PATHS[variable], arm)
    if variable in LEARNED:
        return population_distance(alphas, runs_of(panel, LEARNED[variable], arm))
    middle: NDArray[np.float64] = band(alphas)[1]
    return middle


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate when the stages end, and where the runs do."""
    data = tidy(dataset, ["num_tokens"])
    rows = []
    for place, size in enumerate(data["num_tokens"].to_numpy()):
        panel = data.isel(num_tokens=place)
        for arm in arms_of(panel):
            x, stage = horizontal(panel, arm, "step"), runs_of(panel, "stage", arm)
            ends = [stage_ends(x, stage, number) for number in (1, 2)]
            steps = [median(values) for values in ends]
            names = (ATTENTION.rounded, "attention_distance", "value_distance")
            medians = [median(last(panel, name, arm)) for name in names]
            rows.append([size, arm.label, *steps, *medians])
    columns = ("N", "arm", "stage 1 ends at step", "stage 2", "rounded, to Q", "to Q", "to P")
    return [Table("Stages and distances at the end", columns, rows)]


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("scale", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
