"""The scaling law of many heads with power-law weights (ours, not in the paper).

The dataset comes from `scbjax run multihead_scaling`: linear attention with 48 heads learns a
mixture of 48 sparse contextual bigrams with weights h^-beta, by expected gradients from a small
start. What to see: heads are learned one after the other, so that the excess loss falls in steps
along the predicted staircase, and in the slope of one; 48 heads are far from infinitely many.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import xarray as xr
from _data import Values, setting
from _estimates import quantile_interval
from _numbers import Table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import band, largest, median
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

STUDY: Final = "multihead_scaling"
LOSS: Final = "heads_excess_loss"
TRUTHS: Final = ("head_weights", "transition_products", "pattern_products")
VARIABLES: Final = (LOSS, *TRUTHS)
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
LEAST: Final = 2e-4  # of the loss at the start: below it what is left of learned heads shows
COMPARED: Final = 1e-3  # and above it losses are compared
FITTED: Final = (1 / 12, 1 / 2)  # of the heads: slopes are of the time from one to the other
THEORY: Final[Mapping[str, Any]] = {"color": "black", "linewidth": 0.9, "linestyle": ":"}


class Theory(NamedTuple):
    """What is predicted for a task.

    Attributes:
        loss: excess loss [steps].
        times: when each mode is half learned [H], the strongest first.
    """

    loss: Values
    times: Values


def mode_sizes(weights: Values, transitions: Values, patterns: Values) -> Values:
    """Give the singular values [H] of sum_h w_h P_h (x) q_h, the largest first.

    Args:
        weights: w [H].
        transitions: inner products of the P_h [H, H], less their mean.
        patterns: inner products of the q_h [H, H].

    >>> mode_sizes(np.array([3.0, 4.0]), np.eye(2), 4 * np.eye(2)).tolist()
    [8.0, 6.0]
    """
    root = np.linalg.cholesky(patterns)
    moment = root.T @ (np.outer(weights, weights) * transitions) @ root
    sizes: Values = np.sqrt(np.maximum(np.linalg.eigvalsh(moment)[::-1], 0.0))
    return sizes


def predict(dataset: xr.Dataset, task: xr.Dataset) -> Theory:
    """Predict the loss of a task: each mode grows from a small start and settles, by itself.

    s(t) = sigma / (1 + (sigma / s_0 - 1) (1 + g)^(-2 t)) with g = eta sigma / sqrt(K_P K_Q), and
    s_0 what a start at random gives a mode in expectation.

    Args:
        dataset: the study's, for its settings and steps.
        task: one of its runs.
    """
    weights, transitions, patterns = (task[name].to_numpy().astype(float) for name in TRUTHS)
    sizes = mode_sizes(weights, transitions, patterns)
    unit = np.sqrt(np.diag(transitions).mean() * np.diag(patterns).mean())
    names = ("rate", "start_scale", "heads", "num_tokens", "context_length")
    rate, scale, heads, tokens, length = (float(str(setting(dataset, n))) for n in names)
    shares = 1 / (tokens - 1) ** 2 + 1 / ((length - 1) * tokens)
    start = 0.25 * heads * scale**2 * unit * shares
    growth = 2 * np.log1p(rate * sizes / unit)
    steps = dataset["step"].to_numpy().astype(float)
    left = np.exp(-growth * steps[:, None]) * (sizes / start - 1)
    loss = 0.5 * np.sum((sizes * left / (1 + left)) ** 2, axis=1)
    return Theory(loss, np.log(sizes / start) / growth)


def slope_between(steps: Values, loss: Values, times: Values) -> float:
    """Fit loss ~ steps^b from the time of one head to that of another (`FITTED`).

    Args:
        steps: [steps].
        loss: [steps].
        times: at which modes are learned, in their order.
    """
    low, high = (times[max(0, round(share * times.size) - 1)] for share in FITTED)
    inside = (steps >= low) & (steps <= high) & (loss > 0)
    if inside.sum() < 2:
        return float("nan")
    # Evenly along the axis that is shown: most records are late.
    places = np.linspace(np.log(steps[inside][0]), np.log(steps[inside][-1]), 200)
    values = np.interp(places, np.log(steps[inside]), np.log(loss[inside]))
    return float(np.polyfit(places, values, 1)[0])


def limit(decay: float) -> float:
    """Give the slope of infinitely many heads, -(2 beta - 1) / beta.

    >>> limit(1.0)
    -1.0
    """
    return -(2 * decay - 1) / decay


class Found(NamedTuple):
    """What is measured and predicted at one power of the weights.

    Attributes:
        decay: beta.
        loss: over its value at the start [runs, steps].
        predicted: the same [runs, steps].
        slopes: measured [runs].
        expected: predicted [runs].
    """

    decay: float
    loss: Values
    predicted: Values
    slopes: Values
    expected: Values


def found_in(dataset: xr.Dataset) -> list[Found]:
    """Measure losses and slopes and predict them, for every power of the weights."""
    if "decay" not in dataset.dims:
        dataset = dataset.expand_dims({"decay": [float(str(setting(dataset, "decay", 0.0)))]})
    steps = dataset["step"].to_numpy().astype(float)
    result = []
    for decay in dataset["decay"].to_numpy():
        own = dataset.sel(decay=decay)
        loss = own[LOSS].transpose("seed", "step").to_numpy().astype(float)
        theory = [predict(dataset, own.sel(seed=seed)) for seed in own["seed"].to_numpy()]
        predicted = np.stack([each.loss for each in theory])
        fits = [
            [slope_between(steps, row, each.times) for row, each in zip(rows, theory, strict=True)]
            for rows in (loss, predicted)
        ]
        first = loss[:, :1]
        result.append(
            Found(float(decay), loss / first, predicted / first, *(np.array(f) for f in fits))
        )
    return result


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    found = found_in(dataset)
    steps = dataset["step"].to_numpy().astype(float)
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.9))
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    for own, colour in zip(found, COLOURS, strict=False):
        draw_loss(left, steps, own, colour)
    draw_slopes(right, found)
    shown = np.concatenate([band(own.loss)[:, 1:] for own in found], axis=1)
    left.set(
        xscale="log", yscale="log", xlabel="iteration", ylabel="excess loss, of that at the start"
    )
    left.set_ylim(max(LEAST, 0.5 * float(np.nanmin(shown))), 2)
    runs = dataset.sizes.get("seed", 1)
    entries: dict[str, Any] = {
        rf"$w_h \propto h^{{-{own.decay:g}}}$": Line2D([], [], color=colour)
        for own, colour in zip(found, COLOURS, strict=False)
    }
    if runs > 1:
        entries[f"median, 10\u201390% of {runs} runs"] = (
            Patch(color="#cccccc"),
            Line2D([], [], color="#666666"),
        )
    entries["predicted staircase"] = Line2D([], [], **THEORY)
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=len(entries))
    return figure


def draw_loss(axes: Axes, steps: Values, own: Found, colour: str) -> None:
    """Draw the loss at one power of the weights, and the predicted one."""
    low, middle, high = band(own.loss)
    if len(own.loss) > 1:
        axes.fill_between(steps[1:], low[1:], high[1:], color=colour, alpha=0.2)
    axes.plot(steps[1:], middle[1:], color=colour, gid=f"median {own.decay:g}")
    predicted = band(own.predicted)[1]
    axes.plot(steps[1:], predicted[1:], **THEORY, zorder=5, gid=f"predicted {own.decay:g}")


def draw_slopes(axes: Axes, found: list[Found]) -> None:
    """Draw the slopes of single runs, what is predicted of them, and the limit."""
    decays = np.array([own.decay for own in found])
    for own, colour in zip(found, COLOURS, strict=False):
        x = own.decay + 0.02 * np.linspace(-1, 1, own.slopes.size)
        axes.plot(x, own.slopes, "o", color=colour, markersize=2.5, alpha=0.7)
        axes.plot(
            own.decay, median(own.expected), "D", color="black", markersize=5,
            markerfacecolor="none", gid=f"expected {own.decay:g}",
        )  # fmt: skip
    grid = np.linspace(decays.min() - 0.1, decays.max() + 0.1, 50)
    label = r"$\infty$ heads: $-(2\beta-1)/\beta$"
    line = limit(1.0) * (2 * grid - 1) / grid
    axes.plot(grid, line, "--", color="#666666", linewidth=0.9, label=label)
    axes.plot([], [], "D", color="black", markersize=5, markerfacecolor="none", label="predicted")
    axes.plot([], [], "o", color="#666666", markersize=2.5, label="measured, each run")
    axes.legend(loc="lower left", fontsize=7)
    lowest = min(float(np.nanmin([*own.slopes, *own.expected, -1.0])) for own in found)
    axes.set(
        xlabel=r"power $\beta$ of the weights",
        ylabel=r"slope $d\,\log L / d\,\log t$",
        xticks=decays,
        ylim=(lowest - 0.75, max(-0.4, limit(float(grid[0])) + 0.3)),
    )


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate slopes, and how far the predicted loss is from the measured one."""
    found = found_in(dataset)
    slopes, distances = [], []
    for own in found:
        row: list[object] = [f"{own.decay:g}", median(own.slopes), *quantile_interval(own.slopes)]
        row += [median(own.expected), *quantile_interval(own.expected), limit(own.decay)]
        slopes.append(row)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.abs(np.log(own.loss / own.predicted))[:, 1:]
        compared = (own.predicted > COMPARED)[:, 1:]
        each = np.array([median(row[kept]) for row, kept in zip(ratio, compared, strict=True)])
        distances.append(
            [f"{own.decay:g}", median(each), *quantile_interval(each), largest(each),
             median(own.loss[:, -1])]
        )  # fmt: skip
    return [
        Table(
            "Slope of the excess loss in steps, from when a twelfth of the heads is learned to "
            "when half of them are: medians with 95% intervals",
            ("beta", *ranged("measured", "predicted"), "infinitely many heads"),
            slopes,
        ),
        Table(
            "Logarithm of the measured loss over the predicted one, in size, its median along a "
            f"run, where {COMPARED:g} of the loss at the start is left: medians over runs with 95% "
            "intervals, and the largest; and the loss at the end, of that at the start",
            ("beta", *ranged("distance"), "largest", "loss at the end"),
            distances,
        ),
    ]


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("multihead_scaling", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
