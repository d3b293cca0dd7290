"""Distances to the truth and excess loss for three vocabulary sizes (figure 5).

The dataset comes from `scbjax run fig5`. What to see: whether proximal steps end nearer to the
truth than SGD at every N, and what the weight of the l1 norm has to be: a fixed one, or one that
follows the signal.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr
from _arms import Arm, arms_of
from _axes import log_axis, log_limits
from _curves import draw_arms, draw_stages
from _data import symbol, tidy
from _distances import ATTENTION, VALUE, distance_limits, draw_distance
from _estimates import share_interval
from _legend import add_legend, note_findings
from _numbers import Table, intervals_table, last, ranged, runs_in, sgd_beside, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import band, horizontal, median, runs_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STUDY: Final = "fig5"
LOSS: Final = "excess_loss"
VARIABLES: Final = ("samples", LOSS, *VALUE.variables, *ATTENTION.variables)
SCALE_FREE: Final = r"\,\eta\,\alpha_V"
RECOVERED: Final = 0.1  # rounded distances to P and Q below it


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    data = tidy(dataset, ["num_tokens"])
    arms = [renamed(arm, data) for arm in arms_of(data)]
    sizes = data["num_tokens"].to_numpy()
    figure = Figure(figsize=(DOUBLE_COLUMN, 6.0))
    grid = figure.subplots(3, len(sizes), squeeze=False, sharex=True)
    for row, distance in enumerate((VALUE, ATTENTION)):
        limits = distance_limits(data, distance, log=True)
        for column, axes in enumerate(grid[row]):
            log_axis(axes, limits)
            draw_distance(axes, data.isel(num_tokens=column), arms, distance)
        grid[row][0].set_ylabel(f"{distance.name}\n{symbol(data, distance.drawn)}")
    losses = [
        band(runs_of(data.isel(num_tokens=n), LOSS, arm)) for n in range(len(sizes)) for arm in arms
    ]
    for column, axes in enumerate(grid[2]):
        log_axis(axes, log_limits(losses, floor=1e-5))
        draw_loss(axes, data.isel(num_tokens=column), arms)
        axes.set_xlabel("iteration")
    grid[2][0].set_ylabel(f"excess loss\n{symbol(data, LOSS)}")
    names = [f"$N = {size}$" for size in sizes]
    for name, axes in zip(names, grid[0], strict=True):
        axes.set_title(name, pad=8)
    panels = [data.isel(num_tokens=column) for column in range(len(sizes))]
    note_findings(figure, [(*pair, arms) for pair in zip(names, panels, strict=True)])
    for axes in grid[:, 1:].flat:
        axes.tick_params(labelleft=False)
    add_legend(figure, data, arms, "population", "rounded")
    return figure


def draw_loss(axes: Axes, panel: xr.Dataset, arms: list[Arm]) -> None:
    """Draw the excess loss of every arm; it can only be seen where it is above zero."""
    x = [horizontal(panel, arm, "step") for arm in arms]
    draw_arms(axes, x, [runs_of(panel, LOSS, arm) for arm in arms], arms)
    draw_stages(axes, panel, arms, x)


def renamed(arm: Arm, data: xr.Dataset) -> Arm:
    """Name an arm by its threshold: a number, or a multiple of the rate times the signal."""
    label = arm.label
    if "l1_scaling" in data.coords:
        scaling = str(data["l1_scaling"].to_numpy()[arm.index])
        parts = [part for part in label.split(", ") if not part.startswith("l1_scaling")]
        label = ", ".join(parts)
        if scaling == "signal":
            label = f"{label}${SCALE_FREE}$"
    return replace(arm, label=label)


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate where the arms end, for every vocabulary."""
    data = tidy(dataset, ["num_tokens"])
    rows, spread = [], []
    for place, size in enumerate(data["num_tokens"].to_numpy()):
        panel = data.isel(num_tokens=place)
        for arm in arms_of(data):
            ends = [last(panel, item.drawn, arm) for item in (ATTENTION, VALUE)]
            rounded = [last(panel, item.rounded, arm) for item in (ATTENTION, VALUE)]
            found = int((np.maximum(*rounded) < RECOVERED).sum())
            around = share_interval(found, data.sizes["run"])
            other = sgd_beside(panel, arm)
            sgd = np.nan if other is None else last(panel, ATTENTION.drawn, other)
            nearer = "" if other is None else np.sum(ends[0] < sgd)
            first = median(runs_of(panel, ATTENTION.drawn, arm)[:, 0])
            loss, alpha = (median(last(panel, name, arm)) for name in (LOSS, "alpha_value"))
            medians = [first, *(median(values) for values in ends), loss, alpha]
            label = renamed(arm, data).label
            rows.append([size, label, *medians, nearer, found, *around])
            spread.append(((size, label), ends))
    columns = ("N", "arm", "to Q at the start", "to Q", "to P", "excess loss", "alpha_V")
    counts = ("nearer to Q than SGD", f"rounded, within {RECOVERED} of P and Q")
    title_ = f"The end, medians of {runs_in(data)}; runs, and the 95% interval of the last share"
    return [
        Table(title_, (*columns, *counts[:-1], *ranged(counts[-1])), rows),
        intervals_table("The end", ("N", "arm"), ("to Q", "to P"), spread),
    ]


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("fig5", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
