"""A default figure for the dataset of any study.

What was recorded against samples, the distances to the truth first: an arm (a combination of the
axes that are not seeds) has a colour, its line is the median over seeds, and a band or bars hold
80% of them. Runs that diverged are left out, and counted in words. A study with a story to tell
deserves a script of its own in ``figures/``; this one is for a first look.

matplotlib and xarray are imported when a function is called.
"""

from __future__ import annotations

import itertools
import json
import os
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from scbjax.base import StudyError
from scbjax.sweep.study.fields import SEED_NAMES

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = npt.NDArray[np.float64]
Places = npt.NDArray[np.int_]

DISTANCES: Final = (
    "value_distance",
    "attention_distance",
    "rounded_value_distance",
    "rounded_attention_distance",
)
"""What is drawn where it was recorded; otherwise the first few of the other records are."""
SAMPLES: Final = "samples"
DIVERGED: Final = "diverged_at"
MAX_PANELS: Final = 4
MAX_TOLD: Final = 6
"""More arms than this in a panel are spread over columns, if an axis is short enough for that."""
MAX_COLUMNS: Final = 4
MAX_BANDS: Final = 2
"""More bands than this in a panel blend into each other; bars side by side do not."""
MAX_BARS: Final = 12
MAX_NAMED: Final = 12
"""More arms than this are named in part: a legend is no place for a table."""
MAX_DRAWN: Final = 100
"""More lines than this hide each other; some are drawn then, evenly chosen."""
MAX_ROWS: Final = 40
"""More arms than this are left out of a figure with a row for each."""
BAND: Final = (10.0, 50.0, 90.0)

_LAST: Final = frozenset({"samples", "stage", "flipped"})
"""Drawn only where nothing else was recorded."""
_CONSTANTS: Final = frozenset(
    {"transition_signal", "pattern_signal", "stationary_norm", "diverged_at"}
)
_MATRICES: Final = frozenset({"token_out", "token_in", "position", "query", "snapshot"})
_SEEDS: Final = SEED_NAMES
_PROBE: Final = "probe"
_WIDTH: Final = 7.0  # inches, two columns of a journal
_HEIGHT: Final = 2.2  # of a row of panels
_ROW: Final = 0.17  # of a line of text
_LOG_RANGE: Final = 8.0  # from the least to the largest, what is positive gets a logarithmic axis
_THOUSANDS: Final = 1e4
_COUNTED: Final = "samples, as iterations times batch size"
_SMALL: Final = 1e-3
_WRAPPED: Final = 115  # characters of a line over the whole width
_WRAPPED_LABEL: Final = 34
_MOST_COUNTED: Final = 3  # arms whose diverged runs are counted one by one
_BARS: Final = 24  # of all arms, along their lines

# Colours of Okabe & Ito, and line styles that tell them apart in print.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
_DASHES: Final[tuple[Any, ...]] = ("-", (0, (4, 1.2)), (0, (4, 1, 1, 1)), (0, (1, 1)))
_STYLE: Final[Mapping[str, Any]] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.hashsalt": "scbjax",
}
# Nothing that changes while the picture does not: no date, no version.
_METADATA: Final[Mapping[str, Mapping[str, None]]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".svg": {"Date": None, "Creator": None},
}


@dataclass(frozen=True)
class _Arm:
    """One combination of the axes that are not seeds.

    Attributes:
        index: its place among all arms.
        place: its place along each axis.
        label: what sets it apart, and its look.
    """

    index: int
    place: Mapping[str, int]
    label: str
    colour: Any
    dashes: Any


@dataclass(frozen=True)
class _Data:
    """A dataset, arranged.

    Attributes:
        dataset: as it was given.
        arms: the arms.
        seeds: the dimensions of seeds.
        tables: what is drawn, and the samples if they were recorded, [arms, runs, ...].
        left_out: which runs diverged, [arms, runs].
    """

    dataset: xarray.Dataset
    arms: tuple[_Arm, ...]
    seeds: tuple[str, ...]
    tables: Mapping[str, Values]
    left_out: npt.NDArray[np.bool_]

    @property
    def runs(self) -> int:
        """How many runs an arm has."""
        return int(self.left_out.shape[1])

    def values(self, name: str, arm: _Arm) -> Values:
        """A variable of the runs of an arm that did not diverge, [runs, ...]."""
        kept: Values = self.tables[name][arm.index][~self.left_out[arm.index]]
        return kept


def plot_dataset(
    dataset: xarray.Dataset | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    variables: Sequence[str] | None = None,
) -> Figure:
    """Draws a default figure of the dataset of any study.

    Each panel has one variable, against the samples that were used (where `samples` was not
    recorded: iterations times batch size). Lines are medians over seeds; up to two arms have bands
    from the 10th to the 90th percentile, up to twelve have bars of that length. Many arms are
    spread over columns where one of the axes is short enough. What has no records over time, such
    as the dataset of a search, is drawn with a row for each arm; of a search, at the best value
    tried.

    Args:
        dataset: a dataset that the engine wrote, or its path.
        path: where the figure is written, if it is to be; the suffix says the format.
        variables: what is drawn, at most four; the distances to the truth if left out or, where
            none was recorded, the first few of what was.

    Returns:
        The figure.

    Raises:
        StudyError: the dataset can't be read, has nothing to draw or lacks a variable, or the
            file can't be written.
    """
    import matplotlib.style

    if isinstance(dataset, str | os.PathLike):
        from scbjax.sweep.results.dataset import read_dataset

        dataset = read_dataset(Path(dataset), matrices=False)
    names = _chosen(dataset, variables)
    data = _arranged(dataset, names)
    with matplotlib.style.context(["default", dict(_STYLE)], after_reset=True):
        timed = "step" in dataset[names[0]].dims
        figure = _curves(data, names) if timed else _rows(data, names)
        if path is not None:
            _save(figure, Path(path))
    return figure


# ---------------------------------------------------------------------------- reading


def _chosen(dataset: xarray.Dataset, variables: Sequence[str] | None) -> list[str]:
    """The variables that are drawn: all of them along the step, or none."""
    if variables is not None:
        return _checked(dataset, variables)
    usable = [str(name) for name in dataset.data_vars if _is_drawable(dataset, str(name))]
    timed = [name for name in usable if "step" in dataset[name].dims]
    others = [
        name
        for name in usable
        # What a search tried has no seeds: its runs are what is drawn.
        if _PROBE not in dataset[name].dims or set(dataset[name].dims) & set(_seeds(dataset))
    ]
    choices: tuple[list[str], ...] = (
        [name for name in DISTANCES if name in timed],
        [name for name in timed if name not in _LAST],
        timed,
        [name for name in others if name.removeprefix("drawn_") not in _CONSTANTS],
        [name for name in others if name != "diverged_at"],
    )
    for names in choices:
        if names:
            return names[:MAX_PANELS]
    raise StudyError("the dataset has nothing to draw: no variable is a number for each run")


def _checked(dataset: xarray.Dataset, variables: Sequence[str]) -> list[str]:
    if isinstance(variables, str):
        raise StudyError(f"variables must be a sequence of names, got {variables!r}")
    names = list(dict.fromkeys(variables))
    if not 1 <= len(names) <= MAX_PANELS:
        raise StudyError(f"variables must be 1 to {MAX_PANELS} names, got {len(names)}")
    for name in names:
        if name not in dataset.data_vars:
            known = ", ".join(map(str, dataset.data_vars))
            raise StudyError(f"the dataset does not hold {name!r} (it holds {known})")
        if not _is_drawable(dataset, name):
            raise StudyError(f"{name} can't be drawn: it is not a number for each run")
    if len({"step" in dataset[name].dims for name in names}) > 1:
        raise StudyError(f"{', '.join(names)} can't be drawn together: not all are along the step")
    return names


def _is_drawable(dataset: xarray.Dataset, name: str) -> bool:
    return dataset[name].dtype.kind in "fiub" and not _MATRICES & set(dataset[name].dims)


def _axes(dataset: xarray.Dataset) -> list[str]:
    """The study's axes, in its order."""
    return [str(name) for name in dataset.dims if name not in {"step", _PROBE, *_MATRICES}]


def _seeds(dataset: xarray.Dataset) -> list[str]:
    return [name for name in _axes(dataset) if set(_fields(dataset, name)) <= _SEEDS]


def _fields(dataset: xarray.Dataset, axis: str) -> list[str]:
    """The fields that an axis varies: its own name or, for a zip, the coordinates along it."""
    return [str(name) for name, item in dataset.coords.items() if item.dims == (axis,)] or [axis]


def _arranged(dataset: xarray.Dataset, names: Sequence[str]) -> _Data:
    seeds = tuple(_seeds(dataset))
    axes = [axis for axis in _axes(dataset) if axis not in seeds]
    places = [
        dict(zip(axes, place, strict=True))
        for place in itertools.product(*(range(dataset.sizes[axis]) for axis in axes))
    ]
    told = {axis: _told(dataset, axis) for axis in axes}
    arms = tuple(
        _Arm(index, place, label, None, None)
        for index, (place, label) in enumerate(
            zip(places, _labels(dataset, told, places), strict=True)
        )
    )
    also = [name for name in (SAMPLES, DIVERGED) if name in dataset and name not in names]
    tables = {name: _table(dataset, name, axes, seeds) for name in (*names, *also)}
    return _Data(dataset, arms, seeds, tables, _diverged(dataset, names, tables))


def _told(dataset: xarray.Dataset, axis: str) -> list[str]:
    """As few fields of an axis as tell its points apart, the first ones of a zip before others."""
    told = _fields(dataset, axis)
    for name in reversed(told):
        fewer = [other for other in told if other != name]
        columns = zip(*(_column(dataset, other) for other in fewer), strict=True)
        if fewer and len(set(columns)) == dataset.sizes[axis]:
            told = fewer
    return told


def _column(dataset: xarray.Dataset, field: str) -> list[Any]:
    """The values of a field along its axis; the places where the dataset names none."""
    if field not in dataset.coords:
        return list(range(dataset.sizes[field]))
    values: list[Any] = dataset[field].to_numpy().tolist()
    return values


def _labels(
    dataset: xarray.Dataset,
    told: Mapping[str, Sequence[str]],
    places: Sequence[Mapping[str, int]],
) -> list[str]:
    """Labels of arms: what is told of each axis that has more than one point."""
    words = {
        axis: _points(dataset, fields)
        for axis, fields in told.items()
        if fields and dataset.sizes[axis] > 1
    }
    return [", ".join(words[axis][place[axis]] for axis in words) for place in places]


def _points(dataset: xarray.Dataset, fields: Sequence[str]) -> list[str]:
    """The points of an axis in words."""
    columns = [
        [_setting(dataset, field, value) for value in _column(dataset, field)] for field in fields
    ]
    return [", ".join(row) for row in zip(*columns, strict=True)]


def _setting(dataset: xarray.Dataset, field: str, value: object) -> str:
    """A setting in words: a text as it is, a number with the field's symbol."""
    if isinstance(value, str):
        return _plain(value)
    attrs = dataset[field].attrs if field in dataset.coords else {}
    return f"{attrs.get('symbol', _plain(field))} = {_number(value)}"


def _number(value: object) -> str:
    """A number without needless digits.

    >>> _number(0.005), _number(3e-4), _number(20000)
    ('0.005', '3e-4', '20000')
    """
    if not isinstance(value, float):
        return str(value)
    if value == 0 or not np.isfinite(value) or abs(value) >= _SMALL:
        return f"{value:.6g}"
    mantissa, exponent = f"{value:.5e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _plain(text: str) -> str:
    """A text in which a dollar is a dollar, and does not begin a formula."""
    return text.replace("$", r"\$")


def _table(dataset: xarray.Dataset, name: str, axes: Sequence[str], seeds: Sequence[str]) -> Values:
    """A variable of all arms and runs, [arms, runs, ...], along which it need not vary."""
    item = dataset[name]
    absent = {axis: dataset.sizes[axis] for axis in (*axes, *seeds) if axis not in item.dims}
    values = item.expand_dims(absent).transpose(*axes, *seeds, ...).to_numpy().astype(np.float64)
    arms, runs = (
        int(np.prod([dataset.sizes[axis] for axis in some], dtype=int)) for some in (axes, seeds)
    )
    return values.reshape(arms, runs, *values.shape[len(axes) + len(seeds) :])


def _diverged(
    dataset: xarray.Dataset, names: Sequence[str], tables: Mapping[str, Values]
) -> npt.NDArray[np.bool_]:
    """Which runs diverged [arms, runs]: the engine says so, or a curve of theirs is not finite."""
    found = np.zeros(tables[names[0]].shape[:2], bool)
    if DIVERGED in tables:
        found |= tables[DIVERGED] >= 0
    for name in names:
        values, has_steps = tables[name], "step" in dataset[name].dims
        if has_steps and values.shape[-1] > 1:
            values = values[..., 1:]  # the loss of the last mini-batch is NaN before the first one
        # Without steps, infinity is what a search says of runs that never came to its goal.
        bad = ~np.isfinite(values) if has_steps else np.isnan(values)
        found |= bad.reshape(*found.shape, -1).any(axis=-1)
    return found


def _settings(dataset: xarray.Dataset) -> Mapping[str, Any]:
    """What all runs have in common, by dotted path."""
    try:
        found = json.loads(dataset.attrs.get("settings", "{}"))
    except (TypeError, ValueError):
        found = None
    return found if isinstance(found, dict) else {}


def _horizontal(data: _Data, arm: _Arm) -> tuple[Values, str]:
    """The x axis of an arm [steps], and its name.

    A run that stops early uses fewer samples from there on; the axis is that of the longest one.
    """
    dataset = data.dataset
    step = np.arange(dataset.sizes["step"], dtype=float)
    if "step" in dataset.coords:
        step = dataset["step"].to_numpy().astype(float)
    if SAMPLES in dataset and "step" in dataset[SAMPLES].dims:
        longest: Values = data.tables[SAMPLES][arm.index].max(axis=0)
        return longest, "samples"
    batch = _settings(dataset).get("train.batch_size")
    for axis, index in arm.place.items():
        if "batch_size" in _fields(dataset, axis) and "batch_size" in dataset.coords:
            batch = _column(dataset, "batch_size")[index]
    if isinstance(batch, int | float):
        return step * batch, _COUNTED
    return step, "iteration"


# ---------------------------------------------------------------------------- curves


def _curves(data: _Data, names: Sequence[str]) -> Figure:
    """Variables against samples: a panel each, or a row each if arms are spread over columns."""
    from matplotlib.figure import Figure

    axis = _spread_axis(data)
    arms = _evenly(_looks(data, axis), MAX_DRAWN)
    columns = min(len(names), 2) if axis is None else data.dataset.sizes[axis]
    rows = -(-len(names) // columns) if axis is None else len(names)
    height = _HEIGHT * rows + (0.8 if rows * columns > 1 else 1.4)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
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
        row[0].set_ylabel(_titled(data.dataset, name))
    if axis is not None:
        for column, axes in enumerate(grid[0]):
            axes.set_title(_facet(data.dataset, axis, column))
    _name_samples(grid, data, arms)
    spread = _spread_in_words(data, arms, axis)
    if len(arms) < len(data.arms):
        spread += f"; {len(arms)} of {len(data.arms)} arms are drawn"
    if _horizontal(data, arms[0])[1] == _COUNTED:
        spread += f"; {_COUNTED}"
    _tell(figure, data, arms, spread=spread)
    return figure


def _spread_axis(data: _Data) -> str | None:
    """The axis whose values are columns, so that few arms share a panel; `None` for none."""
    if len(data.arms) <= MAX_TOLD:
        return None
    sizes = {axis: data.dataset.sizes[axis] for axis in data.arms[0].place}
    fit = {
        axis: size
        for axis, size in sizes.items()
        if 1 < size <= MAX_COLUMNS and 1 < len(data.arms) // size <= MAX_TOLD
    }
    return max(fit, key=fit.__getitem__, default=None)


def _looks(data: _Data, axis: str | None) -> list[_Arm]:
    """The arms with colours, the same ones in every column, and labels without the column's."""
    told = {name: _told(data.dataset, name) if name != axis else [] for name in data.arms[0].place}
    labels = _labels(data.dataset, told, [arm.place for arm in data.arms])
    places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    colours, dashes = _palette(len(places))
    return [
        replace(arm, label=label, colour=colours[places[label]], dashes=dashes[places[label]])
        for arm, label in zip(data.arms, labels, strict=True)
    ]


def _evenly(arms: list[_Arm], most: int) -> list[_Arm]:
    """Some of many arms, from the first to the last at even distances."""
    if len(arms) <= most:
        return arms
    return [arms[place] for place in np.linspace(0, len(arms) - 1, most).round().astype(int)]


def _palette(count: int) -> tuple[list[Any], list[Any]]:
    """Colours and line styles; of many arms, colours in the order of the arms."""
    if count <= len(_COLOURS):
        return list(_COLOURS), [_DASHES[place % len(_DASHES)] for place in range(count)]
    from matplotlib import colormaps

    # The lightest colours can't be seen on white.
    colours = list(colormaps["viridis"](np.linspace(0.0, 0.9, count)))
    return colours, [_DASHES[place % len(_DASHES)] for place in range(count)]


def _panel(axes: Axes, data: _Data, name: str, arms: Sequence[_Arm]) -> list[Values]:
    """Draws a variable of some arms; returns the medians and the edges of the bands."""
    drawn: list[Values] = []
    for place, arm in enumerate(arms):
        values = data.values(name, arm)
        if not len(values):
            continue
        x, _ = _horizontal(data, arm)
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
        axes.set(xlim=(0, max(_horizontal(data, arm)[0][-1] for arm in arms)), yticks=[])
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
    if not positive.size or values.min() < 0 or positive.max() / positive.min() < _LOG_RANGE:
        return
    low, high = 0.7 * float(positive.min()), 1.4 * float(positive.max())
    axes.set(yscale="log", ylim=(low, high))
    wide = high / low > 300  # labels at 1, 2 and 5 of more decades would touch
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _titled(dataset: xarray.Dataset, name: str) -> str:
    """What a variable is, in words and with its symbol, on lines that fit beside a panel."""
    attrs = dataset[name].attrs
    words = _plain(str(attrs.get("long_name", name.replace("_", " "))))
    # A formula has no blanks to be broken at; it goes with the last words.
    return "\n".join([*textwrap.wrap(words, _WRAPPED_LABEL), *filter(None, [attrs.get("symbol")])])


def _facet(dataset: xarray.Dataset, axis: str, column: int) -> str:
    return _points(dataset, _told(dataset, axis))[column]


def _name_samples(grid: npt.NDArray[Any], data: _Data, arms: Sequence[_Arm]) -> None:
    horizontal = [_horizontal(data, arm) for arm in arms]
    label = horizontal[0][1].partition(",")[0]
    if label == "samples" and max(x[-1] for x, _ in horizontal) >= _THOUSANDS:
        label = "thousand samples"
        for axes in grid.flat:
            axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}")
    for column in grid.T:
        [axes for axes in column if axes.axison][-1].set_xlabel(label)


# ---------------------------------------------------------------------------- rows


def _rows(data: _Data, names: Sequence[str]) -> Figure:
    """Variables without a step: a row for each arm, with the median and 80% of its runs."""
    from matplotlib.figure import Figure

    probes = _best_probes(data, names)
    arms = data.arms[:MAX_ROWS]
    labels = [arm.label + _tried(data, arm, probes) for arm in arms]
    figure = Figure(figsize=(_WIDTH, 1.0 + _ROW * (len(arms) + 2)), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axes, name in zip(panels, names, strict=True):
        for place, arm in enumerate(arms):
            _draw_row(axes, place, _at_probe(data, name, arm, probes))
        axes.set_xlabel(_titled(data.dataset, name))
        axes.set_ylim(len(arms) - 0.5, -0.5)
        _limit_row(axes)
    panels[0].set_yticks(range(len(arms)), labels)
    more = len(data.arms) - len(arms)
    spread = _spread_in_words(data, data.arms, None, rows=True)
    if probes is not None:
        spread += "; at the best of the values tried"
    if more:
        spread += f"; the first {len(arms)} of {len(data.arms)} arms"
    _tell(figure, data, [], spread=spread)
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
        axes.plot(median, place, "o", color=_COLOURS[0], markersize=3.5, gid=f"median {place}")
        if len(finite) > 1:
            axes.hlines(place, low, high, color=_COLOURS[0], linewidth=1.0)
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
    if values.size and values.min() > 0 and values.max() / values.min() > _LOG_RANGE:
        axes.set_xscale("log")


def _best_probes(data: _Data, names: Sequence[str]) -> Places | None:
    """For each arm of a search, the place of the value with which its share needs the least.

    It is -1 where too few runs came to the goal with any value.
    """
    goal = names[0]
    if _PROBE not in data.dataset[goal].dims:
        return None
    share = float(_settings(data.dataset).get("search.share", 0.5))
    best = []
    for arm in data.arms:
        runs = np.sort(data.values(goal, arm), axis=0)
        needed = max(0, int(np.ceil(share * len(runs) - 1e-9)) - 1)
        reached = len(runs) > 0 and np.isfinite(runs[needed]).any()
        best.append(int(np.argmin(runs[needed])) if reached else -1)
    return np.array(best)


def _at_probe(data: _Data, name: str, arm: _Arm, probes: Places | None) -> Values:
    values = data.values(name, arm)
    if probes is None or _PROBE not in data.dataset[name].dims:
        return values
    chosen: Values = values[:, int(probes[arm.index])]
    return chosen


def _tried(data: _Data, arm: _Arm, probes: Places | None) -> str:
    """The value of the searched field that is best for an arm, in words."""
    if probes is None or probes[arm.index] < 0:
        return ""
    seeds = set(data.seeds)
    for name, item in data.dataset.data_vars.items():
        if _PROBE in item.dims and not seeds & set(item.dims):
            values = _table(data.dataset, str(name), list(arm.place), ())[arm.index, 0]
            value = values[int(probes[arm.index])]
            symbol = item.attrs.get("symbol", _plain(str(name)))
            return f"{', ' * bool(arm.label)}{symbol} = {_number(float(f'{value:.3g}'))}"
    return ""


# ---------------------------------------------------------------------------- words


def _spread_in_words(
    data: _Data, arms: Sequence[_Arm], axis: str | None, *, rows: bool = False
) -> str:
    """What the lines and the bands, bars or rows are."""
    if data.runs == 1:
        return "one run an arm" if len(data.arms) > 1 else "one run"
    together = len(arms) if axis is None else len(arms) // data.dataset.sizes[axis]
    spread = f"median of {data.runs} runs"
    if rows or together <= MAX_BARS:
        shape = "band" if together <= MAX_BANDS and not rows else "bars"
        return f"{spread}, {shape}: 10\u201390% of them"
    return f"{spread} (the spread of so many arms is not drawn)"


def _tell(figure: Figure, data: _Data, arms: Sequence[_Arm], *, spread: str) -> None:
    """Puts the title, what is drawn and what is left out above the panels, the arms below."""
    named = list({arm.label: arm for arm in arms}.values())
    if len(named) > MAX_NAMED:
        spread += f"; {MAX_NAMED} of {len(named)} arms are named"
        named = _evenly(named, MAX_NAMED)
    title = _plain(str(data.dataset.attrs.get("title", data.dataset.attrs.get("name", ""))))
    lines = [line for text in (title, spread, _losses(data)) for line in _wrapped(text)]
    figure.suptitle("\n".join(lines), fontsize=8)
    if len(named) > 1:
        _legend(figure, named)
    figure.set_figheight(figure.get_figheight() + _ROW * max(0, len(lines) - 2))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WRAPPED)


def _losses(data: _Data) -> str:
    """How many runs are left out, and of which arms; nothing if none is."""
    counts = data.left_out.sum(axis=1)
    if not counts.any():
        return ""
    total = f"{counts.sum()} of {data.left_out.size} runs diverged and are left out"
    if len(data.arms) == 1:
        return total
    hit = [(arm.label, count) for arm, count in zip(data.arms, counts, strict=True) if count]
    parts = [f"{count} of {label}" for label, count in hit[:_MOST_COUNTED]]
    if len(hit) > _MOST_COUNTED:
        parts.append(f"the others of {len(hit) - _MOST_COUNTED} more arms")
    return f"{total}: {'; '.join(parts)}"


def _legend(figure: Figure, arms: Sequence[_Arm]) -> None:
    """Names the arms below the panels, in as many columns as there is room for."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=arm.colour, linestyle=arm.dashes, label=arm.label) for arm in arms
    ]
    for columns in range(min(len(arms), 6), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            rows = -(-len(arms) // columns)
            figure.set_figheight(figure.get_figheight() + _ROW * (rows - 1))
            return
        legend.remove()


def _save(figure: Figure, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            # A title in a script that the font lacks is drawn as boxes, and that is no error.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(path, metadata=_METADATA.get(path.suffix.lower(), {}))
    except OSError as error:
        raise StudyError(f"{path} can't be written: {error.strerror or error}") from None
    except ValueError as error:
        raise StudyError(f"{path} can't be written: {' '.join(str(error).split())}") from None
