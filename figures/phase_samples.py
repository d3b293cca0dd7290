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
from _shared import SINGLE_COLUMN, Values, log_axis, main, render, setting
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

STUDY: Final = "phase_samples"
DISTANCE: Final = "rounded_attention_distance"
VARIABLES: Final = (DISTANCE, "samples")
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
    axes.plot(lengths, first, "o", color="white", markeredgecolor="black", markersize=4)
    seen = np.isfinite(first)
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
    if seen.sum() > 1:
        slope, offset = np.polyfit(np.log(lengths[seen]), np.log(first[seen]), 1)
        axes.plot(lengths, np.exp(offset) * lengths**slope, "w--", linewidth=0.9)
        handles.append(
            Line2D([], [], color="#999999", linestyle="--", label=f"fit, $T^{{{slope:.2f}}}$")
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


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("phase_samples", STUDY, VARIABLES, plot, results, out)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__))
