"""Distances to the truth: which there are, when a run is near enough, and panels of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import xarray as xr
from _arms import Arm, arms_of
from _axes import linear_limits, log_limits
from _curves import draw_arms, draw_population, draw_stages
from _data import Values
from _runs import SIGNALS, band, horizontal, median, population_of, runs_of
from _stars import draw_rounded
from matplotlib.axes import Axes

MAX_GROWTH: Final = 20.0  # log axes end here, in units of the initial distance
LOWEST: Final = 1e-4  # of a distance to the truth that is for comparison only
RECOVERED: Final = 0.1  # distances to P and Q below which a rounded solution is the truth
SUCCESS: Final = 0.9  # share of the runs that has to recover
PANEL: Final = ("stage", *SIGNALS)  # what every panel against the iteration reads


@dataclass(frozen=True)
class Distance:
    """The variables of one distance to the truth, and its name on an axis."""

    name: str
    drawn: str
    rounded: str
    population_alpha: str
    signal: str

    @property
    def variables(self) -> tuple[str, ...]:
        """The variables that a panel of this distance reads."""
        return (*PANEL, self.drawn, self.rounded, self.population_alpha, self.signal)


VALUE: Final = Distance(
    "value matrix",
    "value_distance",
    "rounded_value_distance",
    "population_alpha_value",
    "transition_signal",
)
ATTENTION: Final = Distance(
    "attention",
    "attention_distance",
    "rounded_attention_distance",
    "population_alpha_attention",
    "pattern_signal",
)
# What "found" means: the rounded A and the V refitted to it are this near to Q and P.
FOUND: Final = {ATTENTION.rounded: 0.1, VALUE.rounded: 0.05}


def population_distance(alpha: Values, signal: Values) -> Values:
    """Distance from the truth on the population path, (1 - alpha) sqrt(K), median over runs.

    Args:
        alpha: [runs, steps], alpha_V or alpha_A of the population recursion.
        signal: [runs], K_P or K_Q.

    Returns:
        [steps]
    """
    median: Values = band(np.abs(1 - alpha) * np.sqrt(signal)[:, None])[1]
    return median


def samples_to_recovery(dataset: xr.Dataset, level: float = RECOVERED) -> xr.DataArray:
    """Samples at the first record that, once rounded, is near the truth; infinity where none is.

    Near: A within the level of Q, and the V refitted on fresh samples, which are not counted,
    within the level of P.
    """
    near = xr.ones_like(dataset["samples"], dtype=bool)
    for name in ("rounded_attention_distance", "rounded_value_distance"):
        near &= dataset[name] < level
    return dataset["samples"].astype(float).where(near, np.inf).min("step")


def draw_distance(
    axes: Axes, panel: xr.Dataset, arms: Sequence[Arm], distance: Distance, against: str = "step"
) -> None:
    """Draw a distance to the truth of every arm, its population path and the rounded solutions.

    Args:
        axes: where to draw; its y limits must be set.
        panel: a tidy dataset with dimensions arm, run and step.
        arms: names and looks.
        distance: which one.
        against: "step" or "samples".
    """
    x = [horizontal(panel, arm, against) for arm in arms]
    drawn = [runs_of(panel, distance.drawn, arm) for arm in arms]
    draw_arms(axes, x, drawn, arms)
    draw_population(axes, x, [path_of(panel, distance, arm) for arm in arms], arms)
    finals = [runs_of(panel, distance.rounded, arm)[:, -1] for arm in arms]
    draw_rounded(axes, x[0], finals, arms)
    draw_stages(axes, panel, arms, x)


def path_of(panel: xr.Dataset, distance: Distance, arm: Arm) -> Values:
    """Give a distance to the truth on the population path of an arm [steps]."""
    alpha = population_of(panel, distance.population_alpha, arm)
    return population_distance(alpha, runs_of(panel, distance.signal, arm))


def distance_limits(
    data: xr.Dataset, distance: Distance, *also: str, log: bool = False
) -> tuple[float, float]:
    """Choose limits that hold every panel of a distance; linear ones begin at 0.

    Args:
        data: the tidy dataset.
        distance: which one.
        *also: variables whose medians at the end are drawn too.
        log: whether the axis is logarithmic.
    """
    curves = data[distance.drawn].to_numpy().astype(float)
    stars = data[distance.rounded].to_numpy().astype(float)[..., -1:]
    drawn = [runs.reshape(len(runs), -1) for arms in (curves, stars) for runs in arms]
    if log:
        first = median(curves[..., 0])
        ceiling = MAX_GROWTH * first if np.isfinite(first) else np.inf
        ends = [
            [median(runs_of(data, name, arm)[..., -1]) for arm in arms_of(data, "geometry")]
            for name in also
        ]
        floor = LOWEST if also else 1e-3
        drawn_ = [*(band(runs) for runs in drawn), *map(np.asarray, ends)]
        return log_limits(drawn_, floor=floor, ceiling=ceiling)
    return 0.0, linear_limits(drawn)[1]
