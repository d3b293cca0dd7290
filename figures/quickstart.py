"""Distances to the truth against the number of samples, one column of panels per sparsity.

The dataset comes from `scbjax run quickstart`. What to see: the arms agree, and follow the
population path, until noise in the attention holds SGD back, the earlier the denser the pattern;
proximal steps go on, and rounding takes their attention most of the rest of the way. The paper
claims the first of this. It also claims that SGD fails with rounding too, and there the stars
disagree: rounded and refitted, SGD is as near to the truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr
from _arms import Arm, arms_of
from _axes import log_axis, thousands
from _data import Values, symbol, tidy
from _distances import ATTENTION, VALUE, distance_limits, draw_distance
from _legend import add_legend, note_findings
from _numbers import Table, intervals_table, last, runs_in, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import horizontal, median, runs_of, stage_ends
from matplotlib.figure import Figure

STUDY: Final = "quickstart"
VARIABLES: Final = ("samples", *VALUE.variables, *ATTENTION.variables)
MAX_COLUMNS: Final = 4


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    data = tidy(dataset, ["sparsity"])
    arms = arms_of(data)
    levels = data.sizes["sparsity"]
    known = "sparsity" in data.coords
    names = [f"sparsity {level}" if known else "" for level in data["sparsity"].to_numpy()]
    columns = min(levels, MAX_COLUMNS)
    blocks = -(-levels // columns)
    figure = Figure(figsize=(DOUBLE_COLUMN, 0.6 + 3.0 * blocks))
    grid = figure.subplots(2 * blocks, columns, squeeze=False, sharex=True)
    for row, distance in enumerate((VALUE, ATTENTION) * blocks):
        limits = distance_limits(data, distance, log=True)
        for column, axes in enumerate(grid[row]):
            level = columns * (row // 2) + column
            if level >= levels:
                axes.set_axis_off()
                continue
            log_axis(axes, limits)
            panel = data.isel(sparsity=level)
            draw_distance(axes, panel, arms, distance, "samples")
            thousands(axes)
            if distance is VALUE:
                axes.set_title(names[level], pad=8)
            if column == 0:
                axes.set_ylabel(f"{distance.name}\n{symbol(data, distance.drawn)}")
            else:
                axes.tick_params(labelleft=False)
    panels = [(name, data.isel(sparsity=level), arms) for level, name in enumerate(names)]
    note_findings(figure, panels, "samples (thousands)")
    add_legend(figure, data, arms, "population", "rounded")
    return figure


def before_rounding(panel: xr.Dataset, arm: Arm) -> Values:
    """Give the distance of A to Q of every run at its last record before stage 3, [runs]."""
    distances, stage = (runs_of(panel, name, arm) for name in (ATTENTION.drawn, "stage"))
    final = (stage < 3).sum(axis=1) - 1
    return np.asarray(np.take_along_axis(distances, final[:, None], axis=1)[:, 0])


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate where the arms end, for every sparsity."""
    data = tidy(dataset, ["sparsity"])
    rows, spread = [], []
    for level in range(data.sizes["sparsity"]):
        panel = data.isel(sparsity=level)
        for arm in arms_of(data):
            drawn = [last(panel, item.drawn, arm) for item in (VALUE, ATTENTION)]
            drawn.append(before_rounding(panel, arm))
            rounded = [last(panel, item.rounded, arm) for item in (VALUE, ATTENTION)]
            used = stage_ends(horizontal(panel, arm, "samples"), runs_of(panel, "stage", arm), 2)
            medians = [median(values) for values in (*drawn, *rounded)]
            label = panel["sparsity"].item(), arm.label
            rows.append([*label, *medians, used.size, median(used)])
            spread.append((label, [*drawn[:2], *rounded]))
    columns = ("sparsity", "arm", "to P", "to Q", "before rounding", "rounded, to P")
    more = ("rounded, to Q", "ended stage 2", "samples by then")
    names = ("to P", "to Q", "rounded, to P", "rounded, to Q")
    return [
        Table(f"Distances at the end, medians of {runs_in(data)}", (*columns, *more), rows),
        intervals_table("Distances at the end", ("sparsity", "arm"), names, spread),
    ]


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("quickstart", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
