"""Softmax beside linear attention: attention maps, value matrices, loss, preconditioner (figure 2).

The dataset comes from `scbjax run fig2`. What to see: both maps learn the same pattern, as the
paper claims. What the paper argues in words is drawn too: a gradient step on the logits moves the
attention by the preconditioner `(diag(a) - a a^T)^2`, which is flat at the start, and while it
learns grows on the support of Q and shrinks off it. That is what the l1 term does in the linear
model, whose own preconditioner stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from _arms import Arm, arms_of
from _axes import log_axis, log_limits
from _curves import draw_arm, draw_arms, draw_stages
from _data import Values, symbol, tidy
from _distances import PANEL
from _estimates import within_extreme
from _legend import add_legend, note_findings
from _numbers import Table, intervals_table, last, runs_in, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import band, horizontal, largest, least, median, runs_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

STUDY: Final = "fig2"
GAINS: Final = {"attention_gain_support": "on the support of $Q$", "attention_gain_rest": "off it"}
CURVES: Final = ("excess_loss", *GAINS, *PANEL)
TRUTHS: Final = {"attention": "pattern", "value": "transition"}
VARIABLES: Final = (*CURVES, *TRUTHS, *TRUTHS.values(), "stationary")
AXES: Final = {
    "attention": ("position $t$", "query $k$"),
    "value": ("token predicted $n$", "token attended to $m$"),
}
REFERENCE: Final = "linear"  # the map that the others are compared with
LOWEST_LOSS: Final = 1e-5


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    data = tidy(dataset)
    arms = arms_of(data)
    figure = Figure(figsize=(DOUBLE_COLUMN, 7.2))
    parts: Any = figure.subfigures(2, 1, height_ratios=(2.6, 1.0))
    upper, lower = parts
    grid = upper.subplots(2, len(arms) + 1, height_ratios=(2.3, 1.0))
    run = middle_run(data, arms)
    for row, learned in zip(grid, TRUTHS, strict=True):
        draw_matrices(row, data, arms, learned, run)
        label_matrices(row, data, arms, learned)
    curves = data[list(CURVES)]
    for axes, draw_panel in zip(lower.subplots(1, 2), (draw_losses, draw_gains), strict=True):
        draw_panel(axes, curves, arms)
        axes.set_xlabel("iteration")
    note_findings(lower, [("", curves, arms)])
    add_legend(figure, curves, arms)
    return figure


# -------------------------------------------------------------------------- matrices


def matrices(data: xr.Dataset, name: str, arm: Arm) -> Values:
    """Give a matrix of every run of an arm, [runs, rows, columns]."""
    values: Values = data[name].isel(arm=arm.index).to_numpy().astype(np.float64)
    return values


def similarity(a: Values, b: Values, stationary: Values) -> Values:
    """Cosine of the angle between matrices in the mu-inner product, run by run.

    Args:
        a: [runs, rows, N].
        b: [runs, rows, N].
        stationary: mu, [runs, N].

    Returns:
        [runs]
    """

    def inner(x: Values, y: Values) -> Values:
        products: Values = np.einsum("rtk,rtk,rk->r", x, y, stationary)
        return products

    cosine: Values = inner(a, b) / np.sqrt(inner(a, a) * inner(b, b))
    return cosine


def similarities(data: xr.Dataset, learned: str, arm: Arm, other: Arm | None = None) -> Values:
    """Cosines [runs] of what an arm learned to what another one did, or to the truth."""
    mu = matrices(data, "stationary", arm)
    target = TRUTHS[learned] if other is None else learned
    return similarity(matrices(data, learned, arm), matrices(data, target, other or arm), mu)


def reference_of(data: xr.Dataset, arms: Sequence[Arm]) -> Arm:
    """Find the arm that the others are compared with: the first one whose attention is linear."""
    maps = np.broadcast_to(data.get("attention_map", REFERENCE), len(arms))
    return next((arm for arm in arms if maps[arm.index] == REFERENCE), arms[0])


def middle_run(data: xr.Dataset, arms: Sequence[Arm]) -> int:
    """Choose the run to show: with the median cosine of the arms' attention to the reference."""
    reference = reference_of(data, arms)
    cosines = [similarities(data, "attention", arm, reference) for arm in arms if arm != reference]
    mean = np.mean(cosines or [similarities(data, "attention", reference)], axis=0)
    # Runs that diverged come last in the order, and none of them is in the middle.
    order, some = np.argsort(mean), max(1, np.isfinite(mean).sum())
    return int(order[some // 2])


def draw_matrices(
    row: Sequence[Axes], data: xr.Dataset, arms: Sequence[Arm], learned: str, run: int
) -> None:
    """Draw the truth and what every arm learned, in one run and on one colour scale."""
    shown = [matrices(data, TRUTHS[learned], arms[0])[run]]
    shown += [matrices(data, learned, arm)[run] for arm in arms]
    scale: dict[str, Any] = {
        "vmin": least([0.0, least(shown)]),
        "vmax": largest(shown),
    }
    for axes, matrix in zip(row, shown, strict=True):
        image = axes.imshow(matrix, aspect="auto", interpolation="nearest", **scale)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        if axes is not row[0]:
            axes.tick_params(labelleft=False)
    label = {"attention": "attention weight", "value": "entry of $V$"}[learned]
    bar = row[0].figure.colorbar(image, ax=list(row), label=label, fraction=0.05, pad=0.01)
    bar.outline.set_visible(False)


def label_matrices(
    row: Sequence[Axes], data: xr.Dataset, arms: Sequence[Arm], learned: str
) -> None:
    """Name the panels and their axes, and write the cosines of all runs above them."""
    reference, runs = reference_of(data, arms), data.sizes["run"]
    truth = symbol(data, TRUTHS[learned])
    note = f", one run of {runs}\ncosines: median [10\u201390%]" if runs > 1 else ""
    row[0].set_title(f"truth, {truth}{note if learned == 'attention' else ''}", fontsize=7)
    for axes, arm in zip(row[1:], arms, strict=True):
        lines = [arm.label] if learned == "attention" else []
        lines += [f"to {truth} {worded_band(similarities(data, learned, arm))}"]
        if arm != reference:
            cosines = similarities(data, learned, arm, reference)
            lines += [f"to linear {worded_band(cosines)}"]
        axes.set_title("\n".join(lines), fontsize=7)
    vertical, horizontal_name = AXES[learned]
    row[0].set_ylabel(vertical)
    for axes in row:
        axes.set_xlabel(horizontal_name)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))


def worded_band(values: Values) -> str:
    """Write the median and, of several runs, the 80% band: `0.993 [0.989, 0.995]`."""
    low, middle, high = band(values[:, None])[:, 0]
    return f"{middle:.3f}" + (f" [{low:.3f}, {high:.3f}]" if len(values) > 1 else "")


# ---------------------------------------------------------------------------- curves


def draw_losses(axes: Axes, data: xr.Dataset, arms: Sequence[Arm]) -> None:
    """Draw the excess loss of every arm."""
    drawn = [runs_of(data, "excess_loss", arm) for arm in arms]
    x = [horizontal(data, arm, "step") for arm in arms]
    draw_arms(axes, x, drawn, arms)
    log_axis(axes, log_limits([band(values) for values in drawn], floor=LOWEST_LOSS))
    axes.set_ylabel(f"excess loss, {symbol(data, 'excess_loss')}")
    draw_stages(axes, data, arms, x)


def draw_gains(axes: Axes, data: xr.Dataset, arms: Sequence[Arm]) -> None:
    """Draw the diagonal of the effective preconditioner of every arm, on and off the support."""
    bands: list[NDArray[np.float64]] = []
    for variable in GAINS:
        ends = []
        for arm in arms:
            values = runs_of(data, variable, arm)
            draw_arm(axes, horizontal(data, arm, "step"), values, arm, faint=False)
            bands.append(band(values))
            ends.append(bands[-1][1, -1])
        # Half way between the flat line of the linear map, at 1, and the curve that is nearest.
        nearest = min(ends, key=lambda end: abs(np.log(end)) or np.inf)
        axes.text(
            horizontal(data, arms[0], "step")[-1],
            float(np.sqrt(nearest)),
            GAINS[variable],
            ha="right",
            va="center",
            fontsize=7.5,
        )
    log_axis(axes, log_limits(bands))
    axes.set_ylabel("effective preconditioner\n$(J\\,J^\\top)_{tt}$, relative to its start")


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate how alike the maps are, and what is left of the loss and the preconditioner."""
    data = tidy(dataset)
    arms, curves = arms_of(data), data[list(CURVES)]
    reference = reference_of(data, arms)
    alike, rest, spread, left = [], [], [], []
    for arm in arms:
        cosines = [similarities(data, "attention", arm, other) for other in (None, reference)]
        ends = [f(values) for values in cosines for f in (median, least)]
        pattern, learned = (matrices(data, name, arm) for name in ("pattern", "attention"))
        weight = np.where(pattern > 0, learned, 0).sum((1, 2)) / pattern.sum((1, 2))
        value = median(similarities(data, "value", arm))
        alike.append([arm.label, *ends, median(weight), value])
        spread.append(((arm.label,), cosines))
        losses = [last(curves, "excess_loss", each) for each in (arm, reference)]
        gains = [band(runs_of(curves, name, arm))[1] for name in GAINS]
        lowest = horizontal(curves, arm, "step")[
            np.where(np.isfinite(gains[1]), gains[1], np.inf).argmin()
        ]
        on, off = (last(curves, name, arm) for name in GAINS)
        over, ratio = losses[0] / losses[1], on / off
        here = [gains[0][-1], gains[1][-1], least(gains[1]), lowest, median(ratio)]
        rest.append([arm.label, median(losses[0]), median(over), *here])
        left.append(((arm.label,), (weight, over, on, off, ratio)))
    columns = (
        "arm",
        "A to Q",
        "least",
        "A to linear",
        "least",
        "A over Q on the support",
        "V to P",
    )
    more = ("arm", "excess loss", "over linear", "preconditioner on the support", "off it")
    return [
        Table(
            f"Cosines at the end, medians of {runs_in(data)} and the least, above which (95% "
            f"confidence) {within_extreme(data.sizes['run']):.3f} of all tasks are",
            columns,
            alike,
        ),
        Table(
            "Loss and effective preconditioner, relative to its start, at the end, medians",
            (*more, "off it, least", "at iteration", "on over off it"),
            rest,
        ),
        intervals_table("Cosines at the end", ("arm",), ("A to Q", "A to linear"), spread),
        intervals_table(
            "What is left at the end",
            ("arm",),
            ("A over Q on the support", *more[2:], "on over off it"),
            left,
        ),
    ]


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("fig2", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
