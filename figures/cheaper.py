"""Samples to the supports against T, by all that stage 1 could be done with, and their powers of T.

The dataset comes from `scbjax run cheaper`. What to see: with the sign that drift gives, steps on V
and A take about T samples with the mu-orthogonal projector and T^2 with the printed one, and
momentum, Adam and batches that grow change nothing about that. Rates that let the signal grow
together with a sign that is read off A, V from short contexts, the leading singular vector of the
cross-moments, and screening by those themselves take no power of T to speak of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from _data import Values, setting
from _estimates import (
    RESAMPLES,
    Estimate,
    Interval,
    cost_interval,
    interval_of,
    resampled_runs,
    slope,
)
from _numbers import Table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import finite_of, nanmean, nanmedian
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, NullLocator

STUDY: Final = "cheaper"
DATA, DRIFT, WHOLE = "found", "found_signed", "similarity"
THEORY: Final = {DATA: "expected", DRIFT: "expected_signed"}
LEAST, DENSE, WRONG, SAMPLES = (
    "information_samples",
    "dense_samples",
    "false_positives",
    "samples",
)
VARIABLES: Final = (DATA, DRIFT, WHOLE, *THEORY.values(), LEAST, DENSE, WRONG, SAMPLES)
FIELDS: Final = (
    "method",
    "projector",
    "context_length",
    "batch_size",
    "rate",
    "batch_growth",
    "theta",
)
SHARE: Final = 0.9  # of the runs
HALF: Final = float(np.sqrt(0.5))  # a cosine
FIRST_LOOK: Final = 1000  # samples from which on false positives are counted
GREY: Final = "#777777"
SIZE: Final = 4.0
POWERS: Final = (-0.5, 2.15)  # the axis of powers; an interval without an end goes to its edge
SHIFT: Final = 0.05  # of a logarithm, between marks that would hide each other


@dataclass(frozen=True)
class Way:
    """A way to find supports: what a case must be, and what of it is looked at.

    Attributes:
        label: what it is called.
        method: of the case.
        reading: the variable that says whether a run has it.
        colour: of its marks.
        marker: in both panels where it is drawn in the left one; a dot otherwise.
        projector: of the case.
        growth: of B / eta over the run.
        theta: size of the random start.
    """

    label: str
    method: str
    reading: str
    colour: str = GREY
    marker: str = ""
    projector: str = "mu"
    growth: float = 1.0
    theta: float = 0.0


WAYS: Final = (
    Way("printed projector, sign by drift", "gradient", DRIFT, "#D55E00", "s", "paper"),
    Way(r"$\mu$ projector, sign by drift", "gradient", DRIFT, "#0072B2", "o"),
    Way(r"$\cdots$ batches grow tenfold", "gradient", DRIFT, growth=10.0),
    Way(r"$\cdots$ batches shrink tenfold", "gradient", DRIFT, growth=0.1),
    Way(r"$\cdots$ momentum", "momentum", DRIFT),
    Way(r"$\cdots$ Adam", "adam", DRIFT),
    Way(r"$\mu$ projector, sign by the data", "gradient", DATA, "#009E73", "^"),
    Way(r"$\cdots$ printed projector", "gradient", DATA, projector="paper"),
    Way(r"$\cdots$ momentum", "momentum", DATA),
    Way(r"$\cdots$ random start, $\theta$ = 0.1", "gradient", DATA, theta=0.1),
    Way(r"$\cdots$ random start, $\theta$ = 1", "gradient", DATA, theta=1.0),
    Way("short contexts first", "short_first", DRIFT, "#CC79A7", "v"),
    Way("spectral, supports", "spectral", DATA, "#56B4E9", "D"),
    Way("spectral, whole vector", "spectral", WHOLE, "#E69F00", "P"),
    Way("moments, the $Q$ largest", "ranking", DATA),
    Way("moments, screened by a cut", "screening", DATA, "#000000", "X"),
)


@dataclass(frozen=True)
class Case:
    """The runs with one setting.

    Attributes:
        fields: its settings by name.
        samples: at every record [records].
        values: what was recorded by name [runs, records].
    """

    fields: dict[str, Any]
    samples: Values
    values: dict[str, Values]

    def shares(self, reading: str) -> tuple[Values, Values]:
        """Give whether every run has it, and its probability in theory, [runs, records]."""
        if reading == WHOLE:
            hits = self.values[WHOLE] >= HALF
            return hits.astype(float), (self.samples >= self.values[DENSE]).astype(float)
        return self.values[reading], self.values[THEORY[reading]]


@dataclass(frozen=True)
class Cost:
    """Samples that a way takes at one context length, at its best setting.

    Attributes:
        length: T.
        samples: with which the share of the runs has it.
        theory: the same in theory, at the settings that there are; NaN where there is none.
        resampled: in resamples of the runs.
        best: the settings.
    """

    length: int
    samples: float
    theory: float
    resampled: Values
    best: dict[str, Any]


def cases_of(dataset: xr.Dataset) -> list[Case]:
    """Read the cases of the study in their order.

    Raises:
        ValueError: the study does not vary the settings of a case together.
    """
    missing = [name for name in FIELDS if name not in dataset or dataset[name].ndim != 1]
    dims = {dataset[name].dims for name in FIELDS if name not in missing}
    if missing or len(dims) != 1:
        raise ValueError(f"the figure needs {', '.join(FIELDS)} to vary along one axis, a zip")
    ((along,),) = dims
    runs = dataset.stack(
        run=[name for name in dataset.dims if name not in {along, "step"}], create_index=False
    ).transpose(along, "run", "step")
    table = {name: runs[name].to_numpy().astype(float) for name in VARIABLES}
    cases = []
    for place in range(dataset.sizes[along]):
        own = {name: values[place] for name, values in table.items()}
        # A run that diverged has found nothing.
        own |= {name: np.nan_to_num(own[name]) for name in (DATA, DRIFT, WHOLE)}
        fields = {name: dataset[name].to_numpy()[place] for name in FIELDS}
        cases.append(Case(fields, own[SAMPLES][0], own))
    return cases


def costs_of(cases: Sequence[Case], way: Way) -> list[Cost]:
    """Give what a way takes at every context length that it was tried at."""
    told: dict[str, str | float] = {
        "method": way.method,
        "projector": way.projector,
        "batch_growth": way.growth,
        "theta": way.theta,
    }
    own = [case for case in cases if all(matches(case, *item) for item in told.items())]
    costs = []
    for length in sorted({int(case.fields["context_length"]) for case in own}):
        here = [case for case in own if case.fields["context_length"] == length]
        costs.append(cost_of(here, length, way.reading))
    return costs


def matches(case: Case, field: str, value: str | float) -> bool:
    """Tell whether a case has a setting, to single precision."""
    own = case.fields[field]
    return bool(own == value) if isinstance(value, str) else bool(np.isclose(float(own), value))


def cost_of(cases: Sequence[Case], length: int, reading: str) -> Cost:
    """Give the least samples over the settings of a context length."""
    found, theory, drawn = [], [], []
    for case in cases:
        hits, chances = case.shares(reading)
        found.append(first_at(hits.mean(axis=0), case.samples))
        theory.append(first_at(nanmean(chances, axis=0), case.samples))
        drawn.append(first_at(weights_of(len(hits)) @ hits, case.samples))
    best = int(np.argmin(found))
    fields = cases[best].fields
    # Theory is of constant rates from the paper's start.
    plain = np.isclose(float(fields["batch_growth"]), 1.0) and float(fields["theta"]) == 0.0
    return Cost(
        length,
        float(found[best]),
        float(np.min(theory)) if plain else np.nan,
        np.min(drawn, axis=0),
        fields,
    )


def weights_of(runs: int) -> Values:
    """Weights [resamples, runs] in resamples of the runs and one more that finds nothing."""
    picks = resampled_runs(runs, RESAMPLES)
    return np.stack([np.sum(picks == run, axis=1) for run in range(runs)], axis=1) / runs


def first_at(shares: Values, samples: Values) -> Values:
    """Samples [...] at which shares [..., records] reach that asked for; infinity for never."""
    reached = shares >= SHARE - 1e-9
    return np.where(reached.any(axis=-1), samples[np.argmax(reached, axis=-1)], np.inf)


def power_of(costs: Sequence[Cost]) -> tuple[Estimate, float]:
    """Fit powers of T: to what a way takes, with its interval over resamples, and to theory."""
    known = [cost for cost in costs if np.isfinite(cost.samples)]
    if len(known) < 2:
        return Estimate(np.nan, np.nan, np.nan), np.nan
    x = np.array([float(cost.length) for cost in known])
    value = float(slope(x, np.array([cost.samples for cost in known])))
    around = interval_of(slope(x, np.array([cost.resampled for cost in known]).T))
    theory = float(slope(x, np.array([cost.theory for cost in known])))
    return Estimate(value, *around), theory


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    cases = cases_of(dataset)
    shown = [(way, costs) for way in WAYS if (costs := costs_of(cases, way))]
    figure = Figure(figsize=(DOUBLE_COLUMN, 3.7))
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    drawn = [(way, costs) for way, costs in shown if way.marker]
    for place, (way, costs) in enumerate(drawn):
        draw_costs(left, way, costs, float(np.exp((place - (len(drawn) - 1) / 2) * SHIFT)))
    least = least_of(cases)
    left.plot(*least, color="black", linewidth=0.9, linestyle=":", gid="least")
    lengths = sorted({cost.length for _, costs in shown for cost in costs})
    left.set(xscale="log", yscale="log", xlabel="context length, $T$")
    left.set_ylabel(f"samples until {SHARE:.0%} of the runs\nhave the supports")
    left.set_xticks(lengths, [f"{length}" for length in lengths])
    left.xaxis.set_minor_locator(NullLocator())
    left.yaxis.set_minor_formatter(NullFormatter())
    draw_powers(right, shown)
    grey: dict[str, Any] = {"color": GREY, "linewidth": 1.0}
    entries = {
        "measured, 95%": Line2D([], [], **{**grey, "linewidth": 0.0}, marker="o", markersize=SIZE),
        "theory": Line2D([], [], **grey),
        "no method below (Fano)": Line2D([], [], color="black", linewidth=0.9, linestyle=":"),
    }
    figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=3)
    return figure


def draw_costs(axes: Axes, way: Way, costs: Sequence[Cost], shift: float) -> None:
    """Draw samples with their intervals, shifted aside, and theory as a line."""
    x = np.array([float(cost.length) for cost in costs])
    y = np.array([cost.samples for cost in costs])
    theory = np.array([cost.theory for cost in costs])
    ends = np.array([cost_interval(cost.resampled) for cost in costs])
    seen = np.isfinite(y)
    y, ends = np.where(seen, y, np.nan), np.where(np.isfinite(ends), ends, np.nan)
    ends = np.where(np.isnan(ends), y[:, None], ends)
    axes.vlines(
        x * shift, ends[:, 0], ends[:, 1], color=way.colour, linewidth=0.9, alpha=0.7, zorder=3
    )
    axes.plot(
        x * shift, y, way.marker, color=way.colour, markersize=SIZE, markeredgewidth=0, zorder=4,
        gid=f"costs {way.method} {way.projector} {way.reading}",
    )  # fmt: skip
    line = np.where(np.isfinite(theory), theory, np.nan)
    axes.plot(x, line, color=way.colour, linewidth=1.0, zorder=2)


def least_of(cases: Sequence[Case]) -> tuple[Values, Values]:
    """Give the context lengths, and the samples below which no method finds supports, medians."""
    lengths = sorted({int(case.fields["context_length"]) for case in cases})
    medians = [
        float(nanmedian([c.values[LEAST][:, 0] for c in cases if c.fields["context_length"] == n]))
        for n in lengths
    ]
    return np.array(lengths, float), np.array(medians)


def draw_powers(axes: Axes, shown: Sequence[tuple[Way, Sequence[Cost]]]) -> None:
    """Draw the fitted powers with their intervals, a way a row."""
    for row, (way, costs) in enumerate(shown):
        (power, low, high), theory = power_of(costs)
        if np.isfinite(power):
            ends = np.clip([low, high], *POWERS)
            axes.plot(ends, [row, row], color=way.colour, linewidth=1.0, zorder=2)
            if np.isinf(high):
                axes.plot(POWERS[1], row, ">", color=way.colour, markersize=3, clip_on=False)
            marker = way.marker or "o"
            axes.plot(
                power, row, marker, color=way.colour, markersize=SIZE, markeredgewidth=0, zorder=3
            )
        if np.isfinite(theory):
            axes.plot(theory, row, "|", color="black", markersize=7, markeredgewidth=0.9, zorder=4)
    axes.set_yticks(range(len(shown)), [way.label for way, _ in shown], fontsize=6.5)
    for label, (way, _) in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_color(way.colour if way.marker else "#444444")
    axes.set_ylim(len(shown) - 0.5, -0.5)
    for power in (0.0, 1.0, 2.0):
        axes.axvline(power, color="#BBBBBB", linewidth=0.6, zorder=0.5)
    axes.set(xlim=POWERS, xlabel="power of $T$ (black: theory)")
    axes.tick_params(axis="y", length=0)


# --------------------------------------------------------------------------------- numbers


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate samples, powers, schedules of batches, and false positives."""
    cases = cases_of(dataset)
    shown = [(way, costs) for way in WAYS if (costs := costs_of(cases, way))]
    least = dict(zip(*(values.tolist() for values in least_of(cases)), strict=True))
    rows, powers = [], []
    for way, costs in shown:
        label = named(way)
        for cost in costs:
            best = [cost.best["batch_size"], cost.best["rate"]]
            around = cost_interval(cost.resampled)
            over = cost.samples / least[float(cost.length)]
            rows.append([label, cost.length, cost.samples, *around, cost.theory, over, *best])
        power, theory = power_of(costs)
        known = [cost.length for cost in costs if np.isfinite(cost.samples)]
        lengths = f"{known[0]} to {known[-1]}" if known else "-"
        powers.append([label, lengths, *power, theory])
    runs = len(cases[0].values[DATA]) if cases else 0
    return [
        Table(
            f"Samples until {SHARE:.0%} of {runs} runs have the supports, at the best setting, "
            "with 95% intervals over tasks",
            ("way", "T", *ranged("samples"), "in theory", "over Fano", "batch size", "rate"),
            rows,
        ),
        Table("Powers of T", ("way", "T", *ranged("power"), "in theory"), powers),
        schedule_table(cases),
        false_positive_table(cases, float(str(setting(dataset, "false_positives", np.nan)))),
    ]


def named(way: Way) -> str:
    """Name a way in a table, where no other stands above it."""
    sign = {DRIFT: "sign by drift", DATA: "sign by the data", WHOLE: "whole vector"}[way.reading]
    more = [f"batches x {way.growth:g}"] * (way.growth != 1)
    more += [f"theta = {way.theta:g}"] * (way.theta != 0)
    more += ["printed"] * (way.projector == "paper")
    return ", ".join([way.method, *more, sign])


def schedule_table(cases: Sequence[Case]) -> Table:
    """Tabulate what growing and shrinking batches take, beside a constant size of the same sum."""
    rows: list[list[object]] = []
    for length in sorted({int(case.fields["context_length"]) for case in cases}):
        told: dict[str, str | float] = {
            "method": "gradient",
            "projector": "mu",
            "context_length": length,
            "theta": 0.0,
        }
        own = [case for case in cases if all(matches(case, *item) for item in told.items())]
        changing = [case for case in own if not matches(case, "batch_growth", 1.0)]
        for case in sorted(changing, key=lambda case: float(case.fields["batch_growth"])):
            size, growth = case.fields["batch_size"], float(case.fields["batch_growth"])
            rate = float(case.fields["rate"]) * (1 - 1 / growth) / np.log(growth)
            same = [
                other
                for other in own
                if matches(other, "batch_growth", 1.0)
                and other.fields["batch_size"] == size
                and np.isclose(float(other.fields["rate"]), rate, rtol=0.1)
            ]
            if same:
                ours, base = (cost_of([c], length, DRIFT) for c in (case, same[0]))
                with np.errstate(invalid="ignore"):
                    ratios = ours.resampled / base.resampled
                    ratio = np.divide(ours.samples, base.samples)
                around = cost_interval(ratios[~np.isnan(ratios)]) if ratios.size else Interval(0, 0)
                rows.append([length, growth, ours.samples, base.samples, ratio, *around])
    return Table(
        "Samples of batches that change over the run, over those of a constant size with the same "
        "sum of rates; sign by drift",
        ("T", "B grows by", "samples", "constant", *ranged("ratio")),
        rows,
    )


def false_positive_table(cases: Sequence[Case], expected: float) -> Table:
    """Tabulate false positives of the cut in a look, a mean over runs and looks."""
    rows: list[list[object]] = []
    for case in cases:
        late = case.samples >= FIRST_LOOK
        if case.fields["method"] == "screening" and late.any():
            by_run = finite_of(case.values[WRONG][:, late].mean(axis=1))
            drawn = by_run[resampled_runs(by_run.size, RESAMPLES, lost=0)].mean(axis=1)
            length = int(case.fields["context_length"])
            rows.append([length, by_run.mean(), *interval_of(drawn), expected])
    return Table(
        f"False positives of the cut in a look, from {FIRST_LOOK} samples on",
        ("T", *ranged("false positives"), "in theory"),
        rows,
    )


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("cheaper", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
