"""Simulated runs over real ones at a size where both can be run: is the simulation to be trusted?

The dataset comes from `scbjax run simulation`: the same tasks with all positions of the context and
with a few that stand for all, as the runs of figure 6 are. What to see: whether the medians of the
simulated runs stay within the 80% band of the real ones, and whether their bands are as wide.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from _arms import Arm, arms_of
from _axes import linear_limits
from _curves import STAGE_COLOUR, draw_arm, draw_stages
from _data import Values, setting, symbol, tidy
from _estimates import LEVEL, Interval, interval_of, resampled_runs
from _numbers import Table, ranged, runs_in, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import BAND, band, horizontal, largest, median, runs_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

STUDY: Final = "simulation"
TAGGED: Final = "tagged_positions"
NAMES: Final = {
    "alpha_value": "signal in $V$",
    "alpha_attention": "signal in $A$",
    "delta_value": "$V$ off the path",
    "delta_attention": "$A$ off the path",
}
VARIABLES: Final = ("stage", *NAMES)
DISTANCES: Final = ("value_distance", "attention_distance", "excess_loss")
NUMBERS: Final = (*VARIABLES, *DISTANCES, "rounded_attention_distance", "nonzeros")
SIMULATED: Final = "black"
RESAMPLES: Final = 400  # of the tasks


def pair_of(dataset: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset, int]:
    """Give the simulated runs, the real ones and how many positions are tagged, tidy.

    Raises:
        ValueError: the study does not have real and simulated runs, one kind of each.
    """
    data = tidy(dataset, [TAGGED])
    tagged = data[TAGGED].to_numpy().tolist()
    length = int(str(setting(dataset, "context_length")))
    if len(tagged) != 2 or max(tagged) != length:
        raise ValueError(
            f"the figure compares two values of {TAGGED}, of which one is the context length, "
            f"{length}; the study has {', '.join(map(str, tagged))}"
        )
    few, whole = sorted(range(2), key=tagged.__getitem__)
    return data.isel({TAGGED: few}), data.isel({TAGGED: whole}), min(tagged)


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    simulated, real, tagged = pair_of(dataset)
    arms = arms_of(real)
    figure = Figure(figsize=(DOUBLE_COLUMN, 1.5 * len(NAMES) + 0.6))
    grid = figure.subplots(len(NAMES), len(arms), sharex=True, sharey="row", squeeze=False)
    for row, variable in zip(grid, NAMES, strict=True):
        for axes, arm in zip(row, arms, strict=True):
            draw_panel(axes, simulated, real, arm, variable)
        drawn = [runs_of(data, variable, arm) for data in (simulated, real) for arm in arms]
        row[0].set_ylim(linear_limits([band(runs) for runs in drawn]))
        row[0].set_ylabel(f"{NAMES[variable]}, {symbol(real, variable)}")
    for axes, arm in zip(grid[0], arms, strict=True):
        axes.set_title(arm.label)
    for axes in grid[-1]:
        axes.set_xlabel("iteration")
    add_legend(figure, real, tagged)
    return figure


def draw_panel(
    axes: Axes, simulated: xr.Dataset, real: xr.Dataset, arm: Arm, variable: str
) -> None:
    """Draw the real runs of an arm as a band, and over it median and band of the simulated ones."""
    x = horizontal(real, arm, "step")
    draw_arm(axes, x, runs_of(real, variable, arm), arm, faint=False)
    low, middle, high = band(runs_of(simulated, variable, arm))
    axes.plot(x, middle, color=SIMULATED, linewidth=0.9, zorder=5, gid=f"simulated {arm.index}")
    for edge in (low, high):
        axes.plot(x, edge, color=SIMULATED, linewidth=0.7, linestyle=":", zorder=5)
    draw_stages(axes, real, [arm], [x])


def add_legend(figure: Figure, real: xr.Dataset, tagged: int) -> None:
    """Put one legend above the panels."""
    length = setting(real, "context_length")
    runs = real.sizes["run"]
    grey = "#666666"
    entries: dict[str, Any] = {
        f"real contexts: median and 10\u201390% of {runs} runs": (
            Patch(color="#cccccc"),
            Line2D([], [], color=grey),
        ),
        f"simulated, {tagged} of {length} positions tagged: median": Line2D(
            [], [], color=SIMULATED, linewidth=0.9
        ),
        "their 10\u201390%": Line2D([], [], color=SIMULATED, linewidth=0.7, linestyle=":"),
    }
    if (real["stage"] > 1).any():
        entries["end of stage 1"] = Line2D([], [], color=STAGE_COLOUR, linewidth=0.8)
    if (real["stage"] > 2).any():
        triangle = Line2D([], [], color=grey, linestyle="", marker="v", markersize=4.5)
        entries["end of stage 2"] = triangle
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=2)


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate how often the median of simulated runs is inside the band of real ones."""
    simulated, real, _ = pair_of(dataset)
    rows = []
    steps = real["step"].to_numpy()
    for name in NUMBERS[1:]:
        for arm in arms_of(real):
            pair = [runs_of(data, name, arm) for data in (simulated, real)]
            ours, (low, middle, high) = map(band, pair)
            bound, around = over_tasks(*pair)
            inside = (low <= ours[1]) & (ours[1] <= high)
            outside = steps[~inside]
            wide = high > low
            widths = ((ours[2] - ours[0])[wide] / (high - low)[wide]).tolist()
            first = f"{outside[0]} to {outside[-1]}" if outside.size else ""
            away, width = largest(np.abs(ours[1] - middle)), median(widths)
            rows.append([name, arm.label, inside.mean(), first, away, bound, width, *around])
    columns = ("variable", "arm", "share of records inside", "outside, steps", "medians apart")
    return [
        Table(
            "Simulated medians and the 80% band of real runs: records inside, largest distance of "
            f"the medians ({runs_in(real)}) and what it is below for all tasks with 95% "
            "confidence, and the median ratio of the bands' widths with its 95% interval",
            (*columns, "of all tasks below", *ranged("width over width")),
            rows,
        )
    ]


def over_tasks(simulated: Values, real: Values) -> tuple[float, Interval]:
    """Resample the tasks: how far apart medians are at most, and the ratio of the bands' widths.

    Args:
        simulated: [runs, steps].
        real: [runs, steps], of the same tasks.

    Returns:
        What the largest distance of the medians of all tasks is below, with 95% confidence (more,
        since noise adds to a largest distance), and the interval of the median ratio of widths;
        of tasks whose runs are all finite, NaN if there are none.
    """
    finite = np.isfinite(simulated).all(axis=1) & np.isfinite(real).all(axis=1)
    if not finite.any():
        return np.nan, Interval(np.nan, np.nan)
    picks = resampled_runs(int(finite.sum()), RESAMPLES, lost=0)
    # [percentiles, resamples, steps]
    ours, theirs = (np.percentile(runs[finite][picks], BAND, axis=1) for runs in (simulated, real))
    apart = np.abs(ours[1] - theirs[1]).max(axis=-1)
    wide = theirs[2] > theirs[0]
    widths = np.full(wide.shape, np.nan)
    np.divide(ours[2] - ours[0], theirs[2] - theirs[0], out=widths, where=wide)
    some = widths[wide.any(axis=-1)]
    return float(np.quantile(apart, LEVEL)), interval_of(np.nanmedian(some, axis=-1))


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("simulation", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, NUMBERS, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
