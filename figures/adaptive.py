"""How much l1 a query needs: false positives and negatives on one curve each, and who finds all.

The dataset comes from `scbjax run adaptive`: queries that attend to 1 to 8 positions, learned with
one threshold, a threshold a query, a path of thresholds, or thresholds that held-out loss chooses.
What to see: false positives depend on the threshold over the noise of a query, which falls with the
root of its frequency, false negatives on the threshold times the number of positions. One threshold
for all has to suit the rarest query and the smallest weight at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import xarray as xr
from _data import Values, setting
from _estimates import NORMAL, share_interval
from _numbers import Table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import finite_of, nanmean, nanmedian
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

STUDY: Final = "adaptive"
VARIABLES: Final = (
    "false_positives", "false_negatives", "false_positives_expected", "false_negatives_expected",
    "noise_level", "weight_level", "frequency", "column_size", "queries_recovered",
    "recovery_expected", "samples",
)  # fmt: skip
# By what sets an arm apart: adapt, path_ratio > 1, candidates > 1 and relax.
ONE, EACH, PATH = "one λ, the best of {}", "a λ for each query", "a path of λ, the best of {}"
PLAIN, RELAXED = "λ by held-out loss", "λ by held-out loss, unshrunk"
LOOKS: Final[dict[str, tuple[str, Any, str]]] = {
    ONE: ("#D55E00", (0, (4, 1.2)), "s"),
    PATH: ("#E69F00", (0, (1, 1)), "^"),
    EACH: ("#0072B2", "-", "o"),
    RELAXED: ("#009E73", (0, (4, 1, 1, 1)), "D"),
    PLAIN: ("#888888", (0, (2, 1)), "v"),
}
GROUPS: Final = ("#56B4E9", "#CC79A7", "#009E73")
MARKERS: Final = ("o", "s", "^")
EDGES: Final = np.geomspace(0.05, 20.0, 31)  # of thresholds
Place = Literal["lower left", "upper left"]
LEAST: Final = 5  # columns in a bin that is drawn
FEW: Final = 7.0  # noises, above which there are no false positives
FOUND: Final = 0.9  # of the runs, for what a learner costs


@dataclass(frozen=True)
class Learner:
    """The runs of one way to choose thresholds, at every batch size.

    Attributes:
        label: its name.
        samples: that a run uses [batch sizes].
        recovered: whether every support is found at the end [batch sizes, runs].
        expected: the chance of it by the chain of every column [batch sizes, runs].
        first: samples until every support is found first, of runs that end so [batch sizes, runs].
        level: the threshold that was taken [batch sizes].
    """

    kind: str
    label: str
    samples: Values
    recovered: Values
    expected: Values
    first: Values
    level: Values


def arranged(dataset: xr.Dataset) -> xr.Dataset:
    """Give the dataset the axes batch_size, arm, run, step and query.

    Raises:
        ValueError: the study does not sweep the batch size, and arms with their settings.
    """
    fields = ("adapt", "level", "path_ratio", "candidates", "relax")
    missing = [name for name in fields if name not in dataset.coords]
    if missing or len({dataset[name].dims for name in fields}) != 1:
        raise ValueError(f"the figure needs {', '.join(fields)} to vary along one axis, a zip")
    ((along,),) = {dataset[name].dims for name in fields}
    if along != "arm":
        dataset = dataset.rename({along: "arm"})
    if "batch_size" not in dataset.dims:
        size = setting(dataset, "batch_size", 64)
        dataset = dataset.expand_dims({"batch_size": [size]})
    others = [n for n in dataset.dims if n not in {"batch_size", "arm", "step", "query"}]
    return dataset.stack(run=others, create_index=False).transpose(
        "batch_size", "arm", "run", "step", "query", missing_dims="ignore"
    )


def kind_of(data: xr.Dataset, arm: int) -> str:
    """Say which learner an arm is."""
    own = {name: float(data[name][arm]) for name in ("adapt", "path_ratio", "candidates", "relax")}
    if own["candidates"] > 1:
        return RELAXED if own["relax"] > 0 else PLAIN
    if own["path_ratio"] > 1:
        return PATH
    return EACH if own["adapt"] > 0 else ONE


def learners_of(data: xr.Dataset) -> list[Learner]:
    """Read the learners; of several thresholds, the best at each batch size."""
    whole = data.queries_recovered.to_numpy() > 1 - 1e-6
    samples = data.samples.to_numpy().astype(float)
    sure = data.recovery_expected.isel(step=-1).to_numpy().astype(float)
    end = whole[..., -1]
    at = np.argmax(whole, axis=-1)[..., None]
    first = np.where(end, np.take_along_axis(samples, at, axis=-1)[..., 0], np.inf)
    found = []
    for kind in LOOKS:
        arms = [arm for arm in range(data.sizes["arm"]) if kind_of(data, arm) == kind]
        if not arms:
            continue
        # Where several find as many, the one that was sooner in the middle.
        order = end[:, arms].mean(axis=-1) + 1e-3 * nanmean(sure[:, arms], axis=-1)
        best = np.array(arms)[np.argmax(order, axis=1)]
        rows = np.arange(len(best))
        found.append(
            Learner(
                kind,
                kind.format(len(arms)),
                samples[rows, best, 0, -1],
                end[rows, best],
                sure[rows, best],
                first[rows, best],
                data["level"].to_numpy()[best].astype(float),
            )
        )
    return found


@dataclass(frozen=True)
class Columns:
    """What became of single columns of A: [columns] each.

    Attributes:
        level: the threshold, in the units in which theory is one curve.
        bare: the same without what is the query's own; NaN where each query has its threshold.
        wrong: share of the positions that are wrong.
        expected: what theory says of it.
        group: of the query, from 0.
    """

    level: Values
    bare: Values
    wrong: Values
    expected: Values
    group: Values


def columns_of(data: xr.Dataset, error: str) -> Columns:
    """Read errors against the threshold, at the end of runs with a threshold each or one for all.

    Args:
        data: arranged.
        error: `false_positives`, for groups of frequency, or `false_negatives`, for groups of Q_k.
    """
    arms = [arm for arm in range(data.sizes["arm"]) if kind_of(data, arm) in {ONE, EACH}]
    own = data.isel(arm=arms, step=-1)
    level, by = ("noise_level", "frequency"), ("weight_level", "column_size")
    name, grouped = level if error == "false_positives" else by
    values = own[grouped].to_numpy().ravel()
    edges: Sequence[float] = (2.5, 5.5)
    if error == "false_positives":  # thirds of what there is, without runs that diverged
        known = finite_of(values)
        edges = np.quantile(known, [1 / 3, 2 / 3]).tolist() if known.size else ()
    sizes = own[grouped].to_numpy().astype(float)
    mean = sizes.mean(axis=-1, keepdims=True)
    unit = np.sqrt(sizes / mean) if error == "false_positives" else sizes / mean
    whose = own.adapt.to_numpy()[None, :, None, None]
    bare = np.where(whose > 0, np.nan, own[name].to_numpy() / unit).ravel()
    columns = [own[n].to_numpy().astype(float).ravel() for n in (name, error, f"{error}_expected")]
    fine = np.isfinite(columns).all(axis=0) & (columns[0] > 0)
    at, wrong, expected = (c[fine] for c in columns)
    return Columns(at, bare[fine], wrong, expected, np.digitize(values, edges)[fine])


def binned(level: Values, values: Values) -> tuple[Values, Values, Values]:
    """Average values in bins of the threshold: middles, means and halves of 95% intervals."""
    place = np.digitize(level, EDGES)
    rows = []
    for bin_ in range(1, len(EDGES)):
        own = values[place == bin_]
        if own.size >= LEAST:
            half = NORMAL * own.std() / np.sqrt(own.size)
            rows.append((np.exp(np.log(level[place == bin_]).mean()), own.mean(), half))
    middles, means, halves = np.array(rows).reshape(-1, 3).T
    return middles, means, halves


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    data = arranged(dataset)
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.9))
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.25))
    positives, negatives = (columns_of(data, f"false_{n}") for n in ("positives", "negatives"))
    draw_errors(left, positives, ("rare queries", "middle third", "frequent"), "lower left")
    draw_errors(middle, negatives, ("$Q_k$ = 1 and 2", "3 to 5", "6 to 8"), "upper left")
    left.set(yscale="log", ylim=(2e-5, 3.0), xlim=(0.0, FEW), title="(a) false positives")
    left.set(xlabel=r"threshold / noise, $\lambda\sqrt{B\mu_k}\,/\,(\eta_A s_k)$")
    left.set(ylabel="share of positions")
    middle.set(ylim=(-0.03, 1.03), xlim=(0.0, 2.0), title="(b) false negatives")
    middle.set(xlabel=r"threshold / step, $\lambda Q_k\,/\,(\eta_A K_{VP})$")
    learners = learners_of(data)
    for learner in learners:
        draw_shares(right, learner)
    right.set(xscale="log", ylim=(-0.03, 1.03), title="(c) every support found")
    right.set(xlabel=r"samples (batch size $\times$ steps)", ylabel="share of runs")
    ticks = np.unique(np.concatenate([own.samples for own in learners]))
    right.set_xticks(ticks, [f"{tick / 1000:.0f}k" for tick in ticks])
    right.xaxis.set_minor_locator(NullLocator())
    handles = [
        Line2D([], [], color=LOOKS[own.kind][0], linestyle=LOOKS[own.kind][1],
               marker=LOOKS[own.kind][2], markersize=4, label=own.label)
        for own in learners
    ]  # fmt: skip
    theory = Line2D([], [], color="black", linewidth=1.0, label="(a), (b): theory, nothing fitted")
    bare = Line2D(
        [], [], color="#444444", marker="o", linestyle="", markersize=3, fillstyle="none",
        label=r"(a), (b): against $\lambda$ alone",
    )  # fmt: skip
    dotted = Line2D([], [], color="#444444", linewidth=0.9, linestyle=":", label="(c): theory")
    handles += [theory, bare, dotted]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def draw_errors(axes: Axes, columns: Columns, names: Sequence[str], place: Place) -> None:
    """Draw the share of errors against the threshold for groups of queries, and theory."""
    for group, (name, colour, marker) in enumerate(zip(names, GROUPS, MARKERS, strict=True)):
        own = columns.group == group
        x, y, half = binned(columns.bare[own], columns.wrong[own])
        axes.plot(
            x, y, marker, color=colour, markersize=3, fillstyle="none", markeredgewidth=0.6,
            alpha=0.6, gid=f"bare {group}",
        )  # fmt: skip
        x, y, half = binned(columns.level[own], columns.wrong[own])
        axes.errorbar(
            x, y, np.minimum(half, y) if y.size else half, fmt=marker, color=colour, markersize=3.5,
            elinewidth=0.8, label=name, gid=f"group {group}",
        )  # fmt: skip
    x, y, _ = binned(columns.level, columns.expected)
    axes.plot(x, y, color="black", linewidth=1.0, zorder=1, gid="theory")
    axes.legend(loc=place, fontsize=7, handletextpad=0.2, borderaxespad=0.3)


def draw_shares(axes: Axes, learner: Learner) -> None:
    """Draw the share of runs that found every support, its interval and what theory expects."""
    colour, linestyle, marker = LOOKS[learner.kind]
    runs = learner.recovered.shape[1]
    shares = learner.recovered.mean(axis=1)
    ends = np.array([share_interval(int(own.sum()), runs) for own in learner.recovered])
    place = list(LOOKS).index(learner.kind)
    x = learner.samples * 1.03 ** (place - 2)  # side by side
    axes.errorbar(
        x, shares, np.abs(ends.T - shares), color=colour, linestyle=linestyle, marker=marker,
        markersize=4, elinewidth=0.7, linewidth=1.2, gid=f"share {learner.kind}",
    )  # fmt: skip
    if learner.kind in {ONE, EACH}:
        axes.plot(
            learner.samples, nanmean(learner.expected, axis=1), ":", color=colour, linewidth=1.2
        )


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate who finds every support, at what cost, and how far theory is from the errors."""
    data = arranged(dataset)
    rows, costs = [], []
    for own in learners_of(data):
        for place, samples in enumerate(own.samples):
            hits, runs = int(own.recovered[place].sum()), own.recovered.shape[1]
            share = (hits / runs, *share_interval(hits, runs))
            expected = nanmean(own.expected[place])
            rows.append(
                [
                    own.label,
                    samples,
                    own.level[place],
                    *share,
                    expected,
                    nanmedian(own.first[place]),
                ]
            )
        enough = own.recovered.mean(axis=1) >= FOUND
        least = own.samples[enough].min() if enough.any() else np.inf
        costs.append([own.label, least])
    columns = ("learner", "samples", "threshold", *ranged("share"), "theory", "first found, median")
    return [
        Table("Runs that found every support at the end, with 95% intervals", columns, rows),
        Table(
            f"Samples of the smallest batch with which {FOUND:.0%} of the runs found every support",
            ("learner", "samples"),
            costs,
        ),
        *(collapse_table(data, name) for name in ("false_positives", "false_negatives")),
    ]


def collapse_table(data: xr.Dataset, error: str) -> Table:
    """Tabulate errors against the threshold for every group of queries, beside theory."""
    columns = columns_of(data, error)
    rows = []
    for group in range(len(GROUPS)):
        own = columns.group == group
        measured = binned(columns.level[own], columns.wrong[own])
        theory = binned(columns.level[own], columns.expected[own])[1]
        for x, y, half, said in zip(*measured, theory, strict=True):
            rows.append([group + 1, x, y, max(y - half, 0.0), y + half, said])
    name = error.replace("_", " ")
    return Table(
        f"Share of {name} by the third of the queries and the threshold, with 95% intervals",
        ("third", "threshold", *ranged("share"), "theory"),
        rows,
    )


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("adaptive", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
