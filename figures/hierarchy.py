"""Samples until blocks and positions are found, by a flat attention and by one of two levels.

The dataset comes from `scbjax run hierarchy`. What to see: sums over a block of L positions, s of
them active, have s times the signal and sqrt(L) times the noise of one, so that the block is found
with fewer samples than its positions once s is about sqrt(L), and the gain grows as its square. The
positions themselves gain next to nothing: within its block each has the signal that it had before,
and fewer rivals.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from _data import Values, setting
from _estimates import Estimate, interval_of, quantile_interval, resampled_runs, share_interval
from _numbers import Table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import nanmedian
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, NullLocator

STUDY: Final = "hierarchy"
BLOCKS, POSITIONS, SWITCH = "block_samples", "position_samples", "switch_samples"
FOUND: Final = (BLOCKS, POSITIONS, SWITCH)
WITHIN: Final = "predicted_within_samples"
PREDICTED: Final = (*(f"predicted_{name}" for name in FOUND), WITHIN)
VARIABLES: Final = (*FOUND, *PREDICTED)
FLAT: Final = "flat"
# By block length, in order.
LOOKS: Final = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
GREY: Final = "#666666"
PLAIN: Final[dict[str, Any]] = {"color": "black", "linewidth": 0.9, "linestyle": ":"}
DASHES: Final = (0, (4, 1.6))
SIZE: Final = 4.5
SHIFT: Final = 0.05  # of a logarithm, between markers that would hide each other


@dataclass(frozen=True)
class Cell:
    """The runs of one learner on tasks of one kind.

    Attributes:
        attention: which learner.
        length: L.
        sparsity: s.
        found: by variable, samples of each run [runs]; infinity for what it never found.
        theory: by variable, the predictions for the same tasks [runs].
    """

    attention: str
    length: int
    sparsity: int
    found: Mapping[str, Values]
    theory: Mapping[str, Values]

    @property
    def ratio(self) -> float:
        """Signal over noise of the sum over a block, in units of those of a position."""
        return self.sparsity / float(np.sqrt(self.length))

    @property
    def two_levels(self) -> Values:
        """Samples for the positions by two levels, in theory [runs]."""
        if self.sparsity == self.length:
            return self.theory[BLOCKS]
        return self.theory[SWITCH] + self.theory[WITHIN]


@dataclass(frozen=True)
class Gain:
    """A cell of the two-level learner, beside the flat one for the same sparsity.

    Attributes:
        cell: that of two levels.
        flat: the other.
    """

    cell: Cell
    flat: Cell

    def measured(self, name: str) -> Values:
        """Samples of the flat learner for the positions, over those of the other for something."""
        with np.errstate(invalid="ignore"):
            gained: Values = self.flat.found[POSITIONS] / self.cell.found[name]
        return gained

    def expected(self, name: str) -> float:
        """The same in theory, median over the tasks."""
        own = self.cell.theory[BLOCKS] if name == BLOCKS else self.cell.two_levels
        return float(nanmedian(self.flat.theory[POSITIONS] / own))


def cells_of(dataset: xr.Dataset) -> list[Cell]:
    """Read the cells of the study in their order.

    Raises:
        ValueError: the study does not vary learner, block length and sparsity together.
    """
    names = ("attention", "block_length", "block_sparsity")
    missing = [name for name in names if dataset.get(name) is None or dataset[name].ndim != 1]
    dims = {dataset[name].dims for name in names if name not in missing}
    if missing or len(dims) != 1:
        raise ValueError(f"the figure needs {', '.join(names)} to vary along one axis, a zip")
    ((along,),) = dims
    last = dataset.isel(step=-1)
    runs = last.stack(run=[name for name in last.dims if name != along], create_index=False)
    table = {name: runs[name].transpose(along, "run").to_numpy().astype(float) for name in last}
    cells = []
    for place, row in enumerate(zip(*(dataset[name].to_numpy() for name in names), strict=True)):
        own = {str(name): values[place] for name, values in table.items()}
        found = {name: np.where(own[name] < 0, np.inf, own[name]) for name in FOUND}
        theory = {name.removeprefix("predicted_"): own[name] for name in PREDICTED if name in own}
        theory[WITHIN] = own[WITHIN]
        cells.append(Cell(str(row[0]), int(row[1]), int(row[2]), found, theory))
    return cells


def gains_of(cells: Sequence[Cell]) -> dict[int, list[Gain]]:
    """Put every cell of two levels beside the flat one, by block length and then sparsity."""
    flat = {cell.sparsity: cell for cell in cells if cell.attention == FLAT}
    gains: dict[int, list[Gain]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.length, cell.sparsity)):
        if cell.attention != FLAT and cell.sparsity in flat:
            gains.setdefault(cell.length, []).append(Gain(cell, flat[cell.sparsity]))
    return gains


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    cells = cells_of(dataset)
    gains = gains_of(cells)
    figure = Figure(figsize=(DOUBLE_COLUMN, 3.3))
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    for place, (own, look) in enumerate(zip(gains.values(), LOOKS, strict=False)):
        shift = float(np.exp((place - (len(gains) - 1) / 2) * SHIFT))
        draw_gains(left, own, BLOCKS, look, shift)
        draw_gains(left, own, POSITIONS, look, shift)
    finish_gains(left, gains)
    middle = list(gains)[len(gains) // 2] if gains else 0
    draw_samples(right, cells, middle, LOOKS[min(len(gains) // 2, len(LOOKS) - 1)])
    shown = [gain.cell for own in gains.values() for gain in own]
    scale(left, {cell.ratio for cell in shown})
    scale(right, {float(cell.sparsity) for cell in shown if cell.length == middle})
    right.set_xlabel(f"$s$, active positions in a block of {middle}")
    right.set_ylabel("samples until found")
    right.set_title(f"samples, blocks of $L$ = {middle}", fontsize=8)
    add_legend(figure, list(gains))
    return figure


def scale(axes: Axes, ticks: Collection[float]) -> None:
    """Make both axes logarithmic, with ticks where something was measured."""
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_gains(
    axes: Axes, gains: Sequence[Gain], name: str, look: tuple[str, str], shift: float
) -> None:
    """Draw what two levels gain, over the runs, and what theory says.

    Of blocks all of whose positions are active nothing is left to find within.
    """
    colour, marker = look
    length = gains[0].cell.length
    if name == POSITIONS:
        gains = [gain for gain in gains if gain.cell.sparsity < length]
    x = np.array([gain.cell.ratio for gain in gains])
    bars = np.array([spread(gain.measured(name)) for gain in gains]).reshape(-1, 3)
    hollow = name == POSITIONS
    draw_bars(axes, x * shift, bars, colour, marker, hollow=hollow, gid=f"{name} {length}")
    theory = [gain.expected(name) for gain in gains]
    axes.plot(x, theory, color=colour, linewidth=1.0, linestyle=DASHES if hollow else "-", zorder=2)


def draw_bars(
    axes: Axes, x: Values, bars: Values, colour: str, marker: str, *, hollow: bool, gid: str
) -> None:
    """Draw medians as markers, with bars from the 10th to the 90th percentile of the runs.

    Args:
        axes: where.
        x: [points].
        bars: [points, 3].
        colour: of all.
        marker: of the medians.
        hollow: whether it is filled with white.
        gid: of the medians.
    """
    fine = np.where(np.isfinite(bars), bars, np.nan)
    # A bar whose upper end is infinite goes to the median.
    ends = np.where(np.isnan(fine), fine[:, 1:2], fine)
    axes.vlines(x, ends[:, 0], ends[:, 2], color=colour, linewidth=0.8, alpha=0.6, zorder=3)
    face = "white" if hollow else colour
    axes.plot(
        x,
        fine[:, 1],
        marker,
        color=colour,
        markerfacecolor=face,
        markersize=SIZE,
        zorder=5,
        gid=gid,
    )


def spread(values: Values) -> Values:
    """10th percentile, median and 90th of runs, some of them infinite; NaN for none."""
    own = values[~np.isnan(values)]
    if own.size == 0:
        return np.full(3, np.nan)
    # Between a number and infinity there is nothing to interpolate.
    low, high = np.quantile(own, (0.1, 0.9), method="nearest")
    return np.array([low, nanmedian(own), high])


def finish_gains(axes: Axes, gains: Mapping[int, Sequence[Gain]]) -> None:
    """Draw where nothing is gained, and the plain power."""
    x = np.array([gain.cell.ratio for own in gains.values() for gain in own])
    if x.size:
        ends = np.array([x.min(), x.max()])
        axes.plot(ends, ends**2, **PLAIN, zorder=1, gid="plain")
    axes.axhline(1.0, color="#999999", linewidth=0.7, zorder=0.5)
    axes.axvline(1.0, color="#999999", linewidth=0.7, zorder=0.5)
    axes.set_xlabel(r"$s/\sqrt{L}$ ($s$ active positions in a block of $L$)")
    axes.set_ylabel("samples for the positions, flat,\nover those of two levels")
    axes.set_title("above 1: two levels need fewer", fontsize=8)


def draw_samples(axes: Axes, cells: Sequence[Cell], length: int, look: tuple[str, str]) -> None:
    """Draw the samples against the sparsity, for one block length."""
    colour, marker = look
    two = sorted(
        (c for c in cells if c.attention != FLAT and c.length == length), key=lambda c: c.sparsity
    )
    shown = {cell.sparsity for cell in two}
    flat = sorted(
        (c for c in cells if c.attention == FLAT and c.sparsity in shown), key=lambda c: c.sparsity
    )
    series = (
        (flat, POSITIONS, "black", "x", "-", [c.theory[POSITIONS] for c in flat]),
        (two, BLOCKS, colour, marker, "-", [c.theory[BLOCKS] for c in two]),
        (two, POSITIONS, colour, marker, DASHES, [c.two_levels for c in two]),
    )
    for own, name, shade, form, line, theory in series:
        if own:
            x = np.array([float(cell.sparsity) for cell in own])
            bars = np.array([spread(cell.found[name]) for cell in own])
            hollow = name == POSITIONS and own is two
            gid = f"samples {name} {own[0].attention}"
            draw_bars(axes, x, bars, shade, form, hollow=hollow, gid=gid)
            medians = [nanmedian(values) for values in theory]
            axes.plot(x, medians, color=shade, linewidth=1.0, linestyle=line, zorder=2)


def add_legend(figure: Figure, lengths: Sequence[int]) -> None:
    """Put one legend above the panels."""
    entries: dict[str, Line2D] = {}
    for length, (colour, marker) in zip(lengths, LOOKS, strict=False):
        entries[f"$L$ = {length}"] = Line2D(
            [], [], color=colour, marker=marker, linestyle="", markersize=SIZE
        )
    grey: dict[str, Any] = {"color": GREY, "marker": "o", "markersize": SIZE, "linewidth": 1.0}
    entries["block found"] = Line2D([], [], **grey)
    entries["positions found, blocks first"] = Line2D(
        [], [], **grey, markerfacecolor="white", linestyle=DASHES
    )
    entries["positions found, flat"] = Line2D([], [], color="black", marker="x", markersize=SIZE)
    entries["lines: theory"] = Line2D([], [], color=GREY, linewidth=1.0)
    entries[r"$(s/\sqrt{L})^2$"] = Line2D([], [], **PLAIN)
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=4)


# --------------------------------------------------------------------------------- numbers


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate gains, where they cross one, and the samples."""
    cells = cells_of(dataset)
    gains = gains_of(cells)
    length = setting(dataset, "context_length")
    return [gain_table(gains, str(length)), crossing_table(gains), sample_table(cells)]


def gain_table(gains: Mapping[int, Sequence[Gain]], context: str) -> Table:
    """Tabulate how many times fewer samples two levels take, beside theory."""
    rows: list[list[object]] = []
    for length, own in gains.items():
        for gain in own:
            row: list[object] = [length, gain.cell.sparsity, gain.cell.ratio]
            for name in (BLOCKS, POSITIONS):
                row += [*middle(gain.measured(name)), gain.expected(name)]
            rows.append(row)
    columns = [
        text
        for name in ("block", "positions")
        for text in (*ranged(f"gain for the {name}"), f"theory for the {name}")
    ]
    return Table(
        f"Samples of the flat attention for the positions over those of two levels, T = {context}: "
        "medians over tasks with 95% intervals",
        ("L", "s", "s / sqrt(L)", *columns),
        rows,
    )


def middle(values: Values) -> tuple[float, float, float]:
    """Give the median of runs, some of them infinite, with its interval."""
    return float(spread(values)[1]), *quantile_interval(values)


def crossing_table(gains: Mapping[int, Sequence[Gain]]) -> Table:
    """Tabulate the power of the gain for the block, and where it is one."""
    rows: list[list[object]] = []
    for length, own in gains.items():
        if len(own) > 1:
            x = np.array([gain.cell.ratio for gain in own])
            power, crossing = power_and_crossing(x, np.array([g.measured(BLOCKS) for g in own]))
            theory = fit(x, np.array([gain.expected(BLOCKS) for gain in own]))
            first = [g.cell.ratio for g in own if middle(g.measured(POSITIONS))[0] > 1]
            never = first[0] if first else np.nan
            rows.append([length, *power, theory[0], *crossing, theory[1], never])
    columns = (
        *ranged("power"),
        "in theory",
        *ranged("gain 1 at"),
        "in theory",
    )
    return Table(
        "Gain for the block as a power of s / sqrt(L), where the line crosses 1, and the first "
        "s / sqrt(L) with a gain for the positions; 95% intervals over tasks",
        ("L", *columns, "positions gain from"),
        rows,
    )


def fit(x: Values, gains: Values) -> Values:
    """Fit gains ~ (x / c)^b: b and c along the last axis; gains [..., points]."""
    logs, centred = np.log(gains), np.log(x) - np.log(x).mean()
    power = logs @ centred / (centred @ centred)
    crossing = np.exp(np.log(x).mean() - logs.mean(axis=-1) / power)
    return np.stack([power, crossing], axis=-1)


def power_and_crossing(x: Values, gains: Values) -> tuple[Estimate, Estimate]:
    """Fit a power to medians over runs, and where it is one, with intervals.

    Args:
        x: [points].
        gains: [points, runs].
    """
    value = fit(x, nanmedian(gains, axis=1))
    drawn = nanmedian(gains[:, resampled_runs(gains.shape[1], lost=0)], axis=-1)
    found = fit(x, drawn.T)
    power, crossing = (
        Estimate(float(value[place]), *interval_of(found[:, place])) for place in (0, 1)
    )
    return power, crossing


def sample_table(cells: Sequence[Cell]) -> Table:
    """Tabulate the samples of every cell, beside theory, and how many runs found the positions."""
    rows: list[list[object]] = []
    for cell in cells:
        two = cell.attention != FLAT
        positions = cell.two_levels if two else cell.theory[POSITIONS]
        row: list[object] = [cell.attention, cell.length, cell.sparsity]
        # A flat learner ends when it has its positions, which may be before it has their block.
        row += [*middle(cell.found[BLOCKS]), nanmedian(cell.theory[BLOCKS])] if two else [""] * 4
        row += [nanmedian(cell.found[SWITCH]), nanmedian(cell.theory[SWITCH])] if two else ["", ""]
        row += [*middle(cell.found[POSITIONS]), nanmedian(positions)]
        hits = np.isfinite(cell.found[POSITIONS])
        rows.append([*row, hits.mean(), *share_interval(int(hits.sum()), hits.size)])
    columns = (
        *ranged("block"), "in theory", "second level", "in theory", *ranged("positions"),
        "in theory", *ranged("share that found them"),
    )  # fmt: skip
    runs = cells[0].found[BLOCKS].size if cells else 0
    return Table(
        f"Samples until the truth leads, {runs} runs: medians with 95% intervals",
        ("attention", "L", "s", *columns),
        rows,
    )


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("hierarchy", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
