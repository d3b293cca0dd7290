"""How long the slowest mode of continuous embeddings takes, and what d numbers reach (ours).

The dataset comes from `scbjax run embeddings`. What to see: with random embeddings plain steps wait
longest where there are as many numbers as tokens, by orders of magnitude, and steps times the
inverse covariance equally long everywhere. The peak comes with the smallest eigenvalue of the
covariance and not with d = N: orthogonal embeddings have none. On the right, d < N random
embeddings leave the share 1 - d / (N - 1) of the loss, learned ones little more than the best d
directions do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from _data import Values, along_arms, setting, tidy
from _estimates import quantile_interval
from _numbers import Table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import band, median
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, NullLocator

STUDY: Final = "embeddings"
MEASURED, EXPECTED = "slowest_mode", "slowest_mode_on_path"
VARIABLES: Final = (
    MEASURED, EXPECTED, "excess_share", "out_of_reach", "rank_floor", "condition",
)  # fmt: skip
FIELDS: Final[Mapping[str, object]] = {
    "embedding": "random", "correlation": 0.0, "data": "population", "power": 1.0,
    "embedding_dim": 64, "rate": 0.1,
}  # fmt: skip
LEVEL: Final = 0.5  # of its loss is what the slowest mode has to lose
SPREAD: Final = (0.1, 0.5, 0.9)  # quantiles over runs
BLACK: Final[dict[str, Any]] = {"color": "black", "linewidth": 0.9}
TICKS: Final = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
LOWEST: Final = 0.22  # d / N, or N / d, of the law
NEAREST: Final = 0.93
NODES: Final = 100  # of the law of eigenvalues
LAW_RATE: Final = 0.2
LAW_STEPS: Final = 5000
SMALLEST: Final = 1e-6  # share of a mode's loss; below it all is rounding

Key = tuple[str, bool, str, float]  # embedding, whether it is correlated, data, power


@dataclass(frozen=True)
class Look:
    """What a kind of runs is called and how it is drawn."""

    label: str
    colour: str
    marker: str
    filled: bool = True


# Colours of Okabe & Ito.
LOOKS: Final[Mapping[Key, Look]] = {
    ("random", True, "population", 0.0): Look(r"plain, correlated embeddings", "#E69F00", "s"),
    ("random", False, "population", 0.0): Look("plain, random", "#D55E00", "o"),
    ("orthogonal", False, "population", 0.0): Look("plain, orthogonal", "#CC79A7", "D"),
    ("random", False, "population", 1.0): Look("preconditioned, random", "#0072B2", "o"),
    ("random", True, "population", 1.0): Look("preconditioned, correlated", "#56B4E9", "s"),
    ("random", False, "fresh", 0.0): Look("plain, mini-batches", "#D55E00", "o", filled=False),
    ("random", False, "fresh", 1.0): Look(
        "preconditioned, mini-batches", "#0072B2", "o", filled=False
    ),
    ("learned", False, "population", 1.0): Look("learned", "#009E73", "^"),
}
FIXED: Final = ("random", False, "population", 1.0)
PLAIN: Final = ("random", False, "population", 0.0)
LEARNED: Final = ("learned", False, "population", 1.0)


@dataclass(frozen=True)
class Curve:
    """The runs of one kind, over d.

    Attributes:
        key: the kind.
        look: how it is drawn.
        ratio: d / N, rising, [points].
        times: steps times rate until the slowest mode has lost half of its loss, [points, runs];
            infinite where it has not.
        expected: the same of the recursion.
        end: steps times rate at the end, [points].
        left: share of the loss left at the end, [points, runs].
        missed: share out of reach of the embeddings, and of any of d numbers, [2, points, runs].
        condition: condition number of the covariance, [points, runs].
    """

    key: Key
    look: Look
    ratio: Values
    times: Values
    expected: Values
    end: Values
    left: Values
    missed: Values
    condition: Values


def curves_of(dataset: xr.Dataset) -> list[Curve]:
    """Read the kinds of runs of the study, in the order of their looks."""
    data = tidy(dataset)
    tokens = float(str(setting(dataset, "num_tokens")))
    fields = {name: np.array(along_arms(data, name, each)) for name, each in FIELDS.items()}
    keys = [
        (str(kind), bool(correlation), str(source), float(power))
        for kind, correlation, source, power in zip(
            *(fields[name].tolist() for name in list(FIELDS)[:4]), strict=True
        )
    ]
    dims, rates = fields["embedding_dim"].astype(float), fields["rate"].astype(float)
    steps = data["step"].to_numpy().astype(float)
    values = {name: data[name].to_numpy().astype(float) for name in VARIABLES}
    curves = []
    for key, look in LOOKS.items():
        own = [place for place, other in enumerate(keys) if other == key]
        own.sort(key=lambda place: dims[place])
        if not own:
            continue
        clocks = [steps * rates[place] for place in own]
        last = {name: values[name][own, :, -1] for name in VARIABLES}
        curves.append(
            Curve(
                key, look, dims[own] / tokens,
                all_crossings(clocks, values[MEASURED][own]),
                all_crossings(clocks, values[EXPECTED][own]),
                np.array([clock[-1] for clock in clocks]),
                last["excess_share"],
                np.stack([last["out_of_reach"], last["rank_floor"]]),
                last["condition"],
            )
        )  # fmt: skip
    if not curves:
        raise ValueError("the study has none of the kinds of runs that the figure shows")
    return curves


def crossings(clock: Values, left: Values, level: float = LEVEL) -> Values:
    """Tell when runs come down to a level, by a straight line in its logarithm between records.

    Args:
        clock: [steps].
        left: [runs, steps].
        level: above 0, below 1.

    Returns:
        [runs]; infinite for runs that never do, and NaN for those that diverge before.

    >>> crossings(np.array([0.0, 2.0, 4.0]), np.array([[1.0, 0.25, 0.1], [1.0, 0.9, 0.8]]))
    array([ 1., inf])
    """
    finite = np.isfinite(left)
    logs = np.log(np.maximum(np.where(finite, left, 1.0), SMALLEST) / level)
    below = (logs <= 0) & np.logical_and.accumulate(finite, axis=1)
    first = np.maximum(below.argmax(axis=1), 1)
    rows = np.arange(len(left))
    before, after = logs[rows, first - 1], logs[rows, first]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = before / (before - after)
    times = clock[first - 1] + share * (clock[first] - clock[first - 1])
    never = np.where(finite.all(axis=1), np.inf, np.nan)
    return np.asarray(np.where(below.any(axis=1), times, never), float)


def all_crossings(clocks: Sequence[Values], left: Values) -> Values:
    """Give the `crossings` of every point, [points, runs] from clocks and [points, runs, steps]."""
    return np.stack([crossings(*pair) for pair in zip(clocks, left, strict=True)])


def sizes_of(dataset: xr.Dataset) -> dict[str, float]:
    """Give the sizes of the task that the `law` needs."""
    names = {"length": "context_length", "sparsity": "sparsity"}
    return {name: float(str(setting(dataset, field))) for name, field in names.items()}


def quantiles(times: Values) -> Values:
    """Give the quantiles of `SPREAD` of times [points, runs], [3, points]."""
    return np.array([[quantile(own, share) for own in times] for share in SPREAD])


def quantile(times: Values, share: float) -> float:
    """Give a quantile of times [runs], one of them, of which some may be infinite.

    >>> quantile(np.array([2.0, np.inf, 1.0, np.nan]), 0.5)
    2.0
    """
    known = times[~np.isnan(times)]
    return float(np.quantile(known, share, method="inverted_cdf")) if known.size else np.nan


def law(gamma: Values, *, length: float, sparsity: float) -> Values:
    """Time of the slowest mode for many tokens: the recursion on the law of Marchenko & Pastur.

    Eigenvalues are ``1 + gamma + 2 sqrt(gamma) cos(theta)``, with the density ``sin^2(theta)`` over
    the eigenvalue; all modes have equal parts of the signal, and Q has equal weights.

    Args:
        gamma: the smaller of d / N and N / d, below 1, [points].
        length: T.
        sparsity: Q.

    Returns:
        [points]; infinite for what takes more than `LAW_STEPS` steps.
    """
    theta = (np.arange(NODES) + 0.5) * np.pi / NODES
    root = np.sqrt(gamma)[:, None]
    values = 1 + root**2 + 2 * root * np.cos(theta)
    weights = np.sin(theta) ** 2 / values
    weights = weights / weights.sum(axis=1, keepdims=True)
    # The slowest mode is at the edge, and has no weight.
    values = np.concatenate([values, (1 - root) ** 2], axis=1) / (1 + root) ** 2
    weights = np.concatenate([weights, np.zeros_like(root)], axis=1)
    signal, uniform = 1 / sparsity - 1 / length, 1 / length
    alpha, has = np.zeros_like(root), np.zeros_like(values)
    before, times = np.ones(len(gamma)), np.full(len(gamma), np.inf)
    for step in range(LAW_STEPS):
        overlap, size = alpha * signal + uniform, alpha**2 * signal + uniform
        pull = (weights * has * (1 - alpha * has)).sum(axis=1, keepdims=True)
        has = has + LAW_RATE / signal * values * (overlap - size * has)
        alpha = alpha + LAW_RATE * pull
        edge, whole = has[:, -1], signal + uniform
        overlap, size = (alpha * signal + uniform)[:, 0], (alpha**2 * signal + uniform)[:, 0]
        left = 1 + (edge**2 * size - 2 * edge * overlap) / whole
        now = np.isinf(times) & (left <= LEVEL)
        times[now] = LAW_RATE * (step + (before - LEVEL) / np.maximum(before - left, SMALLEST))[now]
        before = left
        if np.isfinite(times).all():
            break
    return times


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    curves = curves_of(dataset)
    figure = Figure(figsize=(DOUBLE_COLUMN, 3.6))
    left, right = figure.subplots(1, 2, width_ratios=(1.45, 1))
    draw_times(left, curves, sizes_of(dataset))
    draw_rest(right, curves, int(str(setting(dataset, "num_tokens"))))
    for axes in (left, right):
        axes.set(xscale="log", xlabel="embedding dimension over tokens, $d / N$")
        axes.xaxis.set_minor_locator(NullLocator())
        ticks = [tick for tick in TICKS if axes is right or tick >= TICKS[1]]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.set_xlim(LOWEST, 1 / LOWEST)
    right.set_xlabel("$d / N$")
    add_legend(figure, curves)
    return figure


def draw_times(axes: Axes, curves: Sequence[Curve], sizes: Mapping[str, float]) -> None:
    """Draw the times of the slowest mode, and the theory over them."""
    for place, curve in enumerate(curves):
        if curve.key == LEARNED:
            continue
        draw_curve(axes, curve, place)
    axes.set_yscale("log")
    axes.set_ylabel(
        "until the slowest mode has lost\nhalf of its loss, steps $\\times$ rate $\\eta$"
    )
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 1.0), high)
    x, times = drawn_law(sizes)
    axes.plot(x, np.where(times < high, times, np.nan), **BLACK, linestyle="--", gid="law")


def drawn_law(sizes: Mapping[str, float]) -> tuple[Values, Values]:
    """Give d / N and the times of the `law`, with NaN at d = N, where it has a pole."""
    gamma = np.geomspace(LOWEST, NEAREST, 24)
    times = law(gamma, **sizes)
    x = np.concatenate([gamma, [1.0], 1 / gamma[::-1]])
    return x, np.concatenate([times, [np.nan], times[::-1]])


def draw_curve(axes: Axes, curve: Curve, place: int) -> None:
    """Draw medians, 80% of the runs, and what the recursion says; arrows where half never came."""
    look = curve.look
    low, middle, high = quantiles(curve.times)
    known = np.isfinite(middle)
    face = look.colour if look.filled else "white"
    mark: dict[str, Any] = {"color": look.colour, "markerfacecolor": face, "linestyle": ""}
    size = 4.5 if look.filled else 6.0
    zorder = 5.0 if look.filled else 4.0
    axes.plot(
        curve.ratio[known], middle[known], marker=look.marker, markersize=size, **mark,
        zorder=zorder, gid=f"median {look.label}",
    )  # fmt: skip
    top, late = np.where(np.isfinite(high), high, curve.end), np.isposinf(middle)
    axes.vlines(curve.ratio[known], low[known], top[known], colors=look.colour, linewidth=1.0)
    axes.plot(
        curve.ratio[late], curve.end[late], marker=r"$\uparrow$", markersize=8, **mark,
        zorder=zorder, gid=f"late {look.label}",
    )  # fmt: skip
    if curve.key[2] == "population":
        expected = quantiles(curve.expected)[1]
        line = np.where(np.isfinite(expected), expected, np.nan)
        axes.plot(
            curve.ratio, line, color=look.colour, linewidth=1.0, zorder=3 + 0.01 * place,
            gid=f"recursion {look.label}",
        )  # fmt: skip


def draw_rest(axes: Axes, curves: Sequence[Curve], tokens: int) -> None:
    """Draw what is left of the loss at the end, with the laws for fixed and learned embeddings."""
    x = np.geomspace(0.11, 4.5, 400)
    axes.plot(x, np.maximum(1 - x * tokens / (tokens - 1), 0), **BLACK, linestyle="--", gid="share")
    for curve in curves:
        if curve.key not in (FIXED, LEARNED):
            continue
        look = curve.look
        low, middle, high = band(curve.left.T)
        axes.vlines(curve.ratio, low, high, colors=look.colour, linewidth=1.0)
        axes.plot(
            curve.ratio, middle, look.marker, color=look.colour, markersize=4.5,
            gid=f"left {look.label}", zorder=4,
        )  # fmt: skip
        if curve.key == LEARNED:
            floor = [median(own) for own in curve.missed[1]]
            axes.plot(curve.ratio, floor, **BLACK, linestyle=":", gid="floor", zorder=5)
    axes.set(ylabel="excess loss left at the end,\nas a share of its start", ylim=(-0.03, 1.0))


def add_legend(figure: Figure, curves: Sequence[Curve]) -> None:
    """Put one legend above the panels."""
    runs = curves[0].times.shape[1]
    entries: dict[str, Line2D] = {}
    for curve in curves:
        look = curve.look
        line: Any = "-" if curve.key[2] == "population" and curve.key != LEARNED else ""
        entries[look.label] = Line2D(
            [], [], color=look.colour, marker=look.marker, linestyle=line, linewidth=1.0,
            markersize=4.5, markerfacecolor=look.colour if look.filled else "white",
        )  # fmt: skip
    entries[r"$N \to \infty$, random embeddings"] = Line2D([], [], **BLACK, linestyle="--")
    if any(curve.key == LEARNED for curve in curves):
        entries["best $d$ directions"] = Line2D([], [], **BLACK, linestyle=":")
    runs_shown = f"median, 10\u201390% of {runs} runs" if runs > 1 else "one run"
    note = rf"markers: {runs_shown} ($\uparrow$ not by the end); coloured lines: exact recursion"
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=3, title=note)


# ---------------------------------------------------------------------------------------- numbers


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate the times, how far they are from theory, and what is left of the loss."""
    curves = curves_of(dataset)
    theory = drawn_law(sizes_of(dataset))
    return [times_table(curves, theory), peaks_table(curves), rest_table(curves, dataset)]


def times_table(curves: Sequence[Curve], theory: tuple[Values, Values]) -> Table:
    """Times of every kind and d: medians with intervals, beside the recursion and the law."""
    rows = []
    for curve in curves:
        if curve.key == LEARNED:
            continue
        is_plain = curve.key in (PLAIN, ("random", False, "fresh", 0.0))
        for place, ratio in enumerate(curve.ratio):
            own, expected = curve.times[place], curve.expected[place]
            both = np.isfinite(own) & np.isfinite(expected)
            off = np.abs(own[both] / expected[both] - 1)
            rows.append([
                curve.look.label, ratio, told(own),
                *(limited(x) for x in quantile_interval(own)),
                int(np.isfinite(own).sum()), told(expected),
                float(np.interp(ratio, *theory)) if is_plain else np.nan,
                median(curve.condition[place]), off.max() if off.size else np.nan,
            ])  # fmt: skip
    return Table(
        f"Steps times rate until the slowest mode has lost half of its loss, medians of "
        f"{curves[0].times.shape[1]} runs with 95% intervals; runs that have; the recursion; the "
        "law of many tokens; condition number; largest relative distance of a run to its recursion",
        ("kind", "d / N", *ranged("time"), "runs", "recursion", "law", "condition", "distance"),
        rows,
    )


def told(times: Values) -> object:
    """Give the median of times, in words where half of them are infinite."""
    return limited(quantile(times, 0.5))


def limited(time: float) -> object:
    """Give a time, or that it is later than the study."""
    return "later" if np.isposinf(time) else np.nan if np.isinf(time) else time


def peaks_table(curves: Sequence[Curve]) -> Table:
    """Largest over least median over d, and the time at d = N over that at the largest d."""
    rows = []
    for curve in curves:
        if curve.key == LEARNED:
            continue
        middle = quantiles(curve.times)[1]
        known = middle[~np.isnan(middle)]
        spread = float(known.max() / known.min()) if np.isfinite(known).any() else np.nan
        place = int(np.abs(curve.ratio - 1).argmin())
        with np.errstate(invalid="ignore"):
            ratio = curve.times[place] / curve.times[-1]
        at = curve.ratio[int(np.nanargmax(middle))] if np.isfinite(middle).any() else np.nan
        near = curve.ratio[place] == 1
        ends = [told(ratio), *(limited(x) for x in quantile_interval(ratio))]
        rows.append([
            curve.look.label, limited(spread), at,
            *(ends if near else [np.nan] * 3),
        ])  # fmt: skip
    return Table(
        "Longest over shortest median time over d, and where it is longest; time at d = N over "
        "that at the largest d, run by run: medians with 95% intervals",
        ("kind", "longest over shortest", "at d / N", *ranged("d = N over largest")),
        rows,
    )


def rest_table(curves: Sequence[Curve], dataset: xr.Dataset) -> Table:
    """What is left of the loss, beside what theory says is out of reach."""
    tokens = float(str(setting(dataset, "num_tokens")))
    rows = []
    for curve in curves:
        if curve.key not in (FIXED, LEARNED):
            continue
        for place, ratio in enumerate(curve.ratio):
            own = curve.left[place]
            rows.append([
                curve.look.label, ratio, median(own), *quantile_interval(own),
                *(median(missed[place]) for missed in curve.missed),
                max(1 - ratio * tokens / (tokens - 1), 0.0),
            ])  # fmt: skip
    return Table(
        "Excess loss left at the end, as a share of its start, medians with 95% intervals; what "
        "the embeddings of the start miss; what any of d numbers miss; 1 - d / (N - 1)",
        ("kind", "d / N", *ranged("left"), "missed", "missed by the best", "law"),
        rows,
    )


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("embeddings", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
