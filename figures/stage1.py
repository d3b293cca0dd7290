"""Samples that stage 1 needs to get the sign right, against T, with either projector of eq. 4.

The datasets come from `scbjax run stage1` and, with the projector as printed, from `scbjax run
stage1_printed`, which is drawn where it has been run: stage 1 as in the paper, without the sign
flip; for every context length the rate and the batch size with which 90% of the seeds come to a
signal of +0.1 with the fewest samples. What to see: whether drift is told from noise after of the
order of T samples with the mu-orthogonal projector, whose noise falls like 1/sqrt(T), and of T^2
with the printed one, whose noise does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from _axes import log_axis, log_limits
from _curves import draw_ranges
from _data import Values, open_study, setting
from _estimates import (
    Estimate,
    cost_intervals,
    growth_estimate,
    power_estimate,
    samples_for_share,
    worded_power,
)
from _numbers import Table, ranged, tabulate
from _render import SINGLE_COLUMN, main, render
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

STUDY: Final = "stage1"
PRINTED: Final = "stage1_printed"
GOAL, RATE, LENGTH = "samples_to_goal", "learning_rate_1", "context_length"
VARIABLES: Final = (GOAL, RATE)
LOOKS: Final[dict[str, dict[str, Any]]] = {
    "mu": {"color": "#0072B2", "marker": "o"},
    "paper": {"color": "#D55E00", "marker": "s"},
}
NAMES: Final = {"mu": r"$\mu$-orthogonal", "paper": "as printed"}
# What the noise of one sample leads one to expect: (sigma T)^2 samples.
POWERS: Final = {"mu": 1.0, "paper": 2.0}
GUIDE: Final[dict[str, Any]] = {"color": "black", "linewidth": 0.9, "linestyle": ":"}


def plot(dataset: xr.Dataset, printed: xr.Dataset | None = None) -> Figure:
    """Make the figure from the study's dataset and, if there is one, that of the printed one."""
    studies = [arranged(each) for each in (dataset, printed) if each is not None]
    figure = Figure(figsize=(SINGLE_COLUMN, 3.0))
    axes = figure.subplots()
    entries: dict[str, Line2D] = {}
    drawn = []
    for data in studies:
        geometry, lengths = str(setting(data, "geometry")), lengths_of(data)
        goal, share = data[GOAL].to_numpy(), share_of(data)
        costs = least(goal, share)[0]
        low, high = np.array(cost_intervals(by_setting(goal), share)).T
        drawn += [costs, low, high]
        look = LOOKS[geometry]
        draw_ranges(axes, lengths, costs, np.stack([low, high]), look["color"])
        axes.plot(lengths, costs, **look, markersize=4, linestyle="-", gid=f"costs {geometry}")
        label = NAMES[geometry]
        fit = power_of(lengths, goal, share)
        if np.isfinite(fit.value):
            label += f": {worded_power(fit)}"
        entries[label] = Line2D([], [], **look, markersize=4)
        draw_guide(axes, lengths, costs, POWERS[geometry])
    powers = [POWERS[str(setting(data, "geometry"))] for data in studies]
    slopes = " and ".join("$T$" if power == 1 else f"$T^{power:g}$" for power in powers)
    entries[f"slope of {slopes}"] = Line2D([], [], **GUIDE)
    axes.set(xscale="log", xlabel="context length, $T$")
    log_axis(axes, log_limits(drawn, floor=1.0))
    ticks = np.unique(np.concatenate([lengths_of(data) for data in studies]))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    seeds, share = studies[0].sizes["seed"], share_of(studies[0])
    axes.set_ylabel(f"samples until {share:.0%} of {seeds} seeds\nhave a signal of +0.1")
    figure.legend(entries.values(), entries.keys(), loc="outside upper center")
    return figure


def draw_guide(axes: Axes, lengths: Values, costs: Values, power: float) -> None:
    """Draw growth with a power of T through the middle of the costs."""
    seen = np.isfinite(costs)
    if seen.any():
        middle = np.exp(np.mean(np.log(costs[seen]) - power * np.log(lengths[seen])))
        axes.plot(lengths[seen], middle * lengths[seen] ** power, **GUIDE, zorder=1)


def arranged(dataset: xr.Dataset) -> xr.Dataset:
    """Give a dataset the dimensions (context_length, batch_size, seed, probe)."""
    if "batch_size" not in dataset.dims:
        dataset = dataset.expand_dims({"batch_size": [setting(dataset, "batch_size")]})
    return dataset.transpose(LENGTH, "batch_size", "seed", "probe")


def lengths_of(data: xr.Dataset) -> Values:
    """Give the context lengths [lengths]."""
    return np.asarray(data[LENGTH].to_numpy(), float)


def share_of(dataset: xr.Dataset) -> float:
    """Give the share of the seeds that the search asked for."""
    return float(str(setting(dataset, "share")))


def least(goal: Values, share: float) -> tuple[Values, Values]:
    """Least samples over batch sizes and rates, with which a share of the seeds gets there.

    Args:
        goal: samples [lengths, batches, seeds, probes], infinity for runs that never do.
        share: in (0, 1].

    Returns:
        The samples [lengths], NaN where no setting is enough, and the place of the best setting
        among batches and probes [lengths].
    """
    costs = samples_for_share(goal.astype(float).swapaxes(2, 3), share).reshape(len(goal), -1)
    best = costs.argmin(axis=1)
    found = costs[np.arange(len(goal)), best]
    return np.where(np.isfinite(found), found, np.nan), best


def power_of(lengths: Values, goal: Values, share: float) -> Estimate:
    """Fit a power of T to the least samples, with its interval over resampled seeds.

    Every resample takes the settings that are best for it.

    Args:
        lengths: [lengths].
        goal: [lengths, batches, seeds, probes].
        share: of the seeds.

    Returns:
        The power and its interval; NaN where a length has no samples.
    """
    return power_estimate(lengths, by_setting(goal), share)


def by_setting(goal: Values) -> Values:
    """Make one dimension of batches and rates, [lengths, batches, seeds, probes], before seeds."""
    settings: Values = goal.swapaxes(2, 3).reshape(len(goal), -1, goal.shape[2]).astype(float)
    return settings


def tables(dataset: xr.Dataset, printed: xr.Dataset | None = None) -> list[Table]:
    """Tabulate the least samples with their settings, and the fitted powers."""
    rows, fits = [], []
    for data in (arranged(each) for each in (dataset, printed) if each is not None):
        name, lengths = NAMES[str(setting(data, "geometry"))], lengths_of(data)
        goal, share = data[GOAL].to_numpy(), share_of(data)
        # What a search tried is the same for all seeds, whether or not it is stored along them.
        tried = data[RATE].isel(seed=0) if "seed" in data[RATE].dims else data[RATE]
        rates = tried.transpose(LENGTH, "batch_size", "probe").to_numpy()
        costs, best = least(goal, share)
        around = cost_intervals(by_setting(goal), share)
        for place, length in enumerate(lengths):
            batch, probe = divmod(int(best[place]), rates.shape[-1])
            size, rate = data["batch_size"].to_numpy()[batch], rates[place, batch, probe]
            rows.append([name, length, costs[place], *around[place], size, rate, rate / size])
        growth = growth_estimate(by_setting(goal), share)
        fits.append([name, *power_of(lengths, goal, share), *growth])
    seeds, share = dataset.sizes["seed"], share_of(dataset)
    return [
        Table(
            f"Least samples until {share:.0%} of {seeds} seeds have a signal of +0.1",
            ("projector", "T", *ranged("samples"), "batch size", "rate", "rate over batch size"),
            rows,
        ),
        Table(
            "Fitted power of T and the whole growth, with 95% intervals over tasks and settings",
            ("projector", *ranged("power", "growth")),
            fits,
        ),
    ]


def printed_beside(results: Path) -> xr.Dataset | None:
    """Read the study with the printed projector, if it is there."""
    there = (results / PRINTED / f"{PRINTED}.nc").is_file()
    return open_study(results, PRINTED, VARIABLES) if there else None


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the datasets under `results` into `out` and return the files."""

    def both(dataset: xr.Dataset) -> Figure:
        return plot(dataset, printed_beside(results))

    return render("stage1", STUDY, VARIABLES, both, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the datasets under `results` as tables, and nothing drawn."""

    def both(dataset: xr.Dataset) -> list[Table]:
        return tables(dataset, printed_beside(results))

    return tabulate(STUDY, VARIABLES, both, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
