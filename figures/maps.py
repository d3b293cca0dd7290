"""Attention maps on the same parameters: plateau, small weights, lost positions (not in the paper).

The dataset comes from `scbjax run maps`. What theory expects is in the text of
`scbjax/experiments/maps.py`; the dashed lines are its predictions. Points of the study are told
apart by what they were run with: expected gradients, fresh mini-batches, and the preconditioned
step over its rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import xarray as xr
from _data import Values, along_arms, setting, tidy
from _estimates import (
    Interval,
    interval_of,
    quantile_interval,
    resampled_runs,
    share_interval,
    slope,
)
from _numbers import Table, intervals_table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import band, finite_of, median
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

STUDY: Final = "maps"
VARIABLES: Final = (
    "support_mass", "attention_similarity", "value_distance", "dead_share", "kept_by_size",
)  # fmt: skip
FIELDS: Final = (
    "context_length", "attention_map", "alpha", "value_path", "data", "optimizer", "rate",
    "attention_rate_ratio", "l1",
)  # fmt: skip
HALF: Final = 0.5
ENTMAX: Final = ("softmax", "entmax", "sparsemax")
ALPHAS: Final = {"softmax": 1.0, "sparsemax": 2.0}
LINEAR: Final = "#0072B2"
LENGTH_STYLES: Final = {128: ":", 2048: "--"}
DASHED: Final[dict[str, Any]] = {"color": "black", "linewidth": 0.9, "linestyle": (0, (4, 2))}
# What is learned from mini-batches, by map, value path and optimizer: its name and look.
LEARNERS: Final = {
    ("linear", "linear", "preconditioned"): ("linear, proximal", LINEAR, "-"),
    ("softmax", "linear", "sgd"): ("softmax, SGD", "#CC79A7", (0, (4, 1.2))),
    ("softmax", "linear", "adam"): ("softmax, Adam", "#000000", (0, (4, 1, 1, 1))),
    ("softmax", "mlp", "adam"): ("softmax, MLP, Adam", "#009E73", (0, (1, 1))),
    ("entmax", "linear", "sgd"): (r"$\alpha$ = 1.5, SGD", "#D55E00", "-"),
    ("relu", "linear", "adam"): ("ReLU, Adam", "#E69F00", (0, (2, 1))),
}


class Case(NamedTuple):
    """A point of the study: its place along `arm`, and what it was run with."""

    place: int
    length: int
    name: str
    alpha: float
    path: str
    data: str
    optimizer: str
    rate: float
    ratio: float
    l1: float

    @property
    def speed(self) -> float:
        """Growth of both signals in a step, in the units of the rates."""
        return float(self.rate * np.sqrt(self.ratio))

    @property
    def order(self) -> float:
        """Alpha of the entmax family; infinity for the linear map, which has no such order."""
        return self.alpha if self.name in ENTMAX else np.inf

    @property
    def label(self) -> str:
        """Name of the map."""
        return "linear" if self.name == "linear" else rf"$\alpha$ = {self.alpha:g}"

    @property
    def colour(self) -> Any:  # noqa: ANN401 - whatever matplotlib takes
        """Maps with exact zeros are lighter; the linear one has the colour of proximal steps."""
        if self.name == "linear":
            return LINEAR
        return colormaps["inferno"](0.05 + 0.75 * (self.alpha - 1.0))


def cases_of(data: xr.Dataset) -> list[Case]:
    """Give the points of a tidy dataset."""
    columns = [along_arms(data, field) for field in FIELDS]
    cases = [Case(place, *row) for place, row in enumerate(zip(*columns, strict=True))]
    return [case if case.name not in ENTMAX else _of_family(case) for case in cases]


def _of_family(case: Case) -> Case:
    """Name a point of the entmax family by its alpha, which softmax and sparsemax have by name."""
    alpha = ALPHAS.get(case.name, case.alpha)
    names = {order: name for name, order in ALPHAS.items()}
    return case._replace(alpha=alpha, name=names.get(alpha, "entmax"))


def growing(cases: Iterable[Case]) -> list[list[Case]]:
    """Group the points with expected gradients by map, each in the order of T."""
    own = [case for case in cases if case.data == "population" and not case.l1]
    groups = [[c for c in own if c.order == order] for order in sorted({c.order for c in own})]
    return [sorted(group, key=lambda case: case.length) for group in groups]


def learning(cases: Iterable[Case]) -> list[Case]:
    """Give the points with fresh mini-batches that are drawn against samples."""
    fresh = [case for case in cases if case.data == "fresh"]
    return [c for c in fresh if c.optimizer != "preconditioned" or c.name == "linear"]


def over_rates(cases: Iterable[Case]) -> list[list[Case]]:
    """Group the points over the rate of the preconditioned step by map and T."""
    own = [c for c in cases if c.data == "fresh" and c.optimizer == "preconditioned"]
    own = [case for case in own if case.name != "linear"]
    kinds = sorted({(case.order, case.length) for case in own})
    groups = [[c for c in own if (c.order, c.length) == kind] for kind in kinds]
    return [sorted(group, key=lambda case: case.rate) for group in groups]


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    data = tidy(dataset)
    figure = Figure(figsize=(DOUBLE_COLUMN, 5.4))
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    grid = figure.subplots(2, 2)
    draw_plateaus(grid[0, 0], data)
    draw_learning(grid[0, 1], data)
    draw_small_weights(grid[1, 0], data)
    draw_lost(grid[1, 1], data)
    return figure


# ------------------------------------------------------------------------------- plateaus


def times_to_half(data: xr.Dataset, case: Case) -> Values:
    """Steps until half of the mass is on the true positions, [runs]; infinity where it never is.

    Between records it is interpolated.
    """
    mass = data["support_mass"].isel(arm=case.place).transpose("run", "step").to_numpy()
    steps = data["step"].to_numpy().astype(float)
    times = np.full(len(mass), np.inf)
    for run, row in enumerate(mass):
        above = np.flatnonzero(row >= HALF)
        if above.size and above[0] > 0:
            last = above[0] - 1
            share = (HALF - row[last]) / (row[last + 1] - row[last])
            times[run] = steps[last] + share * (steps[last + 1] - steps[last])
    return times


def predicted_growth(order: float, lengths: Values) -> Values:
    """Time until half of the mass is on the support, up to a factor: T^(2 - alpha), or log T."""
    return np.log(lengths) if order >= 2.0 else lengths ** (2.0 - order)


def draw_plateaus(axes: Axes, data: xr.Dataset) -> None:
    """Draw times until half of the mass against T, with what is predicted through the last one."""
    for group in growing(cases_of(data)):
        own = np.array([case.length for case in group], float)
        times = np.stack([times_to_half(data, case) * case.speed for case in group])
        low, middle, high = band(times.T)
        colour = group[0].colour
        axes.vlines(own, low, high, color=colour, linewidth=1.2)
        axes.plot(own, middle, "o", color=colour, markersize=4)
        if len(group) > 1 and np.isfinite(middle[-1]):
            shape = predicted_growth(group[0].order, own)
            axes.plot(own, middle[-1] * shape / shape[-1], **{**DASHED, "color": colour})
        if np.isfinite(middle[-1]):
            axes.annotate(
                group[0].label, (own[-1], middle[-1]), (6, 0), textcoords="offset points",
                va="center", fontsize=7, color=colour,
            )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="context length $T$")
    lengths = sorted({case.length for group in growing(cases_of(data)) for case in group})
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(r"time to half of the mass, steps $\times\sqrt{\eta_V\eta_A}$")
    axes.set_title("expected gradients; dashed: $T^{2-\\alpha}$, $\\log T$", fontsize=8)
    axes.margins(x=0.05)
    axes.set_xlim(right=axes.get_xlim()[1] * 2.2)


# -------------------------------------------------------------------------------- learning


def look_of(case: Case) -> tuple[str, str, Any]:
    """Name and look of a learner with mini-batches."""
    other = (f"{case.name}, {case.optimizer}", "#888888", "-")
    return LEARNERS.get((case.name, case.path, case.optimizer), other)


def draw_learning(axes: Axes, data: xr.Dataset) -> None:
    """Draw the cosine of A to Q against samples, medians with 80% bands."""
    batch_size = int(str(setting(data, "batch_size")))
    samples = data["step"].to_numpy() * batch_size / 1000
    for case in learning(cases_of(data)):
        label, colour, style = look_of(case)
        values = data["attention_similarity"].isel(arm=case.place).transpose("run", "step")
        low, middle, high = band(values.to_numpy())
        axes.fill_between(samples, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(samples, middle, color=colour, linestyle=style, label=label)
    axes.set(xlabel="samples (thousands)", ylabel="cosine of $A$ to $Q$", ylim=(0, 1.02))
    if learning(cases_of(data)):
        axes.legend(fontsize=6.5, loc="lower right")
    axes.set_title(f"fresh mini-batches, B = {batch_size}", fontsize=8)


# --------------------------------------------------------------------------- small weights


def kept(data: xr.Dataset, case: Case) -> Values:
    """Attention over the true weight by the size of that weight [runs, bins], at one moment.

    The moment is that at which the largest weights have come to half of theirs.
    """
    item = data["kept_by_size"].isel(arm=case.place).transpose("run", "step", "weight_bin")
    values = item.to_numpy().astype(float)
    found = np.full((values.shape[0], values.shape[2]), np.nan)
    for run, rows in enumerate(values):
        above = np.flatnonzero(rows[:, -1] >= HALF)
        if above.size and above[0] > 0:
            last = above[0] - 1
            low, high = rows[last], rows[last + 1]
            found[run] = low + (HALF - low[-1]) / (high[-1] - low[-1]) * (high - low)
    return found


def bin_weights(bins: int) -> Values:
    """Weights in the middle of the bins, in units of 1/Q: between one half and two."""
    return np.asarray(2.0 ** (-1.0 + 2.0 * (np.arange(bins) + 0.5) / bins))


def predicted_kept(alpha: float, length: int, sparsity: int, bins: int) -> Values:
    """Attention over the true weight, by ``a' = a^(2 (2 - alpha)) (q - a)`` from 1/T on.

    The speed that all positions share, which grows with V, only changes the clock.
    """
    weights = bin_weights(bins) / sparsity
    attention, power = np.full(bins, 1.0 / length), 2.0 * (2.0 - alpha)
    while attention[-1] < HALF * weights[-1]:
        speed = attention**power * (weights - attention)
        # Steps of a hundredth of the fastest relative change.
        attention = attention + 0.01 * speed / np.max(np.abs(speed) / attention)
    return np.asarray(attention / weights)


def shown_small(data: xr.Dataset) -> list[Case]:
    """Give the points of which small weights are drawn: one T, every map, with l1 and without."""
    own = [case for case in cases_of(data) if case.data == "population"]
    lengths = {case.length for case in own if case.l1} or {case.length for case in own}
    return [case for case in own if case.length == max(lengths, default=0)]


def draw_small_weights(axes: Axes, data: xr.Dataset) -> None:
    """Draw how far small weights are when the largest are half there."""
    sparsity = int(str(setting(data, "sparsity")))
    for case in shown_small(data):
        values = kept(data, case)
        x = bin_weights(values.shape[1])
        low, middle, high = band(values)
        # Hollow and larger, so that what stands below is seen inside.
        look: dict[str, Any] = {"marker": "o", "markersize": 4}
        if case.l1:
            look = {"marker": "s", "markersize": 7, "markerfacecolor": "none"}
        label = f"linear, $\\lambda$ = {case.l1:g}" if case.l1 else case.label
        axes.vlines(x, low, high, color=case.colour, linewidth=1.0)
        axes.plot(x, middle, linestyle="", color=case.colour, label=label, **look)
        if case.name in ENTMAX:
            line = predicted_kept(case.alpha, case.length, sparsity, len(x))
            axes.plot(x, line, **{**DASHED, "color": case.colour})
    axes.set(xscale="log", xlabel="true weight $q$, in units of $1/Q$", ylim=(-0.03, 0.98))
    axes.set_xticks([0.5, 1, 2], ["1/2", "1", "2"])
    axes.minorticks_off()
    axes.set_ylabel("$a / q$ when the largest are at 1/2")
    axes.set_title("expected gradients; dashed: $\\dot a = a^{2(2-\\alpha)}(q - a)$", fontsize=8)
    if shown_small(data):
        axes.legend(fontsize=6.5, loc="upper left", ncols=2)


# --------------------------------------------------------------------------- lost positions


def draw_lost(axes: Axes, data: xr.Dataset) -> None:
    """Draw the share of true positions without attention at the end against the rate."""
    groups = over_rates(cases_of(data))
    for place, group in enumerate(groups):
        # Side by side, so that no bar hides another one.
        shift = 1.06 ** (place - (len(groups) - 1) / 2)
        rates = np.array([case.rate for case in group]) * shift
        lost = [lost_share(data, case) for case in group]
        middle = [float(values.mean()) for values in lost]
        bounds = np.array([mean_interval(values) for values in lost]).T
        label = f"{group[0].label}, $T$ = {group[0].length}"
        style = LENGTH_STYLES.get(group[0].length, "-")
        axes.vlines(rates, *bounds, color=group[0].colour, linewidth=1.0)
        axes.plot(
            rates, middle, marker="o", markersize=3.5, color=group[0].colour, linestyle=style,
            label=label,
        )  # fmt: skip
    axes.set(xscale="log", xlabel=r"rate $\eta$ of the preconditioned step", ylim=(-0.03, 1.03))
    axes.set_ylabel("share of true positions lost")
    axes.set_title("fresh mini-batches, at the end", fontsize=8)
    if groups:
        axes.legend(fontsize=6.5, loc="upper left", handlelength=3)


def lost_share(data: xr.Dataset, case: Case) -> Values:
    """Share of the true positions with no attention at the last step, [runs that are finite]."""
    return finite_of(data["dead_share"].isel(arm=case.place, step=-1).to_numpy().astype(float))


def mean_interval(values: Values) -> Interval:
    """Interval of a mean share, as if all positions of a task were lost or none: Wilson's."""
    return share_interval(float(values.sum()), len(values))


# ---------------------------------------------------------------------------------- numbers


def power(lengths: Values, times: Values) -> Sequence[float]:
    """Fit a power of T to the median times [points, runs], with its interval over tasks."""
    drawn = times[:, resampled_runs(times.shape[1], lost=0)]
    powers = slope(lengths, np.median(drawn, axis=-1).T)
    return (float(slope(lengths, np.median(times, axis=1))), *interval_of(powers))


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate powers of T, ends of what was learned, small weights and lost positions."""
    data = tidy(dataset)
    cases = cases_of(data)
    powers = []
    for group in growing(cases):
        if len(group) > 1:
            lengths = np.array([case.length for case in group], float)
            times = np.stack([times_to_half(data, case) for case in group])
            expected = predicted_growth(group[0].order, lengths)
            powers.append(
                (plain(group[0]), *power(lengths, times), float(slope(lengths, expected)))
            )
    times_rows = [
        ((plain(case), case.length), (times_to_half(data, case) * case.speed,))
        for group in growing(cases)
        for case in group
    ]
    ends = [
        ((look_of(case)[0].replace("$\\alpha$", "alpha"),), tuple(
            np.asarray(data[name].isel(arm=case.place, step=-1).to_numpy(), float)
            for name in ("attention_similarity", "value_distance", "dead_share")
        ))
        for case in learning(cases)
    ]  # fmt: skip
    sparsity = int(str(setting(data, "sparsity")))
    small = []
    for case in shown_small(data):
        values = kept(data, case)
        told = [n for column in values.T for n in (median(column), *quantile_interval(column))]
        bins = values.shape[1]
        line = [np.nan] * bins
        if case.name in ENTMAX:
            line = predicted_kept(case.alpha, case.length, sparsity, bins).tolist()
        small.append((plain(case), *told, *line))
    names = [f"q = {weight:.2f}/Q" for weight in bin_weights(data.sizes["weight_bin"])]
    lost = [
        (plain(case), case.length, case.rate, values.mean(), *mean_interval(values))
        for group in over_rates(cases)
        for case in group
        for values in (lost_share(data, case),)
    ]
    return [
        Table(
            "Power of T in the steps until half of the mass is on the true positions, expected "
            "gradients, with 95% intervals over tasks; what is predicted over the same T",
            ("map", *ranged("power"), "predicted"),
            powers,
        ),
        intervals_table(
            "Time until half of the mass, steps times the geometric mean of the rates",
            ("map", "T"), ("time",), times_rows,
        ),
        intervals_table(
            "Fresh mini-batches, the end", ("learner",),
            ("cosine to Q", "distance to P", "share of true positions lost"), ends,
        ),
        Table(
            "a/q by the size of q when the largest weights have half of theirs: medians with 95% "
            "intervals; predicted",
            ("map", *ranged(*names), *(f"{name}, predicted" for name in names)),
            small,
        ),
        Table(
            "Share of true positions lost, means with 95% intervals over tasks",
            ("map", "T", "rate", *ranged("share")),
            lost,
        ),
    ]  # fmt: skip


def plain(case: Case) -> str:
    """Name a map without mathtext."""
    name = "linear" if case.name == "linear" else f"alpha = {case.alpha:g}"
    return f"{name}, lambda = {case.l1:g}" if case.l1 else name


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("maps", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
