"""Which heads several heads find: cosines to those of the task, matched (ours, not in the paper).

The dataset comes from `scbjax run multihead`: a mixture of four sparse contextual bigrams, learned
by fewer, as many and more heads. What to see: heads of linear attention find the span of the true
patterns and are mixtures of them, with l1 too; trained one after the other they find the patterns
themselves where weights differ. Softmax finds them by how its plain gradient moves, and not by
staying on the simplex: in the metric of the map it mixes as linear attention does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import xarray as xr
from _data import Values, along_arms, setting
from _estimates import quantile_interval
from _numbers import Table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import band, least, median
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

STUDY: Final = "multihead"
TRUTHS: Final = ("head_weights", "transition_products", "pattern_products")
OVERLAPS: Final = ("attention_products", "attention_overlap", "value_products", "value_overlap")
VARIABLES: Final = ("heads_excess_loss", *OVERLAPS, *TRUTHS)
DRAWS: Final = 200  # of a random rotation, for a task
SAME: Final = 1e-3  # of the largest eigenvalue: smaller ones belong to no head
FLOOR: Final = 1e-7  # of the loss at the start, which float32 does not reach
WEIGHTS: Final[Mapping[float, str]] = {0.0: "equal weights", 0.5: "$w_h \\propto h^{-1/2}$"}


class Look(NamedTuple):
    """How an arm is called and drawn, and in which columns."""

    name: str
    colour: str
    marker: str
    columns: tuple[int, ...]


LINEAR, SIMPLEX, LOSS = range(3)
TITLES: Final = ("linear attention", "softmax attention", "what is left of the loss")
# By what sets an arm apart: see `kind_of`.
LOOKS: Final[Mapping[str, Look]] = {
    "linear": Look("linear, together", "#0072B2", "o", (LINEAR, LOSS)),
    "softmax": Look("softmax, together", "#D55E00", "o", (SIMPLEX, LOSS)),
    "softmax metric": Look("softmax, in its metric", "#CC79A7", "s", (SIMPLEX,)),
    "linear l1": Look("linear, with $l_1$", "#E69F00", "s", (LINEAR,)),
    "linear in turn": Look("one after the other", "#009E73", "^", (LINEAR,)),
    "softmax in turn": Look("one after the other", "#009E73", "^", (SIMPLEX,)),
    "linear fresh": Look("from mini-batches", "#56B4E9", "v", (LINEAR,)),
    "softmax fresh": Look("from mini-batches", "#56B4E9", "v", (SIMPLEX,)),
    "linear same": Look("linear, equal starts", "#000000", "x", (LOSS,)),
    "linear equal": Look("linear, equal $P_h$", "#882255", "P", (LOSS,)),
}
SPAN: Final[Mapping[str, Any]] = {"color": "#666666", "linestyle": "--", "linewidth": 1.0}
THEORY: Final[Mapping[str, Any]] = {"color": "black", "linestyle": ":", "linewidth": 1.0}


def kind_of(data: xr.Dataset, arm: int) -> str:
    """Say what an arm is, as a key of `LOOKS`."""
    own: dict[str, Any] = {
        name: along_arms(data, name, default)[arm]
        for name, default in (
            ("attention_map", "softmax"),
            ("optimizer", "sgd"),
            ("data", "fresh"),
            ("l1", 0.0),
            ("head_steps", 0),
            ("start_scale", 0.1),
            ("correlation", 0.0),
        )
    }
    in_turn = own["head_steps"] > 0
    told = {
        "fresh": own["data"] == "fresh",
        "l1": own["l1"] > 0,
        "in turn": in_turn,
        "same": own["start_scale"] == 0 and not in_turn,
        "equal": own["correlation"] == 1,
        "metric": own["attention_map"] != "linear" and own["optimizer"] == "preconditioned",
    }
    return " ".join([str(own["attention_map"]), *(word for word, holds in told.items() if holds)])


def arranged(dataset: xr.Dataset) -> xr.Dataset:
    """Bring a dataset into the layout of this figure: seed, decay, heads and arm, at the end."""
    data = dataset.isel(step=[0, -1])
    for name in ("decay", "heads"):
        if name not in data.dims:
            data = data.expand_dims({name: [setting(dataset, name, 0)]})
    if "arm" not in data.dims:
        data = data.expand_dims("arm")
    return data.transpose("decay", "arm", "heads", "seed", "step", ...)


# ------------------------------------------------------------------------------ heads, side by side


def matched(cosines: Values) -> Values:
    """Give the sum of cosines under the best assignment of own heads to true ones.

    By a recursion over the sets of true heads that are taken, exact for a few of them; the same as
    scipy.optimize.linear_sum_assignment, which is for one matrix at a time.

    Args:
        cosines: [..., own heads, true heads], none negative.

    >>> float(matched(np.array([[0.9, 0.8], [0.7, 0.1]])))
    1.5
    """
    size = cosines.shape[-1]
    best = np.full((*cosines.shape[:-2], 2**size), -np.inf)
    best[..., 0] = 0.0
    for own in np.moveaxis(cosines, -2, 0):
        before = best.copy()
        for taken in range(1, 2**size):
            for head in range(size):
                if taken >> head & 1:
                    found = before[..., taken ^ (1 << head)] + own[..., head]
                    best[..., taken] = np.maximum(best[..., taken], found)
    total: Values = best.max(axis=-1)
    return total


def cosines_of(products: Values, overlap: Values, truth: Values) -> Values:
    """Give absolute cosines of own heads to true ones, 0 for a head that is nothing.

    Args:
        products: of own heads [..., own, own].
        overlap: of own heads with true ones [..., own, true].
        truth: products of true heads [..., true, true].
    """
    own, true = (np.diagonal(x, axis1=-2, axis2=-1) for x in (products, truth))
    sizes = np.sqrt(own[..., :, None] * true[..., None, :])
    nothing = own[..., :, None] <= SAME**2 * true.max(axis=-1)[..., None, None]
    cosines: Values = np.where(nothing, 0.0, np.abs(overlap) / np.where(nothing, 1.0, sizes))
    return cosines


def span_cosines(products: Values, overlap: Values, truth: Values) -> Values:
    """Give the cosines of the principal angles between both spans, the largest first [..., true].

    Args:
        products: of own heads [..., own, own].
        overlap: of own heads with true ones [..., own, true].
        truth: products of true heads [..., true, true].
    """
    sizes, vectors = np.linalg.eigh(products)
    there = sizes > SAME * sizes[..., -1:]
    basis = np.where(there, 1 / np.sqrt(np.where(there, sizes, 1.0)), 0.0)[..., None, :] * vectors
    root = np.linalg.inv(np.linalg.cholesky(truth))
    between = np.swapaxes(basis, -1, -2) @ overlap @ np.swapaxes(root, -1, -2)
    cosines: Values = np.linalg.svd(between, compute_uv=False)
    return np.minimum(cosines, 1.0)


class Found(NamedTuple):
    """What an arm found at one kind of weights; [heads, runs] each.

    Attributes:
        kind: a key of `LOOKS`.
        attention: mean cosine of matched patterns.
        value: that of matched transition matrices.
        span: mean cosine of the spans.
        loss: over its value at the start.
    """

    kind: str
    attention: Values
    value: Values
    span: Values
    loss: Values


def found_by(data: xr.Dataset, arm: int) -> Found:
    """Measure an arm of an arranged dataset at one decay."""
    own = data.isel(arm=arm)
    last = {name: own[name].isel(step=-1).to_numpy().astype(float) for name in OVERLAPS}
    transition, pattern = (own[name].to_numpy().astype(float) for name in TRUTHS[1:])
    pairs = np.minimum(data["heads"].to_numpy(), pattern.shape[-1])[:, None]
    products, overlap = last["attention_products"], last["attention_overlap"]
    broken = ~np.isfinite(overlap).all(axis=(-1, -2))
    last = {name: np.where(broken[..., None, None], 0.0, x) for name, x in last.items()}
    products, overlap = last["attention_products"], last["attention_overlap"]
    attention = matched(cosines_of(products, overlap, pattern)) / pairs
    value = matched(cosines_of(last["value_products"], last["value_overlap"], transition)) / pairs
    span = span_cosines(products, overlap, pattern)
    heads = np.arange(span.shape[-1]) < pairs[..., None]
    loss = own["heads_excess_loss"].transpose(..., "step").to_numpy().astype(float)
    angles = (span * heads).sum(axis=-1) / pairs
    attention, value, angles = (np.where(broken, np.nan, x) for x in (attention, value, angles))
    return Found(kind_of(data, arm), attention, value, angles, loss[..., 1] / loss[..., 0])


# -------------------------------------------------------------------------------------- predictions


class Modes(NamedTuple):
    """The singular values of C, and its right singular vectors as mixtures of the q_h.

    Attributes:
        sizes: [modes], the largest first.
        mixtures: [modes, true heads].
        patterns: inner products of the q_h, less their mean [true heads, true heads].
    """

    sizes: Values
    mixtures: Values
    patterns: Values


def modes_of(weights: Values, transitions: Values, patterns: Values, length: float) -> Modes:
    """Take the cross-moment sum_h w_h P_h (x) q_h apart, by the products of its factors."""
    root = np.linalg.cholesky(patterns + 1 / length)  # column sums are one: the mean adds 1/T
    moment = root.T @ (np.outer(weights, weights) * transitions) @ root
    squares, vectors = np.linalg.eigh(moment)
    mixtures = np.linalg.solve(root.T, vectors[:, ::-1]).T
    return Modes(np.sqrt(np.maximum(squares[::-1], 0.0)), mixtures, patterns)


def mixed_cosine(modes: Modes, mixing: Values) -> Values:
    """Give the matched cosine of heads that are mixtures [..., own heads, modes] of modes."""
    own = mixing @ modes.mixtures[: mixing.shape[-1]]
    overlap = own @ modes.patterns
    products = overlap @ np.swapaxes(own, -1, -2)
    pairs = min(own.shape[-2], modes.patterns.shape[0])
    cosines: Values = matched(cosines_of(products, overlap, modes.patterns)) / pairs
    return cosines


def predict(modes: Modes, heads: int) -> tuple[float, float, float]:
    """Predict, for as many linear heads, the cosine together and one after the other, and the loss.

    Together heads are a random rotation of the modes, each of the size that a balanced
    factorisation gives it; one after the other they are the modes.

    Returns:
        Both cosines, and the loss.
    """
    rank = min(heads, modes.sizes.size)
    rng = np.random.default_rng(0)
    rotations = np.linalg.qr(rng.normal(size=(DRAWS, heads, rank)))[0]
    together = mixed_cosine(modes, rotations * np.sqrt(modes.sizes[:rank])).mean()
    in_turn = mixed_cosine(modes, np.eye(rank))
    return float(together), float(in_turn), float(0.5 * np.sum(modes.sizes[rank:] ** 2))


def predictions(data: xr.Dataset, arm: int) -> Values:
    """Give what :func:`predict` does for all heads and runs of an arm, [3, heads, runs]."""
    own = data.isel(arm=arm)
    arrays = [own[name].to_numpy().astype(float) for name in TRUTHS]
    length = float(str(setting(data, "context_length")))
    start = own["heads_excess_loss"].isel(step=0).to_numpy().astype(float)
    result = np.empty((3, *start.shape))
    for place, heads in enumerate(data["heads"].to_numpy()):
        for run in range(start.shape[1]):
            weights, transitions, patterns = (array[place, run] for array in arrays)
            if not all(np.isfinite(array).all() for array in (weights, transitions, patterns)):
                result[:, place, run] = np.nan  # it has diverged
                continue
            modes = modes_of(weights, transitions, patterns, length)
            result[:, place, run] = predict(modes, int(heads))
    result[2] /= start
    return result


# --------------------------------------------------------------------------------------- the figure


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    data = arranged(dataset)
    decays = data["decay"].to_numpy()
    figure = Figure(figsize=(DOUBLE_COLUMN, 0.9 + 1.45 * len(decays)))
    grid = figure.subplots(len(decays), 3, sharex=True, squeeze=False)
    for row, decay in zip(grid, decays, strict=True):
        draw_row(row, data.sel(decay=decay))
        name = WEIGHTS.get(float(decay), rf"$w_h \propto h^{{-{decay:g}}}$")
        row[0].set_ylabel(f"{name}\nmatched cosine")
        row[LOSS].set_ylabel("excess loss, of\nthat at the start")
    for axes, title in zip(grid[0], TITLES, strict=True):
        axes.set_title(title)
    grid[-1][1].set_xlabel(f"heads of the learner, of a task that has {data.sizes['head']}")
    add_legend(figure, data)
    return figure


def draw_row(row: Sequence[Axes], data: xr.Dataset) -> None:
    """Draw the arms at one kind of weights, and what is predicted of them."""
    heads = data["heads"].to_numpy().astype(float)
    found = [found_by(data, arm) for arm in range(data.sizes["arm"])]
    for place, own in enumerate(found):
        look = LOOKS[own.kind]
        for column in look.columns:
            values = np.maximum(own.loss, FLOOR) if column == LOSS else own.attention
            draw_points(row[column], heads + 0.06 * (place % 5 - 2), values, look)
    for column, kind in ((LINEAR, "linear"), (SIMPLEX, "softmax metric")):
        spans = [own.span for own in found if own.kind == kind]
        if spans:
            row[column].plot(heads, band(spans[0].T)[1], **SPAN, gid="span", zorder=1.5)
    arms = [arm for arm, own in enumerate(found) if own.kind == "linear"]
    if arms:
        together, in_turn, loss = (band(x.T)[1] for x in predictions(data, arms[0]))
        row[LINEAR].plot(heads, together, **THEORY, gid="predicted together")
        row[LINEAR].plot(heads, in_turn, **THEORY, gid="predicted in turn")
        row[LOSS].plot(heads, np.maximum(loss, FLOOR), **THEORY, gid="predicted loss")
    for axes in row[:LOSS]:
        axes.set_ylim(0.45, 1.03)
    row[SIMPLEX].tick_params(labelleft=False)
    row[LOSS].set(yscale="log", ylim=(FLOOR / 2, 3))
    for axes in row:
        axes.axvline(data.sizes["head"], color="#bbbbbb", linewidth=0.7, zorder=1)
        axes.xaxis.set_major_locator(FixedLocator(heads.tolist()))


def draw_points(axes: Axes, x: Values, values: Values, look: Look) -> None:
    """Draw medians over runs [heads, runs], with bars for the 80% band."""
    low, middle, high = band(values.T)
    axes.errorbar(
        x, middle, [middle - low, high - middle], color=look.colour, marker=look.marker,
        markersize=3.5, linewidth=1.0, elinewidth=0.8,
    )  # fmt: skip


def add_legend(figure: Figure, data: xr.Dataset) -> None:
    """Put the legend above the panels: an entry for each look, and the lines."""
    kinds = [kind_of(data, arm) for arm in range(data.sizes["arm"])]
    entries = {
        LOOKS[kind].name: Line2D(
            [], [], color=LOOKS[kind].colour, marker=LOOKS[kind].marker, markersize=3.5, linewidth=1
        )
        for kind in LOOKS
        if kind in kinds
    }
    if (runs := data.sizes["seed"]) > 1:
        entries[f"median, 10\u201390% of {runs} runs"] = Line2D(
            [], [], color="#666666", linestyle="", marker="|", markersize=9, markeredgewidth=1.1
        )
    entries["cosine of the spans"] = Line2D([], [], **SPAN)
    entries["predicted for linear"] = Line2D([], [], **THEORY)
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=4)


# -------------------------------------------------------------------------------------- the numbers


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate cosines, spans and losses of every arm, and what is predicted of the linear ones."""
    data = arranged(dataset)
    rows, theory = [], []
    for decay in data["decay"].to_numpy():
        own = data.sel(decay=decay)
        found = [found_by(own, arm) for arm in range(own.sizes["arm"])]
        for each in found:
            for place, heads in enumerate(own["heads"].to_numpy()):
                several = (each.attention, each.value, each.span, each.loss)
                cells = [
                    number
                    for values in several
                    for number in (median(values[place]), *quantile_interval(values[place]))
                ]
                rows.append([each.kind, f"{decay:g}", int(heads), *cells])
        for arm in (arm for arm, each in enumerate(found) if each.kind == "linear"):
            for heads, values in zip(
                own["heads"].to_numpy(), np.moveaxis(predictions(own, arm), 1, 0), strict=True
            ):
                cells = [x for row in values for x in (median(row), *quantile_interval(row))]
                theory.append([f"{decay:g}", int(heads), *cells, least(values[0])])
    runs = data.sizes["seed"]
    return [
        Table(
            f"Cosines of matched patterns and transition matrices, of the spans of the patterns, "
            f"and the excess loss over that at the start: medians of {runs} runs, 95% intervals",
            ("arm", "beta", "heads", *ranged("patterns", "matrices", "spans", "loss")),
            rows,
        ),
        Table(
            "Predicted of linear heads: cosines together and one after the other, and the loss",
            ("beta", "heads", *ranged("together", "in turn", "loss"), "together, least"),
            theory,
        ),
    ]


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("multihead", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
