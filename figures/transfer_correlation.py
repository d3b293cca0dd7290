"""Recovery by transfer against how much the related task tells of the target (Theorem 4.1).

The dataset comes from `scbjax run transfer_correlation`. The axis is the overlap
(<P_hat, P>_mu - |mu|^2) / K_P of the related transition matrix with that of the target, which is
alpha_V / theta at the start. What to see: the theorem asks for an overlap of at least |mu|^2 / K_P
and a small theta; the figure shows how far below it transfer still works, and where it breaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from _data import Values, tidy
from _distances import samples_to_recovery
from _estimates import Interval, quantile_interval, share_interval
from _numbers import Table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import finite_of
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

STUDY: Final = "transfer_correlation"
VARIABLES: Final = (
    "samples",
    "rounded_attention_distance",
    "rounded_value_distance",
    "alpha_value",
    "transition_signal",
    "stationary_norm",
)
GAP: Final = 0.1  # between overlaps, from which on there is nothing to join
EDGES: Final = np.array([-1.0, -0.2, -0.05, 0.05, 0.15, 0.3, 0.5, 0.7, 0.9, 1.1])
FEWEST: Final = 4  # runs that make a point
COLOURS: Final = ("#56B4E9", "#009E73", "#0072B2", "#332288", "#AA4499")
PRETRAINED: Final[dict[str, Any]] = {"color": "#D55E00", "linestyle": (0, (4, 1.2)), "marker": "s"}
CONDITION: Final[dict[str, Any]] = {"color": "black", "linewidth": 0.9, "linestyle": ":"}


@dataclass(frozen=True)
class Arm:
    """All runs with one theta and one kind of start.

    Attributes:
        label: its name.
        look: of its line.
        overlap: [runs].
        samples: to recovery, [runs].
    """

    label: str
    look: dict[str, Any]
    overlap: Values
    samples: Values

    def bins(self) -> list[NDArray[np.bool_]]:
        """Which runs [runs] are in each of the bins with enough of them."""
        place = np.digitize(self.overlap, EDGES)
        bins = [place == number for number in np.unique(place)]
        return [here for here in bins if here.sum() >= FEWEST]

    def rows(self) -> list[list[object]]:
        """Mean overlap, runs, share recovered and median samples of every bin, with intervals."""
        rows: list[list[object]] = []
        for here in self.bins():
            runs = self.samples[here]
            found = np.isfinite(runs)
            share = (found.mean(), *share_interval(int(found.sum()), found.size))
            middle = (np.median(runs), *quantile_interval(runs))
            rows.append([self.overlap[here].mean(), found.size, *share, *middle])
        return rows

    def binned(self) -> tuple[Values, Values, Values]:
        """Mean overlap, share recovered and median samples of the bins with enough runs."""
        bins = self.bins()
        shares = [np.isfinite(self.samples[here]).mean() for here in bins]
        medians = [np.median(self.samples[here]) for here in bins]
        return (
            np.array([self.overlap[here].mean() for here in bins]),
            np.array(shares),
            np.array(medians),
        )

    def broken(self, x: Values, y: Values) -> tuple[Values, Values]:
        """A line over the bins, broken where overlaps are missing between two of them."""
        bins = [self.overlap[here] for here in self.bins()]
        gaps = np.array([above.min() - below.max() for below, above in pairwise(bins)])
        places = np.flatnonzero(gaps > GAP) + 1
        return np.insert(x, places, np.nan), np.insert(y, places, np.nan)


def arms_of(dataset: xr.Dataset) -> list[Arm]:
    """Read the arms: one for each theta and start."""
    data = tidy(dataset, ("correlation",))
    theta, start = (data.coords[name].to_numpy() for name in ("theta", "start"))
    overlap = data["alpha_value"].isel(step=0).to_numpy() / theta[:, None, None]
    samples = samples_to_recovery(data).transpose("arm", "run", "correlation").to_numpy()
    handed = sorted(set(theta[start == "transfer"]))
    if len(handed) > len(COLOURS):
        raise ValueError(
            f"the study has {len(handed)} values of theta and the figure can tell "
            f"{len(COLOURS)} apart; choose some"
        )
    arms = []
    for index, (size, kind) in enumerate(zip(theta, start, strict=True)):
        look: dict[str, Any] = PRETRAINED
        label = rf"pretrained, $\theta$ = {size:g}"
        if kind == "transfer":
            look = {"color": COLOURS[handed.index(size)], "linestyle": "-", "marker": "o"}
            label = rf"$\theta$ = {size:g}"
        arms.append(Arm(label, look, overlap[index].ravel(), samples[index].ravel()))
    return arms


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    arms = arms_of(dataset)
    figure = Figure(figsize=(DOUBLE_COLUMN, 3.0))
    left, right = figure.subplots(1, 2)
    needed = float(np.median(dataset["stationary_norm"] / dataset["transition_signal"]))
    for place, arm in enumerate(arms):
        x, share, median = arm.binned()
        style = {**arm.look, "markersize": 3.5, "linewidth": 1.1}
        # Arms that coincide are seen one inside the other.
        inside = {"linewidth": 1.1 + 1.2 * (len(arms) - 1 - place), "linestyle": "-"}
        left.plot(*arm.broken(x, share), **{**style, **inside}, gid=f"share {arm.label}")
        dots = np.where(np.isfinite(arm.samples), arm.samples, np.nan)
        right.plot(
            arm.overlap, dots, ".", color=arm.look["color"], markersize=1.5, alpha=0.25, zorder=1
        )
        seen = np.isfinite(median)
        right.plot(x[seen], median[seen], **style, gid=f"median {arm.label}")
    for axes in (left, right):
        axes.axvline(needed, **CONDITION, zorder=0.5, gid="condition")
        axes.set_xlabel(r"overlap $(\langle\hat P,P\rangle_\mu-|\mu|^2)/K_P$ of $\hat P$ and $P$")
    left.set(ylabel="share of runs recovered", ylim=(-0.03, 1.03))
    left.set_title("arms that coincide are drawn one inside the other")
    right.set_title("dots: single runs; lines: medians of bins")
    right.set_ylabel("samples to recovery")
    right.set_ylim(bottom=0)
    right.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
    add_legend(figure, arms)
    return figure


def add_legend(figure: Figure, arms: Sequence[Arm]) -> None:
    """Put one legend above the panels."""
    entries = {arm.label: Line2D([], [], **arm.look, markersize=3.5) for arm in arms}
    entries[r"what the theorem asks for, $|\mu|^2/K_P$"] = Line2D([], [], **CONDITION)
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=3)


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate where recovery ends, and the samples against the overlap."""
    arms = arms_of(dataset)
    overlap = np.concatenate([arm.overlap for arm in arms])
    found = np.isfinite(np.concatenate([arm.samples for arm in arms]))
    least = overlap[found].min(initial=np.inf)
    most = finite_of(overlap[~found]).max(initial=-np.inf)
    # All arms of a seed and a correlation have the same two tasks.
    tasks = arms[0].overlap
    needed = np.median(dataset["stationary_norm"] / dataset["transition_signal"])
    sides = [int((tasks > most).sum()), int((tasks < least).sum())]
    # At the edge itself nothing is lost above it, and nothing found below.
    above, below = (
        share_interval(hits, pairs) if pairs else Interval(0.0, 1.0)
        for hits, pairs in ((sides[0], sides[0]), (0, sides[1]))
    )
    edge = [most, sides[0], above.low, least, sides[1], below.high, needed]
    binned = [[arm.label, *row] for arm in arms for row in arm.rows()]
    return [
        Table(
            "Overlap: the largest of a run that is lost, task pairs above it, which all recover, "
            "and the least share that they stand for; the smallest of one that recovers, pairs "
            "below it, and the largest share (95% intervals, as if all pairs were independent); "
            "what the theorem asks for, median",
            (
                "largest lost",
                "pairs above",
                "least share",
                "smallest found",
                "pairs below",
                "largest share",
                "theorem",
            ),
            [edge],
        ),
        correlation_table(dataset),
        Table(
            "By overlap; 95% intervals, as if all pairs of tasks were independent",
            ("arm", "mean overlap", "pairs", *ranged("share", "samples, median")),
            binned,
        ),
    ]


def correlation_table(dataset: xr.Dataset) -> Table:
    """Tabulate the share of all runs recovered, and of the seeds that all arms recover."""
    data = tidy(dataset, ("correlation",))
    recovered = (samples_to_recovery(data) < np.inf).transpose("correlation", "arm", "run")
    rows = []
    for correlation, runs in zip(data["correlation"].to_numpy(), recovered.to_numpy(), strict=True):
        # The arms of a seed have the same two tasks: of these, not of runs, is the interval.
        seeds = runs.all(axis=0)
        around = share_interval(int(seeds.sum()), seeds.size)
        rows.append([correlation, runs.mean(), seeds.mean(), *around])
    return Table(
        f"Share of all runs recovered; share of the {data.sizes['run']} seeds of which all arms "
        "recover, with its 95% interval",
        ("correlation", "share", *ranged("share of seeds")),
        rows,
    )


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("transfer_correlation", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
