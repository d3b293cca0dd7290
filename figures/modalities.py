"""Two modalities with a pattern or a transition matrix in common: alone, mixed, one after another.

The dataset comes from `scbjax run modalities`. What to see: from scratch the samples of a modality
grow as T, mixed with the other one they do too, and after the other one they do not grow: the
mirror image of Theorem 4.1 where transition matrices are new, the theorem where patterns are. What
is left to learn falls as 1 / cos^2 of what was kept to what is true, for all T on one line; the
lines are those of `scbjax/experiments/modalities.py`, and nothing in them is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib as mpl
import numpy as np
import xarray as xr
from _data import Values
from _estimates import (
    Estimate,
    cost_intervals,
    interval_of,
    least_samples,
    power_estimate,
    quantile_interval,
    resampled_runs,
    samples_for_share,
    share_interval,
    worded_power,
)
from _numbers import Table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import nanmedian
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

STUDY: Final = "modalities"
VARIABLES: Final = (
    "kept", "predicted", "samples_of_first", "samples_of_second", "samples_to_value",
    "samples_to_pattern",
)  # fmt: skip
NEW: Final = {"pattern": "new $P$, $Q$ shared", "transition": "new $Q$, $P$ shared"}
PLAIN: Final = {"pattern": "new P, Q shared", "transition": "new Q, P shared"}
THEORY: Final[dict[str, Any]] = {"color": "black", "linewidth": 0.9, "linestyle": ":"}
ROOT: Final = float(np.sqrt(0.5))
MIXED_SHARES: Final = {"pattern": (ROOT, 1.0), "transition": (0.5, ROOT)}  # of those alone
SHARE: Final = 0.8  # of the runs that recover; of 16 it can be told with an interval
MUCH: Final = 1e9  # samples, what is predicted where nothing can be learned
GAP: Final = 1.06  # between marks at one T, a factor
WIDE: Final = 50.0  # a range of 1 / cos^2 with labels at powers of ten alone


@dataclass(frozen=True)
class Way:
    """A way to learn the second modality."""

    label: str
    plain: str
    colour: str
    marker: str
    linestyle: str = "-"

    @property
    def look(self) -> dict[str, Any]:
        """How it is drawn."""
        style = {"marker": self.marker, "linestyle": self.linestyle, "markersize": 4}
        return {"color": self.colour, **style}


ALONE: Final = Way("alone, SGD", "alone", "#D55E00", "o")
MIXED: Final = Way("mixed, SGD", "mixed", "#009E73", "s")
AFTER: Final = Way("after the other", "after the other", "#0072B2", "^")
NOTHING: Final = Way("one step, $A$ uniform", "one step, A uniform", "#777777", "D", "")
WAYS: Final = (ALONE, MIXED, AFTER, NOTHING)


# ------------------------------------------------------------------------------ what is read


def arranged(dataset: xr.Dataset) -> xr.Dataset:
    """Give the last record of a dataset the dimensions (kind, context_length, arm, seed)."""
    for name in ("kind", "arm"):
        if name not in dataset.dims:
            raise ValueError(f"the figure needs an axis {name!r}, a zip, as in sweeps/{STUDY}.toml")
    if "context_length" not in dataset.dims:
        raise ValueError(f"the figure needs an axis 'context_length', as in sweeps/{STUDY}.toml")
    last = dataset.isel(step=-1).sortby("context_length")
    return last.transpose("kind", "context_length", "arm", "seed", ...)


def arms_of(data: xr.Dataset, way: Way) -> list[int]:
    """Find the arms of a way: of SGD one for each rate, of the others one."""
    share, until, rho, rate = (
        data[name].to_numpy() for name in ("second_share", "first_until", "correlation", "rate")
    )
    if way in (ALONE, MIXED):
        mine = (share >= 1) if way is ALONE else (share > 0) & (share < 1)
    else:
        told = until[(share == 0) & (rho == 1)]
        wanted = told.max(initial=0.0) if way is AFTER else 0.0
        mine = (share == 0) & (rho == 1) & (until == wanted)
        mine &= (until > 0) if way is AFTER else True
    return sorted(np.flatnonzero(mine).tolist(), key=lambda arm: float(rate[arm]))


def kept_arms(data: xr.Dataset) -> list[int]:
    """Find the arms in which the second modality comes after the first."""
    return [int(arm) for arm in np.flatnonzero(data["second_share"].to_numpy() == 0)]


def counts(data: xr.Dataset, name: str) -> Values:
    """Give samples to something [kinds, lengths, arms, runs]; infinity for never."""
    values = data[name].to_numpy().astype(float)
    return np.where(values < 0, np.inf, values)


def samples(data: xr.Dataset, kind: int, way: Way) -> Values:
    """Samples of modality 2 until both halves are right, [lengths, rates, runs].

    Of one step from a uniform A, which is still uniform afterwards, until the new half is.
    """
    names = ["samples_to_value", "samples_to_pattern"]
    if way is NOTHING:
        names = [new_half(data, kind)]
    found = np.max([counts(data, name) for name in names], axis=0)
    own = np.asarray(found[kind][:, arms_of(data, way)], float)
    return np.where(np.isnan(own), np.inf, own)  # one that diverged never comes


def shared_by(data: xr.Dataset, kind: int) -> str:
    """Say what the modalities share."""
    return str(data["shared"].to_numpy()[kind])


def new_half(data: xr.Dataset, kind: int) -> str:
    """Name the samples to the half that modalities don't share."""
    is_value = shared_by(data, kind) == "pattern"
    return "samples_to_value" if is_value else "samples_to_pattern"


def ways_of(data: xr.Dataset, kind: int) -> list[Way]:
    """List the ways that the study has; from V = mu 1^T no step teaches a pattern."""
    useless = NOTHING if shared_by(data, kind) == "transition" else None
    return [way for way in WAYS if arms_of(data, way) and way is not useless]


def lengths_of(data: xr.Dataset) -> Values:
    """Give T."""
    return np.asarray(data["context_length"].to_numpy(), float)


def predicted(data: xr.Dataset, kind: int, way: Way, share: float) -> Values:
    """Samples with which a share of the runs is predicted to recover, [lengths].

    The law of each run by its own task and what was kept, all runs together.
    """
    arm = arms_of(data, way)[0]
    law = data["predicted"].isel(kind=kind, arm=arm).transpose("context_length", "seed", "level")
    pooled = law.to_numpy().reshape(law.shape[0], -1)
    return np.asarray(np.nanquantile(pooled, share, axis=1, method="hazen"), float)


# -------------------------------------------------------------------------------- the panels


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    data = arranged(dataset)
    kinds = range(data.sizes["kind"])
    figure = Figure(figsize=(DOUBLE_COLUMN, 5.6))
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    grid = figure.subplots(2, len(kinds), squeeze=False)
    colours = colours_of(data)
    for kind in kinds:
        draw_growth(grid[0, kind], data, kind)
        draw_collapse(grid[1, kind], data, kind, colours)
    add_legend(figure, data, grid[1, 0], colours)
    return figure


def colours_of(data: xr.Dataset) -> list[Any]:
    """Give each T its colour, from dark to light."""
    shades = np.linspace(0.0, 0.88, data.sizes["context_length"])
    return [mpl.colormaps["viridis"](shade) for shade in shades]


def logarithmic(axes: Axes) -> None:
    """Make the y axis logarithmic, with few and plain numbers."""
    axes.set(yscale="log")
    axes.yaxis.set_major_locator(LogLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}" if value < 1e4 else power10(value))
    axes.yaxis.set_minor_formatter(NullFormatter())


def power10(value: float) -> str:
    """Write a power of ten."""
    return f"$10^{{{round(np.log10(value))}}}$"


def draw_growth(axes: Axes, data: xr.Dataset, kind: int) -> None:
    """Draw the samples of modality 2 against T, with powers, and what is predicted."""
    x, labels = lengths_of(data), []
    alone = least_samples(samples(data, kind, ALONE), SHARE) if arms_of(data, ALONE) else None
    if alone is not None and arms_of(data, MIXED):
        low, high = MIXED_SHARES[shared_by(data, kind)]
        axes.fill_between(
            x, low * alone, high * alone, color=MIXED.colour, alpha=0.2, linewidth=0,
            gid="mixed, predicted",
        )  # fmt: skip
    for place, way in enumerate(ways_of(data, kind)):
        found = samples(data, kind, way)
        costs = np.where(np.isfinite(cost := least_samples(found, SHARE)), cost, np.nan)
        ends = np.array(cost_intervals(found, SHARE))
        shift = GAP ** (place - 1.5)
        top = np.where(np.isfinite(ends[:, 1]), ends[:, 1], MUCH)
        fine = np.isfinite(costs)
        axes.vlines(x[fine] * shift, ends[fine, 0], top[fine], color=way.colour, linewidth=0.9)
        axes.plot(
            x * shift, costs, linewidth=1.0, gid=f"cost {way.plain}", **way.look
        )  # fmt: skip
        if way in (AFTER, NOTHING):
            axes.plot(x, predicted(data, kind, way, SHARE), **THEORY, gid=f"theory {way.plain}")
        fit = power_estimate(x, found, SHARE) if len(x) > 1 else Estimate(np.nan, 0, 0)
        if np.isfinite(fit.value):
            labels.append(Line2D([], [], **way.look, label=worded_power(fit)))
    logarithmic(axes)
    axes.set(xscale="log", xlabel="context length $T$", ylim=(20, 1e6))
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(f"samples of modality 2,\n{SHARE:.0%} of the runs")
    axes.set_title(NEW[shared_by(data, kind)])
    if labels:
        axes.legend(handles=labels, loc="upper left", fontsize=7, frameon=True, edgecolor="none")


class Points(NamedTuple):
    """Runs in which modality 2 came after the other: one for each task, T and arm.

    Attributes:
        x: 1 / cos^2 of what was kept to what is true.
        found: samples until the new half is right; infinity for never.
        told: the predicted law, [runs, levels].
        run: the number of the task.
        left: samples of modality 2 that there were.
    """

    x: Values
    found: Values
    told: Values
    run: Values
    left: Values

    @property
    def median(self) -> Values:
        """The predicted median."""
        middle = self.told.shape[1] // 2
        return np.asarray(self.told[:, middle - 1 : middle + 1].mean(axis=1), float)

    def where(self, chosen: NDArray[Any]) -> Points:
        """Some of them."""
        return Points(*(values[chosen] for values in self))


def points_of(data: xr.Dataset, kind: int, length: int, arms: list[int]) -> Points:
    """Read the runs of some arms at one T that have come to modality 2 with something to start."""
    own = data.isel(kind=kind, context_length=length, arm=arms)
    cos2 = own["kept"].transpose("arm", "seed").to_numpy().ravel().astype(float)
    found = counts(own, new_half(data, kind)).ravel()
    told = own["predicted"].transpose("arm", "seed", "level").to_numpy()
    told = told.reshape(-1, told.shape[-1]).astype(float)
    left = own["samples_of_second"].transpose("arm", "seed").to_numpy().ravel().astype(float)
    run = np.tile(np.arange(own.sizes["seed"], dtype=float), len(arms))
    with np.errstate(divide="ignore", invalid="ignore"):
        points = Points(1 / cos2, found, told, run, left)
    return points.where((left > 0) & (cos2 > 0) & (points.median < MUCH))


def joined(parts: list[Points]) -> Points:
    """Join the runs of several T."""
    return Points(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def draw_collapse(axes: Axes, data: xr.Dataset, kind: int, colours: list[Any]) -> None:
    """Draw samples until the new half is right against 1 / cos^2, with the predicted law."""
    parts = []
    arms = kept_arms(data)
    for place, colour in enumerate(colours):
        own = points_of(data, kind, place, arms)
        parts.append(own)
        axes.plot(own.x, np.where(np.isfinite(own.found), own.found, np.nan), "o", color=colour,
                  markersize=2.2, alpha=0.75, markeredgewidth=0, gid=f"runs {place}")  # fmt: skip
    every = joined(parts)
    logarithmic(axes)
    axes.set(xscale="log", xlabel=r"$1/\cos^2$ of what is kept to what is true")
    wide = every.x.size > 0 and every.x.max() > WIDE
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("samples until the new half is right")
    axes.set_title(NEW[shared_by(data, kind)])
    if every.x.size:
        line = np.array([0.9, 1.3 * every.x.max()])
        low, middle, high = np.quantile((every.told / every.x[:, None]).ravel(), (0.1, 0.5, 0.9))
        axes.fill_between(line, low * line, high * line, color="black", alpha=0.1, linewidth=0)
        axes.plot(line, middle * line, **THEORY, gid="theory")


def add_legend(figure: Figure, data: xr.Dataset, panel: Axes, colours: list[Any]) -> None:
    """Put one legend above the panels, and that of T into one of the lower ones."""
    shown = [way for way in WAYS if any(way in ways_of(data, k) for k in range(data.sizes["kind"]))]
    handles: list[Any] = [Line2D([], [], **way.look, label=way.label) for way in shown]
    handles.append(Line2D([], [], **THEORY, label="predicted, nothing fitted"))
    if MIXED in shown:
        words = "predicted: mixed, of alone"
        handles.append(Patch(color=MIXED.colour, alpha=0.2, linewidth=0, label=words))
    handles.append(
        Patch(color="black", alpha=0.1, linewidth=0, label="predicted: 10 to 90% of runs")
    )
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    dots = [
        Line2D([], [], color=colour, marker="o", linestyle="", markersize=3, label=f"{x:g}")
        for x, colour in zip(lengths_of(data), colours, strict=True)
    ]
    panel.legend(handles=dots, loc="upper left", title="$T$", ncols=2, fontsize=7)


# ------------------------------------------------------------------------------- the numbers


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate samples, powers, what mixing saves, and what was predicted."""
    data = arranged(dataset)
    return [sample_table(data), power_table(data), mixed_table(data), kept_table(data)]


def sample_table(data: xr.Dataset) -> Table:
    """Tabulate the samples of every way at every T."""
    rows = []
    for kind, shared in enumerate(data["shared"].to_numpy()):
        for way in ways_of(data, kind):
            found = samples(data, kind, way)
            rates = data["rate"].to_numpy()[arms_of(data, way)]
            chosen = samples_for_share(found, SHARE).argmin(axis=1)
            ends = cost_intervals(found, SHARE)
            theory = np.full((2, len(found)), np.nan)
            if way in (AFTER, NOTHING):
                theory = np.array([predicted(data, kind, way, s) for s in (SHARE, 0.5)])
            mine = data.isel(kind=kind, arm=arms_of(data, way)[0])
            first, second = mine["samples_of_first"], mine["samples_of_second"]
            for place, length in enumerate(lengths_of(data)):
                runs = found[place, chosen[place]]
                cost = samples_for_share(runs, SHARE)
                before = 0.0 if way is ALONE else float(first[place].median())
                before = np.nan if way is MIXED else before
                rows.append(
                    [PLAIN[str(shared)], way.plain, length, cost, *ends[place],
                     theory[0, place], float(nanmedian(runs)), *quantile_interval(runs),
                     theory[1, place], rates[chosen[place]], before,
                     int((second[place] == 0).sum())]
                )  # fmt: skip
    late, middle = ranged(f"{SHARE:.0%} recover"), ranged("median")
    return Table(
        "Samples of modality 2 until V and the rounded A are right, at the best rate, with 95% "
        "intervals; predicted for the one step; samples of modality 1 before, median; runs that "
        "did not come to modality 2",
        ("new and shared", "way", "T", *late, "predicted", *middle, "predicted median", "rate",
         "of modality 1", "did not come"),
        rows,
    )  # fmt: skip


def power_table(data: xr.Dataset) -> Table:
    """Tabulate the powers of T, of both halves and of each."""
    rows = []
    x = lengths_of(data)
    for kind, shared in enumerate(data["shared"].to_numpy()):
        for way in ways_of(data, kind) if len(x) > 1 else []:
            arms = arms_of(data, way)
            whole = [("both", samples(data, kind, way))]
            for half, name in (("V", "samples_to_value"), ("rounded A", "samples_to_pattern")):
                whole.append((half, counts(data, name)[kind][:, arms]))
            for half, found in whole if way in (ALONE, MIXED) else whole[:1]:
                rows.append([PLAIN[str(shared)], way.plain, half,
                             *power_estimate(x, found, SHARE)])  # fmt: skip
    return Table(
        f"Powers of T in the samples with which {SHARE:.0%} of the runs recover, with 95% "
        "intervals over tasks and rates",
        ("new and shared", "way", "half", *ranged("power")),
        rows,
    )


def mixed_table(data: xr.Dataset) -> Table:
    """Tabulate samples mixed over samples alone, run by run at one rate, all T together."""
    rows = []
    rates = data["rate"].to_numpy()
    for kind, shared in enumerate(data["shared"].to_numpy()):
        one, two = (samples(data, kind, way) for way in (ALONE, MIXED))
        for place, (a, b) in enumerate(
            zip(arms_of(data, ALONE), arms_of(data, MIXED), strict=False)
        ):
            if rates[a] != rates[b]:
                continue
            with np.errstate(invalid="ignore"):
                ratios = two[:, place] / one[:, place]  # [lengths, runs]
            # Of each task one number, so that the interval is one over tasks.
            own = np.array([np.exp(np.mean(np.log(fine_of(ratio)))) for ratio in ratios.T])
            told = float(nanmedian(own))
            rows.append(
                [
                    PLAIN[str(shared)],
                    float(rates[a]),
                    told,
                    *quantile_interval(own),
                    *MIXED_SHARES[str(shared)],
                ]
            )
    return Table(
        "Samples of modality 2 when it is mixed with the other, over those alone at the same rate: "
        "geometric means over T, medians over tasks with 95% intervals; predicted from, to",
        ("new and shared", "rate", *ranged("ratio"), "predicted from", "predicted to"),
        rows,
    )


def fine_of(ratios: Values) -> Values:
    """Those of runs that recovered in both; of none, one that is not a number."""
    fine = ratios[np.isfinite(ratios) & (ratios > 0)]
    return fine if fine.size else np.full(1, np.nan)


def kept_table(data: xr.Dataset) -> Table:
    """Tabulate samples over those predicted, arm by arm and all T together."""
    rows = []
    for kind, shared in enumerate(data["shared"].to_numpy()):
        parts = []
        for arm in kept_arms(data):
            own = joined([
                points_of(data, kind, n, [arm]) for n in range(data.sizes["context_length"])
            ])  # fmt: skip
            # Of runs that could have come to it: nearly all of the predicted law is within.
            own = own.where(own.told[:, -1] <= own.left)
            parts.append(own)
            if own.x.size:
                told = [float(data[name][arm]) for name in ("first_until", "correlation")]
                rows.append([PLAIN[str(shared)], *told, *summary(own), *3 * [np.nan]])
        every = joined(parts)
        if np.unique(every.x).size > 1:
            rows.append(["all", "all", *summary(every), *slope_of(every)])
            rows[-1].insert(0, PLAIN[str(shared)])
    return Table(
        "Samples until the new half is right over the predicted median, of runs with enough of "
        "them, and the power of 1 / cos^2 in them (predicted: 1), with 95% intervals",
        ("new and shared", "first until", "rho", "1 / cos^2", *ranged("ratio"),
         *ranged("recovered"), *ranged("power")),
        rows,
    )  # fmt: skip


def summary(points: Points) -> list[float]:
    """Give the medians of x and of samples over predicted ones, and the share that came to it."""
    ratio, found = points.found / points.median, np.isfinite(points.found)
    share = share_interval(int(found.sum()), found.size)
    middle = float(nanmedian(ratio))
    return [float(nanmedian(points.x)), middle, *quantile_interval(ratio), found.mean(), *share]


def slope_of(points: Points) -> tuple[float, float, float]:
    """Fit a power of x to the samples of single runs, with its interval over tasks."""
    fine = points.where(np.isfinite(points.found))
    tasks = np.unique(fine.run)
    places = [np.flatnonzero(fine.run == task) for task in tasks]
    x, y = np.log(fine.x), np.log(fine.found)

    def fit(rows: NDArray[Any]) -> float:
        return float(np.polyfit(x[rows], y[rows], 1)[0])

    drawn = resampled_runs(len(tasks), 200, lost=0)
    slopes = np.array([fit(np.concatenate([places[task] for task in one])) for one in drawn])
    return (fit(np.arange(x.size)), *interval_of(slopes))


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("modalities", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
