"""Two look-ups: one layer and two, from scratch and after one hop.

The dataset comes from `scbjax run two_hop`. What to see: one layer stays at the loss that theory
says is its least; two layers get below it, from scratch as well as after one-hop samples. From
scratch they wait at that loss, which is where a plateau is on the population path too. Samples grow
alike with the context length in both; with the vocabulary they part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from _data import Values
from _estimates import (
    Estimate,
    cost_intervals,
    power_estimate,
    quantile_interval,
    samples_for_share,
    slope,
    worded_power,
)
from _numbers import Table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import band, median, nanmedian
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

STUDY: Final = "two_hop"
VARIABLES: Final = (
    "excess", "path_excess", "floor", "samples_to_goal", "path_samples_to_goal", "stage", "samples",
)  # fmt: skip
GOAL: Final = 0.5  # of the least loss of one layer, as the study counts samples
SHARE: Final = 0.5  # of the runs: the median
LOWEST: Final = 0.05  # of the loss that is drawn
PATH: Final[dict[str, Any]] = {"color": "black", "linewidth": 0.9, "linestyle": ":"}
LETTERS: Final = {"context_length": "T", "num_tokens": "N"}
ROOM: Final = 12.0  # for the legends above the samples, a factor
SPREAD: Final = 0.04  # of the logarithm, between the dots of two ways


@dataclass(frozen=True)
class Way:
    """A way to learn: how many layers, and whether one-hop samples come first."""

    label: str
    layers: int
    easy: bool
    colour: str
    linestyle: Any
    marker: str


ONE: Final = Way("one layer", 1, False, "#E69F00", (0, (4, 1.2)), "^")
SCRATCH: Final = Way("two layers, from scratch", 2, False, "#D55E00", "-", "o")
HOPS: Final = Way("two layers, after one hop", 2, True, "#0072B2", (0, (5, 1, 1, 1)), "s")
WAYS: Final = (ONE, SCRATCH, HOPS)


@dataclass(frozen=True)
class Growth:
    """Sizes of the study that differ in one number alone, in rising order."""

    field: str
    symbol: str
    places: list[int]
    x: Values


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    data = arranged(dataset)
    growths = growths_of(data)
    figure = Figure(figsize=(DOUBLE_COLUMN, 3.2))
    panels = np.atleast_1d(figure.subplots(1, 1 + len(growths)))
    draw_losses(panels[0], data, shown_size(data))
    for axes, growth in zip(panels[1:], growths, strict=True):
        draw_growth(axes, data, growth)
    limits = np.array([axes.get_ylim() for axes in panels[1:]])
    for axes in panels[1:]:
        axes.set_ylim(float(limits[:, 0].min()), ROOM * float(limits[:, 1].max()))
        axes.legend(loc="upper left", fontsize=7)
    if growths:
        panels[1].set_ylabel("samples to the goal")
    handles = [
        Line2D([], [], color=way.colour, linestyle=way.linestyle, marker=way.marker, markersize=4,
               label=way.label)
        for way in WAYS if arms_of(data, way)
    ]  # fmt: skip
    handles.append(Line2D([], [], **PATH, label="population path (theory)"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


# ------------------------------------------------------------------------------ what is read


def arranged(dataset: xr.Dataset) -> xr.Dataset:
    """Give a dataset the dimensions (size, arm, seed, step)."""
    for name in ("size", "arm"):
        if name not in dataset.dims:
            raise ValueError(f"the figure needs an axis {name!r}, a zip, as in sweeps/{STUDY}.toml")
    return dataset.transpose("size", "arm", "seed", "step")


def arms_of(data: xr.Dataset, way: Way) -> list[int]:
    """Find the arms of a way, one for every rate, the lowest rate first."""
    layers, until = data["layers"].to_numpy(), data["easy_until"].to_numpy()
    mine = (layers == way.layers) & ((until < 1) == way.easy)
    rates = data["rate"].to_numpy()
    return sorted(np.flatnonzero(mine).tolist(), key=lambda arm: float(rates[arm]))


def growths_of(data: xr.Dataset) -> list[Growth]:
    """List the numbers that sizes differ in, with two sizes at least: T and N."""
    tokens, lengths = (data[name].to_numpy() for name in ("num_tokens", "context_length"))
    found = []
    for field, symbol, own, other in (
        ("context_length", "context length $T$", lengths, tokens),
        ("num_tokens", "vocabulary $N$", tokens, lengths),
    ):
        values, counts = np.unique(other, return_counts=True)
        places = np.flatnonzero(other == values[counts.argmax()])
        order = sorted(places.tolist(), key=lambda place: int(own[place]))
        if len(order) > 1:
            found.append(Growth(field, symbol, order, own[order].astype(float)))
    return found


def shown_size(data: xr.Dataset) -> int:
    """Choose the size whose losses are drawn: in the middle of the context lengths."""
    growths = [growth for growth in growths_of(data) if growth.field == "context_length"]
    places = growths[0].places if growths else [0]
    return places[len(places) // 2]


def samples_to_goal(
    data: xr.Dataset, way: Way, places: list[int], name: str = "samples_to_goal"
) -> Values:
    """Give the samples to the goal, [places, rates, runs]; infinity for runs that never met it."""
    arms = arms_of(data, way)
    last = data[name].isel(size=places, arm=arms, step=-1).to_numpy().astype(float)
    return np.where(last < 0, np.inf, last)


def best(samples: Values, of: Values | None = None) -> Values:
    """Of several rates [places, rates, runs], take that which needs the fewest: [places, runs].

    Args:
        samples: what the rate is chosen by.
        of: what is taken at that rate; the same if left out.
    """
    chosen = samples_for_share(samples, SHARE).argmin(axis=1)
    found: Values = (samples if of is None else of)[np.arange(len(samples)), chosen]
    return found


def relative(data: xr.Dataset, name: str, size: int, arm: int) -> Values:
    """Give a loss over the least of one layer, [runs, steps]."""
    own = data.isel(size=size, arm=arm)
    return np.asarray((own[name] / own["floor"]).to_numpy(), float)


# -------------------------------------------------------------------------------- the panels


def draw_losses(axes: Axes, data: xr.Dataset, size: int) -> None:
    """Draw the losses of all ways at one size and the lowest rate, and the population paths."""
    drawn = [(way, arms_of(data, way)[0]) for way in WAYS if arms_of(data, way)]
    x = data["samples"].isel(size=size, arm=0, seed=0).to_numpy() / 1000
    ends = []
    for way, arm in drawn:
        low, middle, high = band(relative(data, "excess", size, arm))
        axes.fill_between(x, low, high, color=way.colour, alpha=0.25, gid=f"band {way.label}")
        axes.plot(x, middle, color=way.colour, linestyle=way.linestyle, gid=f"loss {way.label}")
        path = band(relative(data, "path_excess", size, arm))[1]
        axes.plot(x, np.where(path > LOWEST / 2, path, np.nan), **PATH, zorder=5)
        past = np.flatnonzero(path < LOWEST)
        ends.append(x[past[0]] if past.size else x[-1])
    tokens, length = (int(data[name][size]) for name in ("num_tokens", "context_length"))
    axes.axhline(1.0, color="#999999", linewidth=0.8, zorder=0.5)
    axes.axhline(GOAL, color="#999999", linewidth=0.6, linestyle=(0, (2, 2)), zorder=0.5)
    # What comes after all ways have got to where they stay is the same for ever.
    right = min(x[-1], 2.0 * max(ends[1:] or ends))
    axes.set(yscale="log", xlim=(0, right), ylim=(LOWEST, 3.0))
    axes.text(right, 0.97, r"$\frac{1}{2}K_P K_R|Q|_\mu^2$ ", ha="right", va="top", fontsize=7)
    axes.text(right, GOAL * 0.97, "goal ", ha="right", va="top", fontsize=7)
    axes.set_xlabel("samples (thousands)")
    axes.set_ylabel("excess loss over the least\nof one layer")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    runs = data.sizes["seed"]
    axes.set_title(f"$T = {length}$, $N = {tokens}$: median, 10\u201390% of {runs} runs")


def draw_growth(axes: Axes, data: xr.Dataset, growth: Growth) -> None:
    """Draw the samples to the goal of both ways with two layers.

    At the lowest rate, with the population path beside it, and at the best rate of each size.
    """
    for place, way in enumerate((SCRATCH, HOPS)):
        if not arms_of(data, way):
            continue
        tried = samples_to_goal(data, way, growth.places)
        path = samples_to_goal(data, way, growth.places, "path_samples_to_goal")[:, 0]
        axes.plot(growth.x, nanmedian(path, axis=1), **PATH, zorder=6, gid=f"path {way.label}")
        shift = np.exp((place - 0.5) * SPREAD)
        for name, chosen, look in (
            ("", tried[:, 0], {"linestyle": way.linestyle, "linewidth": 1.0}),
            ("best rate: ", best(tried), {"linewidth": 0.5, "markerfacecolor": "white"}),
        ):
            settings = tried if name else tried[:, :1]
            fit = power_estimate(growth.x, settings, SHARE)
            costs = samples_for_share(chosen, SHARE)
            dots = np.where(np.isfinite(chosen), chosen, np.nan)
            axes.plot(growth.x * shift, dots, ".", color=way.colour, markersize=1.5, alpha=0.4)
            axes.plot(
                growth.x, np.where(np.isfinite(costs), costs, np.nan), color=way.colour,
                marker=way.marker, markersize=4.5, label=name + power_label(growth, fit),
                gid=f"{name or 'cost '}{growth.field} {way.label}", **look,
            )  # fmt: skip
    fixed = {"context_length": "num_tokens", "num_tokens": "context_length"}[growth.field]
    value, letter = int(data[fixed][growth.places[0]]), LETTERS[fixed]
    axes.set(xscale="log", yscale="log", xlabel=growth.symbol)
    rate = float(data["rate"][arms_of(data, SCRATCH)[0]])
    axes.set_title(f"${letter} = {value}$; filled: rate {rate:g}; dots: runs")
    axes.set_xticks(growth.x, [f"{x:g}" for x in growth.x])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
    axes.yaxis.set_minor_formatter(NullFormatter())


def power_label(growth: Growth, fit: Estimate) -> str:
    """Write a fitted power with its interval, for the legend of a panel."""
    if not np.isfinite(fit.value):
        return "no power fits"
    return worded_power(fit, LETTERS[growth.field])


# ------------------------------------------------------------------------------- the numbers


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate losses at the end, samples to the goal and how they grow."""
    data = arranged(dataset)
    return [loss_table(data), *growth_tables(data), ratio_table(data), rate_table(data)]


def loss_table(data: xr.Dataset) -> Table:
    """Tabulate the loss over the least of one layer at the end, at the lowest rate."""
    rows = []
    for size in range(data.sizes["size"]):
        for way in WAYS:
            for arm in arms_of(data, way)[:1]:
                ends = relative(data, "excess", size, arm)[:, -1]
                around = (median(ends), *quantile_interval(ends))
                rows.append([*sizes(data, size), way.label, float(data["rate"][arm]), *around])
    return Table(
        "Excess loss at the end over the least of one layer, medians with 95% intervals",
        ("T", "N", "way", "rate", *ranged("loss")),
        rows,
    )


def growth_tables(data: xr.Dataset) -> list[Table]:
    """Tabulate the samples at the lowest rate and at the best ones, and the fitted powers."""
    rows, fits = [], []
    for growth in growths_of(data):
        for way in (SCRATCH, HOPS):
            if not arms_of(data, way):
                continue
            tried = samples_to_goal(data, way, growth.places)
            path = samples_to_goal(data, way, growth.places, "path_samples_to_goal")
            rates = data["rate"].to_numpy()[arms_of(data, way)]
            for name, own in (("lowest", tried[:, :1]), ("best", tried)):
                theory = nanmedian(best(own, path), axis=1)
                costs = samples_for_share(best(own), SHARE)
                around = cost_intervals(own, SHARE)
                chosen = rates[samples_for_share(own, SHARE).argmin(axis=1)]
                for place, *told in zip(growth.places, costs, around, theory, chosen, strict=True):
                    here = [*sizes(data, place), way.label, name]
                    rows.append([*here, told[0], *told[1], *told[2:]])
                letter = LETTERS[growth.field]
                fits.append([letter, way.label, name, *power_estimate(growth.x, own, SHARE)])
                fits[-1].append(float(slope(growth.x, theory)))
    return [
        Table(
            "Samples until half of the runs are at half of the least loss of one layer, at the "
            "lowest rate and at the best one, with 95% intervals over tasks and rates",
            ("T", "N", "way", "rates", *ranged("samples"), "on the path", "rate"),
            rows,
        ),
        Table(
            "Fitted powers, with 95% intervals over tasks and rates",
            ("of", "way", "rates", *ranged("power"), "on the path"),
            fits,
        ),
    ]


def ratio_table(data: xr.Dataset) -> Table:
    """Tabulate how many times more samples a run needs from scratch than after one hop."""
    rows = []
    if arms_of(data, SCRATCH) and arms_of(data, HOPS):
        for size in range(data.sizes["size"]):
            one, two = (samples_to_goal(data, way, [size]) for way in (SCRATCH, HOPS))
            paths = [
                nanmedian(samples_to_goal(data, way, [size], "path_samples_to_goal")[0, 0])
                for way in (SCRATCH, HOPS)
            ]
            row: list[float] = [*sizes(data, size)]
            for pair in ((one[0, 0], two[0, 0]), (best(one)[0], best(two)[0])):
                with np.errstate(invalid="ignore"):
                    times = pair[0] / pair[1]
                row += [median(times), *quantile_interval(times)]
            rows.append([*row, paths[0] / paths[1]])
    return Table(
        "Samples from scratch over those after one hop, run by run at the lowest rate and at the "
        "best ones, medians with 95% intervals",
        ("T", "N", *ranged("at the lowest", "at the best"), "on the path, lowest"),
        rows,
    )


def rate_table(data: xr.Dataset) -> Table:
    """Tabulate every rate at two sizes: samples, and runs that never met the goal."""
    rows = []
    for size in sorted({0, data.sizes["size"] - 1}):
        for way in WAYS:
            for arm, own in zip(
                arms_of(data, way), samples_to_goal(data, way, [size])[0], strict=True
            ):
                stage = data["stage"].isel(size=size, arm=arm).to_numpy()
                counted = data["samples"].isel(size=size, arm=arm).to_numpy()
                left = np.where(stage > 1, counted, np.inf).min(axis=1) if way.easy else [0.0]
                never = int(np.isinf(own).sum())
                middle = float(nanmedian(own))
                rate = float(data["rate"][arm])
                rows.append([*sizes(data, size), way.label, rate, middle, nanmedian(left), never])
    return Table(
        "Every rate at two sizes: samples to the goal and of one hop, medians of "
        f"{data.sizes['seed']} runs",
        ("T", "N", "way", "rate", "samples", "of one hop", "never"),
        rows,
    )


def sizes(data: xr.Dataset, size: int) -> tuple[int, int]:
    """Give T and N of a size."""
    return int(data["context_length"][size]), int(data["num_tokens"][size])


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("two_hop", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
