"""What the figure scripts share: reading a study's dataset, the arms' looks, bands, files.

A figure is drawn from a stored dataset alone. `render` opens it, brings it into one layout (`tidy`:
dimensions `arm`, `run`, the figure's panel axes and `step`), hands it to the script's `plot`
and writes the picture as PNG and PDF. Equal datasets give equal bytes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib.style
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

STYLE: Final = Path(__file__).resolve().parent / "scbjax.mplstyle"
SINGLE_COLUMN: Final = 3.3  # inches
DOUBLE_COLUMN: Final = 7.0  # inches
BAND: Final = (10.0, 50.0, 90.0)  # percentiles over runs: an 80% band around the median
WIDE_RANGE: Final = 300.0  # labels at 1, 2 and 5 of more decades would touch
XTICKS: Final = MaxNLocator(nbins=5, steps=[1, 2, 5, 10])
MAX_GROWTH: Final = 20.0  # log axes end here, in units of the initial distance
MAX_SHOWN: Final = 5.0  # no band stretches a linear axis further; signals end at 1
ROUNDING_ERROR: Final = float(np.finfo(np.float32).eps)  # a distance below it is 0
SAME_PATH: Final = 0.02  # population paths that differ by less, of a signal of 1, are drawn once
LOWEST: Final = 1e-4  # of a distance to the truth that is for comparison only
STAR_GAP: Final = 0.08  # inches from one star to the next
SMALL: Final = 1e-3  # smaller numbers are written with an exponent
MAX_ARMS: Final = 4  # in one panel
MAX_BANDS: Final = 3  # in one panel: more of them blend into one area
BARS: Final = 6  # of an arm, along its line, where bands would blend
CHARACTER: Final = 0.066  # inches, of a line of text
LINE: Final = 0.14  # inches, from one to the next
MAX_FAINT_RUNS: Final = 40  # more single runs than this are a blur
RECOVERED: Final = 0.1  # distances to P and Q below which a rounded solution is the truth
SUCCESS: Final = 0.9  # share of the runs that has to recover
SEED_FIELDS: Final = frozenset({"seed", "task_seed", "data_seed", "init_seed"})
# Of matrices: never an axis of a study.
MATRIX_DIMS: Final = frozenset({"snapshot", "token_out", "token_in", "position", "query"})
KIND_FIELDS: Final = frozenset({"attention_map", "optimizer"})  # what a look stands for
SIGNALS: Final = ("alpha_value", "alpha_attention")
PANEL: Final = ("stage", *SIGNALS)  # what every panel against the iteration reads
OPTIMIZER_NAMES: Final[Mapping[str, str]] = {
    "proximal": "proximal",
    "sgd": "SGD",
    "raw_sgd": "raw SGD",
    "adam": "Adam",
}
GEOMETRY_NAMES: Final[Mapping[str, str]] = {"paper": "as printed", "mu": "working settings"}
# Colours of Okabe & Ito; one family of looks for each optimizer, in the order of the study's arms.
# Arms with another attention map than the linear one are families of their own.
LOOKS: Final[Mapping[str, tuple[tuple[str, Any], ...]]] = {
    "proximal": (("#0072B2", "-"), ("#009E73", "-"), ("#56B4E9", "-")),
    "sgd": (("#D55E00", (0, (4, 1.2))), ("#E69F00", (0, (4, 1, 1, 1))), ("#CC79A7", (0, (2, 1)))),
    "raw_sgd": (("#444444", (0, (3, 2.5))), ("#888888", (0, (3, 2.5)))),
    "adam": (("#E69F00", (0, (1, 1))),),
    "softmax raw_sgd": (("#CC79A7", (0, (4, 1.2))),),
    "softmax adam": (("#000000", (0, (4, 1, 1, 1))),),
}
POPULATION: Final[Mapping[str, str]] = {
    "alpha_value": "population_alpha_value",
    "alpha_attention": "population_alpha_attention",
}
"""The signals, and the variable with the population path of each."""
POPULATION_LOOK: Final[Mapping[str, Any]] = {"color": "black", "linewidth": 0.9, "linestyle": ":"}
REAL_LOOK: Final[Mapping[str, Any]] = {"marker": "o", "markersize": 2.4, "linestyle": ""}
STAGE_COLOUR: Final = "#888888"

Plot = Callable[[xr.Dataset], Figure]
Draw = Callable[[Path, Path], list[Path]]
Numbers = Callable[[Path], str]
Values = NDArray[np.float64]
Kind = tuple[str, str]


@dataclass(frozen=True)
class Distance:
    """The variables of one distance to the truth, and its name on an axis."""

    name: str
    drawn: str
    rounded: str
    population_alpha: str
    signal: str

    @property
    def variables(self) -> tuple[str, ...]:
        """The variables that a panel of this distance reads."""
        return (*PANEL, self.drawn, self.rounded, self.population_alpha, self.signal)


VALUE: Final = Distance(
    "value matrix",
    "value_distance",
    "rounded_value_distance",
    "population_alpha_value",
    "transition_signal",
)
ATTENTION: Final = Distance(
    "attention",
    "attention_distance",
    "rounded_attention_distance",
    "population_alpha_attention",
    "pattern_signal",
)
# What "found" means: the rounded A and the V refitted to it are this near to Q and P.
FOUND: Final = {ATTENTION.rounded: 0.1, VALUE.rounded: 0.05}


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison: its place along the dimension `arm`, its name and its look."""

    index: int
    label: str
    colour: str
    linestyle: Any
    optimizer: str = "proximal"


@dataclass(frozen=True)
class Column:
    """The arms of one column of panels, and the settings they have in common."""

    title: str
    settings: str
    arms: tuple[Arm, ...]


# ---------------------------------------------------------------------------- reading


def open_study(results: Path, study: str, variables: Sequence[str]) -> xr.Dataset:
    """Load the variables of a study's dataset, `results/STUDY/STUDY.nc`.

    Raises:
        FileNotFoundError: the dataset does not exist; the sentence names the command that makes it.
        ValueError: it cannot be read or lacks a variable.
    """
    path = results / study / f"{study}.nc"
    command = f"scbjax run {study}"
    if results != Path("results"):
        command += f" --out {results / study}"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; `{command}` makes it")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as stored:
            # A study that sweeps a constant of the task has what was asked for under its name.
            names = [
                f"drawn_{name}" if f"drawn_{name}" in stored else name
                for name in dict.fromkeys(variables)
            ]
            missing = [name for name in names if name not in stored.data_vars]
            if not missing:
                return _with_all_axes(stored, names)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read as a dataset; `{command} --force` makes it anew"
        ) from error
    raise ValueError(
        f"{path} does not hold {', '.join(missing)}, which this figure draws; "
        f"record it in the study ([record]), then `{command} --force` makes it anew"
    )


def _with_all_axes(stored: xr.Dataset, names: Sequence[str]) -> xr.Dataset:
    """Load variables, all of them along all axes of the study.

    What a task is depends on some of the axes, and is stored along those.
    """
    axes = {name: n for name, n in stored.sizes.items() if name not in {"step", *MATRIX_DIMS}}
    whole = {
        name: stored[name]
        .expand_dims({axis: n for axis, n in axes.items() if axis not in stored[name].dims})
        .transpose(*axes, ...)
        for name in names
    }
    along = {name: item for name, item in stored.coords.items() if {*item.dims} <= {*axes}}
    return xr.Dataset(whole, attrs=stored.attrs).assign_coords(along).load()


def check_finite(dataset: xr.Dataset, study: str) -> None:
    """Refuse a dataset of which every run diverged before anything was recorded.

    Raises:
        ValueError: nothing that was measured is a number.
    """
    names = [
        str(name)
        for name, item in dataset.data_vars.items()
        if item.dtype.kind == "f" and "step" in item.dims and name not in POPULATION.values()
    ]
    if names and not any(np.isfinite(dataset[name]).any() for name in names):
        raise ValueError(
            f"every run of {study} diverged, and no value of {', '.join(names)} is finite: "
            "there is nothing to show"
        )


def tidy(dataset: xr.Dataset, panels: Sequence[str] = ()) -> xr.Dataset:
    """Bring a dataset into the layout of the figures.

    Seeds become the dimension `run`; every other axis that is not a panel becomes part of the
    dimension `arm`, with its settings as coordinates.

    Args:
        dataset: variables over all of the study's axes, some of them over `step` or matrices too.
        panels: the fields that the figure spreads over its panels; one that the study does not
            vary gets length one.

    Returns:
        The dataset with dimensions (arm, run, *panels) and, where a variable has it, step.
    """
    dataset = dataset.rename(
        {name: f"{name}_axis" for name in ("run", "arm") if name in dataset.dims}
    )
    for name in panels:
        if name not in dataset.coords:
            dataset = dataset.expand_dims(name)
        elif name not in dataset.dims:  # the field is part of a zip
            dataset = dataset.swap_dims({dataset[name].dims[0]: name})
    axes = [name for name in dataset.dims if name not in {"step", *panels, *MATRIX_DIMS}]
    runs = [name for name in axes if _fields_along(dataset, name) <= SEED_FIELDS]
    arms = [name for name in axes if name not in runs]
    for name, parts in (("run", runs), ("arm", arms)):
        if parts:
            dataset = dataset.stack({name: parts}, create_index=False)
        else:
            dataset = dataset.expand_dims(name)
    return dataset.transpose("arm", "run", *panels, ...)


def _fields_along(dataset: xr.Dataset, dimension: Hashable) -> set[Hashable]:
    """Tell which fields an axis varies: its own name or, for a zip, the coordinates along it."""
    fields = {name for name, item in dataset.coords.items() if item.dims == (dimension,)}
    return fields or {dimension}


def arms_of(dataset: xr.Dataset, group: str | None = None) -> list[Arm]:
    """List the arms of a tidy dataset, each with a label of what sets it apart and a look.

    Args:
        dataset: a tidy dataset.
        group: a field that the figure spreads over its columns. Labels say what varies at one of
            its values, and an arm has one look at all of them.

    Raises:
        ValueError: more arms of one optimizer than can be told apart in a figure.
    """
    fields = {str(name): item for name, item in dataset.coords.items() if item.dims == ("arm",)}
    optimizers, kinds = optimizers_of(dataset), kinds_of(dataset)
    groups = [str(value) for value in np.asarray(fields.get(str(group), optimizers))]
    fields = {name: values for name, values in fields.items() if name not in KIND_FIELDS}
    families = list(zip(kinds, groups, strict=True))
    apart: dict[Kind, set[str]] = {kind: set() for kind in kinds}
    for family in set(families):
        members = [index for index, other in enumerate(families) if other == family]
        apart[family[0]] |= {
            name for name, values in fields.items() if len(np.unique(values[members])) > 1
        }
    labels = []
    for index, kind in enumerate(kinds):
        told = [
            f"{values.attrs.get('symbol', name)} = {worded(values[index].item())}"
            for name, values in fields.items()
            if name in apart[kind]
        ]
        labels.append(", ".join([*_names_of(kind, kinds), *told]))
    return [
        Arm(index, label, *_look(dataset, kinds, labels, index), optimizers[index])
        for index, label in enumerate(labels)
    ]


def optimizers_of(dataset: xr.Dataset) -> list[str]:
    """Give the optimizer of each arm of a tidy dataset."""
    return _along_arms(dataset, "optimizer", "proximal")


def kinds_of(dataset: xr.Dataset) -> list[Kind]:
    """Give what the look of each arm stands for: its attention map and its optimizer."""
    maps = _along_arms(dataset, "attention_map", "linear")
    return list(zip(maps, optimizers_of(dataset), strict=True))


def _along_arms(dataset: xr.Dataset, field: str, default: str) -> list[str]:
    """Give a field's value in every arm, whether the study varies it or not."""
    same = [str(setting(dataset, field, default))] * dataset.sizes["arm"]
    return [str(value) for value in np.asarray(dataset.coords.get(field, same)).ravel()]


def _names_of(kind: Kind, kinds: Sequence[Kind]) -> list[str]:
    """Give the words for a kind of arm: its map where one of the study's is not linear."""
    attention_map, optimizer = kind
    linear = all(other == "linear" for other, _ in kinds)
    return [attention_map] * (not linear) + [OPTIMIZER_NAMES.get(optimizer, optimizer)]


def _look(
    dataset: xr.Dataset, kinds: Sequence[Kind], labels: Sequence[str], index: int
) -> tuple[str, Any]:
    """Give an arm the look that its label has among those of its map and its optimizer."""
    kind = attention_map, optimizer = kinds[index]
    pairs = zip(kinds, labels, strict=True)
    known = list(dict.fromkeys(label for other, label in pairs if other == kind))
    looks = LOOKS.get(optimizer, LOOKS["proximal"])
    looks = LOOKS.get(f"{attention_map} {optimizer}", looks)
    if len(known) > len(looks):
        name, values = next(
            (name, item)
            for name, item in dataset.coords.items()
            if item.dims == ("arm",) and name not in KIND_FIELDS
        )
        raise ValueError(
            f"the study has {len(known)} arms with optimizer {optimizer} and the figure can "
            f"tell {len(looks)} apart; choose, for instance by --set {name}={values[0].item()}"
        )
    return looks[known.index(labels[index])]


def columns_of(dataset: xr.Dataset) -> list[Column]:
    """Spread the arms of a tidy dataset over columns of panels, by the geometry they learn in.

    The study of the paper's main setting has the printed settings, with the printed projector, and
    settings that work, with the other one. Arms that are too many for a panel are split by whether
    they are proximal.
    """
    arms = arms_of(dataset, "geometry")
    same = [str(setting(dataset, "geometry", ""))] * len(arms)
    geometries = [str(name) for name in np.asarray(dataset.coords.get("geometry", same)).ravel()]
    columns: list[Column] = []
    for geometry in dict.fromkeys(geometries):
        name = GEOMETRY_NAMES.get(geometry, "")
        group = [arm for arm, other in zip(arms, geometries, strict=True) if other == geometry]
        proximal = [arm for arm in group if arm.optimizer == "proximal"]
        others = [arm for arm in group if arm.optimizer != "proximal"]
        if len(group) <= MAX_ARMS or not (proximal and others):
            columns.append(Column(name, name, tuple(group)))
        else:
            columns.append(Column(f"{name}: proximal steps", name, tuple(proximal)))
            columns.append(Column(f"{name}: SGD", name, tuple(others)))
    return columns


def worded(value: object) -> str:
    """Write a setting's value: floats without needless digits, small ones as 1e-4.

    >>> worded(0.005), worded(3e-4)
    ('0.005', '3e-4')
    """
    if not isinstance(value, float):
        return str(value)
    if not 0 < abs(value) < SMALL:
        return f"{value:g}"
    mantissa, exponent = f"{value:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def setting(dataset: xr.Dataset, field: str, default: object = None) -> object:
    """Look a field up by its short name in the settings that the dataset carries."""
    settings: Mapping[str, object] = json.loads(dataset.attrs.get("settings", "{}"))
    for path, value in settings.items():
        if path.rpartition(".")[2] == field:
            return value
    return default


def symbol(dataset: xr.Dataset, variable: str) -> str:
    """Give the symbol of a recorded variable, or its name where the dataset knows none."""
    return str(dataset[variable].attrs.get("symbol", variable.replace("_", " ")))


# ------------------------------------------------------------------------- statistics


def band(values: Values) -> Values:
    """Percentiles over runs, of the runs that are finite at that step.

    Args:
        values: [runs, ...], such as [runs, steps].

    Returns:
        [3, ...]: 10th percentile, median, 90th percentile; NaN where no run is finite.
    """
    finite = np.where(np.isfinite(values), values, np.nan)
    some = np.isfinite(finite).any(axis=0)
    result = np.full((len(BAND), *values.shape[1:]), np.nan)
    if some.any():
        result[:, some] = np.nanpercentile(finite[:, some], BAND, axis=0)
    return result


def finite_of(values: ArrayLike) -> Values:
    """Give the values that are finite, as one row: those of runs that did not diverge."""
    every = np.asarray(values, float)
    return np.asarray(every[np.isfinite(every)])


def median(values: ArrayLike) -> float:
    """Median of the values that are finite, as `band` draws it; NaN where none is.

    >>> median([3.0, np.nan, 1.0, np.inf]), median([np.nan])
    (2.0, nan)
    """
    finite = finite_of(values)
    return float(np.median(finite)) if finite.size else np.nan


def largest(values: ArrayLike) -> float:
    """Largest of the values that are finite; NaN where none is."""
    finite = finite_of(values)
    return float(finite.max()) if finite.size else np.nan


def least(values: ArrayLike) -> float:
    """Least of the values that are finite; NaN where none is.

    >>> least([3.0, np.nan, 1.0]), largest([3.0, np.nan, 1.0])
    (1.0, 3.0)
    """
    return -largest(-np.asarray(values, float))


def count_diverged(panel: xr.Dataset, arm: Arm) -> int:
    """Count the runs of an arm with a value that is not finite."""
    values = panel.isel(arm=arm.index).to_dataarray().transpose("run", ...).to_numpy()
    finite = np.isfinite(values.reshape(len(values), -1))
    return int((~finite.all(axis=1)).sum())


def count_mirrored(panel: xr.Dataset, arm: Arm) -> int:
    """Count the runs of an arm that end with negative signals in both V and A.

    They are on the way to (2 mu 1^T - P, 2/T - Q), which has almost the loss of the truth.
    """
    ends = [runs_of(panel, name, arm)[:, -1] < 0 for name in SIGNALS]
    return int(np.logical_and(*ends).sum())


def stage_ends(x: Values, stage: Values, number: int) -> Values:
    """Tell where each run left a stage; the runs that never did are left out.

    Args:
        x: [steps].
        stage: [runs, steps].
        number: of the stage.
    """
    left = stage > number
    first = left.argmax(axis=1)[left.any(axis=1)]
    return np.asarray(x[first])


def population_distance(alpha: Values, signal: Values) -> Values:
    """Distance from the truth on the population path, (1 - alpha) sqrt(K), median over runs.

    Args:
        alpha: [runs, steps], alpha_V or alpha_A of the population recursion.
        signal: [runs], K_P or K_Q.

    Returns:
        [steps]
    """
    median: Values = band(np.abs(1 - alpha) * np.sqrt(signal)[:, None])[1]
    return median


def samples_to_recovery(dataset: xr.Dataset, level: float = RECOVERED) -> xr.DataArray:
    """Samples at the first record that, once rounded, is near the truth; infinity where none is.

    Near: A within the level of Q, and the V refitted on fresh samples, which are not counted,
    within the level of P.
    """
    near = xr.ones_like(dataset["samples"], dtype=bool)
    for name in ("rounded_attention_distance", "rounded_value_distance"):
        near &= dataset[name] < level
    return dataset["samples"].astype(float).where(near, np.inf).min("step")


# ---------------------------------------------------------------------------- drawing


def draw_arm(axes: Axes, x: Values, values: Values, arm: Arm, *, faint: bool = True) -> None:
    """Draw an arm: the median, the 80% band and, faintly, the single runs.

    Args:
        axes: where to draw.
        x: [steps].
        values: [runs, steps].
        arm: name and look.
        faint: whether single runs are drawn behind the band.
    """
    low, median, high = band(values)
    runs = len(values)
    if faint and 1 < runs <= MAX_FAINT_RUNS:
        axes.plot(x, values.T, color=arm.colour, linewidth=0.35, alpha=0.3, zorder=2)
    if runs > 1:
        area = axes.fill_between(x, low, high, color=arm.colour, alpha=0.2, zorder=2.5)
        area.set_gid(f"band {arm.index}")
    axes.plot(
        x, median, color=arm.colour, linestyle=arm.linestyle, zorder=4, gid=f"median {arm.index}"
    )


def draw_arms(
    axes: Axes, x: Sequence[Values], drawn: Sequence[Values], arms: Sequence[Arm]
) -> None:
    """Draw the arms of a panel, with bands or, where those would blend, bars side by side.

    Args:
        axes: where to draw.
        x: for each arm [steps].
        drawn: for each arm [runs, steps].
        arms: names and looks.
    """
    for place, (here, values, arm) in enumerate(zip(x, drawn, arms, strict=True)):
        if len(arms) <= MAX_BANDS:
            draw_arm(axes, here, values, arm)
            continue
        low, middle, high = band(values)
        axes.plot(
            here,
            middle,
            color=arm.colour,
            linestyle=arm.linestyle,
            zorder=4 + 0.1 * place,
            gid=f"median {arm.index}",
        )
        if len(values) > 1:
            shares = (np.arange(BARS) + (place + 1) / len(arms)) / BARS
            at = np.unique(np.round(shares * (len(here) - 1)).astype(int))
            bars = axes.vlines(here[at], low[at], high[at], color=arm.colour, linewidth=1.1)
            bars.set(gid=f"bars {arm.index}", zorder=3)


def draw_population(
    axes: Axes, x: Sequence[Values], paths: Sequence[Values], arms: Sequence[Arm]
) -> None:
    """Draw a quantity of the population path, once for all the arms that share it.

    Args:
        axes: where to draw.
        x: for each arm [steps].
        paths: for each arm [steps], NaN where it is not to be drawn.
        arms: names and looks.
    """
    drawn: list[Values] = []
    curves = list(zip(x, paths, arms, strict=True))
    for here, path, arm in sorted(curves, key=lambda curve: -int(np.isfinite(curve[1]).sum())):
        known = (np.nanmax(np.abs(path - other), initial=0.0) < SAME_PATH for other in drawn)
        if not any(known):
            axes.plot(here, path, **POPULATION_LOOK, zorder=5, gid=f"population {arm.index}")
            drawn.append(path)


def draw_stages(axes: Axes, panel: xr.Dataset, arms: Sequence[Arm], x: Sequence[Values]) -> None:
    """Mark where stages end.

    The end of stage 1, up to which arms differ in nothing but their rates, is a line at the median
    of all runs and a span over 80% of them. The end of stage 2 is a triangle at the median of those
    runs of an arm that came to it.

    Args:
        axes: where to draw.
        panel: a tidy dataset with dimensions arm, run and step.
        arms: names and looks.
        x: for each arm [steps].
    """
    stages = [runs_of(panel, "stage", arm) for arm in arms]
    first = np.concatenate([stage_ends(*pair, 1) for pair in zip(x, stages, strict=True)])
    if first.size:
        low, median, high = np.percentile(first, BAND)
        axes.axvspan(low, high, color=STAGE_COLOUR, alpha=0.15, zorder=0.5)
        axes.axvline(median, color=STAGE_COLOUR, linewidth=0.8, zorder=1, gid="stage 1")
    for here, stage, arm in zip(x, stages, arms, strict=True):
        second = stage_ends(here, stage, 2)
        if second.size:
            axes.plot(
                np.median(second),
                1.0,
                transform=axes.get_xaxis_transform(),
                marker="v",
                markersize=4.5,
                color=arm.colour,
                clip_on=False,
                gid=f"stage 2 {arm.index}",
            )


def draw_rounded(axes: Axes, x: Values, finals: Sequence[Values], arms: Sequence[Arm]) -> None:
    """Draw the rounded solutions, one star an arm, in a margin that continues the x axis.

    Args:
        axes: where to draw; its y limits must be set.
        x: [steps] of the curves.
        finals: for each arm, the distance [runs] of the rounded solution at the last step.
        arms: names and looks.
    """
    start, span = x[0], x[-1] - x[0]
    figure = axes.get_figure(root=True)
    assert figure is not None
    width = axes.get_position().width * figure.get_figwidth()
    gap = span * STAR_GAP / (width - STAR_GAP * (len(arms) + 1))
    for place, (final, arm) in enumerate(zip(finals, arms, strict=True), start=1):
        draw_star(axes, x[-1] + place * gap, final, arm)
    axes.axvline(x[-1], color="#cccccc", linewidth=0.5, zorder=0.5)
    axes.set_xlim(start - 0.02 * span, x[-1] + (len(arms) + 0.7) * gap)
    axes.spines["bottom"].set_bounds(axes.get_xlim()[0], x[-1])
    axes.set_xticks([tick for tick in XTICKS.tick_values(start, x[-1]) if start <= tick <= x[-1]])


def draw_refits(axes: Axes, panel: xr.Dataset, variable: str, arms: Sequence[Arm]) -> None:
    """Draw a hollow star, over each star, for the V that the law of the task gives.

    Args:
        axes: where to draw, after the rounded solutions.
        panel: a tidy dataset with dimensions arm, run and step.
        variable: the distance of that V to P.
        arms: names and looks.
    """
    stars = {line.get_gid(): line for line in axes.lines}
    bottom = axes.get_ylim()[0]
    for arm in arms:
        middle = median(runs_of(panel, variable, arm)[:, -1])
        x = np.asarray(stars[f"rounded {arm.index}"].get_xdata(), float)
        if middle < bottom:
            write_below(axes, x[0], middle, arm)
        axes.plot(
            x,
            [max(middle, bottom)],
            marker="*",
            markersize=6.5,
            markerfacecolor="white",
            markeredgecolor=arm.colour,
            markeredgewidth=0.7,
            clip_on=False,
            zorder=5.5,
            gid=f"refit {arm.index}",
        )


def draw_star(axes: Axes, x: float, values: Values, arm: Arm) -> None:
    """Draw a star at the median of values [runs] and a bar over 80% of them.

    A median below the axis, as a distance of 0 is below a logarithmic one, sits on its lower edge
    with its value written beside it.
    """
    bottom = axes.get_ylim()[0]
    low, middle, high = np.maximum(band(values[:, None])[:, 0], [bottom, -np.inf, bottom])
    if len(values) > 1:
        axes.vlines(x, low, high, colors=arm.colour, linewidth=1.0)
    star: dict[str, Any] = {"marker": "*", "markersize": 7.5, "markeredgewidth": 0.0, "zorder": 6}
    gid = f"rounded {arm.index}"
    axes.plot(x, max(middle, bottom), **star, color=arm.colour, clip_on=False, gid=gid)
    if middle < bottom:
        write_below(axes, x, middle, arm)


def write_below(axes: Axes, x: float, value: float, arm: Arm) -> None:
    """Write a value that is below the axis over the star that stands on its lower edge."""
    axes.annotate(
        "0" if value < ROUNDING_ERROR else worded(float(f"{value:.1g}")),
        (x, axes.get_ylim()[0]),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        fontsize=7,
        color=arm.colour,
        zorder=7,
        bbox={"facecolor": "white", "pad": 0.5, "linewidth": 0},
    )


def draw_distance(
    axes: Axes, panel: xr.Dataset, arms: Sequence[Arm], distance: Distance, against: str = "step"
) -> None:
    """Draw a distance to the truth of every arm, its population path and the rounded solutions.

    Args:
        axes: where to draw; its y limits must be set.
        panel: a tidy dataset with dimensions arm, run and step.
        arms: names and looks.
        distance: which one.
        against: "step" or "samples".
    """
    x = [horizontal(panel, arm, against) for arm in arms]
    drawn = [runs_of(panel, distance.drawn, arm) for arm in arms]
    draw_arms(axes, x, drawn, arms)
    draw_population(axes, x, [path_of(panel, distance, arm) for arm in arms], arms)
    finals = [runs_of(panel, distance.rounded, arm)[:, -1] for arm in arms]
    draw_rounded(axes, x[0], finals, arms)
    draw_stages(axes, panel, arms, x)


def path_of(panel: xr.Dataset, distance: Distance, arm: Arm) -> Values:
    """Give a distance to the truth on the population path of an arm [steps]."""
    alpha = population_of(panel, distance.population_alpha, arm)
    return population_distance(alpha, runs_of(panel, distance.signal, arm))


def distance_limits(
    data: xr.Dataset, distance: Distance, *also: str, log: bool = False
) -> tuple[float, float]:
    """Choose limits that hold every panel of a distance; linear ones begin at 0.

    Args:
        data: the tidy dataset.
        distance: which one.
        *also: variables whose medians at the end are drawn too.
        log: whether the axis is logarithmic.
    """
    curves = data[distance.drawn].to_numpy().astype(float)
    stars = data[distance.rounded].to_numpy().astype(float)[..., -1:]
    drawn = [runs.reshape(len(runs), -1) for arms in (curves, stars) for runs in arms]
    if log:
        first = median(curves[..., 0])
        ceiling = MAX_GROWTH * first if np.isfinite(first) else np.inf
        ends = [
            [median(runs_of(data, name, arm)[..., -1]) for arm in arms_of(data, "geometry")]
            for name in also
        ]
        floor = LOWEST if also else 1e-3
        drawn_ = [*(band(runs) for runs in drawn), *map(np.asarray, ends)]
        return log_limits(drawn_, floor=floor, ceiling=ceiling)
    return 0.0, linear_limits(drawn)[1]


def runs_of(panel: xr.Dataset, variable: str, arm: Arm) -> Values:
    """Give a variable of an arm, [runs, steps] or, for a constant of the run, [runs]."""
    name = variable if variable in panel.data_vars else f"drawn_{variable}"
    return panel[name].isel(arm=arm.index).to_numpy().astype(float)


def population_of(panel: xr.Dataset, variable: str, arm: Arm) -> Values:
    """Give a variable of the population path [runs, steps] up to the end of stage 2.

    From the first step at which a run of the arm rounds its attention it is NaN: there the
    recursion jumps to the truth.
    """
    rounded = runs_of(panel, "stage", arm).max(axis=0) > 2
    return np.where(rounded, np.nan, runs_of(panel, variable, arm))


def horizontal(panel: xr.Dataset, arm: Arm, against: str) -> Values:
    """Give the values [steps] of the x axis: the iteration or the samples that were used by then.

    A run that stops early uses fewer samples from there on; the axis is that of the longest run.
    """
    if against == "step":
        return panel["step"].to_numpy().astype(float)
    longest: Values = runs_of(panel, against, arm).max(axis=0)
    return longest


def log_axis(axes: Axes, limits: tuple[float, float]) -> None:
    """Make the y axis logarithmic, with plain numbers at 1, 2, 5 or, over a wide range, at 1."""
    axes.set(yscale="log", ylim=limits)
    wide = limits[1] / limits[0] > WIDE_RANGE
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def log_limits(
    drawn: Sequence[Values], *, floor: float = 1e-3, ceiling: float = np.inf
) -> tuple[float, float]:
    """Choose limits of a logarithmic axis for the positive values drawn, from floor to ceiling."""
    values = np.concatenate([np.ravel(item) for item in drawn])
    values = values[np.isfinite(values) & (values > ROUNDING_ERROR)]
    if values.size == 0:
        return floor, 1.0
    low, high = max(floor, 0.7 * float(values.min())), min(ceiling, 1.4 * float(values.max()))
    return low, max(high, 2 * low)


def linear_limits(drawn: Sequence[Values]) -> tuple[float, float]:
    """Choose limits of a linear axis for the runs drawn, as long as they stay near the truth.

    All bands are inside; a single run may stretch the axis to twice that, not more.

    Args:
        drawn: [runs, steps] each.
    """
    bands = np.concatenate([np.ravel(band(runs)) for runs in drawn])
    runs = np.concatenate([np.ravel(runs) for runs in drawn])
    if not np.isfinite(bands).any():
        return 0.0, 1.0
    low, high = np.clip([np.nanmin(bands), np.nanmax(bands)], -MAX_SHOWN, MAX_SHOWN)
    half = 0.5 * (high - low)
    runs = runs[np.isfinite(runs)]
    low, high = max(low - half, min(low, runs.min())), min(high + half, max(high, runs.max()))
    margin = 0.05 * (high - low) or 0.05
    return float(low - margin), float(high + margin)


def note_findings(
    figure: FigureBase, panels: Sequence[tuple[str, xr.Dataset, Sequence[Arm]]], below: str = ""
) -> None:
    """Write below the panels how many runs of which arms diverged or are mirrored.

    A run that diverged is in the figure until it did.

    Args:
        figure: the figure, or a part of it.
        panels: title, tidy dataset with dimensions arm, run and step, and arms of each.
        below: what stands there already, such as the name of the x axis of all panels.
    """
    whole = figure.get_figure(root=True)
    assert whole is not None
    lines = [below] if below else []
    for name, panel, arms in panels:
        for finding, count in (("diverged", count_diverged), ("mirrored", count_mirrored)):
            counts = {arm.label: count(panel, arm) for arm in arms}
            # What belongs together is not to be torn apart at the end of a line.
            parts = [f"{n} {label}".replace(" ", "\u00a0") for label, n in counts.items() if n]
            if parts:
                where = f"{name}: " * bool(name)
                text = f"{where}{finding}, of {panel.sizes['run']} runs each: {'; '.join(parts)}"
                lines += textwrap.wrap(text, int(whole.get_figwidth() / CHARACTER))
    figure.supxlabel("\n".join(lines), fontsize=8)
    # Constrained layout takes the room of these lines from the panels.
    whole.set_figheight(whole.get_figheight() + LINE * max(0, len(lines) - bool(below)))


def samples_above(axes: Axes, panel: xr.Dataset, arms: Sequence[Arm]) -> None:
    """Add an axis above the panel that tells the iterations in thousands of samples."""
    batch = {float(runs_of(panel, "samples", arm).max()) for arm in arms}
    each = max(batch) / float(panel["step"][-1]) / 1000

    def there(iterations: ArrayLike) -> Values:
        return np.asarray(iterations, float) * each

    def back(samples: ArrayLike) -> Values:
        return np.asarray(samples, float) / each

    above = axes.secondary_xaxis("top", functions=(there, back))
    # Beside the curves, where the rounded solutions stand, there are no samples.
    last = float(panel["step"][-1]) * each
    ticks = MaxNLocator(nbins=4, steps=[1, 2, 4, 5, 8, 10]).tick_values(0, last)
    above.set_xticks([tick for tick in ticks if tick <= last])
    above.set_xlabel("samples (thousands)", fontsize=7)


def thousands(axes: Axes) -> None:
    """Label the x axis in thousands."""
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}")


def in_order(arm: Arm) -> tuple[int, list[float]]:
    """Give the place of an arm in a legend: by its optimizer, and then by the numbers it has."""
    numbers = re.findall(r"= ([\d.e-]+)", arm.label)
    return list(LOOKS).index(arm.optimizer), [float(number) for number in numbers]


def extras() -> dict[str, tuple[str, Line2D]]:
    """Give the label and the look of what a figure may draw beside its arms."""
    grey = "#666666"
    star: dict[str, Any] = {"color": grey, "linestyle": "", "marker": "*", "markersize": 7.5}
    hollow: dict[str, Any] = {**star, "markersize": 6.5, "markerfacecolor": "white"}
    return {
        "population": ("population path", Line2D([], [], **POPULATION_LOOK)),
        "real": ("real mini-batches", Line2D([], [], color=grey, **REAL_LOOK)),
        "rounded": (r"$A$ rounded, $V$ refitted", Line2D([], [], **star)),
        "rounded alone": (r"$A$ rounded", Line2D([], [], **star)),
        "refit": (r"$V$ from the law itself", Line2D([], [], **hollow)),
    }


def add_legend(
    figure: Figure,
    data: xr.Dataset,
    arms: Sequence[Arm],
    *extra: str,
    panels: Sequence[int] | None = None,
) -> None:
    """Put one legend above the panels: the arms, the band, the ends of the stages and extras.

    Args:
        figure: the figure.
        data: the tidy dataset that it shows.
        arms: names and looks.
        *extra: of "population", "real", "rounded", "rounded alone" (without a refitted V) and
            "refit", those that the figure draws.
        panels: how many arms each panel has; all of them if left out.
    """
    panels = panels or [len(arms)]
    grey: dict[str, Any] = {"color": "#666666"}
    entries: dict[str, Any] = {
        arm.label: Line2D([], [], color=arm.colour, linestyle=arm.linestyle)
        for arm in sorted(arms, key=in_order)
    }
    if (runs := data.sizes["run"]) > 1:
        label = f"median, 10\u201390% of {runs} runs"
        bar = Line2D([], [], **grey, linestyle="", marker="|", markersize=9, markeredgewidth=1.1)
        line = Line2D([], [], **grey)
        shapes: list[Any] = [(Patch(color="#cccccc"), line)] * (min(panels) <= MAX_BANDS)
        shapes += [(bar, line)] * (max(panels) > MAX_BANDS)
        entries |= dict(zip([label, "the same, where bands would blend"], shapes, strict=False))
    entries |= {label: look for name, (label, look) in extras().items() if name in extra}
    if (data["stage"] > 1).any():
        entries["end of stage 1"] = Line2D([], [], color=STAGE_COLOUR, linewidth=0.8)
    if (data["stage"] > 2).any():
        entries["end of stage 2"] = Line2D([], [], **grey, linestyle="", marker="v", markersize=4.5)
    for rows in range(1, len(entries) + 1):
        columns = -(-len(entries) // rows)
        legend = figure.legend(
            entries.values(), entries.keys(), loc="outside upper center", ncols=columns
        )
        if legend.get_window_extent().width <= figure.bbox.width or columns == 1:
            break
        legend.remove()


# ------------------------------------------------------------------------------ files


def house_style() -> AbstractContextManager[None]:
    """Apply the style of the figures, whatever the reader's own matplotlibrc says."""
    return matplotlib.style.context(["default", STYLE], after_reset=True)


def render(
    name: str, study: str, variables: Sequence[str], plot: Plot, results: Path, out: Path
) -> list[Path]:
    """Draw a figure from a study's dataset and write it as PNG and PDF.

    Args:
        name: file name without suffix.
        study: whose dataset is drawn.
        variables: what the figure reads of it.
        plot: makes the figure.
        results: the directory that holds the studies' directories.
        out: where the files go; made if it does not exist.

    Returns:
        The paths written.

    Raises:
        FileNotFoundError: no dataset.
        ValueError: a dataset that the figure cannot be drawn from, or a directory that cannot be
            written.
    """
    dataset = open_study(results, study, variables)
    check_finite(dataset, study)
    paths = [out / f"{name}.png", out / f"{name}.pdf"]
    with house_style():
        figure = plot(dataset)
        try:
            out.mkdir(parents=True, exist_ok=True)
            # No date and no version: they would change the bytes of the same picture.
            figure.savefig(paths[0], metadata={"Software": None})
            figure.savefig(
                paths[1], metadata=dict.fromkeys(("CreationDate", "Creator", "Producer"))
            )
        except OSError as error:
            raise ValueError(f"cannot write into {out}: {error.strerror}") from error
    return paths


def main(draw: Draw, description: str | None, numbers: Numbers | None = None) -> int:
    """Run a figure script: draw and print the paths, or print the numbers; 2 on bad input.

    Args:
        draw: writes the pictures.
        description: of the script, for `--help`.
        numbers: what `--numbers` prints, if the script has it.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="holds STUDY/STUDY.nc"
    )
    parser.add_argument("--out", type=Path, default=Path("figures/out"), help="where files go")
    if numbers is not None:
        parser.add_argument(
            "--numbers", action="store_true", help="print the numbers behind it, and draw nothing"
        )
    arguments = parser.parse_args()
    try:
        if numbers is not None and arguments.numbers:
            lines: Sequence[object] = [numbers(arguments.results)]
        else:
            lines = draw(arguments.results, arguments.out)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    for line in lines:
        print(line)
    return 0
