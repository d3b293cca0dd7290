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
from _numbers import Table, runs_in, tabulate
from _shared import (
    DOUBLE_COLUMN,
    STAGE_COLOUR,
    Arm,
    arms_of,
    band,
    draw_arm,
    draw_stages,
    horizontal,
    largest,
    linear_limits,
    main,
    median,
    render,
    runs_of,
    setting,
    symbol,
    tidy,
)
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
            ours = band(runs_of(simulated, name, arm))
            low, middle, high = band(runs_of(real, name, arm))
            inside = (low <= ours[1]) & (ours[1] <= high)
            outside = steps[~inside]
            wide = high > low
            widths = ((ours[2] - ours[0])[wide] / (high - low)[wide]).tolist()
            first = f"{outside[0]} to {outside[-1]}" if outside.size else ""
            away, width = largest(np.abs(ours[1] - middle)), median(widths)
            rows.append([name, arm.label, inside.mean(), first, away, width])
    columns = ("variable", "arm", "share of records inside", "outside, steps")
    return [
        Table(
            "Simulated medians and the 80% band of real runs: records inside, largest distance of "
            f"the medians, and the median ratio of the bands' widths; {runs_in(real)}",
            (*columns, "medians apart", "width over width"),
            rows,
        )
    ]


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("simulation", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, NUMBERS, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
