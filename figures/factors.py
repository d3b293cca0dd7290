"""What the working settings owe to which of their changes: alone, in pairs, and taken back.

The dataset comes from `scbjax run factors`: all combinations of six changes between the settings
that the paper prints and those with which P and Q are found. What to see: which changes find more
runs than the printed settings, which of them are missed when they are taken back, and where runs
go that are not found: to the mirrored solution, or nowhere within 1000 iterations.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import xarray as xr
from _data import Values
from _distances import ATTENTION, FOUND, VALUE
from _estimates import Interval, interval_of, resampled_runs, share_interval
from _numbers import Table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import SIGNALS, median
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

STUDY: Final = "factors"
VARIABLES: Final = (VALUE.rounded, ATTENTION.rounded, *SIGNALS)
# The study's axes, whose first value is the printed one, and what they are called.
FACTORS: Final = {
    "learning_rate_1": "rate",
    "batch_size": "B",
    "switch_on": "switch",
    "geometry": "projector",
    "flip": "flip",
    "l1": r"$\lambda$",
}
PRINTED, WORKING = 0, 1
Bools = NDArray[np.bool_]


class Runs(NamedTuple):
    """Runs of one combination of the changes.

    Attributes:
        found: whether each is near P and Q once it is rounded, [runs].
        mirrored: whether it ends with negative signals in both V and A, [runs].
        distances: of the rounded V to P and of the rounded A to Q, [2, runs].
    """

    found: Bools
    mirrored: Bools
    distances: Values


def factors_of(dataset: xr.Dataset) -> list[str]:
    """List the changes that a study makes: the axes that have both values."""
    return [name for name in FACTORS if dataset.sizes.get(name) == 2]


def runs_of(dataset: xr.Dataset, base: int, changed: Iterable[str]) -> Runs:
    """Pick the runs of the settings of a base, but for some that have the other value.

    Args:
        dataset: of the study.
        base: `PRINTED` or `WORKING`.
        changed: the axes that have the other value.
    """
    places = dict.fromkeys(factors_of(dataset), base) | dict.fromkeys(changed, 1 - base)
    last = dataset.isel({"step": -1, **places})
    named = {name: last[name].to_numpy().astype(float).ravel() for name in VARIABLES}
    found = np.logical_and(*(named[name] < level for name, level in FOUND.items()))
    mirrored = np.logical_and(*(named[name] < 0 for name in SIGNALS))
    return Runs(found, mirrored, np.stack([named[VALUE.rounded], named[ATTENTION.rounded]]))


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    figure = Figure(figsize=(DOUBLE_COLUMN, 3.7))
    left, right = figure.subplots(1, 2)
    draw_pairs(left, dataset, PRINTED, "as printed, but for")
    draw_pairs(right, dataset, WORKING, "working settings, taken back:")
    mesh = left.images[0]
    figure.colorbar(
        mesh, ax=[left, right], label="runs found (in brackets: mirrored)", aspect=30, pad=0.02
    )
    return figure


def draw_pairs(axes: Axes, dataset: xr.Dataset, base: int, what: str) -> None:
    """Draw how many runs are found with every pair of changes; on the diagonal, with one alone.

    Above each count of those found stands how many are mirrored, in brackets.
    """
    factors = factors_of(dataset)
    none = runs_of(dataset, base, [])
    counts = np.full((len(factors), len(factors)), np.nan)
    for row, column in np.ndindex(*counts.shape):
        if column > row:
            continue
        runs = runs_of(dataset, base, {factors[row], factors[column]})
        counts[row, column] = runs.found.sum()
        dark = counts[row, column] < 0.55 * none.found.size
        axes.text(
            column,
            row,
            f"{runs.found.sum()}\n({runs.mirrored.sum()})",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if dark else "black",
            gid=f"{base} {factors[row]} {factors[column]}",
        )
    axes.imshow(counts, vmin=0, vmax=none.found.size, cmap="cividis")
    names = [FACTORS[name] for name in factors]
    axes.set_xticks(range(len(names)), names, rotation=35)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        f"{what}\n(nothing: {none.found.sum()} of {none.found.size} found, "
        f"{none.mirrored.sum()} mirrored)"
    )


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate what is found with each change and each pair, and each change over all others."""
    return [
        pairs_table(dataset, PRINTED, "The printed settings, but for"),
        pairs_table(dataset, WORKING, "The working settings, taken back"),
        average_table(dataset),
    ]


def pairs_table(dataset: xr.Dataset, base: int, what: str) -> Table:
    """Tabulate runs found and runs mirrored, for no change, each one and each pair."""
    factors = factors_of(dataset)
    rows: list[list[object]] = []
    for changed in [(), *((name,) for name in factors), *combinations(factors, 2)]:
        runs = runs_of(dataset, base, changed)
        row: list[object] = [", ".join(FACTORS[name] for name in changed) or "nothing"]
        for hits in (runs.found, runs.mirrored):
            row += [hits.sum(), *share_interval(int(hits.sum()), hits.size)]
        rows.append([*row, *map(median, runs.distances)])
        total = runs.found.size
    return Table(
        f"{what}: runs found and runs mirrored of {total}, their shares with 95% intervals, and "
        "median distances of the rounded solution",
        ("what", *ranged("found", "mirrored"), "to P", "to Q"),
        rows,
    )


def average_table(dataset: xr.Dataset) -> Table:
    """Tabulate the share found with either value of each change, over all others."""
    factors = factors_of(dataset)
    rows = []
    for name in factors:
        others = [other for other in factors if other != name]
        shares = []
        for value in (PRINTED, WORKING):
            picks = [
                runs_of(dataset, value, changed)
                for count in range(len(others) + 1)
                for changed in combinations(others, count)
            ]
            # [tasks]: the share of the combinations that find it.
            shares.append(np.mean([runs.found for runs in picks], axis=0))
        gain = shares[WORKING] - shares[PRINTED]
        rows.append([FACTORS[name], *(share.mean() for share in shares), gain.mean(), *over(gain)])
    return Table(
        "Share found, averaged over all combinations of the other changes; the gain with a 95% "
        "interval over resampled tasks",
        ("change", "share, printed", "share, working", *ranged("share gained")),
        rows,
    )


def over(values: Values) -> Interval:
    """Interval of a mean over tasks [tasks], by resampling them."""
    return interval_of(values[resampled_runs(values.size, lost=0)].mean(axis=1))


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("factors", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
