"""Recovery over seeds and sparsity: 64 seeds by 64 levels.

The dataset comes from `scbjax run sparsity`. What to see: up to which sparsity every seed is
recovered, how the distances before and after rounding grow with it, and how many samples it takes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr
from _arms import Arm
from _curves import POPULATION_LOOK, draw_arm
from _data import Values, setting, symbol
from _estimates import share_interval
from _numbers import Table, intervals_table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import band
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

STUDY: Final = "sparsity"
LEVEL: Final = "sparsity"
ROUNDED: Final = "rounded_attention_distance"
START: Final = "pattern_signal"  # K_Q, the squared distance of the uniform A to Q
DISTANCES: Final = {"attention_distance": "#0072B2", ROUNDED: "#D55E00"}
MEANT: Final = {"attention_distance": "as trained", ROUNDED: r"where $\hat A$ is $A$ rounded"}
VARIABLES: Final = (*DISTANCES, START, "samples", "stage")
RECOVERED: Final = 0.1
NUMBERS: Final = (*VARIABLES, "alpha_attention")


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    data = dataset.transpose("seed", LEVEL, "step")
    levels = data[LEVEL].to_numpy().astype(float)
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.9))
    share, distances, samples = figure.subplots(1, 3)
    recovered = data[ROUNDED].to_numpy() < RECOVERED
    share.plot(levels, recovered[..., -1].mean(axis=0), color="#0072B2", marker=".")
    share.set(ylabel=f"share of {data.sizes['seed']} seeds\nrecovered", ylim=(-0.03, 1.03))
    for index, (name, colour) in enumerate(DISTANCES.items()):
        arm = Arm(index, f"{symbol(data, name)}, {MEANT[name]}", colour, "-")
        draw_arm(distances, levels, data[name].to_numpy()[..., -1].astype(float), arm, faint=False)
        distances.lines[-1].set_label(arm.label)
    draw_start(distances, levels, data[START].to_numpy())
    edge = distances.axhline(RECOVERED, color="#888888", linewidth=0.8, linestyle="--")
    edge.set_label(rf"below it ({RECOVERED:g}) $\hat A$ is recovered")
    distances.set(ylabel="distance to $Q$\nafter training", ylim=(0, None))
    figure.legend(handles=[*distances.lines], loc="outside lower center", ncols=2)
    needed = samples_needed(recovered, data["samples"].to_numpy().astype(float))
    draw_arm(samples, levels, needed, Arm(0, "", "#0072B2", "-"), faint=False)
    samples.set(ylabel="samples of the recovered\n(thousands)", ylim=(0, None))
    samples.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}")
    for axes in (share, distances, samples):
        axes.set_xlabel(f"sparsity, {symbol(data, LEVEL) if LEVEL in data else '$Q$'}")
        axes.set_xscale("log", base=2)
        axes.set_xlim(levels.min() / 1.1, levels.max() * 1.1)
        axes.xaxis.set_major_locator(LogLocator(base=2, numticks=9))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    figure.suptitle(
        f"$T = {setting(dataset, 'context_length')}$, $B = {setting(dataset, 'batch_size')}$: "
        f"median and 10\u201390% of {data.sizes['seed']} seeds",
        fontsize=8,
    )
    return figure


def draw_start(axes: Axes, levels: Values, signals: Values) -> None:
    """Draw the distance of the uniform A, where training starts: the square root of K_Q.

    Args:
        axes: where to draw.
        levels: sparsities [levels].
        signals: K_Q [seeds, levels].
    """
    start = np.sqrt(band(signals)[1])
    axes.plot(levels, start, **POPULATION_LOOK, label="at the start", gid="start", zorder=5)


def samples_needed(recovered: np.ndarray, samples: Values) -> Values:
    """Samples [seeds, levels] at the first record that is recovered; NaN where none is."""
    first = recovered.argmax(axis=-1)[..., None]
    found = np.take_along_axis(samples, first, axis=-1)[..., 0]
    return np.where(recovered.any(axis=-1), found, np.nan)


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate recovery and distances, for every sparsity."""
    data = dataset.transpose("seed", LEVEL, "step")
    recovered = data[ROUNDED].to_numpy() < RECOVERED
    needed = samples_needed(recovered, data["samples"].to_numpy().astype(float))
    last = data.isel(step=-1)
    medians = [
        np.sqrt(band(data[START].to_numpy())[1]),
        *(band(last[name].to_numpy())[1] for name in (*DISTANCES, "alpha_attention")),
    ]
    hits = recovered[..., -1].sum(axis=0)
    share, runs = recovered[..., -1].mean(axis=0), recovered.shape[0]
    ended = (last["stage"].to_numpy() > 2).sum(axis=0)
    rows = [
        [
            *(level, share[place], *share_interval(int(hits[place]), runs)),
            *(values[place] for values in medians),
            *(ended[place] / runs, *share_interval(int(ended[place]), runs), samples),
        ]
        for place, level in enumerate(data[LEVEL].to_numpy())
        for samples in [band(needed)[1, place]]
    ]
    shown = (*DISTANCES, "alpha_attention")
    spread = [
        ((level,), [*(last[name].to_numpy()[:, place] for name in shown), needed[:, place]])
        for place, level in enumerate(data[LEVEL].to_numpy())
    ]
    columns = (
        *("sparsity", *ranged("share recovered")),
        *("to Q at the start", "to Q", "rounded, to Q"),
    )
    more = ("alpha_A", *ranged("share that ended stage 2"), "samples of the recovered")
    seconds = {name: dataset.attrs.get(f"{name}_seconds", np.nan) for name in ("wall", "compile")}
    steps = recovered.shape[0] * recovered.shape[1] * int(data["step"][-1])
    tokens = int(str(setting(dataset, "batch_size"))) * int(str(setting(dataset, "context_length")))
    run = float(seconds["wall"]) - float(seconds["compile"])
    speed = [float(value) for value in seconds.values()]
    speed += [run, steps / run, steps * tokens / run]
    return [
        Table(f"The end, medians of {data.sizes['seed']} seeds", (*columns, *more), rows),
        Table(
            "Time of the whole run and, without compilation, what was done a second",
            ("seconds", "of compilation", "without it", "steps a second", "tokens a second"),
            [speed],
        ),
        intervals_table(
            "The end, by sparsity",
            ("sparsity",),
            ("to Q", "rounded, to Q", "alpha_A", "samples of the recovered"),
            spread,
        ),
    ]


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("sparsity", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, NUMBERS, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
