"""Which method of `scbjax fit` finds the lags of a chain, how often (not in the paper).

The dataset comes from `scbjax run lags`; what is expected is in the text of
`scbjax/experiments/lags.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr
from _data import Values, along_arms, tidy
from _estimates import share_interval
from _numbers import Table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STUDY: Final = "lags"
METHODS: Final = {
    "forward": ("forward", "#0072B2", "o"),
    "l1": ("$l_1$", "#E69F00", "s"),
    "screening": ("screening", "#D55E00", "^"),
}
VARIABLES: Final = (
    "samples",
    *(f"{method}_{what}" for method in METHODS for what in ("false", "missed")),
    "false_by_bic",
)
MODELS: Final = {"mtd": "MTD", "mtdg": "MTDg", "scb": "SCB"}
# Chains with lags 1 and 5 of 100 whose lags forward stepwise selection of the R package hdMTD
# found, of 100: by its documentation, for chains and a statistic of its own.
PUBLISHED: Final = {1000: 26, 2000: 67, 5000: 97, 10000: 100}


@dataclass(frozen=True)
class Case:
    """Chains of one kind.

    Attributes:
        model: what they are drawn from.
        lags: the true ones.
        samples: n by step.
        false: false lags by method, [run, step].
        missed: true ones that are not taken, the same.
        expected: the least chance that BIC takes no false one, by step.
    """

    model: str
    lags: str
    samples: Values
    false: dict[str, Values]
    missed: dict[str, Values]
    expected: Values

    def exact(self, method: str) -> Values:
        """Runs by step that have the true lags and no others."""
        exact: Values = (self.false[method] == 0) & (self.missed[method] == 0)
        return exact


def cases_of(dataset: xr.Dataset) -> list[Case]:
    """Read the kinds of chains of the study; the first record has seen no symbols."""
    data = tidy(dataset).isel(step=slice(1, None))

    def of(arm: int, what: str) -> dict[str, Values]:
        named = {method: data[f"{method}_{what}"].isel(arm=arm) for method in METHODS}
        return {name: array.transpose("run", "step").to_numpy() for name, array in named.items()}

    kinds = zip(along_arms(data, "model"), along_arms(data, "lags"), strict=True)
    return [
        Case(
            model=str(model),
            lags=str(lags),
            samples=data["samples"].isel(arm=arm, run=0).to_numpy(),
            false=of(arm, "false"),
            missed=of(arm, "missed"),
            expected=1.0 - data["false_by_bic"].isel(arm=arm, run=0).to_numpy(),
        )
        for arm, (model, lags) in enumerate(kinds)
    ]


def plot(dataset: xr.Dataset) -> Figure:
    """Draw the share of chains whose lags are found, against the number of symbols."""
    cases = cases_of(dataset)
    lags = list(dict.fromkeys(case.lags for case in cases))
    models = list(dict.fromkeys(case.model for case in cases))
    figure = Figure(figsize=(DOUBLE_COLUMN, 1.9 * len(lags) + 0.7), layout="constrained")
    panels = figure.subplots(len(lags), len(models), squeeze=False, sharex=True, sharey=True)
    for case in cases:
        axes = panels[lags.index(case.lags), models.index(case.model)]
        draw_case(axes, case)
        if case.lags == lags[0]:
            axes.set_title(f"{MODELS[case.model]}")
        if case.lags == lags[-1]:
            axes.set_xlabel("symbols $n$")
        if case.model == models[0]:
            named = case.lags.replace(",", ", ")
            axes.set_ylabel(f"lags {named}\nchains found")
    handles = {
        label: handle
        for axes in panels.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3)
    return figure


def draw_case(axes: Axes, case: Case) -> None:
    """Draw the share of chains with exactly the true lags, by method, with 95% intervals."""
    for place, (method, (label, colour, marker)) in enumerate(METHODS.items()):
        exact = case.exact(method)
        share = exact.mean(axis=0)
        ends = np.array([share_interval(float(e.sum()), e.size) for e in exact.T])
        shifted = case.samples * (1 + 0.02 * (place - 1))
        axes.errorbar(
            shifted, share, np.abs(ends.T - share), color=colour, marker=marker, markersize=3.5,
            linewidth=1.2, elinewidth=0.8, label=label,
        )  # fmt: skip
    axes.plot(
        case.samples, case.expected, ":", color="black", linewidth=1.2,
        label="no false lag by BIC, least chance",
    )  # fmt: skip
    if case.lags == "1,5" and case.model == "mtdg":
        axes.plot(
            list(PUBLISHED), [each / 100 for each in PUBLISHED.values()], "*", color="#CC79A7",
            markersize=8, label="hdMTD, as published", linestyle="none",
        )  # fmt: skip
    axes.set(ylim=(-0.03, 1.03), xscale="log")
    ticks = [n for n in (1000, 2000, 5000, 10000) if n <= case.samples.max()]
    axes.set_xticks(ticks, [f"{n // 1000}k" for n in ticks])
    axes.minorticks_off()


def tables(dataset: xr.Dataset) -> list[Table]:
    """Give shares of chains that are found, and mean numbers of wrong lags."""
    rows = []
    for case in cases_of(dataset):
        for step, count in enumerate(case.samples):
            for method in METHODS:
                exact = case.exact(method)[:, step]
                rows.append(
                    (
                        case.lags, case.model, method, int(count), float(exact.mean()),
                        *share_interval(float(exact.sum()), exact.size),
                        float(case.false[method][:, step].mean()),
                        float(case.missed[method][:, step].mean()),
                        float(case.expected[step]),
                    )
                )  # fmt: skip
    return [
        Table(
            "Share of chains with exactly the true lags, 95% intervals of Wilson; mean numbers of "
            "false and of missed lags; least chance that BIC takes no false one",
            ("lags", "model", "method", "n", *ranged("found"), "false", "missed", "no false"),
            rows,
        )
    ]


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("lags", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
