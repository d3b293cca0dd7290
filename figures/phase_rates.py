"""Share of the seeds that recover the task, over the weight of the l1 norm and the rate of stage 2.

The dataset comes from `scbjax run phase_rates`. What to see: the region in which every seed is
recovered after rounding; how near A is to Q without rounding; and where the signal has been
thresholded away.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr
from _data import Values, setting, symbol
from _estimates import quantile_interval, share_interval
from _numbers import Table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import band, median
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

STUDY: Final = "phase_rates"
FIELDS: Final = ("l1", "learning_rate_2")
RECOVERED: Final = 0.1
ROUNDED: Final = ("rounded_attention_distance", "rounded_value_distance")
DISTANCE: Final = "attention_distance"
VARIABLES: Final = (*ROUNDED, DISTANCE)
SHARES: Final = np.linspace(0.0, 1.0, 11)
EVERY: Final = 2  # of the weights has intervals in the tables
WRITTEN: Final = 0.5  # cells of at least this share of the scale get dark text


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    share, distance = maps_of(dataset)
    figure = Figure(figsize=(DOUBLE_COLUMN, 3.0))
    left, right = figure.subplots(1, 2, sharey=True)
    norm = BoundaryNorm(SHARES, 256)
    draw_map(left, dataset, share, norm, "viridis")
    finite = distance[np.isfinite(distance)]
    limits = LogNorm(finite.min(), finite.max()) if finite.size else Normalize(0, 1)
    draw_map(right, dataset, distance, limits, "viridis_r")
    runs = dataset[DISTANCE].isel(step=-1).size // share.size
    left.set_title(f"share of {runs} seeds recovered after rounding")
    right.set_title(f"{symbol(dataset, DISTANCE)} without rounding (median)")
    left.set_ylabel(rf"rate of stage 2, {symbol(dataset, FIELDS[1])}")
    for axes in (left, right):
        axes.set_xlabel(rf"weight of the l1 norm, {symbol(dataset, FIELDS[0])}")
        bar = figure.colorbar(axes.collections[0], ax=axes, pad=0.02)
        bar.ax.yaxis.set_major_formatter("{x:g}")
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
    if finite.size:
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    length, batch = setting(dataset, "context_length"), setting(dataset, "batch_size")
    figure.suptitle(
        f"$T = {length}$, $B = {batch}$, {setting(dataset, 'steps')} iterations", fontsize=8
    )
    return figure


def maps_of(dataset: xr.Dataset) -> tuple[Values, Values]:
    """Give the share recovered and the median distance without rounding, [rates, weights]."""
    recovered, distance = runs_of(dataset)
    return recovered.mean(axis=0), band(distance)[1]


def runs_of(dataset: xr.Dataset) -> tuple[Values, Values]:
    """Give which runs are recovered, 0 or 1, and how far A is from Q: [runs, rates, weights]."""
    last = dataset.isel(step=-1)
    recovered = xr.ones_like(last[ROUNDED[0]], dtype=bool)
    for name in ROUNDED:
        recovered &= last[name] < RECOVERED
    return over_runs(recovered), over_runs(last[DISTANCE])


def over_runs(values: xr.DataArray) -> Values:
    """Make one dimension of everything but the two fields: [runs, rates, weights]."""
    runs = values.transpose(..., FIELDS[1], FIELDS[0]).to_numpy().astype(float)
    return np.asarray(runs.reshape(-1, *runs.shape[-2:]))


def draw_map(
    axes: Axes, dataset: xr.Dataset, values: Values, norm: Normalize, colours: str
) -> None:
    """Draw a heat map over the two fields, with its numbers."""
    x, y = (dataset[name].to_numpy() for name in FIELDS)
    mesh = axes.pcolormesh(edges(x), edges(y), values, norm=norm, cmap=colours)
    axes.set(xscale="log", yscale="log")
    axes.minorticks_off()
    axes.set_yticks(y, [f"{value:g}" for value in y])
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        red, green, blue, _ = mesh.to_rgba(np.array([value]))[0]
        light = 0.3 * red + 0.59 * green + 0.11 * blue > WRITTEN
        text = f"{value:.2f}".removeprefix("0") if np.isfinite(value) else "\u2013"
        axes.text(
            float(x[column]),
            float(y[row]),
            text,
            ha="center",
            va="center",
            fontsize=5.5,
            color="black" if light else "white",
        )


def edges(centres: Values) -> Values:
    """Edges of cells around evenly spaced logarithms."""
    logs = np.log(centres)
    half = 0.5 * (logs[1] - logs[0]) if len(logs) > 1 else 0.5
    return np.asarray(np.exp(np.append(logs - half, logs[-1] + half)))


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate the two maps, a row for each rate, and their intervals, a row for each cell."""
    weights, rates = (dataset[name].to_numpy() for name in FIELDS)
    columns = ("rate of stage 2", *(f"{weight:.3g}" for weight in weights))
    maps = [
        Table(name, columns, [[rate, *row] for rate, row in zip(rates, values, strict=True)])
        for name, values in zip(
            (
                "Share recovered after rounding, by weight",
                "Distance to Q without rounding, medians",
            ),
            maps_of(dataset),
            strict=True,
        )
    ]
    return [*maps, intervals_of(dataset)]


def intervals_of(dataset: xr.Dataset) -> Table:
    """Tabulate share and median distance with their intervals, at every other weight.

    These are enough to see how sure the maps are; the others would be no different.
    """
    every_other = dataset.isel({FIELDS[0]: slice(None, None, EVERY)})
    weights, rates = (every_other[name].to_numpy() for name in FIELDS)
    recovered, distance = runs_of(every_other)
    rows = []
    for row, column in np.ndindex(recovered.shape[1:]):
        hits, runs = recovered[:, row, column], distance[:, row, column]
        share = (hits.mean(), *share_interval(int(hits.sum()), hits.size))
        middle = (median(runs), *quantile_interval(runs))
        rows.append([rates[row], f"{weights[column]:.3g}", *share, *middle])
    return Table(
        f"Both, of {len(recovered)} runs, with 95% intervals, at every other weight",
        ("rate of stage 2", "weight", *ranged("share", "distance")),
        rows,
    )


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("phase_rates", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
