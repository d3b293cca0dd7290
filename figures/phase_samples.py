"""Share of the seeds that have recovered Q, over the number of samples and the context length.

The dataset comes from `scbjax run phase_samples`: one batch size, several rates of stage 1, of
which the best is taken at every point. What to see: the frontier between nobody and everybody, and
how it moves with T.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr
from _axes import log_axis
from _data import Values, setting
from _estimates import (
    Estimate,
    cost_intervals,
    power_estimate,
    quantile_interval,
    samples_for_share,
    worded_interval,
)
from _numbers import Table, ranged, tabulate
from _render import SINGLE_COLUMN, main, render
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

STUDY: Final = "phase_samples"
DISTANCE: Final = "rounded_attention_distance"
VARIABLES: Final = (DISTANCE, "samples")
NUMBERS: Final = (*VARIABLES, "stage")
RECOVERED: Final = 0.1
MOST: Final = 0.9
LENGTH: Final = "context_length"
RATE: Final = "learning_rate_1"


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    share = best_share(dataset)
    lengths, steps = dataset[LENGTH].to_numpy(), dataset["step"].to_numpy()
    samples = steps * int(str(setting(dataset, "batch_size")))
    figure = Figure(figsize=(SINGLE_COLUMN, 2.9))
    axes = figure.subplots()
    logs = np.log(lengths.astype(float))
    gaps = 0.5 * np.diff(logs)
    sides = np.exp(np.concatenate([[logs[0] - gaps[0]], logs[:-1] + gaps, [logs[-1] + gaps[-1]]]))
    # The share at a record holds up to the next one.
    mesh = axes.pcolormesh(sides, samples, share[:, :-1].T, vmin=0, vmax=1, cmap="viridis")
    axes.set_xscale("log")
    axes.minorticks_off()
    log_axis(axes, (float(samples[1]), float(samples[-1])))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}")
    axes.set_xticks(lengths, [f"{length:g}" for length in lengths])
    first = frontier(share, samples)
    slope, offset = power_of(lengths, first)
    axes.plot(lengths, first, "o", color="white", markeredgecolor="black", markersize=4)
    handles = [
        Line2D(
            [],
            [],
            marker="o",
            color="white",
            markeredgecolor="black",
            linestyle="",
            markersize=4,
            label=f"{MOST:.0%} recovered",
        )
    ]
    if np.isfinite(slope):
        axes.plot(lengths, np.exp(offset) * lengths**slope, "w--", linewidth=0.9)
        handles.append(
            Line2D([], [], color="#999999", linestyle="--", label=_power_label(dataset, slope))
        )
    axes.set(xlabel="context length, $T$", ylabel="samples (thousands)")
    figure.colorbar(mesh, ax=axes, label=f"share of {dataset.sizes['seed']} seeds recovered")
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def best_share(dataset: xr.Dataset) -> Values:
    """Share of seeds recovered with the best rate at every point: [lengths, records]."""
    share = (dataset[DISTANCE] < RECOVERED).mean("seed")
    if RATE in share.dims:
        share = share.max(RATE)
    return np.asarray(share.transpose(LENGTH, "step").to_numpy(), float)


def frontier(share: Values, samples: Values) -> Values:
    """Samples at the first record at which most seeds have recovered; NaN where they never do."""
    reached = share >= MOST
    return np.where(reached.any(axis=1), samples[reached.argmax(axis=1)], np.nan)


def power_of(lengths: Values, samples: Values) -> Values:
    """Fit samples ~ exp(offset) T^slope: (slope, offset), NaN where fewer than two are finite."""
    seen = np.isfinite(samples)
    if seen.sum() < 2:
        return np.full(2, np.nan)
    return np.asarray(np.polyfit(np.log(lengths[seen]), np.log(samples[seen]), 1))


def _power_label(dataset: xr.Dataset, slope: float) -> str:
    """The fitted power with its interval, for the legend."""
    around = power_of_tasks(dataset)[1:]
    return f"fit, $T^{{{slope:.2f}}}$ (95%: {worded_interval(around)})"


def power_of_tasks(dataset: xr.Dataset) -> Estimate:
    """The power of T in the samples until most tasks recover, over resampled tasks and rates."""
    lengths = dataset[LENGTH].to_numpy().astype(float)
    return power_estimate(lengths, until(dataset, dataset[DISTANCE] < RECOVERED), MOST)


def until(dataset: xr.Dataset, reached: xr.DataArray) -> Values:
    """Samples at the first record at which something is so [lengths, rates, seeds]; or infinity."""
    samples = dataset["step"].to_numpy() * int(str(setting(dataset, "batch_size")))
    reached = reached if RATE in reached.dims else reached.expand_dims(RATE)
    when = reached.transpose(LENGTH, RATE, "seed", "step").to_numpy()
    return np.asarray(np.where(when, samples, np.inf).min(axis=-1))


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate the frontier and, for each rate, what stage 1 takes and what the rest does."""
    samples = dataset["step"].to_numpy() * int(str(setting(dataset, "batch_size")))
    lengths, first = dataset[LENGTH].to_numpy(), frontier(best_share(dataset), samples)
    data = dataset if RATE in dataset.dims else dataset.expand_dims(RATE)
    used = until(dataset, dataset[DISTANCE] < RECOVERED)
    switch = until(dataset, dataset["stage"] > 1)
    with np.errstate(invalid="ignore"):
        after = np.nan_to_num(used - switch, nan=np.inf)
    until_most, after_most = (samples_for_share(each, MOST) for each in (used, after))
    rows = [
        [
            lengths[place],
            np.atleast_1d(data[RATE])[column],
            until_most[place, column],
            np.median(switch[place, column]),
            *quantile_interval(switch[place, column]),
            after_most[place, column],
            np.isinf(used[place, column]).sum(),
        ]
        for place, column in np.ndindex(*used.shape[:2])
    ]
    columns = ("T", "rate of stage 1", f"samples until {MOST:.0%} recover")
    slope = power_of(lengths, first)[0]
    of_power = worded_interval(power_of_tasks(dataset)[1:])
    around = cost_intervals(used, MOST)
    return [
        Table(
            f"Samples until {MOST:.0%} recover at the best rate: a power {slope:.2f} of T, "
            f"95% interval over tasks and rates {of_power}",
            ("T", *ranged("samples")),
            [(*pair, *ends) for *pair, ends in zip(lengths, first, around, strict=True)],
        ),
        Table(
            "The same, rate by rate; stage 1 in the median, with 95% intervals",
            (*columns, *ranged("stage 1"), f"after it, {MOST:.0%}", "never"),
            rows,
        ),
    ]


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, NUMBERS, tables, results)


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("phase_samples", STUDY, VARIABLES, plot, results, out)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
