"""Samples to recovery against context length, vocabulary and sparsity, before and after stage 1.

The dataset comes from `scbjax run complexity`: for every size, geometry and batch size the rate of
stage 1 with which 90% of the seeds recover Q with the fewest samples. The figure takes the best
batch size too. What to see: with the sign read off the data, samples hardly grow with T, least of
all those after stage 1; they do with N and Q.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from _curves import draw_ranges
from _data import Values, setting
from _estimates import (
    Estimate,
    Interval,
    and_one_lost,
    cost_interval,
    interval_of,
    resampled_runs,
    samples_for_share,
    slope,
    worded_power,
)
from _numbers import Table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

STUDY: Final = "complexity"
GOAL, SWITCH, RATE = "samples_to_goal", "samples_to_switch", "learning_rate_1"
VARIABLES: Final = (GOAL, SWITCH, RATE)
SIZES: Final = {"context_length": "T", "num_tokens": "N", "sparsity": "Q"}
NAMES: Final = {
    "context_length": "context length",
    "num_tokens": "vocabulary",
    "sparsity": "sparsity",
}
LOOKS: Final[dict[str, dict[str, Any]]] = {
    "mu": {"color": "#0072B2", "marker": "o"},
    "paper": {"color": "#D55E00", "marker": "s"},
}
GEOMETRIES: Final = {"mu": r"$\mu$-orthogonal", "paper": "as printed"}
WHOLE: Final = "total"
PARTS: Final[dict[str, Any]] = {WHOLE: "-", "stage 1": "--", "after stage 1": ":"}
ABOVE: Final[dict[str, Any]] = {
    "loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "fontsize": 7, "labelspacing": 0.2,
}  # fmt: skip
RESAMPLES: Final = 400  # of the seeds


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    dataset = arranged(dataset)
    figure = Figure(figsize=(DOUBLE_COLUMN, 4.4))
    panels = figure.subplots(1, len(SIZES), sharey=True)
    for axes, field in zip(panels, SIZES, strict=True):
        rows = rows_of(dataset, field)
        lines: list[Line2D] = []
        for index, geometry in enumerate(dataset["geometry"].to_numpy()):
            part = dataset.isel(size=rows, geometry=index)
            lines += draw_geometry(axes, part, field, LOOKS[str(geometry)])
        ticks = np.unique(dataset[field].to_numpy()[rows])
        axes.set(xscale="log", yscale="log", xlabel=f"{NAMES[field]}, ${SIZES[field]}$")
        axes.minorticks_off()
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xlim(0.85 * ticks[0], ticks[-1] / 0.85)
        axes.legend(handles=lines, **ABOVE)
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panels[0].yaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}")
    share = float(str(setting(dataset, "share")))
    panels[0].set_ylabel(
        f"samples until {share:.0%} of {dataset.sizes['seed']} seeds recover\n(thousands)"
    )
    names = {
        GEOMETRIES.get(str(name), str(name)): Line2D([], [], **LOOKS[str(name)], markersize=3.5)
        for name in dataset["geometry"].to_numpy()
    }
    names |= {
        name: Line2D([], [], color="#666666", linestyle=style) for name, style in PARTS.items()
    }
    figure.legend(names.values(), names.keys(), loc="outside upper center", ncols=len(names))
    return figure


def arranged(dataset: xr.Dataset) -> xr.Dataset:
    """Give a dataset the dimensions (size, geometry, batch_size, seed, probe)."""
    for name in ("geometry", "batch_size"):
        if name not in dataset.dims:
            dataset = dataset.expand_dims({name: [setting(dataset, name)]})
    return dataset.transpose("size", "geometry", "batch_size", "seed", "probe")


def rows_of(dataset: xr.Dataset, field: str) -> list[int]:
    """Rows of the study's sizes that vary one field and have the usual values of the others."""
    table = {name: dataset[name].to_numpy() for name in SIZES}
    others = [name for name in SIZES if name != field]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row in range(dataset.sizes["size"]):
        groups.setdefault(tuple(table[name][row] for name in others), []).append(row)
    rows = max(groups.values(), key=lambda rows: len({table[field][row] for row in rows}))
    return sorted(rows, key=lambda row: float(table[field][row]))


def draw_geometry(axes: Axes, part: xr.Dataset, field: str, look: dict[str, Any]) -> list[Line2D]:
    """Draw the samples in all, in stage 1 and after it; return lines with their powers."""
    x = part[field].to_numpy().astype(float)
    found, resampled = costs_of(part)
    lines = []
    for name, style in PARTS.items():
        shown = np.isfinite(found[name])
        if not shown.any():
            continue
        axes.plot(x[shown], found[name][shown], linestyle=style, markersize=3.5, **look)
        if name == WHOLE:
            drawn = [draw[name] for draw in resampled]
            ends = np.array([ends_of(drawn, place) for place in range(x.size)]).T
            draw_ranges(axes, x, np.where(shown, found[name], np.nan), ends, look["color"])
        fit = power_of(x, found[name], [draw[name] for draw in resampled])
        if np.isfinite(fit.value):
            told = worded_power(fit, SIZES[field])
            lines.append(Line2D([], [], color=look["color"], linestyle=style, label=told))
    return lines


def costs_of(part: xr.Dataset) -> tuple[dict[str, Values], list[dict[str, Values]]]:
    """Give the costs of one geometry's sizes, and those of resampled seeds."""
    share = float(str(setting(part, "share")))
    goal, switch = (part[name].to_numpy().astype(float) for name in (GOAL, SWITCH))
    more = and_one_lost(goal, axis=2), and_one_lost(switch, axis=2)
    resampled = [
        costs(more[0][:, :, pick], more[1][:, :, pick], share)
        for pick in resampled_runs(goal.shape[2], RESAMPLES)
    ]
    return costs(goal, switch, share), resampled


def costs(goal: Values, switch: Values, share: float) -> dict[str, Values]:
    """Samples in all, in stage 1 and after it, with the best batch size and rate of every size.

    Args:
        goal: samples until recovery, [sizes, batches, seeds, probes].
        switch: samples until the end of stage 1, likewise.
        share: of the seeds that have to get there.
    """

    def needed(samples: Values) -> Values:
        return samples_for_share(samples.swapaxes(2, 3), share).reshape(len(goal), -1)

    with np.errstate(invalid="ignore"):
        since = np.where(np.isfinite(goal), goal - switch, np.inf)
    total, before, after = needed(goal), needed(switch), needed(since)
    rows, best = np.arange(len(goal)), total.argmin(axis=1)
    least = total[rows, best]
    lost = ~np.isfinite(least)
    return {
        WHOLE: least,
        "stage 1": np.where(lost, np.inf, before[rows, best]),
        "after stage 1": np.where(lost, np.inf, after[rows, best]),
    }


def power_of(x: Values, found: Values, resampled: Sequence[Values]) -> Estimate:
    """Fit a power, with its interval over resampled seeds; NaN where a size is not recovered."""
    value = float(slope(x, found))
    if not np.isfinite(value):
        return Estimate(np.nan, np.nan, np.nan)
    return Estimate(value, *interval_of(slope(x, np.array(resampled))))


def ends_of(drawn: Sequence[Values], place: int) -> Interval:
    """Give the interval of a size's costs in resamples, or of their ratios, where they have one."""
    values = np.array([costs[place] for costs in drawn])
    values = values[~np.isnan(values)]
    return cost_interval(values) if values.size else Interval(np.nan, np.nan)


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate the samples with their fitted powers, for every size and geometry."""
    dataset = arranged(dataset)
    rows, fits = [], []
    for field in SIZES:
        # Of the first geometry: the samples in all, and those of every resample.
        first: list[Values] = []
        for index, geometry in enumerate(dataset["geometry"].to_numpy()):
            part = dataset.isel(size=rows_of(dataset, field), geometry=index)
            found, resampled = costs_of(part)
            x = part[field].to_numpy().astype(float)
            totals = [costs[WHOLE] for costs in (found, *resampled)]
            first = first or totals
            with np.errstate(invalid="ignore"):  # no ratio where neither geometry recovers
                over = [own / other for own, other in zip(totals, first, strict=True)]
            for place, size in enumerate(x):
                costs_here = [found[name][place] for name in PARTS]
                around, ratios = (ends_of(each, place) for each in (totals[1:], over[1:]))
                total = [costs_here[0], *around, *costs_here[1:]]
                rows.append([NAMES[field], geometry, size, *total, over[0][place], *ratios])
            powers = [power_of(x, found[name], [d[name] for d in resampled]) for name in PARTS]
            fit = [number for power in powers for number in power]
            fits.append([NAMES[field], geometry, float(slope(x, np.log(x))), *fit])
    columns = ranged(*PARTS)
    whole, *parts = PARTS
    other = f"that of {dataset['geometry'].to_numpy()[0]}"
    return [
        Table(
            "Least samples until recovery, with 95% intervals over tasks and settings",
            ("of", "geometry", "size", *ranged(whole), *parts, *ranged(f"{whole} over {other}")),
            rows,
        ),
        Table(
            "Fitted powers, 95% intervals over tasks and settings; what a logarithm would give",
            ("of", "geometry", "logarithm", *columns),
            fits,
        ),
    ]


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("complexity", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
