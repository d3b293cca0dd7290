"""What the mu-orthogonal projector gains at the start, task by task (ours, not in the paper).

The dataset comes from `scbjax run projector_tasks`: the ratio of the two variances of
`figures/projector.py`, over many tasks. What to see: it is no one number. Its law has two peaks,
one at the largest |mu|^2 that tasks have and a broad one below, so that the median of a
few tasks is anywhere between.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr
from _data import Values, setting
from _estimates import quantile_interval, share_interval, within_extreme
from _numbers import Table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import finite_of, largest, least, median
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

STUDY: Final = "projector_tasks"
PRINTED, ORTHOGONAL = "initial_noise_paper", "initial_noise_mu"
MEASURED: Final = {
    PRINTED: "alpha_value_noise_paper",
    ORTHOGONAL: "alpha_value_noise_mu",
}
VARIABLES: Final = (PRINTED, ORTHOGONAL, *MEASURED.values())
COLOURS: Final = ("#56B4E9", "#0072B2", "#332288", "#AA4499")
LITTLE: Final = (10.0, 30.0, 58.0, 100.0)  # gains, for the share of tasks below
LOW: Final = 0.1  # the quantile beside the median
BINS: Final = 40


def gains_of(dataset: xr.Dataset) -> dict[float, Values]:
    """Give the exact ratio of the variances at the start, printed over mu-orthogonal, per skew."""
    exact = ratios(dataset, PRINTED, ORTHOGONAL)
    return {skew: finite_of(own) for skew, own in exact.items()}


def ratios(dataset: xr.Dataset, above: str, below: str) -> dict[float, Values]:
    """Give a squared ratio of two deviations at step 0 [tasks] for every skew."""
    if "skew" not in dataset.dims:
        dataset = dataset.expand_dims({"skew": [setting(dataset, "skew", 2.0)]})
    ratio = (dataset[above] / dataset[below]).isel(step=0).transpose("skew", ...) ** 2
    return {
        float(skew): ratio.to_numpy()[place].astype(float).ravel()
        for place, skew in enumerate(dataset["skew"].to_numpy())
    }


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    gains = gains_of(dataset)
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.6))
    left, right = figure.subplots(1, 2)
    values = np.concatenate(list(gains.values()))
    low, high = (values.min(), values.max()) if values.size else (1.0, 10.0)
    edges = np.geomspace(0.9 * low, 1.1 * high, BINS)
    entries: dict[str, Line2D] = {}
    for (skew, own), colour in zip(gains.items(), COLOURS, strict=False):
        left.hist(own, edges, histtype="step", color=colour, linewidth=1.2)
        draw_shares(right, own, colour)
        entries[f"skew $C$ = {skew:g}"] = Line2D([], [], color=colour)
    entries["median, with its 95% interval"] = Line2D(
        [], [], color="#666666", marker="o", markersize=4
    )
    for axes in (left, right):
        axes.set(xscale="log", xlabel=r"variance, printed over $\mu$-orthogonal")
        axes.xaxis.set_major_formatter("{x:g}")
    left.set(ylabel="tasks")
    right.set(ylabel="share of tasks below", ylim=(0, 1.02))
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=len(entries))
    return figure


def draw_shares(axes: Axes, gains: Values, colour: str) -> None:
    """Draw the share of tasks whose gain is smaller, and the median with its interval."""
    if gains.size == 0:
        return
    ordered = np.sort(gains)
    shares = np.arange(1, ordered.size + 1) / ordered.size
    axes.step(ordered, shares, where="post", color=colour, linewidth=1.2)
    low, high = quantile_interval(gains)
    axes.plot([low, high], [0.5, 0.5], color=colour, linewidth=2.5, solid_capstyle="butt")
    axes.plot(np.median(gains), 0.5, "o", color=colour, markersize=4, gid="median")


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate quantiles of the gain, the share of tasks with little, and how exact it is."""
    gains = gains_of(dataset)
    measured = ratios(dataset, *MEASURED.values())
    exact = ratios(dataset, PRINTED, ORTHOGONAL)
    quantiles, shares, checks = [], [], []
    for skew, own in gains.items():
        row: list[object] = [f"{skew:g}", own.size]
        for share in (0.5, LOW):
            value = np.quantile(own, share) if own.size else np.nan
            row += [value, *quantile_interval(own, share)]
        quantiles.append([*row, least(own), largest(own), within_extreme(own.size)])
        for level in LITTLE if own.size else ():
            hits = int((own < level).sum())
            around = share_interval(hits, own.size)
            shares.append([f"{skew:g}", level, hits, hits / own.size, *around])
        error = np.abs(measured[skew] / exact[skew] - 1)
        checks.append([f"{skew:g}", median(error), largest(error)])
    return [
        Table(
            f"Gain at the start, T = {setting(dataset, 'context_length')}: quantiles over tasks "
            "with 95% intervals, extremes, and the share of all tasks (95% confidence) that lies "
            "above the least, or below the largest",
            ("skew", "tasks", *ranged("median", "10%"), "least", "largest", "share of all"),
            quantiles,
        ),
        Table(
            "Tasks with a gain below a level, their share with its 95% interval",
            ("skew", "below", "tasks", *ranged("share")),
            shares,
        ),
        Table(
            "Measured gain beside the exact one: relative distance",
            ("skew", "median", "largest"),
            checks,
        ),
    ]


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("projector_tasks", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
