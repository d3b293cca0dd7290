"""Stars beside the curves: rounded solutions and refitted values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from _arms import Arm, worded
from _axes import ROUNDING_ERROR
from _data import Values
from _runs import band, median, runs_of
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

XTICKS: Final = MaxNLocator(nbins=5, steps=[1, 2, 5, 10])
STAR_GAP: Final = 0.08  # inches from one star to the next


def draw_rounded(axes: Axes, x: Values, finals: Sequence[Values], arms: Sequence[Arm]) -> None:
    """Draw the rounded solutions, one star an arm, in a margin that continues the x axis.

    Args:
        axes: where to draw; its y limits must be set.
        x: [steps] of the curves.
        finals: for each arm, the distance [runs] of the rounded solution at the last step.
        arms: names and looks.
    """
    start, span = x[0], x[-1] - x[0]
    figure = axes.get_figure(root=True)
    assert figure is not None
    width = axes.get_position().width * figure.get_figwidth()
    gap = span * STAR_GAP / (width - STAR_GAP * (len(arms) + 1))
    for place, (final, arm) in enumerate(zip(finals, arms, strict=True), start=1):
        draw_star(axes, x[-1] + place * gap, final, arm)
    axes.axvline(x[-1], color="#cccccc", linewidth=0.5, zorder=0.5)
    axes.set_xlim(start - 0.02 * span, x[-1] + (len(arms) + 0.7) * gap)
    axes.spines["bottom"].set_bounds(axes.get_xlim()[0], x[-1])
    axes.set_xticks([tick for tick in XTICKS.tick_values(start, x[-1]) if start <= tick <= x[-1]])


def draw_refits(axes: Axes, panel: xr.Dataset, variable: str, arms: Sequence[Arm]) -> None:
    """Draw a hollow star, over each star, for the V that the law of the task gives.

    Args:
        axes: where to draw, after the rounded solutions.
        panel: a tidy dataset with dimensions arm, run and step.
        variable: the distance of that V to P.
        arms: names and looks.
    """
    stars = {line.get_gid(): line for line in axes.lines}
    bottom = axes.get_ylim()[0]
    for arm in arms:
        middle = median(runs_of(panel, variable, arm)[:, -1])
        x = np.asarray(stars[f"rounded {arm.index}"].get_xdata(), float)
        if middle < bottom:
            write_below(axes, x[0], middle, arm)
        axes.plot(
            x,
            [max(middle, bottom)],
            marker="*",
            markersize=6.5,
            markerfacecolor="white",
            markeredgecolor=arm.colour,
            markeredgewidth=0.7,
            clip_on=False,
            zorder=5.5,
            gid=f"refit {arm.index}",
        )


def draw_star(axes: Axes, x: float, values: Values, arm: Arm) -> None:
    """Draw a star at the median of values [runs] and a bar over 80% of them.

    A median below the axis, as a distance of 0 is below a logarithmic one, sits on its lower edge
    with its value written beside it.
    """
    bottom = axes.get_ylim()[0]
    low, middle, high = np.maximum(band(values[:, None])[:, 0], [bottom, -np.inf, bottom])
    if len(values) > 1:
        axes.vlines(x, low, high, colors=arm.colour, linewidth=1.0)
    star: dict[str, Any] = {"marker": "*", "markersize": 7.5, "markeredgewidth": 0.0, "zorder": 6}
    gid = f"rounded {arm.index}"
    axes.plot(x, max(middle, bottom), **star, color=arm.colour, clip_on=False, gid=gid)
    if middle < bottom:
        write_below(axes, x, middle, arm)


def write_below(axes: Axes, x: float, value: float, arm: Arm) -> None:
    """Write a value that is below the axis over the star that stands on its lower edge."""
    axes.annotate(
        "0" if value < ROUNDING_ERROR else worded(float(f"{value:.1g}")),
        (x, axes.get_ylim()[0]),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        fontsize=7,
        color=arm.colour,
        zorder=7,
        bbox={"facecolor": "white", "pad": 0.5, "linewidth": 0},
    )
