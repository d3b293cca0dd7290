"""Studies' datasets, read and brought into one layout.

`tidy` gives every dataset the dimensions `arm`, `run`, the figure's panel axes and `step`.
"""

from __future__ import annotations

import json
import tomllib
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

SEED_FIELDS: Final = frozenset({"seed", "task_seed", "data_seed", "init_seed"})
PROBE: Final = "probe"  # what a search tried
# Of matrices: never an axis of a study.
MATRIX_DIMS: Final = frozenset({"snapshot", "token_out", "token_in", "position", "query"})
POPULATION: Final[Mapping[str, str]] = {
    "alpha_value": "population_alpha_value",
    "alpha_attention": "population_alpha_attention",
}
"""The signals, and the variable with the population path of each."""
Values = NDArray[np.float64]
Made = TypeVar("Made")


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
                return with_all_axes(stored, names)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read as a dataset; `{command} --force` makes it anew"
        ) from error
    raise ValueError(
        f"{path} does not hold {', '.join(missing)}, which this figure draws; "
        f"record it in the study ([record]), then `{command} --force` makes it anew"
    )


def with_all_axes(stored: xr.Dataset, names: Iterable[Hashable]) -> xr.Dataset:
    """Load variables, all of them along all axes of the study.

    What a task is depends on some of the axes, and is stored along those.
    """
    axes = {name: stored.sizes[name] for name in study_axes(stored)}
    whole = {
        name: stored[name]
        .expand_dims({axis: n for axis, n in axes.items() if axis not in stored[name].dims})
        .transpose(*axes, ...)
        for name in names
    }
    along = {name: item for name, item in stored.coords.items() if {*item.dims} <= {*axes}}
    return xr.Dataset(whole, attrs=stored.attrs).assign_coords(along).load()


def study_axes(dataset: xr.Dataset) -> list[Hashable]:
    """List the dimensions of a dataset that are axes of its study.

    The others are steps, matrices, and what an experiment records arrays along.
    """
    dims = [name for name in dataset.dims if name not in {"step", *MATRIX_DIMS}]
    if "study" not in dataset.attrs:
        return dims
    study = tomllib.loads(dataset.attrs["study"])
    named = {path.rpartition(".")[2] for path in study.get("axes", {})}
    named |= {item["name"] for item in study.get("zip", [])} | {PROBE}
    return [name for name in dims if name in named]


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


def made_of(dataset: xr.Dataset, study: str, make: Callable[[xr.Dataset], Made]) -> Made:
    """Make something of a dataset in which variables may be that end in no number in any run.

    Raises:
        ValueError: it can't be made without them.
    """
    empty = unfinished(dataset)
    if not empty:
        return make(dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # What libraries say to one another is no sign of a number that is missing.
        for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        try:
            return make(dataset)
        except (ArithmeticError, IndexError, ValueError, np.linalg.LinAlgError, Warning) as error:
            raise ValueError(
                f"no run of {study} has a finite {' or '.join(empty)} at its end, which this needs"
            ) from error


def unfinished(dataset: xr.Dataset) -> list[str]:
    """Name the variables that no run has a finite value of at its end."""
    names = []
    for name, item in dataset.data_vars.items():
        last = item.isel(step=-1) if "step" in item.dims else item
        if item.dtype.kind == "f" and not np.isfinite(last).any():
            names.append(str(name))
    return names


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
    renamed = {name: f"{name}_axis" for name in ("run", "arm") if name in dataset.dims}
    own = [renamed.get(str(name), name) for name in study_axes(dataset)]
    dataset = dataset.rename(renamed)
    for name in panels:
        if name not in dataset.coords:
            dataset = dataset.expand_dims(name)
        elif name not in dataset.dims:  # the field is part of a zip
            dataset = dataset.swap_dims({dataset[name].dims[0]: name})
    axes = [name for name in own if name in dataset.dims and name not in panels]
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


def setting(dataset: xr.Dataset, field: str, default: object = None) -> object:
    """Look a field up by its short name in the settings that the dataset carries."""
    settings: Mapping[str, object] = json.loads(dataset.attrs.get("settings", "{}"))
    for path, value in settings.items():
        if path.rpartition(".")[2] == field:
            return value
    return default


def along_arms(dataset: xr.Dataset, field: str, default: object = None) -> list[Any]:
    """Give a field's value in every arm of a tidy dataset, whether the study varies it or not."""
    if field in dataset.coords:
        return list(np.broadcast_to(dataset[field].to_numpy(), dataset.sizes["arm"]).tolist())
    return [setting(dataset, field, default)] * dataset.sizes["arm"]


def symbol(dataset: xr.Dataset, variable: str) -> str:
    """Give the symbol of a recorded variable, or its name where the dataset knows none."""
    return str(dataset[variable].attrs.get("symbol", variable.replace("_", " ")))
