"""Variables against samples: a panel each, or a row each if arms are spread over columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from scbjax.plot.arranging import COUNTED, Arm, Data, Places, Values, horizontal_of
from scbjax.plot.labels import labels_of, plain, points_of, telling, titled
from scbjax.plot.style import BAND, HEIGHT, LOG_RANGE, WIDTH, palette_of
from scbjax.plot.words import MAX_BANDS, MAX_BARS, evenly, spread_in_words, tell

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_TOLD: Final = 6
"""More arms than this in a panel are spread over columns, if an axis is short enough for that."""
MAX_COLUMNS: Final = 4
MAX_DRAWN: Final = 100
"""More lines than this hide each other; some are drawn then, evenly chosen."""
_THOUSANDS: Final = 1e4
_BARS: Final = 24  # of all arms, along their lines


def draw_curves(data: Data, names: Sequence[str]) -> Figure:
    """Variables against samples: a panel each, or a row each if arms are spread over columns."""
    from matplotlib.figure import Figure

    axis = _spread_axis(data, names)
    arms = evenly(_looks(data, axis), MAX_DRAWN)
    columns = min(len(names), 2) if axis is None else data.dataset.sizes[axis]
    rows = -(-len(names) // columns) if axis is None else len(names)
    height = HEIGHT * rows + (0.8 if rows * columns > 1 else 1.4)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=False if axis is None else "row")
    for axes in grid.flat[len(names) if axis is None else grid.size :]:
        axes.set_axis_off()
    for place, name in enumerate(names):
        row = [grid.flat[place]] if axis is None else grid[place]
        drawn: list[Values] = []
        for column, axes in enumerate(row):
            own = [arm for arm in arms if axis is None or arm.place[axis] == column]
            drawn += _panel(axes, data, name, own)
        # Panels of a row share their axis.
        _limit(row[0], drawn)
        row[0].set_ylabel(titled(data.dataset, name))
    if axis is not None:
        for column, axes in enumerate(grid[0]):
            axes.set_title(_facet(data.dataset, axis, column))
    _name_samples(grid, data, arms)
    spread = spread_in_words(data, arms, axis)
    if len(arms) < len(data.arms):
        spread += f"; {len(arms)} of {len(data.arms)} arms are drawn"
    for name in names:
        if absent := _absent(data, name):
            what = data.dataset[name].attrs.get("long_name", name.replace("_", " "))
            spread += f"; {plain(str(what))} has one line for every {' and '.join(absent)}"
    if horizontal_of(data, arms[0])[1] == COUNTED:
        spread += f"; {COUNTED}"
    tell(figure, data, arms, spread=spread)
    return figure


def _spread_axis(data: Data, names: Sequence[str]) -> str | None:
    """The axis whose values are columns, so that few arms share a panel; `None` for none.

    All variables have it: one without it would be the same in every column.
    """
    if len(data.arms) <= MAX_TOLD:
        return None
    sizes = {axis: data.dataset.sizes[axis] for axis in data.arms[0].place}
    fit = {
        axis: size
        for axis, size in sizes.items()
        if not any(axis in _absent(data, name) for name in names)
        if 1 < size <= MAX_COLUMNS and 1 < len(data.arms) // size <= MAX_TOLD
    }
    return max(fit, key=fit.__getitem__, default=None)


def _looks(data: Data, axis: str | None) -> list[Arm]:
    """The arms with colours, the same ones in every column, and labels without the column's."""
    told = {
        name: telling(data.dataset, name) if name != axis else [] for name in data.arms[0].place
    }
    labels = labels_of(data.dataset, told, [arm.place for arm in data.arms])
    places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    colours, dashes = palette_of(len(places))
    return [
        replace(arm, label=label, colour=colours[places[label]], dashes=dashes[places[label]])
        for arm, label in zip(data.arms, labels, strict=True)
    ]


def _absent(data: Data, name: str) -> list[str]:
    """The axes of arms that a variable does not have, and others do."""
    dims = data.dataset[name].dims
    axes = data.arms[0].place
    return [axis for axis in axes if axis not in dims and data.dataset.sizes[axis] > 1]


def _told_apart(data: Data, name: str, arms: Sequence[Arm]) -> set[int]:
    """The arms that a variable tells apart, by index: of those that it has one line for, one.

    It is one of which most runs are left. Arms that use samples at different rates are told apart
    by any variable.
    """
    absent = _absent(data, name)
    groups: dict[object, list[Arm]] = {}
    for arm in arms:
        place = tuple(index for axis, index in arm.place.items() if axis not in absent)
        groups.setdefault((place, *horizontal_of(data, arm)[0]), []).append(arm)
    return {
        max(group, key=lambda arm: len(data.values(name, arm))).index for group in groups.values()
    }


def _panel(axes: Axes, data: Data, name: str, arms: Sequence[Arm]) -> list[Values]:
    """Draws a variable of some arms; returns the medians and the edges of the bands."""
    drawn: list[Values] = []
    apart = _told_apart(data, name, arms)
    for place, arm in enumerate(arms):
        values = data.values(name, arm)
        if not len(values) or arm.index not in apart:
            continue
        x, _ = horizontal_of(data, arm)
        drawn.append(np.percentile(values, BAND, axis=0))
        low, median, high = drawn[-1]
        axes.plot(
            x, median, color=arm.colour, linestyle=arm.dashes, zorder=4, gid=f"median {arm.index}"
        )
        if len(values) > 1 and len(arms) <= MAX_BANDS:
            area = axes.fill_between(x, low, high, color=arm.colour, alpha=0.2, linewidth=0)
            area.set_gid(f"band {arm.index}")
        elif len(values) > 1 and len(arms) <= MAX_BARS:
            here = _bar_places(len(x), place, len(arms))
            bars = axes.vlines(x[here], low[here], high[here], color=arm.colour, linewidth=0.9)
            bars.set_gid(f"bars {arm.index}")
    if not drawn:
        axes.text(0.5, 0.5, "all runs diverged", transform=axes.transAxes, ha="center")
        axes.set(xlim=(0, max(horizontal_of(data, arm)[0][-1] for arm in arms)), yticks=[])
    return drawn


def _bar_places(steps: int, place: int, arms: int) -> Places:
    """The records at which an arm has bars: those of the arms stand side by side, none at 0."""
    each = max(2, _BARS // arms)
    shares = (np.arange(each) + (place + 1) / arms) / each
    return np.unique(np.round(shares * (steps - 1)).astype(int))


def _limit(axes: Axes, drawn: Sequence[Values]) -> None:
    """Makes the y axis logarithmic where what is drawn is positive and spans much."""
    from matplotlib.ticker import LogLocator, NullFormatter

    values = np.concatenate([np.ravel(item) for item in drawn]) if drawn else np.empty(0)
    positive = values[values > np.finfo(np.float32).eps]
    if not positive.size or values.min() < 0 or positive.max() / positive.min() < LOG_RANGE:
        return
    low, high = 0.7 * float(positive.min()), 1.4 * float(positive.max())
    axes.set(yscale="log", ylim=(low, high))
    wide = high / low > 300  # labels at 1, 2 and 5 of more decades would touch
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _facet(dataset: xarray.Dataset, axis: str, column: int) -> str:
    return points_of(dataset, telling(dataset, axis))[column]


def _name_samples(grid: npt.NDArray[Any], data: Data, arms: Sequence[Arm]) -> None:
    horizontal = [horizontal_of(data, arm) for arm in arms]
    label = horizontal[0][1].partition(",")[0]
    if label == "samples" and max(x[-1] for x, _ in horizontal) >= _THOUSANDS:
        label = "thousand samples"
        for axes in grid.flat:
            axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}")
    for column in grid.T:
        [axes for axes in column if axes.axison][-1].set_xlabel(label)
