"""Signals and distances to the population path at N = 100 and 500, T = 100000 (figure 6).

The dataset comes from `scbjax run fig6`: simulated runs, in which a few hundred positions of the
context stand for all of them. Where `scbjax run scale` has been run too, its runs on real
mini-batches are drawn as points over them: same tasks, same settings, other noise. What to see: the
paper claims that what figure 3 shows holds at these sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr
from _arms import Arm, arms_of
from _axes import linear_limits
from _curves import draw_arms, draw_population, draw_stages
from _data import POPULATION, open_study, setting, symbol, tidy
from _legend import REAL_LOOK, add_legend, note_findings
from _numbers import Table, intervals_table, last, runs_in, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import band, horizontal, largest, median, population_of, runs_of, stage_ends
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STUDY: Final = "fig6"
REAL: Final = "scale"
NAMES: Final = {
    "alpha_value": "signal in $V$",
    "alpha_attention": "signal in $A$",
    "delta_value": "$V$ off the path",
    "delta_attention": "$A$ off the path",
}
VARIABLES: Final = ("stage", *NAMES, *POPULATION.values())
# Settings in which a real run must agree to be drawn over the simulated ones.
SAME: Final = ("context_length", "batch_size", "learning_rate_1", "learning_rate_2", "l1")
DISTANCES: Final = ("value_distance", "attention_distance", "rounded_attention_distance")
NUMBERS: Final = (*VARIABLES, *DISTANCES)


def plot(dataset: xr.Dataset, real: xr.Dataset | None = None) -> Figure:
    """Make the figure from the study's dataset and, if there is one, that of real runs."""
    data = tidy(dataset, ["num_tokens"])
    arms, sizes = arms_of(data), data["num_tokens"].to_numpy()
    panels = [data.isel(num_tokens=index) for index in range(sizes.size)]
    figure = Figure(figsize=(DOUBLE_COLUMN, 1.5 * len(NAMES) + 0.6))
    grid = figure.subplots(len(NAMES), sizes.size, sharex=True, sharey="row", squeeze=False)
    for row, variable in zip(grid, NAMES, strict=True):
        drawn = [runs_of(panel, variable, arm) for panel in panels for arm in arms]
        row[0].set_ylim(linear_limits(drawn))
        for axes, panel in zip(row, panels, strict=True):
            draw_panel(axes, panel, variable)
        row[0].set_ylabel(f"{NAMES[variable]}, {symbol(data, variable)}")
    names = [f"$N = {size}$" if "num_tokens" in data.coords else "" for size in sizes]
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name, pad=8)
    note_findings(figure, [(*pair, arms) for pair in zip(names, panels, strict=True)])
    for axes in grid[-1]:
        axes.set_xlabel("iteration")
    if real is not None:
        draw_real(grid, sizes.tolist(), tidy(real, ["num_tokens"]), arms)
    add_legend(figure, data, arms, "population", *(["real"] if real is not None else []))
    return figure


def draw_panel(axes: Axes, panel: xr.Dataset, variable: str) -> None:
    """Draw one variable of every arm with, for a signal, its population path."""
    arms = arms_of(panel)
    x = [horizontal(panel, arm, "step") for arm in arms]
    draw_arms(axes, x, [runs_of(panel, variable, arm) for arm in arms], arms)
    if variable in POPULATION:
        paths = [band(population_of(panel, POPULATION[variable], arm))[1] for arm in arms]
        draw_population(axes, x, paths, arms)
    draw_stages(axes, panel, arms, x)


def draw_real(
    grid: npt.NDArray[Any], sizes: Sequence[int], data: xr.Dataset, arms: Sequence[Arm]
) -> None:
    """Draw runs on real mini-batches as points, in the colour of the arm with their optimizer."""
    looks = {arm.label.partition(",")[0]: arm.colour for arm in reversed(arms)}
    for index, size in enumerate(data["num_tokens"].to_numpy()):
        panel = data.isel(num_tokens=index)
        for own in arms_of(panel):
            colour = looks.get(own.label.partition(",")[0])
            if size not in sizes or colour is None:
                continue
            for row, variable in zip(grid, NAMES, strict=True):
                row[sizes.index(size)].plot(
                    horizontal(panel, own, "step"),
                    runs_of(panel, variable, own).T,
                    **REAL_LOOK,
                    color=colour,
                    zorder=5,
                    gid=f"real {own.index}",
                )


def same_settings(simulated: xr.Dataset, real: xr.Dataset) -> bool:
    """Tell whether two datasets were made with the same task sizes, rates and batches."""
    return all(setting(simulated, name) == setting(real, name) for name in SAME)


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate the extremes of what is drawn, and where the arms end."""
    data = tidy(dataset, ["num_tokens"])
    rows, spread = [], []
    for place, size in enumerate(data["num_tokens"].to_numpy()):
        panel = data.isel(num_tokens=place)
        for arm in arms_of(panel):
            signal, *off = (
                band(runs_of(panel, name, arm))[1]
                for name in ("alpha_value", "delta_attention", "delta_value")
            )
            x, stage = horizontal(panel, arm, "step"), runs_of(panel, "stage", arm)
            ends = [stage_ends(x, stage, number) for number in (1, 2)]
            steps = [median(values) for values in ends]
            first = median(runs_of(panel, "attention_distance", arm)[:, 0])
            finals = [median(last(panel, name, arm)) for name in DISTANCES]
            extremes = [largest(signal), signal[-1], *(largest(values) for values in off)]
            rows.append([size, arm.label, *steps, *extremes, first, *finals])
            spread.append(((size, arm.label), of_each_run(panel, arm)))
    columns = ("N", "arm", "stage 1 ends at step", "stage 2", "alpha_V, largest", "at the end")
    more = ("Delta_A, largest", "Delta_V, largest", "to Q at the start", "to P", "to Q")
    title_ = f"Simulated runs, medians of {runs_in(data)}"
    each = ("alpha_V, largest", "at the end", "Delta_A, largest", "Delta_V, largest")
    return [
        Table(title_, (*columns, *more, "rounded, to Q"), rows),
        intervals_table(
            "Simulated runs, each with its own largest values",
            ("N", "arm"),
            (*each, "to P", "to Q", "rounded, to Q"),
            spread,
        ),
    ]


def of_each_run(panel: xr.Dataset, arm: Arm) -> list[npt.NDArray[np.float64]]:
    """Give the largest values and the ends of every run, in the order of their table."""
    signal, *off = (
        runs_of(panel, name, arm) for name in ("alpha_value", "delta_attention", "delta_value")
    )
    highest = [np.max(values, axis=1) for values in (signal, *off)]
    return [
        highest[0],
        signal[:, -1],
        *highest[1:],
        *(last(panel, name, arm) for name in DISTANCES),
    ]


def beside_real(dataset: xr.Dataset, real: xr.Dataset) -> Table:
    """Tabulate how far simulated medians are from the real run of the same arm, at most."""
    simulated, measured = (tidy(each, ["num_tokens"]) for each in (dataset, real))
    rows = []
    for place, size in enumerate(simulated["num_tokens"].to_numpy()):
        panel = simulated.isel(num_tokens=place)
        others = measured.isel(num_tokens=measured["num_tokens"].to_numpy() == size)
        for arm in arms_of(panel):
            for other in arms_of(others) if others.sizes["num_tokens"] else []:
                if other.optimizer != arm.optimizer:
                    continue
                here = others.isel(num_tokens=0)
                gaps = [
                    np.abs(band(runs_of(panel, name, arm)) - band(runs_of(here, name, other)))[1]
                    for name in NAMES
                ]
                rows.append([size, arm.label, *(largest(gap) for gap in gaps)])
    columns = ("N", "arm", "alpha_V", "alpha_A", "Delta_V", "Delta_A")
    return Table("Largest distance of a simulated median from a real one", columns, rows)


def real_beside(results: Path, dataset: xr.Dataset) -> xr.Dataset | None:
    """Read the real runs of the simulated ones' settings, if they are there."""
    if not (results / REAL / f"{REAL}.nc").is_file():
        return None
    real = open_study(results, REAL, VARIABLES)
    return real if same_settings(dataset, real) else None


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""

    def with_real(dataset: xr.Dataset) -> Figure:
        return plot(dataset, real_beside(results, dataset))

    return render("fig6", STUDY, VARIABLES, with_real, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""

    def with_real(dataset: xr.Dataset) -> list[Table]:
        real = real_beside(results, dataset)
        return [*tables(dataset), *([] if real is None else [beside_real(dataset, real)])]

    return tabulate(STUDY, NUMBERS, with_real, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
