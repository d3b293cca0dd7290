"""Curves of the arms against iterations or samples, the population path, and where stages end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from _arms import Arm
from _data import Values
from _runs import BAND, band, runs_of, stage_ends
from matplotlib.axes import Axes

SAME_PATH: Final = 0.02  # population paths that differ by less, of a signal of 1, are drawn once
MAX_BANDS: Final = 3  # in one panel: more of them blend into one area
BARS: Final = 6  # of an arm, along its line, where bands would blend
MAX_FAINT_RUNS: Final = 40  # more single runs than this are a blur
POPULATION_LOOK: Final[Mapping[str, Any]] = {"color": "black", "linewidth": 0.9, "linestyle": ":"}
OPEN: Final = 1.3  # times a cost: where an interval without an upper end stops, in an arrow head
STAGE_COLOUR: Final = "#888888"


def draw_arm(axes: Axes, x: Values, values: Values, arm: Arm, *, faint: bool = True) -> None:
    """Draw an arm: the median, the 80% band and, faintly, the single runs.

    Args:
        axes: where to draw.
        x: [steps].
        values: [runs, steps].
        arm: name and look.
        faint: whether single runs are drawn behind the band.
    """
    low, median, high = band(values)
    runs = len(values)
    if faint and 1 < runs <= MAX_FAINT_RUNS:
        axes.plot(x, values.T, color=arm.colour, linewidth=0.35, alpha=0.3, zorder=2)
    if runs > 1:
        area = axes.fill_between(x, low, high, color=arm.colour, alpha=0.2, zorder=2.5)
        area.set_gid(f"band {arm.index}")
    axes.plot(
        x, median, color=arm.colour, linestyle=arm.linestyle, zorder=4, gid=f"median {arm.index}"
    )


def draw_ranges(axes: Axes, x: Values, costs: Values, ends: Values, colour: str) -> None:
    """Draw intervals of positive costs; one without an upper end stops in an arrow head.

    Args:
        axes: where to draw.
        x: [points].
        costs: [points]; those that are not finite are left out.
        ends: lower and upper ends, [2, points].
        colour: of the lines.
    """
    low, high = ends
    known = np.isfinite(costs) & np.isfinite(low)
    above = known & ~np.isfinite(high)
    top = np.where(above, OPEN * costs, high)
    axes.vlines(x[known], low[known], top[known], colors=colour, linewidth=1.0, zorder=1.5)
    axes.plot(x[above], top[above], "^", color=colour, markersize=2.5, zorder=1.5)


def draw_arms(
    axes: Axes, x: Sequence[Values], drawn: Sequence[Values], arms: Sequence[Arm]
) -> None:
    """Draw the arms of a panel, with bands or, where those would blend, bars side by side.

    Args:
        axes: where to draw.
        x: for each arm [steps].
        drawn: for each arm [runs, steps].
        arms: names and looks.
    """
    for place, (here, values, arm) in enumerate(zip(x, drawn, arms, strict=True)):
        if len(arms) <= MAX_BANDS:
            draw_arm(axes, here, values, arm)
            continue
        low, middle, high = band(values)
        axes.plot(
            here,
            middle,
            color=arm.colour,
            linestyle=arm.linestyle,
            zorder=4 + 0.1 * place,
            gid=f"median {arm.index}",
        )
        if len(values) > 1:
            shares = (np.arange(BARS) + (place + 1) / len(arms)) / BARS
            at = np.unique(np.round(shares * (len(here) - 1)).astype(int))
            bars = axes.vlines(here[at], low[at], high[at], color=arm.colour, linewidth=1.1)
            bars.set(gid=f"bars {arm.index}", zorder=3)


def draw_population(
    axes: Axes, x: Sequence[Values], paths: Sequence[Values], arms: Sequence[Arm]
) -> None:
    """Draw a quantity of the population path, once for all the arms that share it.

    Args:
        axes: where to draw.
        x: for each arm [steps].
        paths: for each arm [steps], NaN where it is not to be drawn.
        arms: names and looks.
    """
    drawn: list[Values] = []
    curves = list(zip(x, paths, arms, strict=True))
    for here, path, arm in sorted(curves, key=lambda curve: -int(np.isfinite(curve[1]).sum())):
        known = (np.nanmax(np.abs(path - other), initial=0.0) < SAME_PATH for other in drawn)
        if not any(known):
            axes.plot(here, path, **POPULATION_LOOK, zorder=5, gid=f"population {arm.index}")
            drawn.append(path)


def draw_stages(axes: Axes, panel: xr.Dataset, arms: Sequence[Arm], x: Sequence[Values]) -> None:
    """Mark where stages end.

    The end of stage 1, up to which arms differ in nothing but their rates, is a line at the median
    of all runs and a span over 80% of them. The end of stage 2 is a triangle at the median of those
    runs of an arm that came to it.

    Args:
        axes: where to draw.
        panel: a tidy dataset with dimensions arm, run and step.
        arms: names and looks.
        x: for each arm [steps].
    """
    stages = [runs_of(panel, "stage", arm) for arm in arms]
    first = np.concatenate([stage_ends(*pair, 1) for pair in zip(x, stages, strict=True)])
    if first.size:
        low, median, high = np.percentile(first, BAND)
        axes.axvspan(low, high, color=STAGE_COLOUR, alpha=0.15, zorder=0.5)
        axes.axvline(median, color=STAGE_COLOUR, linewidth=0.8, zorder=1, gid="stage 1")
    for here, stage, arm in zip(x, stages, arms, strict=True):
        second = stage_ends(here, stage, 2)
        if second.size:
            axes.plot(
                np.median(second),
                1.0,
                transform=axes.get_xaxis_transform(),
                marker="v",
                markersize=4.5,
                color=arm.colour,
                clip_on=False,
                gid=f"stage 2 {arm.index}",
            )
