"""Samples to recovery against the context length, from scratch and by transfer (Theorem 4.1).

The dataset comes from `scbjax run transfer`. What to see: the theorem says that a transfer, which
starts from the transition matrix of a related task, needs a number of samples that is polynomial in
log T, where training from scratch needs a power of T. Both are seen; drawn is log T itself. A sign
read off the data at the end of stage 1, which the paper does not have, makes the power a small one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from _arms import LOOKS
from _data import Values
from _distances import SUCCESS, samples_to_recovery
from _estimates import (
    Estimate,
    cost_intervals,
    growth_estimate,
    interval_of,
    power_estimate,
    quantile_interval,
    ratio,
    resampled_runs,
    samples_for_share,
    share_interval,
    worded_power,
)
from _numbers import Table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

STUDY: Final = "transfer"
VARIABLES: Final = ("samples", "rounded_attention_distance", "rounded_value_distance")
GUIDE: Final[dict[str, Any]] = {"color": "black", "linewidth": 0.9, "linestyle": ":"}
SPREAD: Final = 0.06  # of the logarithm of T, between the dots of neighbouring arms
MARKERS: Final = ("o", "D", "s", "^")
# By start, optimizer and whether the sign is read off the data at the end of stage 1.
WAYS: Final[dict[tuple[str, str, bool], tuple[str, Any]]] = {
    ("uniform", "proximal", False): ("from scratch", LOOKS["sgd"][0]),
    ("uniform", "proximal", True): ("from scratch, sign flip", LOOKS["sgd"][1]),
    ("transfer", "proximal", True): ("transfer", LOOKS["proximal"][0]),
    ("transfer", "sgd", True): ("transfer, SGD", LOOKS["proximal"][1]),
}
NO_SAMPLES: Final = (1e3, 1e5)  # limits of axes on which no run recovers
# What sets the lines of the study apart.
TRIED: Final = (
    "context_length", "start", "optimizer", "flip", "batch_size", "learning_rate_1",
    "learning_rate_2",
)  # fmt: skip
SHARES: Final = ("from scratch", "transfer")  # drawn on the right, for every context length


@dataclass(frozen=True)
class Curve:
    """The runs of one way to train.

    Attributes:
        label: its name.
        look: colour and line style.
        lengths: context lengths [points].
        samples: to recovery, [points, runs]; of the settings that need the fewest.
        tried: the same of all settings, [points, settings, runs].
    """

    label: str
    look: tuple[str, Any]
    lengths: Values
    samples: Values
    tried: Values


def curves_of(dataset: xr.Dataset) -> list[Curve]:
    """Read the ways to train and, where a context length has several settings, take the best.

    Raises:
        ValueError: the study does not vary the context length and the start together.
    """
    names = ("context_length", "start", "optimizer", "flip")
    missing = [name for name in names if dataset.get(name) is None or dataset[name].ndim != 1]
    dims = {dataset[name].dims for name in names if name not in missing}
    if missing or len(dims) != 1:
        raise ValueError(f"the figure needs {', '.join(names)} to vary along one axis, a zip")
    ((along,),) = dims
    samples = samples_to_recovery(dataset)
    runs = samples.stack(run=[name for name in samples.dims if name != along], create_index=False)
    table = runs.transpose(along, "run").to_numpy()
    ways = list(zip(*(dataset[name].to_numpy().tolist() for name in names[1:]), strict=True))
    lengths = dataset["context_length"].to_numpy().astype(float)
    curves = []
    for way, (label, look) in WAYS.items():
        rows = np.array([way == other for other in ways])
        if rows.any():
            xs = np.unique(lengths[rows])
            tried = padded([table[rows & (lengths == x)] for x in xs])
            curves.append(Curve(label, look, xs, np.stack([cheapest(own) for own in tried]), tried))
    return curves


def cheapest(samples: Values) -> Values:
    """Of several settings [settings, runs], the one with which 90% recover soonest: [runs]."""
    best: Values = samples[int(np.argmin(samples_for_share(samples, SUCCESS)))]
    return best


def padded(tried: Sequence[Values]) -> Values:
    """Stack [settings, runs] of every point, with settings that never recover where some lack."""
    most = max(map(len, tried))
    return np.stack(
        [np.pad(own, ((0, most - len(own)), (0, 0)), constant_values=np.inf) for own in tried]
    )


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    curves = curves_of(dataset)
    figure = Figure(figsize=(DOUBLE_COLUMN, 3.1))
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    for place, curve in enumerate(curves):
        draw_growth(left, curve, place, (place - (len(curves) - 1) / 2) * SPREAD)
    draw_guide(left, curves)
    ticks = np.unique(np.concatenate([curve.lengths for curve in curves]))
    left.set(xscale="log", yscale="log", xlabel="context length $T$")
    left.set_ylabel("samples to recovery")
    left.set_title(
        f"markers: {SUCCESS:.0%} of the runs; dots: single runs\nat each $T$, ways side by side"
    )
    if not any(np.isfinite(curve.samples).any() for curve in curves):
        left.set_ylim(NO_SAMPLES)
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.xaxis.set_minor_locator(NullLocator())
    shown = [curve for curve in curves if curve.label in SHARES]
    for curve in shown:
        draw_shares(right, curve)
    right.set(xscale="log", xlabel="samples", ylabel="share of runs recovered", ylim=(0, 1.03))
    limit_samples(right, shown or curves)
    if len(shown) < len(curves):
        names = " and ".join(curve.label for curve in shown)
        right.set_title(f"{names} only\n{right.get_title()}")
    for axis in (left.yaxis, right.xaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
        axis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
        axis.set_minor_formatter(NullFormatter())
    add_legend(figure, curves)
    return figure


def draw_growth(axes: Axes, curve: Curve, place: int, shift: float) -> None:
    """Draw single runs as faint dots, where 90% recover as markers, and the fitted power of T."""
    colour, linestyle = curve.look
    x = curve.lengths * np.exp(shift)
    dots = np.where(np.isfinite(curve.samples), curve.samples, np.nan)
    axes.plot(x, dots, ".", color=colour, markersize=2, alpha=0.35)
    costs = samples_for_share(curve.samples, SUCCESS)
    axes.plot(
        x, costs, MARKERS[place], color=colour, markersize=4.5, zorder=5, gid=f"cost {curve.label}"
    )
    fine = np.isfinite(costs)
    if fine.sum() > 1:
        exponent = np.polyfit(np.log(curve.lengths[fine]), np.log(costs[fine]), 1)
        fitted = np.exp(np.polyval(exponent, np.log(curve.lengths[fine])))
        axes.plot(x[fine], fitted, color=colour, linestyle=linestyle, linewidth=1.0, zorder=4)


def draw_guide(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draw growth as log T, the first power, from the first transfer on."""
    for curve in curves:
        cost = samples_for_share(curve.samples, SUCCESS)
        if curve.label == "transfer" and np.isfinite(cost[0]):
            line = cost[0] * np.log(curve.lengths) / np.log(curve.lengths[0])
            axes.plot(curve.lengths, line, **GUIDE, zorder=3, gid="theorem")


def draw_shares(axes: Axes, curve: Curve) -> None:
    """Draw the share of runs that have recovered after so many samples, a line for every T."""
    colour = curve.look[0]
    for place, runs in enumerate(curve.samples):
        finite = np.sort(runs[np.isfinite(runs)])
        x = np.concatenate([[1.0], finite, [np.inf]])
        y = np.concatenate([[0.0], np.arange(1, len(finite) + 1), [len(finite)]]) / len(runs)
        strength = (place + 1) / len(curve.samples)
        axes.step(
            x[:-1],
            y[:-1],
            where="post",
            color=colour,
            linewidth=0.6 + 1.0 * strength,
            alpha=0.35 + 0.65 * strength,
            gid=f"share {curve.label} {curve.lengths[place]:g}",
        )
    axes.axhline(SUCCESS, color="#cccccc", linewidth=0.5, zorder=0.5)


def limit_samples(axes: Axes, curves: Sequence[Curve]) -> None:
    """Limit the x axis to where runs recover, and say which line is which T."""
    finite = np.concatenate([curve.samples[np.isfinite(curve.samples)] for curve in curves])
    low, high = (finite.min(), finite.max()) if finite.size else NO_SAMPLES
    axes.set_xlim(0.8 * low, 1.3 * high)
    lengths = np.concatenate([curve.lengths for curve in curves])
    axes.set_title(f"thin to thick: $T$ = {lengths.min():g} to {lengths.max():g}")


def add_legend(figure: Figure, curves: Sequence[Curve]) -> None:
    """Put one legend above the panels, with the exponents and their intervals."""
    entries: dict[str, Line2D] = {}
    for place, curve in enumerate(curves):
        label = curve.label
        if len(curve.lengths) > 1:
            fit = power_estimate(curve.lengths, curve.tried, SUCCESS)
            if np.isfinite(fit.value):
                label += f": {worded_power(fit)}"
        entries[label] = Line2D(
            [], [], color=curve.look[0], linestyle=curve.look[1], marker=MARKERS[place],
            markersize=4.5,
        )  # fmt: skip
    entries[r"$\propto \log T$ (theorem for transfer: poly($\log T$))"] = Line2D([], [], **GUIDE)
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=2)


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate the samples of every way to train, and of every setting that was tried."""
    return [*growth_tables(dataset), tried_table(dataset)]


def growth_tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate samples against T and how they grow, at the best settings."""
    rows, fits = [], []
    for curve in curves_of(dataset):
        costs = samples_for_share(curve.samples, SUCCESS)
        around = cost_intervals(curve.tried, SUCCESS)
        for length, cost, ends, runs in zip(
            curve.lengths, costs, around, curve.samples, strict=True
        ):
            found = np.isfinite(runs)
            share = (found.mean(), *share_interval(int(found.sum()), found.size))
            middle = (np.median(runs), *quantile_interval(runs))
            rows.append([curve.label, length, cost, *ends, *middle, *share])
        if len(curve.lengths) > 1:
            growth = growth_estimate(curve.tried, SUCCESS)
            fit = power_estimate(curve.lengths, curve.tried, SUCCESS)
            fits.append([curve.label, *growth, *median_growth(curve.samples), *fit])
    columns = ranged(f"{SUCCESS:.0%} recover", "median", "share recovered")
    more = ranged(f"growth of {SUCCESS:.0%}", "of the median", "power of T")
    return [
        Table(
            "Samples to recovery at the best settings, with 95% intervals",
            ("way", "T", *columns),
            rows,
        ),
        Table(
            f"From the smallest T to the largest, and the fitted power of T for {SUCCESS:.0%}, "
            "with 95% intervals over tasks and settings",
            ("way", *more),
            fits,
        ),
    ]


def median_growth(samples: Values) -> Estimate:
    """Say how many times the median of the runs grows over all points, with its interval.

    Args:
        samples: to recovery [points, runs], at settings that stay as they are; the same tasks
            everywhere.
    """
    drawn = np.median(samples[:, resampled_runs(samples.shape[1], lost=0)], axis=-1)
    value = float(ratio(np.median(samples, axis=1)))
    return Estimate(value, *interval_of(ratio(drawn.T)))


def tried_table(dataset: xr.Dataset) -> Table:
    """Tabulate the samples for every line of the study."""
    samples = samples_to_recovery(dataset)
    along = dataset["context_length"].dims[0]
    runs = samples.stack(run=[name for name in samples.dims if name != along], create_index=False)
    table = runs.transpose(along, "run").to_numpy()
    settings = [name for name in TRIED if name in dataset.coords]
    rows = [
        [
            *(str(dataset[name].values[place]) for name in settings),
            samples_for_share(own, SUCCESS),
            np.median(own),
            np.isfinite(own).mean(),
        ]
        for place, own in enumerate(table)
    ]
    columns = (*settings, f"{SUCCESS:.0%} recover", "median", "share recovered")
    return Table(f"All settings, {table.shape[1]} runs each", columns, rows)


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("transfer", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
