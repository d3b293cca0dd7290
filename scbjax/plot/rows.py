"""Variables without a step: a row for each arm, of a search at the best value tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from scbjax.plot.arranging import PROBE, Arm, Data, Places, Values, settings_of, table_of
from scbjax.plot.labels import plain, titled, worded
from scbjax.plot.style import BAND, COLOURS, LOG_RANGE, ROW, WIDTH
from scbjax.plot.words import spread_in_words, tell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_ROWS: Final = 40
"""More arms than this are left out of a figure with a row for each."""


def draw_rows(data: Data, names: Sequence[str]) -> Figure:
    """Variables without a step: a row for each arm, with the median and 80% of its runs."""
    from matplotlib.figure import Figure

    probes = _best_probes(data, names)
    arms = data.arms[:MAX_ROWS]
    labels = [arm.label + _tried(data, arm, probes) for arm in arms]
    figure = Figure(figsize=(WIDTH, 1.0 + ROW * (len(arms) + 2)), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axes, name in zip(panels, names, strict=True):
        for place, arm in enumerate(arms):
            _draw_row(axes, place, _at_probe(data, name, arm, probes))
        axes.set_xlabel(titled(data.dataset, name))
        axes.set_ylim(len(arms) - 0.5, -0.5)
        _limit_row(axes)
    panels[0].set_yticks(range(len(arms)), labels)
    more = len(data.arms) - len(arms)
    spread = spread_in_words(data, data.arms, None, rows=True)
    if probes is not None:
        spread += "; at the best of the values tried"
    if more:
        spread += f"; the first {len(arms)} of {len(data.arms)} arms"
    tell(figure, data, [], spread=spread)
    return figure


def _draw_row(axes: Axes, place: int, values: Values) -> None:
    """A dot at the median, a bar over 80%, and in words how many runs are at infinity."""
    finite = values[np.isfinite(values)]
    if not len(values):
        _note(axes, place, "all diverged")
        return
    # Of the runs that came to it: percentiles of infinity are none.
    if len(finite):
        low, median, high = np.percentile(finite, BAND)
        axes.plot(median, place, "o", color=COLOURS[0], markersize=3.5, gid=f"median {place}")
        if len(finite) > 1:
            axes.hlines(place, low, high, color=COLOURS[0], linewidth=1.0)
    if len(finite) < len(values):
        _note(axes, place, f"{len(values) - len(finite)} of {len(values)} never")


def _note(axes: Axes, place: int, text: str) -> None:
    axes.text(
        1.0, place, text, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=7
    )


def _limit_row(axes: Axes) -> None:
    """Makes the x axis logarithmic where the medians span much."""
    drawn = [np.asarray(line.get_xdata(), float) for line in axes.lines]
    values = np.concatenate(drawn) if drawn else np.empty(0)
    if values.size and values.min() > 0 and values.max() / values.min() > LOG_RANGE:
        axes.set_xscale("log")


def _best_probes(data: Data, names: Sequence[str]) -> Places | None:
    """For each arm of a search, the place of the value with which its share needs the least.

    It is -1 where too few runs came to the goal with any value.
    """
    goal = names[0]
    if PROBE not in data.dataset[goal].dims:
        return None
    share = float(settings_of(data.dataset).get("search.share", 0.5))
    best = []
    for arm in data.arms:
        runs = np.sort(data.values(goal, arm), axis=0)
        needed = max(0, int(np.ceil(share * len(runs) - 1e-9)) - 1)
        reached = len(runs) > 0 and np.isfinite(runs[needed]).any()
        best.append(int(np.argmin(runs[needed])) if reached else -1)
    return np.array(best)


def _at_probe(data: Data, name: str, arm: Arm, probes: Places | None) -> Values:
    values = data.values(name, arm)
    if probes is None or PROBE not in data.dataset[name].dims:
        return values
    chosen: Values = values[:, int(probes[arm.index])]
    return chosen


def _tried(data: Data, arm: Arm, probes: Places | None) -> str:
    """The value of the searched field that is best for an arm, in words."""
    if probes is None or probes[arm.index] < 0:
        return ""
    seeds = set(data.seeds)
    for name, item in data.dataset.data_vars.items():
        if PROBE in item.dims and not seeds & set(item.dims):
            values = table_of(data.dataset, str(name), list(arm.place), ())[arm.index, 0]
            value = values[int(probes[arm.index])]
            symbol = item.attrs.get("symbol", plain(str(name)))
            return f"{', ' * bool(arm.label)}{symbol} = {worded(float(f'{value:.3g}'))}"
    return ""
