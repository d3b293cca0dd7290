"""A dataset as arms and runs: its axes, its arms, their values and their x axis."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from scbjax.plot.labels import column_of, fields_along, labels_of, telling
from scbjax.sweep.study.fields import SEED_NAMES

if TYPE_CHECKING:
    import xarray


Values = npt.NDArray[np.float64]
Places = npt.NDArray[np.int_]
SAMPLES: Final = "samples"
DIVERGED: Final = "diverged_at"
MATRICES: Final = frozenset({"token_out", "token_in", "position", "query", "snapshot"})
_SEEDS: Final = SEED_NAMES
PROBE: Final = "probe"
COUNTED: Final = "samples, as iterations times batch size"


@dataclass(frozen=True)
class Arm:
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
class Data:
    """A dataset, arranged.

    Attributes:
        dataset: as it was given.
        arms: the arms.
        seeds: the dimensions of seeds.
        tables: what is drawn, and the samples if they were recorded, [arms, runs, ...].
        left_out: which runs diverged, [arms, runs].
    """

    dataset: xarray.Dataset
    arms: tuple[Arm, ...]
    seeds: tuple[str, ...]
    tables: Mapping[str, Values]
    left_out: npt.NDArray[np.bool_]

    @property
    def runs(self) -> int:
        """How many runs an arm has."""
        return int(self.left_out.shape[1])

    def values(self, name: str, arm: Arm) -> Values:
        """A variable of the runs of an arm that did not diverge, [runs, ...]."""
        kept: Values = self.tables[name][arm.index][~self.left_out[arm.index]]
        return kept


def axes_of(dataset: xarray.Dataset) -> list[str]:
    """The study's axes, in its order."""
    return [str(name) for name in dataset.dims if name not in {"step", PROBE, *MATRICES}]


def seeds_of(dataset: xarray.Dataset) -> list[str]:
    """The axes along which nothing but seeds varies."""
    return [name for name in axes_of(dataset) if set(fields_along(dataset, name)) <= _SEEDS]


def arrange(dataset: xarray.Dataset, names: Sequence[str]) -> Data:
    """A dataset with its arms, and the values of some variables for each of them."""
    seeds = tuple(seeds_of(dataset))
    axes = [axis for axis in axes_of(dataset) if axis not in seeds]
    places = [
        dict(zip(axes, place, strict=True))
        for place in itertools.product(*(range(dataset.sizes[axis]) for axis in axes))
    ]
    told = {axis: telling(dataset, axis) for axis in axes}
    arms = tuple(
        Arm(index, place, label, None, None)
        for index, (place, label) in enumerate(
            zip(places, labels_of(dataset, told, places), strict=True)
        )
    )
    also = [name for name in (SAMPLES, DIVERGED) if name in dataset and name not in names]
    tables = {name: table_of(dataset, name, axes, seeds) for name in (*names, *also)}
    return Data(dataset, arms, seeds, tables, _diverged(dataset, names, tables))


def table_of(
    dataset: xarray.Dataset, name: str, axes: Sequence[str], seeds: Sequence[str]
) -> Values:
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


def settings_of(dataset: xarray.Dataset) -> Mapping[str, Any]:
    """What all runs have in common, by dotted path."""
    try:
        found = json.loads(dataset.attrs.get("settings", "{}"))
    except (TypeError, ValueError):
        found = None
    return found if isinstance(found, dict) else {}


def horizontal_of(data: Data, arm: Arm) -> tuple[Values, str]:
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
    batch = settings_of(dataset).get("train.batch_size")
    for axis, index in arm.place.items():
        if "batch_size" in fields_along(dataset, axis) and "batch_size" in dataset.coords:
            batch = column_of(dataset, "batch_size")[index]
    if isinstance(batch, int | float):
        return step * batch, COUNTED
    return step, "iteration"
