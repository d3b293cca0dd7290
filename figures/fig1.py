"""Distances to the truth, as printed and with settings that work (figure 1).

The dataset comes from `scbjax run fig1`: the paper's main setting, over many tasks. What to see:
whether, after the end of stage 1, proximal steps fall faster than SGD and their rounded solution is
near 0, as the paper claims of one task. With the printed numbers they do not: the arms at one rate
nearly coincide, none is near the truth, and some runs go to the mirrored solution. With settings
that work they do, with lambda = 1e-4 and above; but SGD, rounded, is as near to the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr
from _arms import Arm, arms_of, columns_of
from _axes import linear_limits, log_axis, samples_above
from _curves import MAX_BANDS, draw_arms, draw_population
from _data import Values, symbol, tidy
from _distances import ATTENTION, FOUND, VALUE, Distance, distance_limits, draw_distance, path_of
from _estimates import (
    Interval,
    interval_of,
    quantile_interval,
    resampled_runs,
    share_interval,
    within_extreme,
)
from _legend import add_legend, note_findings
from _numbers import Table, by_settings, last, ranged, runs_in, sgd_beside, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import band, count_mirrored, horizontal, largest, median, runs_of
from _stars import draw_refits
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

STUDY: Final = "fig1"
REFIT: Final = "population_refit_distance"
VARIABLES: Final = ("samples", REFIT, *VALUE.variables, *ATTENTION.variables)
INSET: Final = (0.16, 0.13, 0.56, 0.42)  # of a panel: left, bottom, width, height
NUMBERS: Final = (*VARIABLES, "flipped")


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    data = tidy(dataset)
    columns = columns_of(data)
    figure = Figure(figsize=(DOUBLE_COLUMN, 5.4))
    grid = figure.subplots(2, len(columns), squeeze=False)
    for row, distance in zip(grid, (VALUE, ATTENTION), strict=True):
        also = [REFIT] if distance is VALUE else []
        limits = distance_limits(data, distance, *also, log=True)
        for axes, column in zip(row, columns, strict=True):
            log_axis(axes, limits)
            draw_distance(axes, data, column.arms, distance)
            if len(column.arms) > MAX_BANDS:
                draw_medians(axes, data, column.arms, distance)
            if distance is VALUE:
                draw_refits(axes, data, REFIT, column.arms)
                axes.set_title(column.title, pad=8)
                samples_above(axes, data, column.arms)
            else:
                axes.set_xlabel("iteration")
            if axes is row[0]:
                axes.set_ylabel(f"{distance.name}, {symbol(data, distance.drawn)}")
            else:
                axes.tick_params(labelleft=False)
    note_findings(figure, [(column.title, data, column.arms) for column in columns])
    sizes = [len(column.arms) for column in columns]
    extra = ("population", "rounded", "refit")
    add_legend(figure, data, arms_of(data, "geometry"), *extra, panels=sizes)
    return figure


def draw_medians(axes: Axes, data: xr.Dataset, arms: Sequence[Arm], distance: Distance) -> None:
    """Draw the medians of arms that lie close together again, where there is room, and larger."""
    inset = axes.inset_axes(INSET)
    x = [horizontal(data, arm, "step") for arm in arms]
    middle = [band(runs_of(data, distance.drawn, arm))[1] for arm in arms]
    draw_arms(inset, x, [values[None] for values in middle], arms)
    draw_population(inset, x, [path_of(data, distance, arm) for arm in arms], arms)
    inset.set_ylim(linear_limits([values[None] for values in middle]))
    inset.set_xlim(x[0][0], x[0][-1])
    inset.set_xticks([x[0][0], x[0][-1]])
    inset.yaxis.set_major_locator(MaxNLocator(3))
    inset.set_title("medians, linear", fontsize=7, pad=2)


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate where the arms end, and on how many tasks proximal steps are nearer than SGD."""
    data = tidy(dataset)
    rows, distances = [], []
    for settings, arm in by_settings(data):
        found = [last(data, name, arm) < level for name, level in FOUND.items()]
        ends = [
            last(data, name, arm)
            for name in (VALUE.drawn, ATTENTION.drawn, VALUE.rounded, ATTENTION.rounded)
        ]
        counts: list[float] = []
        for hits in (int(np.logical_and(*found).sum()), count_mirrored(data, arm)):
            counts += [hits, *share_interval(hits, data.sizes["run"])]
        counts += [int((last(data, "flipped", arm) > 0).sum())]
        farthest = [largest(values) for values in ends[2:]]
        medians = [number for x in ends for number in (median(x), *quantile_interval(x))]
        distances.append([settings, arm.label, *medians, *farthest])
        rows.append([settings, arm.label, *counts])
    names = ("to P", "to Q", "rounded, to P", "rounded, to Q")
    held = within_extreme(data.sizes["run"])
    return [
        Table(
            f"The last iteration: counts of {runs_in(data)}, their shares with 95% intervals",
            ("settings", "arm", *ranged("found", "mirrored"), "flipped"),
            rows,
        ),
        Table(
            f"The last iteration: medians of {runs_in(data)} with 95% intervals, and the farthest, "
            f"within which (95% confidence) {held:.3f} of all tasks are",
            ("settings", "arm", *ranged(*names), "farthest, P", "farthest, Q"),
            distances,
        ),
        beside_sgd(data),
    ]


def beside_sgd(data: xr.Dataset) -> Table:
    """Compare proximal steps with SGD at the same rate, and at its best one."""
    rows = []
    for settings, arm in by_settings(data):
        other = sgd_beside(data, arm)
        if other is None:
            continue
        sgd = [x for name, x in by_settings(data) if name == settings and x.optimizer == "sgd"]
        nearer, ratios = [], []
        for item in (VALUE, ATTENTION):
            here = last(data, item.drawn, arm)
            hits = int((here < last(data, item.drawn, other)).sum())
            nearer += [hits, *share_interval(hits, here.size)]
            best = min((last(data, item.drawn, each) for each in sgd), key=median)
            ratios += [median(best) / median(here), *ratio_interval(best, here)]
        rows.append([settings, arm.label, *nearer, *ratios])
    names = ("nearer to P", "nearer to Q", "best to P, over it", "best to Q, over it")
    return Table(
        f"Of {runs_in(data)}, those that end nearer than SGD at the same rate; the best median of "
        "SGD, over it; 95% intervals",
        ("settings", "arm", *ranged(*names)),
        rows,
    )


def ratio_interval(above: Values, below: Values) -> Interval:
    """Interval of the ratio of two medians over the same tasks [tasks], by resampling them."""
    picks = resampled_runs(above.size, lost=0)
    with np.errstate(invalid="ignore"):
        return interval_of(np.median(above[picks], axis=1) / np.median(below[picks], axis=1))


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("fig1", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, NUMBERS, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
