"""Samples of a new task after pretraining on M related tasks, against 1/M (not in the paper).

The dataset comes from `scbjax run few_shot`. What theory expects is in the text of
`scbjax/experiments/fewshot.py`: with x = (1 - rho)^2 / (rho^2 M) samples grow as 1 + gamma x, a
straight line in 1/M, in units of what the task's own P (or Q) needs. Nothing is fitted: that unit
is measured on the same tasks with rho = 1, and gamma is computed from their matrices for weights of
A, and is one for its supports and for V.
"""

from __future__ import annotations

from collections.abc import Callable
from math import erf
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import xarray as xr
from _data import Values, setting, tidy
from _distances import RECOVERED, SUCCESS, samples_to_recovery
from _estimates import (
    interval_of,
    quantile_interval,
    resampled_runs,
    samples_for_share,
    share_interval,
)
from _numbers import Table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import nanmedian
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

STUDY: Final = "few_shot"
VARIABLES: Final = (
    "samples", "rounded_attention_distance", "rounded_value_distance", "alpha_value",
    "delta_value", "columns_found", "noise_to_signal",
)  # fmt: skip
COLOURS: Final = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")  # by correlation
NINETY: Final = 1.2815515655446004  # the quantile of the standard normal law for `SUCCESS`
MUCH: Final = 1e9  # samples, above every axis
LINE: Final[dict[str, Any]] = {"color": "black", "linewidth": 1.0}
LATE: Final[dict[str, Any]] = {"color": "#777777", "linewidth": 1.0, "linestyle": (0, (4, 2))}
NEW: Final = {"transition": "new $Q$, $P$ kept", "pattern": "new $P$, $Q$ kept"}
PLAIN: Final = {"transition": "new Q, P kept", "pattern": "new P, Q kept"}


class Runs(NamedTuple):
    """Samples to recovery of what is new, by what was kept and T.

    Attributes:
        kept: "transition" or "pattern".
        length: T.
        correlation: rho of each case, [cases].
        tasks: M of each case, [cases].
        samples: [cases, runs], infinity for runs that don't recover.
        own: [runs], the same with the task's own P or Q (rho = 1).
        supports: samples until all supports are right, [cases, runs].
        rounded: distance of the rounded A to Q before the first sample, [cases, runs].
        expected: samples by the closed form, of the cases and of rho = 1, [1 + cases, runs].
        gamma: slope over x by the closed form, once supports are found.
    """

    kept: str
    length: int
    correlation: Values
    tasks: Values
    samples: Values
    own: Values
    supports: Values
    rounded: Values
    expected: Values
    gamma: float

    @property
    def excess(self) -> Values:
        """Give x = (1 - rho)^2 / (rho^2 M), [cases]."""
        return np.asarray(((1 - self.correlation) / self.correlation) ** 2 / self.tasks)

    @property
    def unit(self) -> float:
        """Median samples with the task's own P or Q."""
        return float(nanmedian(self.own))


def runs_of_study(dataset: xr.Dataset) -> list[Runs]:
    """Read the runs, one for each half that was kept and each T.

    Raises:
        ValueError: the study has no case with rho = 1, which all others are compared with.
    """
    data = tidy(dataset, ("kept", "context_length"))
    samples = data["samples"].astype(float)
    near = (data["alpha_value"] > 0) & (data["delta_value"] < RECOVERED * data["alpha_value"])
    of_value = samples.where(near, np.inf).min("step")
    supports = samples.where(data["columns_found"] == 1, np.inf).min("step")
    found = samples_to_recovery(data).where(data["kept"] == "transition", of_value)
    rounded = data["rounded_attention_distance"].isel(step=0)
    expected = (data["noise_to_signal"].isel(step=0) / RECOVERED) ** 2
    signal = data["alpha_value"].isel(step=0)
    rho, tasks = (data[name].to_numpy().astype(float) for name in ("correlation", "num_tasks"))
    own = rho == 1.0
    if not own.any():
        raise ValueError("the figure needs a case with correlation = 1, the task itself")
    groups = []
    for kept in sorted(NEW, reverse=True):
        for length in data["context_length"].to_numpy():
            here = [
                item.sel(kept=kept, context_length=length).transpose("arm", "run").to_numpy()
                for item in (found, supports, rounded, expected, signal)
            ]
            whole, support, start, closed, first = (np.asarray(item, float) for item in here)
            closed = np.vstack([closed[own][:1], closed[~own]])
            gamma = (
                1.0
                if kept == "pattern"
                else closed_slope(closed, first[~own], rho[~own], tasks[~own])
            )
            parts = (rho[~own], tasks[~own], whole[~own], whole[own][0])
            groups.append(Runs(kept, int(length), *parts, support, start[~own], closed, gamma))
    return groups


# ------------------------------------------------------------------------------------- predicted


def closed_slope(closed: Values, signal: Values, rho: Values, tasks: Values) -> float:
    """Give gamma: the median of ``(n / n_1 - 1) c^2 M / (1 - rho)^2`` by the closed form.

    Args:
        closed: samples with rho = 1 and of the cases, [1 + cases, runs].
        signal: c [cases, runs].
        rho: [cases].
        tasks: M [cases].
    """
    excess = (closed[1:] / closed[:1] - 1) * signal**2
    return float(nanmedian(excess * (tasks / (1 - rho) ** 2)[:, None]))


def predicted(x: Values, tokens: int, kept: str, gamma: float, deviations: float = 0.0) -> Values:
    """Samples in units of those with rho = 1; infinity where the mean points the wrong way.

    Args:
        x: (1 - rho)^2 / (rho^2 M).
        tokens: N.
        kept: what pretraining has found; patterns never point the wrong way.
        gamma: slope over x.
        deviations: of the signal below its mean, in standard deviations over tasks.
    """
    lost = deviations if kept == "transition" else 0.0
    signal = 1.0 - lost * np.sqrt(x) / (tokens - 1)
    excess = gamma * x / np.where(signal > 0, signal, 1.0) ** 2
    return np.where(signal > 0, 1 + excess, np.inf)


def predicted_share(x: Values, tokens: int, kept: str, gamma: float, budget: float) -> Values:
    """Share of the runs that recover within `budget`, in units of the samples with rho = 1."""
    room = 1.0 - np.sqrt(gamma * x / max(budget - 1.0, 1e-9))
    if kept == "pattern":
        return np.asarray((room >= 0).astype(float))
    at = np.sqrt(0.5) * room * (tokens - 1) / np.sqrt(x)
    return np.array([0.5 * (1 + erf(value)) for value in at])


# ----------------------------------------------------------------------------------------- drawn


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    groups = runs_of_study(dataset)
    tokens = int(str(setting(dataset, "num_tokens")))
    budget = float(dataset["samples"].max())
    figure = Figure(figsize=(DOUBLE_COLUMN, 5.6))
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    grid = figure.subplots(2, 2)
    colours = colours_of(groups)
    draw_lines(grid[0, 0], groups, tokens, colours)
    for axes, kept in ((grid[0, 1], "transition"), (grid[1, 0], "pattern")):
        draw_collapse(axes, groups, kept, tokens, colours)
    draw_shares(grid[1, 1], groups, tokens, budget)
    add_legend(figure, groups, colours)
    return figure


def colours_of(groups: list[Runs]) -> dict[float, str]:
    """Give each correlation its colour."""
    rhos = sorted({rho for group in groups for rho in group.correlation.tolist()})
    if len(rhos) > len(COLOURS):
        raise ValueError(
            f"the study has {len(rhos)} correlations and the figure has {len(COLOURS)}"
        )
    return dict(zip(rhos, COLOURS, strict=False))


def marker(group: Runs, groups: list[Runs], colour: str) -> dict[str, Any]:
    """Look of a median: filled for the smallest T, open for the others."""
    first = group.length == min(other.length for other in groups)
    return {
        "color": colour, "marker": "o" if first else "s", "linestyle": "",
        "markersize": 3.5 if first else 6.0, "markerfacecolor": colour if first else "none",
    }  # fmt: skip


def draw_lines(axes: Axes, groups: list[Runs], tokens: int, colours: dict[float, str]) -> None:
    """Draw median samples over log(N T) against 1/M with the predicted straight lines, P kept."""
    own = [group for group in groups if group.kept == "transition"]
    logs = [float(np.log(tokens * group.length)) for group in own]
    unit = float(np.mean([group.unit / log for group, log in zip(own, logs, strict=True)]))
    for rho, colour in colours.items():
        line = np.array([0.0, 1.0])
        rise = line * ((1 - rho) / rho) ** 2
        low, high = (unit * (1 + gamma * rise) for gamma in (own[0].gamma, 1.0))
        axes.fill_between(line, low, high, color=colour, alpha=0.15, linewidth=0)
        for bound in (low, high):
            axes.plot(line, bound, color=colour, linewidth=0.8)
        for place, (group, log) in enumerate(zip(own, logs, strict=True)):
            here = group.correlation == rho
            x, runs = 1 / group.tasks[here] + 0.01 * place, group.samples[here] / log
            middle = nanmedian(runs, axis=1)
            finite = np.isfinite(middle)
            ends = np.array([quantile_interval(row) for row in runs])
            # Where fewer runs recover than an interval needs, it has no end.
            low, high = np.where(np.isfinite(ends), ends, [0.0, MUCH]).T
            axes.vlines(
                x[finite], low[finite], high[finite], color=colour, linewidth=0.8, alpha=0.6
            )
            axes.plot(x[finite], middle[finite], **marker(group, groups, colour))
    top = unit * (1 + max(group.excess.max() for group in own))
    axes.set(xlabel="$1/M$, one over the number of related tasks", ylim=(0, 1.1 * top))
    axes.set_ylabel(r"samples to recovery / $\log(NT)$")
    axes.set_title(f"{NEW['transition']}, medians\nlines: $1 + \\gamma x$, nothing fitted")


def draw_collapse(
    axes: Axes, groups: list[Runs], kept: str, tokens: int, colours: dict[float, str]
) -> None:
    """Draw samples in units of those with rho = 1 against x: all rho, M and T on one curve."""
    own = [group for group in groups if group.kept == kept]
    for group in own:
        relative = group.samples / group.unit
        late = samples_for_share(group.samples, SUCCESS) / samples_for_share(group.own, SUCCESS)
        for rho, colour in colours.items():
            here = group.correlation == rho
            for values, look in (
                (nanmedian(relative, axis=1), marker(group, groups, colour)),
                (late, {"color": colour, "marker": "^", "markersize": 4, "linestyle": "",
                        "alpha": 0.55, "markeredgewidth": 0}),
            ):  # fmt: skip
                shown = here & np.isfinite(values)
                axes.plot(group.excess[shown], values[shown], **look)
    x = np.geomspace(0.5 * own[0].excess.min(), 1.6 * own[0].excess.max(), 400)
    slopes = (own[0].gamma, 1.0)
    draw_between(axes, x, [predicted(x, tokens, kept, gamma) for gamma in slopes], LINE)
    if kept == "transition":
        late_lines = [predicted(x, tokens, kept, gamma, NINETY) for gamma in slopes]
        draw_between(axes, x, late_lines, LATE)
        end = ((tokens - 1) / NINETY) ** 2
        axes.axvline(end, color="#777777", linewidth=0.8, linestyle=":")
        axes.annotate(
            "beyond: never 90%", (end, 0.68), (-3, 0), textcoords="offset points", ha="right",
            fontsize=7, color="#555555",
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel=r"$x = (1-\rho)^2/(\rho^2 M)$")
    axes.set_ylim(0.6, 60.0)
    axes.set_ylabel(r"samples over those with $\rho = 1$")
    told = "" if kept == "pattern" else rf", $\gamma$ = {own[0].gamma:.2f} to 1"
    axes.set_title(rf"{NEW[kept]}: $1 + \gamma x${told}" if told else f"{NEW[kept]}: $1 + x$")


def draw_between(axes: Axes, x: Values, lines: list[Values], look: dict[str, Any]) -> None:
    """Draw two lines and a shade between them; where one is infinite it has ended."""
    low, high = (np.where(np.isfinite(line), line, np.nan) for line in lines)
    axes.fill_between(x, low, high, color=look["color"], alpha=0.12, linewidth=0, zorder=0.8)
    for line in (low, high):
        axes.plot(x, line, **look, zorder=1)


def draw_shares(axes: Axes, groups: list[Runs], tokens: int, budget: float) -> None:
    """Draw the share of the runs that recover at all against x."""
    # The two kinds stand side by side.
    for kept, colour, aside in (("transition", "#000000", 0.95), ("pattern", "#56B4E9", 1.05)):
        for group in (one for one in groups if one.kept == kept):
            found = np.isfinite(group.samples)
            ends = [share_interval(int(row.sum()), row.size) for row in found]
            x = aside * group.excess
            axes.vlines(x, *np.array(ends).T, color=colour, linewidth=0.7, alpha=0.5)
            axes.plot(x, found.mean(axis=1), **marker(group, groups, colour))
        first = next(one for one in groups if one.kept == kept)
        x = np.geomspace(0.5 * groups[0].excess.min(), 1.6 * groups[0].excess.max(), 400)
        shares = [
            predicted_share(x, tokens, kept, gamma, budget / first.unit)
            for gamma in (first.gamma, 1.0)
        ]
        draw_between(axes, x, shares, {"color": colour, "linewidth": 1.0})
        axes.plot([], [], color=colour, linewidth=1.0, label=NEW[kept])
    axes.set(xscale="log", xlabel=r"$x = (1-\rho)^2/(\rho^2 M)$", ylim=(-0.03, 1.05))
    axes.set_ylabel("share of runs recovered")
    axes.set_title(f"where it ends: runs recovered within {budget / 1000:.0f}k samples")
    axes.legend(loc="lower left", title="lines: predicted")


def add_legend(figure: Figure, groups: list[Runs], colours: dict[float, str]) -> None:
    """Put one legend above the panels."""
    entries: dict[str, Line2D] = {}
    for rho, colour in colours.items():
        entries[rf"$\rho$ = {rho:g}"] = Line2D([], [], color=colour, linewidth=2.5)
    for group in groups:
        look = marker(group, groups, "#444444")
        entries[f"median, $T$ = {group.length}"] = Line2D([], [], **look)
    triangle: dict[str, Any] = {"color": "#444444", "marker": "^", "linestyle": "", "markersize": 4}
    entries[f"{SUCCESS:.0%} of the runs"] = Line2D([], [], **triangle)
    entries["predicted: median"] = Line2D([], [], **LINE)
    entries[f"predicted: {SUCCESS:.0%}"] = Line2D([], [], **LATE)
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=4)


# --------------------------------------------------------------------------------------- numbers


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate slopes of the lines, growth with T, every case, and what rounding alone gives."""
    groups = runs_of_study(dataset)
    tokens = int(str(setting(dataset, "num_tokens")))
    return [
        slope_table(groups),
        growth_table(groups, tokens),
        case_table(groups, tokens, float(dataset["samples"].max())),
        rounding_table(groups),
    ]


def fitted_slope(inverse: Values, relative: Values) -> float:
    """Slope b of n = a (1 + b/M), fitted to medians of equal relative errors; NaN for too few.

    Args:
        inverse: 1/M, [cases].
        relative: samples, [cases]; infinite ones are left out.
    """
    fine = np.isfinite(relative)
    if fine.sum() < 2:
        return float("nan")
    x, y = inverse[fine], relative[fine]
    design = np.stack([np.ones_like(x), x], axis=1) / y[:, None]
    level, slope = np.linalg.lstsq(design, np.ones_like(x), rcond=None)[0]
    return float(slope / level)


def slope_table(groups: list[Runs]) -> Table:
    """Fit the lines in 1/M, and give what is predicted of them."""
    rows = []
    for group in groups:
        for rho in sorted(set(group.correlation.tolist())):
            here = group.correlation == rho
            x, runs = 1 / group.tasks[here], group.samples[here]

            def fit(runs: Values, x: Values = x) -> float:
                return fitted_slope(x, nanmedian(runs, axis=-1))

            drawn = resampled_runs(runs.shape[1], 200, lost=0)
            ends = interval_of(np.array([fit(runs[:, one]) for one in drawn]))
            rise = ((1 - rho) / rho) ** 2
            told = [PLAIN[group.kept], group.length, rho, fit(runs), *ends]
            rows.append([*told, group.gamma * rise, rise])
    return Table(
        "Slope b of the straight line n = a (1 + b/M) through the medians, with 95% intervals over "
        "tasks; predicted for the weights of A (or V), and for supports",
        ("new and kept", "T", "rho", *ranged("slope"), "predicted", "for supports"),
        rows,
    )


def growth_table(groups: list[Runs], tokens: int) -> Table:
    """Tabulate how samples grow from the smallest T to the largest, all cases together."""
    rows = []
    kinds: list[tuple[str, str, Callable[[Runs], Values]]] = [
        (PLAIN[kept], kept, lambda group: np.vstack([group.own, group.samples])) for kept in NEW
    ]
    kinds.append(("new Q, P kept: supports alone", "transition", lambda group: group.supports))
    for name, kept, read in kinds:
        own = sorted((g for g in groups if g.kept == kept), key=lambda group: group.length)
        if len({group.length for group in own}) < 2:
            continue
        ends = [read(own[place]) for place in (0, -1)]
        drawn = resampled_runs(ends[0].shape[1], 200, lost=0)
        found = interval_of(np.array([growth(ends, one) for one in drawn]))
        logs = [np.log(tokens * own[place].length) for place in (-1, 0)]
        everyone = np.arange(ends[0].shape[1], dtype=np.int64)
        rows.append([name, own[0].length, own[-1].length, growth(ends, everyone), *found,
                     logs[0] / logs[1]])  # fmt: skip
    return Table(
        "Growth of the median samples from the smallest T to the largest, geometric mean over all "
        "cases with 95% intervals over tasks; that of log(N T)",
        ("new and kept", "from T", "to T", *ranged("growth"), "log(N T)"),
        rows,
    )


def growth(ends: list[Values], runs: NDArray[np.int64]) -> float:
    """Geometric mean over cases of the ratio of medians at two T, [cases, runs] each."""
    low, high = (nanmedian(values[:, runs], axis=1) for values in ends)
    fine = np.isfinite(low) & np.isfinite(high)
    return float(np.exp(np.mean(np.log(high[fine] / low[fine])))) if fine.any() else np.nan


def case_table(groups: list[Runs], tokens: int, budget: float) -> Table:
    """Tabulate samples and shares of every case, with what is predicted."""
    rows: list[list[object]] = []
    for group in groups:
        rhos, tasks = np.append(1.0, group.correlation), np.append(1.0, group.tasks)
        x = np.maximum(((1 - rhos) / rhos) ** 2 / tasks, 1e-12)  # positive for the share
        law = (x, tokens, group.kept, group.gamma)
        shares = predicted_share(*law, budget / group.unit)
        lines = group.unit * predicted(*law)
        every = np.vstack([group.own, group.samples])
        for place, runs in enumerate(every):
            found = np.isfinite(runs)
            rows.append(
                [
                    PLAIN[group.kept],
                    group.length,
                    rhos[place],
                    tasks[place],
                    nanmedian(runs),
                    *quantile_interval(runs),
                    lines[place],
                    nanmedian(group.expected[place]),
                    samples_for_share(runs, SUCCESS),
                    found.mean(),
                    *share_interval(int(found.sum()), found.size),
                    shares[place],
                ]
            )
    columns = ("new and kept", "T", "rho", "M", *ranged("median"), "predicted", "closed form")
    more = (f"{SUCCESS:.0%} recover", *ranged("share recovered"), "share predicted")
    return Table(
        "Samples to recovery, with 95% intervals; predicted is the line, closed form the median "
        "over tasks of what a mean squared error of that size takes",
        (*columns, *more),
        rows,
    )


def rounding_table(groups: list[Runs]) -> Table:
    """Tabulate how often rounding the mean of M patterns gives Q before the first sample."""
    rows = []
    for group in (one for one in groups if one.kept == "pattern"):
        for rho, count, runs in zip(group.correlation, group.tasks, group.rounded, strict=True):
            hits = int((runs < RECOVERED).sum())
            rows.append(
                [group.length, rho, count, hits / runs.size, *share_interval(hits, runs.size)]
            )
    return Table(
        f"Runs in which the rounded mean of the patterns is within {RECOVERED:g} of Q with no "
        "sample, with 95% intervals",
        ("T", "rho", "M", *ranged("share")),
        rows,
    )


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("few_shot", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
