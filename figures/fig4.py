"""Similarity to the truth before and after rounding, for every arm (figure 4).

The dataset comes from `scbjax run fig1`, which figures 1 and 3 are drawn from too. What to see: the
paper claims that rounding helps proximal steps and that SGD fails with and without it. Rounding
helps all arms: where a run has found the truth at all, its rounded solution is near it, be it one
of SGD or of proximal steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from _arms import Arm, columns_of
from _data import tidy
from _numbers import Table, by_settings, intervals_table, last, runs_in, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import band, finite_of, least, median, runs_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

STUDY: Final = "fig1"
# Of V and of A: the axis, and what is drawn before and after rounding.
ROWS: Final = (
    ("value matrix, cosine to $P$", "value_similarity", "rounded_value_similarity"),
    ("attention, cosine to $Q$", "attention_similarity", "rounded_attention_similarity"),
)
VARIABLES: Final = tuple(name for _, *names in ROWS for name in names)
SHIFT: Final = 0.19  # of a pair of markers from the middle of its arm
SCATTER: Final = 0.05  # of single runs around their marker
MARKERS: Final[tuple[dict[str, Any], ...]] = (
    {"marker": "o", "markersize": 4.0},
    {"marker": "*", "markersize": 7.5},
)
LEVELS: Final = (0.8, 0.95, 0.996)  # between which runs are counted


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    data = tidy(dataset)
    columns = columns_of(data)
    figure = Figure(figsize=(DOUBLE_COLUMN, 3.8))
    widths = [len(column.arms) for column in columns]
    grid = figure.subplots(2, len(columns), squeeze=False, sharex="col", width_ratios=widths)
    for row, (name, *variables) in zip(grid, ROWS, strict=True):
        for axes, column in zip(row, columns, strict=True):
            draw_pairs(axes, data, variables, column.arms)
            alike = [other.arms for other in columns if other.settings == column.settings]
            axes.set_ylim(limits(data, variables, [arm for arms in alike for arm in arms]))
        row[0].set_ylabel(name)
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(column.title)
    for axes, column in zip(grid[1], columns, strict=True):
        axes.set_xticklabels(
            [arm.label.replace(", ", "\n").replace(" = ", "=") for arm in column.arms]
        )
    figure.legend(handles=legend(data.sizes["run"]), loc="outside upper center", ncols=3)
    return figure


def draw_pairs(axes: Axes, data: xr.Dataset, variables: Sequence[str], arms: Sequence[Arm]) -> None:
    """Draw, for each arm, every run before and after rounding, their medians and 80% bars."""
    for place, arm in enumerate(arms):
        pair = np.stack([runs_of(data, name, arm)[:, -1] for name in variables])
        scatter = np.linspace(-SCATTER, SCATTER, pair.shape[1])
        x = place + np.array([[-SHIFT], [SHIFT]])
        if pair.shape[1] > 1:
            axes.plot(x + scatter, pair, color=arm.colour, linewidth=0.35, alpha=0.4, zorder=2)
        for end, when in enumerate(("before", "after")):
            low, middle, high = band(pair[end][:, None])[:, 0]
            axes.vlines(x[end], low, high, colors=arm.colour, linewidth=1.6, zorder=3)
            axes.plot(
                x[end],
                [middle],
                **MARKERS[end],
                color=arm.colour,
                markeredgecolor="white",
                markeredgewidth=0.5,
                zorder=4,
                gid=f"{when} {arm.index}",
            )
    axes.set_xticks(range(len(arms)))
    axes.set_xlim(-0.6, len(arms) - 0.4)


def limits(data: xr.Dataset, variables: Sequence[str], arms: Sequence[Arm]) -> tuple[float, float]:
    """Choose limits that hold all runs of the arms; settings that differ much have their own."""
    values = np.concatenate([runs_of(data, name, arm)[:, -1] for arm in arms for name in variables])
    low = float(np.nanmin(values, initial=1.0))
    margin = 0.06 * (1 - low) + 1e-3
    return low - margin, 1 + margin


def legend(runs: int) -> list[Line2D]:
    """Name the markers, and the lines between them."""
    grey: dict[str, Any] = {"color": "#666666"}
    before, after = ({**marker, **grey, "linestyle": ""} for marker in MARKERS)
    return [
        Line2D([], [], **before, label="before rounding, median"),
        Line2D([], [], **after, label=r"$A$ rounded, $V$ refitted, median"),
        Line2D(
            [], [], **grey, linewidth=1.6, label=f"10\u201390% of {runs} runs; thin: single runs"
        ),
    ]


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate the cosines before and after rounding."""
    data = tidy(dataset)
    rows, spread, edges = [], [], [-np.inf, *LEVELS, np.inf]
    for settings, arm in by_settings(data):
        pairs = [last(data, name, arm) for _, *names in ROWS for name in names]
        counts = np.histogram(finite_of(pairs[-1]), edges)[0]
        medians = [median(values) for values in pairs]
        rows.append([settings, arm.label, *medians, least(pairs[-1]), *counts])
        spread.append(((settings, arm.label), pairs))
    names = ("V", "V, rounded", "A", "A, rounded")
    columns = ("settings", "arm", *names, "A, rounded, least")
    bins = (f"below {LEVELS[0]}", *(f"to {level}" for level in LEVELS[1:]), f"above {LEVELS[-1]}")
    first = [median(data[name].isel(step=0)) for _, name, _ in ROWS]
    return [
        Table(f"Cosines at the end, medians of {runs_in(data)}; runs", (*columns, *bins), rows),
        Table("Cosines at the start, medians", ("V", "A"), [first]),
        intervals_table("Cosines at the end", ("settings", "arm"), names, spread),
    ]


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("fig4", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
