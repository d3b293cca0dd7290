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

import numpy as np
import xarray as xr
from _arms import Arm, arms_of, columns_of
from _axes import linear_limits, samples_above
from _curves import draw_arms, draw_population, draw_stages
from _data import POPULATION, Values, symbol, tidy
from _legend import add_legend, note_findings
from _numbers import Table, by_settings, intervals_table, last, runs_in, sgd_beside, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import band, horizontal, largest, median, population_of, runs_of, stage_ends
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STUDY: Final = "fig1"
NAMES: Final = {
    "alpha_value": "signal in $V$",
    "alpha_attention": "signal in $A$",
    "delta_value": "$V$ off the path",
    "delta_attention": "$A$ off the path",
}
VARIABLES: Final = ("stage", "samples", *NAMES, *POPULATION.values())
NUMBERS: Final = (*VARIABLES, "pattern_signal")


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
        axes.set_title(column.title, pad=8)
        samples_above(axes, data, column.arms)
    for axes in grid[-1]:
        axes.set_xlabel("iteration")
    note_findings(figure, [(column.title, data, column.arms) for column in columns])
    sizes = [len(column.arms) for column in columns]
    add_legend(figure, data, arms_of(data, "geometry"), "population", panels=sizes)
    return figure


def draw_panel(axes: Axes, data: xr.Dataset, variable: str, arms: Sequence[Arm]) -> None:
    """Draw one variable of some arms with, for a signal, their population path."""
    x = [horizontal(data, arm, "step") for arm in arms]
    draw_arms(axes, x, [runs_of(data, variable, arm) for arm in arms], arms)
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


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate the signals at the end of stage 1 and what is off the path."""
    data = tidy(dataset)
    rows, paths, spread = [], [], []
    for settings, arm in by_settings(data):
        stage, x = runs_of(data, "stage", arm), horizontal(data, arm, "step")
        ends = stage_ends(x, stage, 1)
        switch = median(ends)
        here = int(np.searchsorted(x, switch)) if ends.size else -1
        size = np.abs(runs_of(data, "alpha_value", arm)[:, here])
        path = median(runs_of(data, POPULATION["alpha_value"], arm)[:, here])
        rows.append([settings, arm.label, switch, median(size), largest(size), path])
        off = [runs_of(data, f"delta_{part}", arm) for part in ("value", "attention")]
        other = sgd_beside(data, arm)
        lower = "" if other is None else (off[1] < runs_of(data, "delta_attention", other))[:, -1]
        kept = np.isfinite(off[0]).all(axis=1)  # a run that diverges is far off before it does
        numbers_off = [largest(off[0][kept]), *(median(values[:, -1]) for values in off)]
        signals = [median(last(data, name, arm)) for name in list(NAMES)[:2]]
        lowered = "" if other is None else np.sum(lower)
        paths.append([settings, arm.label, *numbers_off, lowered, *signals])
        told = [size, off[1][:, -1], *(last(data, name, arm) for name in list(NAMES)[:2])]
        spread.append(((settings, arm.label), told))
    reach = float(np.sqrt(median(data["pattern_signal"])))
    columns = ("settings", "arm", "end of stage 1", "size of alpha_V", "largest", "population")
    others = ("settings", "arm", "Delta_V, largest", "Delta_V", "Delta_A", "lower than SGD")
    return [
        Table(f"Signal at the median end of stage 1, medians of {runs_in(data)}", columns, rows),
        Table(
            f"Off the path: largest of all records; at the last iteration, medians; "
            f"|Q - 1/T| = {reach:.3g}",
            (*others, "alpha_V", "alpha_A"),
            paths,
        ),
        intervals_table(
            "The size of alpha_V at the median end of stage 1, and the end",
            ("settings", "arm"),
            ("size of alpha_V", "Delta_A", "alpha_V", "alpha_A"),
            spread,
        ),
    ]


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("fig3", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, NUMBERS, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
