"""Sequences that a model goes on with: false lags, and what a token is worth (not in the paper).

The dataset comes from `scbjax run sequences`; what theory expects is in the text of
`scbjax/experiments/sequences.py`. What to see: cross-moments let more and more false lags pass as P
slows down, and whitened ones do not. A window of a sequence is worth as much as an i.i.d. context
where P is fast and about a fifth of it where its slow eigenvalue is 0.9, for the lags and for the
first step of stage 1, and costs one token instead of T + 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from _data import Values, setting
from _estimates import (
    RESAMPLES,
    Estimate,
    cost_interval,
    interval_of,
    quantile_interval,
    resampled_runs,
)
from _numbers import Table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import band, median, nanmean, or_nan
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

STUDY: Final = "sequences"
VARIABLES: Final = (
    "samples", "marginal_false", "marginal_missed", "marginal_false_expected",
    "marginal_exact_expected", "whitened_false", "whitened_missed", "whitened_exact_expected",
    "gradient_hits", "newton_hits", "gradient_hits_limit", "value_cosine", "value_cosine_expected",
    "correlation_time", "total_variation", "total_variation_shift", "total_variation_noise",
)  # fmt: skip
SHOWN: Final = (0.3, 0.6, 0.9)  # eigenvalues, or the nearest, whose false lags are drawn over n
LEAST: Final = 3e-4  # of the total variations that are drawn
NEVER: Final = np.full(RESAMPLES, np.inf)
PATH: Final[dict[str, Any]] = {"color": "black", "linewidth": 0.9, "linestyle": ":", "zorder": 6}
SLOW: Final = "slow eigenvalue $r$ of $P$"


@dataclass(frozen=True)
class Way:
    """A way to learn: from what data, and whether moments are whitened."""

    label: str
    data: str
    name: str
    colour: str
    marker: str
    shift: float = 0.0  # along the eigenvalues, so that markers do not hide one another


RAW: Final = Way("sequence, cross-moments", "sequence", "marginal", "#D55E00", "o", -0.008)
WHITE: Final = Way("sequence, whitened", "sequence", "whitened", "#0072B2", "s")
APART: Final = Way("i.i.d. contexts", "independent", "marginal", "#009E73", "^", 0.008)
WAYS: Final = (RAW, WHITE, APART)


def arranged(dataset: xr.Dataset) -> xr.Dataset:
    """Give a dataset the dimensions (arm, slow, seed, step), eigenvalues rising."""
    for name in ("slow", "arm"):
        if name not in dataset.dims:
            raise ValueError(f"the figure needs an axis {name!r}, as in sweeps/{STUDY}.toml")
    return dataset.transpose("arm", "slow", "seed", "step").sortby("slow")


def runs_of(data: xr.Dataset, name: str, kind: str, lags: str = "fixed") -> Values:
    """Give a variable of an arm, [eigenvalues, runs, steps].

    Raises:
        ValueError: the study has no such arm.
    """
    mine = (data["data"].to_numpy() == kind) & (data["lags"].to_numpy() == lags)
    if not mine.any():
        raise ValueError(f"the figure needs an arm with data = {kind!r} and lags = {lags!r}")
    found: Values = data[name].isel(arm=int(np.flatnonzero(mine)[0])).to_numpy().astype(float)
    return found


def windows(data: xr.Dataset) -> Values:
    """Windows seen at every record, [steps]."""
    found: Values = runs_of(data, "samples", "sequence")[0, 0]
    return found


def tokens_of(data: xr.Dataset, way: Way) -> int:
    """Tokens that a window costs: one of a sequence, T + 1 of a context with its label."""
    return 1 if way.data == "sequence" else int(str(setting(data, "context_length"))) + 1


def mean(values: Values, axis: int = 0) -> Any:  # noqa: ANN401 - as NumPy
    """Give the mean of the values that are finite; NaN where none is."""
    return nanmean(or_nan(values), axis=axis)


def crossing(data: xr.Dataset, values: Values, level: float) -> Values:
    """Windows at which values [..., steps] first come to a level; lines in log n join records."""
    n = windows(data)
    logs = np.log(np.maximum(n, 1.0))
    there = values >= level
    after = np.maximum(there.argmax(axis=-1), 1)
    rows = np.indices(after.shape)
    low, high = values[(*rows, after - 1)], values[(*rows, after)]
    part = np.clip((level - low) / np.where(high > low, high - low, 1.0), 0.0, 1.0)
    found = np.exp(logs[after - 1] + part * (logs[after] - logs[after - 1]))
    # From the start to the first record there is no line to follow.
    found = np.where(after == 1, n[1], found)
    return np.where(there.any(axis=-1), found, np.inf)


@dataclass(frozen=True)
class Goal:
    """What is to be reached, and when that is so: the mean over runs of a number, at a level.

    Attributes:
        label: what it is called.
        measured: of the dataset and a way, [eigenvalues, runs, steps].
        expected: the same by theory.
        level: that its mean has to come to.
        colour: of its ratio.
        marker: of its ratio.
    """

    label: str
    measured: Callable[[xr.Dataset, Way], Values]
    expected: Callable[[xr.Dataset, Way], Values]
    level: float
    colour: str
    marker: str

    def theory(self, data: xr.Dataset, way: Way) -> Values:
        """Windows that theory expects, [eigenvalues]."""
        return crossing(data, mean(self.expected(data, way), 1), self.level)

    def cost(self, data: xr.Dataset, way: Way) -> tuple[Values, Values]:
        """Windows that it takes, [eigenvalues], and of resampled runs, [eigenvalues, resamples]."""
        values = self.measured(data, way)
        found = crossing(data, mean(values, 1), self.level)
        again = []
        for own in values:
            known = own[np.isfinite(own).all(axis=1)]
            if len(known) == 0:
                again.append(NEVER)
                continue
            drawn = resampled_runs(len(known), lost=0)
            again.append(crossing(data, mean(known[drawn], 1), self.level))
        return found, np.stack(again)

    def ratio(self, data: xr.Dataset) -> tuple[Values, Values]:
        """Windows of a sequence over i.i.d. ones, like `cost`; NaN where either never came."""
        pair = zip(self.cost(data, WHITE), self.cost(data, APART), strict=True)
        over, again = (divided(one, other) for one, other in pair)
        return over, again


def exact(data: xr.Dataset, way: Way) -> Values:
    """Whether the true lags pass and no others, [eigenvalues, runs, steps]."""
    false, missed = (runs_of(data, f"{way.name}_{part}", way.data) for part in ("false", "missed"))
    return np.where(np.isfinite(false + missed), false + missed == 0, np.nan)


LAGS: Final = Goal(
    "true lags, whitened",
    exact,
    lambda data, way: runs_of(data, f"{way.name}_exact_expected", way.data),
    0.5,
    "#0072B2",
    "s",
)
ALIGNED: Final = Goal(
    "stage 1",
    lambda data, way: runs_of(data, "value_cosine", way.data),
    lambda data, way: runs_of(data, "value_cosine_expected", way.data),
    0.9,
    "#E69F00",
    "v",
)
GOALS: Final = (LAGS, ALIGNED)


def divided(one: Values, other: Values) -> Values:
    """Divide; NaN where one of the two never came."""
    both = np.isfinite(one) & np.isfinite(other)
    return np.where(both, one, np.nan) / np.where(both, other, 1.0)


# -------------------------------------------------------------------------------- the panels


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    data = arranged(dataset)
    figure = Figure(figsize=(DOUBLE_COLUMN, 4.6))
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    panels = figure.subplots(2, 3)
    draw_false(panels[0, 0], data)
    draw_growth(panels[0, 1], data)
    draw_law(panels[0, 2], data)
    draw_costs(panels[1, 0], data, LAGS, "true lags and no others")
    draw_costs(panels[1, 1], data, ALIGNED, f"stage 1: cosine of $V$ to $P$ at {ALIGNED.level:g}")
    draw_ratios(panels[1, 2], data)
    low = min(axes.get_ylim()[0] for axes in panels[1, :2])
    high = max(axes.get_ylim()[1] for axes in panels[1, :2])
    for axes in panels[1, :2]:
        axes.set_ylim(max(low, 1.0), max(high, 10.0))
    for axes in (panels[0, 0], panels[0, 2], *panels[1]):
        axes.set_xlim(-0.04, 0.96)
        axes.set_xlabel(SLOW)
    handles = [
        Line2D([], [], color=way.colour, marker=way.marker, markersize=4, label=way.label)
        for way in WAYS
    ]
    handles.append(Line2D([], [], **PATH, label="theory"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def draw_runs(axes: Axes, data: xr.Dataset, values: Values, way: Way, **look: Any) -> None:  # noqa: ANN401
    """Draw the median and the band of values [eigenvalues, runs]."""
    low, middle, high = band(values.T)
    draw_line(axes, data, (middle, low, high), way, **look)


def draw_line(
    axes: Axes,
    data: xr.Dataset,
    values: tuple[Values, Values, Values],
    way: Way,
    **look: Any,  # noqa: ANN401 - of matplotlib
) -> None:
    """Draw values, and from where to where they lie."""
    x = data["slow"].to_numpy() + way.shift
    middle, low, high = values
    axes.fill_between(x, low, high, color=way.colour, alpha=0.2)
    style = {"marker": way.marker, "markersize": 3.5, "linewidth": 1.0, **look}
    axes.plot(x, middle, color=way.colour, **style)


def draw_theory(axes: Axes, data: xr.Dataset, values: Values) -> None:
    """Draw what theory expects, [eigenvalues]."""
    axes.plot(data["slow"], or_nan(values), **PATH)


def count_axis(axes: Axes) -> None:
    """Make the y axis one of false lags, with zero and powers of ten."""
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(-0.15, 300)
    axes.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_false(axes: Axes, data: xr.Dataset) -> None:
    """Draw the false lags that pass at the end."""
    for way in WAYS:
        draw_runs(axes, data, runs_of(data, f"{way.name}_false", way.data)[..., -1], way)
    for way in (RAW, APART):
        expected = runs_of(data, "marginal_false_expected", way.data)[..., -1]
        draw_theory(axes, data, band(expected.T)[1])
    count_axis(axes)
    axes.set_ylabel("false lags that pass")
    axes.set_title(f"after {windows(data)[-1] / 1000:.0f}k windows")


def draw_growth(axes: Axes, data: xr.Dataset) -> None:
    """Draw the false lags of cross-moments over the windows, for some eigenvalues."""
    slow, n = data["slow"].to_numpy(), windows(data)[1:]
    for place in sorted({int(np.abs(slow - shown).argmin()) for shown in SHOWN}):
        low, middle, high = band(runs_of(data, "marginal_false", "sequence")[place, :, 1:])
        expected = runs_of(data, "marginal_false_expected", "sequence")[place, :, 1:]
        axes.fill_between(n, low, high, color=RAW.colour, alpha=0.2)
        axes.plot(n, middle, color=RAW.colour, linewidth=1.0)
        axes.plot(n, band(expected)[1], **PATH)
        axes.annotate(
            f"{slow[place]:g}", (n[-1], max(0.2, float(np.nan_to_num(middle[-1])))), (4, -3),
            textcoords="offset points", color=RAW.colour, fontsize=7,
        )  # fmt: skip
    axes.text(0.02, 0.97, "numbers: $r$", transform=axes.transAxes, va="top", fontsize=7)
    count_axis(axes)
    axes.set(
        xscale="log",
        xlim=(n[0], 5 * n[-1]),
        xlabel="windows $n$",
        title="cross-moments of sequences",
    )


def draw_law(axes: Axes, data: xr.Dataset) -> None:
    """Draw how far frequencies of tokens are from mu at the end, of fixed lags and of others."""
    for lags, look in (("fixed", {"marker": "s"}), ("query", {"marker": "D", "linestyle": "--"})):
        seen = runs_of(data, "total_variation", "sequence", lags)[..., -1]
        colour = WHITE.colour if lags == "fixed" else "#CC79A7"
        own = Way(f"{lags} lags", "sequence", "", colour, look.pop("marker"))
        draw_runs(axes, data, seen, own, **look)
        name = "total_variation_noise" if lags == "fixed" else "total_variation_shift"
        expected = band(runs_of(data, name, "sequence", lags)[..., -1].T)[1]
        draw_theory(axes, data, np.where(expected > LEAST, expected, np.nan))
    axes.set(yscale="log", ylabel=r"total variation to $\mu$")
    axes.set_ylim(LEAST, max(6 * axes.get_ylim()[1], 10 * LEAST))
    handles = [
        Line2D([], [], color=WHITE.colour, marker="s", markersize=3.5, label="fixed lags"),
        Line2D([], [], color="#CC79A7", marker="D", markersize=3.5, linestyle="--",
               label="lags by query"),
    ]  # fmt: skip
    axes.legend(handles=handles, loc="upper left", fontsize=7)
    axes.set_title(f"after {windows(data)[-1] / 1000:.0f}k tokens")


def draw_costs(axes: Axes, data: xr.Dataset, goal: Goal, title: str) -> None:
    """Draw the windows that a goal takes, and the tokens of those that take more than one each."""
    # V after a step is the same whether lags are whitened or not.
    stage_1 = replace(WHITE, label="sequence", colour=ALIGNED.colour, marker=ALIGNED.marker)
    for way in WAYS if goal is LAGS else (stage_1, APART):
        found, drawn = goal.cost(data, way)
        ends = np.array([cost_interval(own) for own in drawn]).T
        draw_line(axes, data, (or_nan(found), or_nan(ends[0]), or_nan(ends[1])), way)
        if way is not RAW:
            draw_theory(axes, data, goal.theory(data, way))
        if tokens_of(data, way) > 1:
            tokens = or_nan(found) * tokens_of(data, way)
            axes.plot(data["slow"], tokens, color=way.colour, linestyle="--", linewidth=1.0)
            some = np.flatnonzero(np.isfinite(tokens))
            if some.size:
                place = some[(len(some) - 1) // 2]
                at = float(data["slow"][place]), float(tokens[place])
                axes.annotate(
                    "in tokens", at, (0, 5), textcoords="offset points", color=way.colour,
                    fontsize=7,
                )  # fmt: skip
    axes.set(yscale="log", title=title)
    if goal is LAGS:
        axes.set_ylabel("windows (or tokens) until then")
    else:
        handle = Line2D([], [], color=stage_1.colour, marker=stage_1.marker, markersize=3.5,
                        label=stage_1.label)  # fmt: skip
        axes.legend(handles=[handle], loc="lower left", fontsize=7)
    axes.yaxis.set_major_locator(LogLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_ratios(axes: Axes, data: xr.Dataset) -> None:
    """Draw how many windows of a sequence do what an i.i.d. one does."""
    for goal in GOALS:
        own = Way(goal.label, "sequence", "", goal.colour, goal.marker)
        over, drawn = goal.ratio(data)
        ends = np.array([interval_of(one) for one in drawn]).T
        draw_line(axes, data, (over, ends[0], ends[1]), own)
        draw_theory(axes, data, divided(goal.theory(data, WHITE), goal.theory(data, APART)))
    time = band(runs_of(data, "correlation_time", "sequence")[..., -1].T)[1]
    axes.plot(data["slow"], time, color="#999999", linestyle="--", linewidth=1.0)
    axes.set(yscale="log", ylim=(0.4, 200), ylabel="windows over i.i.d. windows")
    axes.set_yticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
    axes.yaxis.set_minor_formatter(NullFormatter())
    handles = [
        Line2D([], [], color=goal.colour, marker=goal.marker, markersize=3.5, label=goal.label)
        for goal in GOALS
    ]
    handles.append(
        Line2D([], [], color="#999999", linestyle="--", label=r"$\sum_k \rho(k)$, slow mode")
    )
    axes.legend(handles=handles, loc="upper left", fontsize=7)
    axes.set_title("against i.i.d. contexts")


# ------------------------------------------------------------------------------- the numbers


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate false lags, hits of the gradient, costs and laws."""
    data = arranged(dataset)
    return [false_table(data), cost_table(data), ratio_table(data), law_table(data)]


def around(values: Values) -> list[float]:
    """The median of the runs, infinite where more than half never came, and its interval."""
    known = values[~np.isnan(values)]
    if known.size == 0:
        return [np.nan] * 3
    with np.errstate(invalid="ignore"):
        told = float(np.median(known))  # some may be infinite
    return [told, *quantile_interval(known)]


def false_table(data: xr.Dataset) -> Table:
    """Tabulate the false lags at the end, and the true ones among the largest of the gradient."""
    rows = []
    for way in WAYS:
        hits = runs_of(data, "newton_hits" if way is WHITE else "gradient_hits", way.data)
        false = runs_of(data, f"{way.name}_false", way.data)
        expected = runs_of(data, "marginal_false_expected", way.data)
        limit = runs_of(data, "gradient_hits_limit", way.data)
        for place, slow in enumerate(data["slow"].to_numpy()):
            theory = median(expected[place, :, -1]) if way is not WHITE else np.nan
            above = float(mean(limit[place, :, -1])) if way is RAW and slow > 0 else np.nan
            rows.append(
                [way.label, float(slow), *around(false[place, :, -1]), theory,
                 float(mean(hits[place, :, -1])), above]
            )  # fmt: skip
    return Table(
        f"False lags after {windows(data)[-1]:.0f} windows, medians with 95% intervals, and the "
        "share of true lags among the largest of the gradient, mean",
        ("way", "r", *ranged("false"), "expected", "true among largest", "in the limit"),
        rows,
    )


def estimated(value: float, drawn: Values) -> Estimate:
    """A cost, or a ratio of two, with the interval over resampled runs."""
    known = drawn[~np.isnan(drawn)]
    return Estimate(value, *(cost_interval(known) if known.size else (np.nan, np.nan)))


def cost_table(data: xr.Dataset) -> Table:
    """Tabulate the windows until the true lags are found, and until V is near P."""
    rows = []
    for way in WAYS:
        found = [(*goal.cost(data, way), goal.theory(data, way)) for goal in GOALS]
        ever = mean(np.where(np.isfinite(own := exact(data, way)), own, 0.0).max(axis=2), 1)
        for place, slow in enumerate(data["slow"].to_numpy()):
            told = [
                number
                for value, drawn, theory in found
                for number in (*estimated(float(value[place]), drawn[place]), theory[place])
            ]
            rows.append([way.label, float(slow), float(ever[place]), *told])
    return Table(
        "Windows until half of the runs have the true lags and no others, and until the mean "
        f"cosine of V after a step to P is {ALIGNED.level:g}, with 95% intervals over tasks",
        (
            "way",
            "r",
            "share ever exact",
            *ranged("lags"),
            "expected",
            *ranged("stage 1"),
            "by theory",
        ),
        rows,
    )


def ratio_table(data: xr.Dataset) -> Table:
    """Tabulate windows of a sequence over i.i.d. ones."""
    time = band(runs_of(data, "correlation_time", "sequence")[..., -1].T)[1]
    rows = []
    for goal in GOALS:
        over, drawn = goal.ratio(data)
        theory = divided(goal.theory(data, WHITE), goal.theory(data, APART))
        for place in np.flatnonzero(np.isfinite(over)):
            told = estimated(float(over[place]), drawn[place])
            saved = [tokens_of(data, APART) / x for x in (told.value, told.high, told.low)]
            slow = float(data["slow"][place])
            rows.append([goal.label, slow, *told, theory[place], time[place], *saved])
    return Table(
        "Windows of a sequence over i.i.d. windows, with 95% intervals over tasks, beside the "
        "integrated autocorrelation time; and i.i.d. tokens over those of the sequence",
        ("of", "r", *ranged("windows"), "expected", "time", *ranged("tokens saved")),
        rows,
    )


def law_table(data: xr.Dataset) -> Table:
    """Tabulate the total variation between frequencies and mu at the end."""
    rows = []
    for lags in ("fixed", "query"):
        names = ("total_variation", "total_variation_noise", "total_variation_shift")
        seen, noise, shift = (runs_of(data, n, "sequence", lags)[..., -1] for n in names)
        for place, slow in enumerate(data["slow"].to_numpy()):
            told = [median(noise[place]), median(shift[place])]
            rows.append([lags, float(slow), *around(seen[place]), *told])
    return Table(
        f"Total variation between the frequencies of {windows(data)[-1]:.0f} tokens and mu, "
        "medians with 95% intervals",
        ("lags", "r", *ranged("distance"), "of noise alone", "of the shift"),
        rows,
    )


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("sequences", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
