"""Test loss over a finite data set that is used again and again (not in the paper).

The dataset comes from `scbjax run finite`. What theory expects of a dense fit, and of one on the
true positions alone, is in the text of `scbjax/experiments/finite.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import xarray as xr
from _data import Values, along_arms, setting, tidy
from _estimates import Estimate, interval_of, resampled_runs
from _numbers import Table, intervals_table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import band, median
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, NullLocator

STUDY: Final = "finite"
VARIABLES: Final = ("test_excess", "train_excess", "entry_excess", "attention_similarity")
FIELDS: Final = ("attention_map", "value_path", "l1", "theta", "samples")
SHOWN: Final = 1024  # samples, or the nearest to them, of the panel over passes
SCRATCH: Final = "from scratch"
TRANSFER: Final = "transfer"
COLOURS: Final = ("#0072B2", "#009E73", "#56B4E9")  # linear, by threshold
OTHERS: Final = {
    ("softmax", "linear"): ("softmax, Adam", "#000000"),
    ("softmax", "mlp"): ("softmax, MLP, Adam", "#D55E00"),
}
THEORY: Final[dict[str, Any]] = {"color": "#CC79A7", "linewidth": 1.4}


class Learner(NamedTuple):
    """A learner with a number of samples: its place along `arm`, and what it was run with."""

    place: int
    name: str
    path: str
    l1: float
    theta: float
    samples: int

    @property
    def way(self) -> str:
        """How it begins."""
        return TRANSFER if self.theta else SCRATCH

    @property
    def kind(self) -> tuple[str, str, float]:
        """What is the same at every number of samples and start."""
        return self.name, self.path, self.l1

    @property
    def label(self) -> str:
        """What it is called."""
        if self.name == "linear":
            return f"linear, $\\lambda$ = {self.l1:g}" if self.l1 else "linear, no $l_1$"
        return OTHERS[self.name, self.path][0]


def learners_of(data: xr.Dataset) -> list[Learner]:
    """Give the arms of a tidy dataset."""
    columns = [along_arms(data, field) for field in FIELDS]
    return [Learner(place, *row) for place, row in enumerate(zip(*columns, strict=True))]


def kinds_of(learners: Sequence[Learner]) -> dict[tuple[str, str, float], str]:
    """Give the kinds of learners with their colours."""
    kinds = list(dict.fromkeys(learner.kind for learner in learners))
    linear = sorted(kind[2] for kind in kinds if kind[0] == "linear")
    colours = dict(zip(linear, COLOURS, strict=False))
    return {
        kind: colours[kind[2]] if kind[0] == "linear" else OTHERS[kind[:2]][1] for kind in kinds
    }


def values_of(data: xr.Dataset, name: str, learner: Learner) -> Values:
    """Give a variable of an arm, [runs, steps]."""
    item = data[name].isel(arm=learner.place).transpose("run", "step")
    return np.asarray(item.to_numpy(), float)


def at_end(data: xr.Dataset, learner: Learner) -> Values:
    """Test loss above that of the truth after all passes, [runs]."""
    return values_of(data, "test_excess", learner)[:, -1]


def at_best(data: xr.Dataset, learner: Learner) -> Values:
    """The same at the record where the median over the runs is least, [runs].

    One step for all of them: the least of every run by itself would be chosen by its test samples.
    """
    values = values_of(data, "test_excess", learner)
    middle = np.median(np.where(np.isfinite(values), values, np.inf), axis=0)
    return values[:, int(np.argmin(middle))]


def passes_of(data: xr.Dataset, samples: int) -> Values:
    """Passes over the data at every record."""
    batch = float(str(setting(data, "batch_size")))
    return np.asarray(data["step"].to_numpy() * batch / samples)


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    data = tidy(dataset)
    figure = Figure(figsize=(DOUBLE_COLUMN, 5.2))
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    grid = figure.subplots(2, 2, sharey="row")
    learners = learners_of(data)
    for column, way in zip(grid.T, (SCRATCH, TRANSFER), strict=True):
        own = [learner for learner in learners if learner.way == way]
        draw_passes(column[0], data, own, way)
        draw_samples(column[1], data, own, way)
    grid[0, 0].set_ylabel("test loss above the truth's")
    grid[1, 0].set_ylabel("the same, at the end and at best")
    handles = [
        Line2D([], [], color=colour, label=next(x.label for x in learners if x.kind == kind))
        for kind, colour in kinds_of(learners).items()
    ]
    handles += [
        Line2D([], [], color="#555555", marker="o", markersize=4, label="at the end"),
        Line2D([], [], color="#555555", marker="v", markersize=4, linestyle=":",
               markerfacecolor="white", label="stopped at its best"),
        Line2D([], [], **THEORY, label="theory: dense fit"),
        Line2D([], [], **THEORY, linestyle="--", label="theory: true positions known"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def draw_passes(axes: Axes, data: xr.Dataset, learners: list[Learner], way: str) -> None:
    """Draw the test loss against passes at one number of samples."""
    sizes = sorted({learner.samples for learner in learners})
    if not sizes:
        return
    size = min(sizes, key=lambda n: abs(np.log(n / SHOWN)))
    colours = kinds_of(learners)
    passes = passes_of(data, size)
    for learner in (x for x in learners if x.samples == size):
        low, middle, high = band(values_of(data, "test_excess", learner)[:, 1:])
        colour = colours[learner.kind]
        axes.fill_between(passes[1:], low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(passes[1:], middle, color=colour)
    axes.set(xscale="log", yscale="log", xlabel="passes over the data")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"{way}, $n$ = {size}", fontsize=8)


def draw_samples(axes: Axes, data: xr.Dataset, learners: list[Learner], way: str) -> None:
    """Draw the test loss at the end and at its best against the number of samples."""
    colours = kinds_of(learners)
    for kind, colour in colours.items():
        own = sorted((x for x in learners if x.kind == kind), key=lambda x: x.samples)
        samples = [learner.samples for learner in own]
        looks: tuple[tuple[Any, dict[str, Any]], ...] = (
            (at_end, {"marker": "o"}),
            (at_best, {"marker": "v", "linestyle": ":", "markerfacecolor": "white"}),
        )
        for choose, look in looks:
            low, middle, high = band(np.stack([choose(data, learner) for learner in own], axis=1))
            axes.vlines(samples, low, high, color=colour, linewidth=0.8, alpha=0.6)
            axes.plot(samples, middle, color=colour, markersize=3.5, **look)
    for entries, dashes in theory_entries(data).items():
        lines = [(x.samples, median(values_of(data, "entry_excess", x)[:, 0])) for x in learners]
        x, y = np.array(sorted(set(lines))).T.reshape(2, -1)
        axes.plot(x, entries * y, **THEORY, linestyle=dashes, zorder=5)
    axes.set(xscale="log", yscale="log", xlabel="samples $n$")
    axes.set_xticks(sorted({x.samples for x in learners}), minor=False)
    axes.xaxis.set_major_formatter(lambda n, _: f"{n:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(way, fontsize=8)


def theory_entries(data: xr.Dataset) -> dict[int, str]:
    """Free entries of a column of a dense fit and of one on the true positions, and their lines."""
    length, sparsity = (int(str(setting(data, f))) for f in ("context_length", "sparsity"))
    return {length - 1: "-", sparsity - 1: "--"}


# ---------------------------------------------------------------------------------- numbers


def ratio_of(over: Values, under: Values) -> Estimate:
    """The ratio of the medians of two sets of the same tasks, with its interval over them."""
    pair = np.stack([over, under])
    drawn = np.median(pair[:, resampled_runs(pair.shape[1], lost=0)], axis=-1)
    return Estimate(median(pair[0]) / median(pair[1]), *interval_of(drawn[0] / drawn[1]))


def l1_gains(data: xr.Dataset, learners: Sequence[Learner]) -> list[tuple[object, ...]]:
    """How many times lower the loss at the end is with l1 than without."""
    bare = {(x.way, x.samples): x for x in learners if x.name == "linear" and not x.l1}
    return [
        (plain(x), x.way, x.samples, *ratio_of(at_end(data, without), at_end(data, x)))
        for x in learners
        if x.l1 and (without := bare.get((x.way, x.samples)))
    ]


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate losses at the end and at best, what stopping early gains, and the theory."""
    data = tidy(dataset)
    learners = learners_of(data)
    rows = [
        ((plain(x), x.way, x.samples),
         (at_end(data, x), at_best(data, x), values_of(data, "train_excess", x)[:, -1],
          values_of(data, "attention_similarity", x)[:, -1]))
        for x in learners
    ]  # fmt: skip
    gains = [
        (plain(x), x.way, x.samples, *ratio_of(at_end(data, x), at_best(data, x))) for x in learners
    ]
    entries = theory_entries(data)
    sizes = {x.samples: median(values_of(data, "entry_excess", x)[:, 0]) for x in learners}
    expected = [(n, *(count * value for count in entries)) for n, value in sorted(sizes.items())]
    return [
        intervals_table(
            "Loss above that of the truth, and cosine of A to Q at the end",
            ("learner", "start", "n"), ("test, end", "test, best", "training, end", "cosine"), rows,
        ),
        Table(
            "Test loss at the end over that at its best, with 95% intervals over tasks",
            ("learner", "start", "n", *ranged("ratio")), gains,
        ),
        Table(
            "Test loss at the end without l1 over that with it, with 95% intervals over tasks",
            ("learner", "start", "n", *ranged("ratio")), l1_gains(data, learners),
        ),
        Table(
            "Excess loss that theory expects, medians",
            ("n", *(f"{count} free entries a column" for count in entries)), expected,
        ),
    ]  # fmt: skip


def plain(learner: Learner) -> str:
    """Name a learner without mathtext."""
    return learner.label.replace("$\\lambda$", "lambda").replace("$l_1$", "l1")


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("finite", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
