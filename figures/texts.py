"""Bits a symbol against the length of the context on real sequences, by every model of a fit.

The dataset comes from `scbjax run texts` (not in the paper); what is expected is in the text of
`scbjax/experiments/texts.py`. Bits are those of held-out symbols less those of the bigram of the
same block, so that blocks that are hard for all do not hide what a model adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr
from _data import Values, along_arms, tidy
from _estimates import Estimate, quantile_interval
from _numbers import Table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import nanmedian
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STUDY: Final = "texts"
VARIABLES: Final = (
    "held_out_bits",
    "learned_bits",
    "expected_gap",
    "main_lag",
    "main_weight",
    "unigram_bits",
    "bigram_bits",
    "trigram_bits",
)
TITLES: Final = {
    "english": "English letters",
    "temperatures": "hourly temperatures",
    "brca1": "bases of BRCA1",
}
# By model and heads.
LOOKS: Final = {
    ("mtd", 1): ("MTD", "#0072B2", "o"),
    ("mtd", 2): ("MTD, 2 heads", "#56B4E9", "o"),
    ("mtdg", 1): ("MTDg", "#E69F00", "s"),
    ("scb", 1): ("SCB", "#D55E00", "^"),
    ("scb", 2): ("SCB, 2 heads", "#CC79A7", "v"),
    ("scb", 4): ("SCB, 4 heads", "#009E73", "D"),
}


@dataclass(frozen=True)
class Line:
    """A model on one of the sequences, by the length of its contexts.

    Attributes:
        data: the sequence.
        model: its kind and heads.
        contexts: d, in order.
        bits: held out, [run, context].
        learned: of what was learned from, the same.
        gap: their difference by theory, the same.
        bigram: held-out bits of it, the same.
        trigram: the same of the trigram.
        change: of the held-out bits since the record before the last one, the same.
        lag: of the largest weight, the same.
        weight: the largest.
    """

    data: str
    model: tuple[str, int]
    contexts: Values
    bits: Values
    learned: Values
    gap: Values
    bigram: Values
    trigram: Values
    change: Values
    lag: Values
    weight: Values


def lines_of(dataset: xr.Dataset) -> list[Line]:
    """Read the lines of the study, as they stand at the last step."""
    records = tidy(dataset)
    data = records.isel(step=-1)
    data["change"] = data["held_out_bits"] - records["held_out_bits"].isel(step=-2)
    kinds = [along_arms(data, name) for name in ("data", "model", "heads", "context_length")]
    rows = list(zip(*kinds, strict=True))

    def of(name: str, arms: list[int]) -> Values:
        values: Values = data[name].isel(arm=arms).transpose("run", "arm").to_numpy()
        return values

    lines = []
    for key in dict.fromkeys(row[:3] for row in rows):
        arms = [arm for arm, row in enumerate(rows) if row[:3] == key]
        arms.sort(key=lambda arm: int(rows[arm][3]))
        lines.append(
            Line(
                str(key[0]), (str(key[1]), int(key[2])),
                np.array([int(rows[arm][3]) for arm in arms]),
                of("held_out_bits", arms), of("learned_bits", arms), of("expected_gap", arms),
                of("bigram_bits", arms), of("trigram_bits", arms), of("change", arms),
                of("main_lag", arms), of("main_weight", arms),
            )
        )  # fmt: skip
    return lines


def plot(dataset: xr.Dataset) -> Figure:
    """Draw a panel for each sequence."""
    lines = lines_of(dataset)
    names = list(dict.fromkeys(line.data for line in lines))
    figure = Figure(figsize=(DOUBLE_COLUMN, 3.1), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        draw_panel(axes, [line for line in lines if line.data == name])
    panels[0].set_ylabel("held-out bits a symbol\nless those of the bigram")
    handles = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    return figure


def median_of(values: Values) -> Estimate:
    """Give the median over blocks with its interval."""
    return Estimate(float(nanmedian(values)), *quantile_interval(values))


def draw_panel(axes: Axes, lines: list[Line]) -> None:
    """Draw what models need beside the bigram of the same blocks, with 95% intervals."""
    for line in lines:
        label, colour, marker = LOOKS[line.model]
        saved = line.bits - line.bigram
        middle, low, high = np.array([median_of(each) for each in saved.T]).T
        ends = np.nan_to_num([middle - low, high - middle], posinf=0.0)  # of fewer than six blocks
        axes.errorbar(
            line.contexts, middle, ends, color=colour, marker=marker,
            markersize=3.5, linewidth=1.2, elinewidth=0.8, label=label,
        )  # fmt: skip
        told = nanmedian(line.learned + line.gap - line.bigram, axis=0)
        axes.plot(
            line.contexts, told, ":", color=colour, linewidth=1.0,
        )  # fmt: skip
    axes.plot([], [], ":", color="black", linewidth=1.0, label="learned bits and $k/(n\\ln 2)$")
    first = lines[0]
    axes.axhline(0.0, color="black", linewidth=0.8)
    trigram = float(nanmedian(first.trigram - first.bigram))
    axes.axhline(trigram, color="black", linewidth=0.8, linestyle="--", label="trigram")
    found = [median_of(each) for line in lines for each in (line.bits - line.bigram).T]
    lowest = min(trigram, *(each.low if np.isfinite(each.low) else each.value for each in found))
    highest = max(0.0, *(each.value for each in found))
    room = 0.12 * (highest - lowest)
    # Theory leaves at the top where it has models overfit, and so do some intervals.
    axes.set_ylim(lowest - room, highest + room)
    axes.set_title(f"{TITLES[first.data]}\n(bigram {nanmedian(first.bigram):.2f} bits)")
    axes.set_xscale("log", base=2)
    ticks = [d for d in (1, 2, 4, 8, 16, 32, 64) if first.contexts[0] <= d <= first.contexts[-1]]
    axes.set_xticks(ticks, [str(d) for d in ticks])
    axes.set_xlabel("length of the context $d$")


def tables(dataset: xr.Dataset) -> list[Table]:
    """Give bits by context, and what stands beside them."""
    lines = lines_of(dataset)
    rows, beside = [], []
    for line in lines:
        label = LOOKS[line.model][0]
        for place, context in enumerate(line.contexts):
            saved = median_of((line.bits - line.bigram)[:, place])
            gap = (line.bits - line.learned)[:, place]
            lag = line.lag[:, place]
            often, count = np.unique(lag, return_counts=True)
            rows.append(
                (
                    line.data, label, int(context), float(nanmedian(line.bits[:, place])),
                    *saved, float(nanmedian(gap)),
                    float(nanmedian(line.gap[:, place])),
                    float(np.nanmax(np.abs(line.change[:, place]))), int(often[np.argmax(count)]),
                    float(nanmedian(line.weight[:, place])),
                )
            )  # fmt: skip
    for name in dict.fromkeys(line.data for line in lines):
        line = next(each for each in lines if each.data == name)
        trigram = median_of((line.trigram - line.bigram)[:, 0])
        beside.append((name, float(nanmedian(line.bigram)), *trigram))
    return [
        Table(
            "Held-out bits a symbol, medians over blocks; less the bigram's of the same block, "
            "with 95% intervals; gap to the learned ones, and k / (n ln 2); largest change of "
            "held-out bits since the record before",
            ("sequence", "model", "d", "bits", *ranged("less the bigram"), "gap", "gap by theory",
             "largest change", "main lag", "weight"),
            rows,
        ),
        Table(
            "N-grams of the same blocks",
            ("sequence", "bigram", *ranged("trigram less it")),
            beside,
        ),
    ]  # fmt: skip


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("texts", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, VARIABLES, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
