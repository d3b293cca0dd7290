"""What is explored: a dataset, in memory or in a file, or the results of a run under way."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from scbjax.base import Experiment, StudyError
from scbjax.sweep.engine.places import existing
from scbjax.sweep.results.dataset import damage_told, describe, opened_dataset
from scbjax.sweep.results.partial import Partial, Places, read_partial
from scbjax.sweep.results.store import Store, status
from scbjax.sweep.scripts.figures import find_dataset
from scbjax.sweep.study.locating import find_studies

if TYPE_CHECKING:
    import xarray


class Results(Protocol):
    """The results of a study, whose arrays are read as they are asked for."""

    @property
    def source(self) -> str:
        """What messages call it: its path, or words."""

    @property
    def frame(self) -> xarray.Dataset:
        """Coordinates and attributes; there may be variables, which are not to be read."""

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """The dimensions of each variable."""

    @property
    def records(self) -> xarray.DataArray | None:
        """How many records there are, along the axes of the study; None where all are there."""

    @property
    def notes(self) -> Sequence[str]:
        """What is to be said of it, in sentences."""

    def describe(self, name: str) -> Mapping[str, Any]:
        """What is said of a variable: ``long_name`` and the like."""

    def select(self, names: Sequence[str], keep: Mapping[str, Places]) -> xarray.Dataset:
        """Some variables at some places of their dimensions, in memory."""


@dataclass(frozen=True)
class Whole:
    """A dataset.

    Attributes:
        frame: the dataset.
        source: see `Results`.
        path: its file; None if it is in memory.
    """

    frame: xarray.Dataset
    source: str
    path: Path | None = None
    records: None = None
    notes: Sequence[str] = ()

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """The dimensions of each variable that is a number."""
        return {
            str(name): tuple(map(str, item.dims))
            for name, item in self.frame.data_vars.items()
            if item.dtype.kind in "fiub"
        }

    def describe(self, name: str) -> Mapping[str, Any]:
        """What is said of a variable."""
        return {str(key): value for key, value in self.frame[name].attrs.items()}

    def select(self, names: Sequence[str], keep: Mapping[str, Places]) -> xarray.Dataset:
        """Some variables at some places of their dimensions, in memory."""
        told = contextlib.nullcontext() if self.path is None else damage_told(self.path)
        with told:
            return self.frame[list(names)].isel(dict(keep), missing_dims="ignore").load()


@dataclass(frozen=True)
class UnderWay:
    """The results of a run that is not complete.

    Attributes:
        partial: what there is of it.
    """

    partial: Partial

    @property
    def source(self) -> str:
        """The results directory."""
        return str(self.partial.store.out)

    @property
    def frame(self) -> xarray.Dataset:
        """Coordinates and attributes."""
        return self.partial.frame

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """The dimensions of each variable."""
        axes = tuple(axis.name for axis in self.partial.plan.study.axes)
        return {name: (*axes, *v.dims) for name, v in self.partial.variables.items()}

    @property
    def records(self) -> xarray.DataArray:
        """How many records there are, along the axes of the study."""
        import xarray

        axes = [axis.name for axis in self.partial.plan.study.axes]
        return xarray.DataArray(self.partial.records, dims=axes)

    @property
    def notes(self) -> Sequence[str]:
        """That the run is not complete, how much is there, and what of it is damaged."""
        records, total = self.partial.records, self.partial.plan.programs[0].num_records
        whole, begun = int((records == total).sum()), int(((records > 0) & (records < total)).sum())
        parts = [f"{whole} of {records.size} trajectories are done"]
        parts += [f"{begun} are there up to a checkpoint"] if begun else []
        notes = [f"The run is not complete: {', '.join(parts)}."]
        if damaged := self.partial.damaged:
            files = ", ".join(path.name for path in damaged[:3])
            notes.append(f"Damaged and left out: {files}{', ...' if len(damaged) > 3 else ''}.")
        return notes

    def describe(self, name: str) -> Mapping[str, Any]:
        """What is said of a variable."""
        return describe(self.partial.variables[name])

    def select(self, names: Sequence[str], keep: Mapping[str, Places]) -> xarray.Dataset:
        """Some variables at some places of their dimensions, in memory."""
        return self.partial.select(names, keep)


@contextlib.contextmanager
def opened_results(
    what: xarray.Dataset | str | os.PathLike[str],
    experiments: Sequence[Experiment] = (),
    results: Path = Path("results"),
) -> Iterator[Results]:
    """The results of a study, as long as they are open.

    Args:
        what: a dataset, the path of one, a results directory, or the name of a study in `results`.
        experiments: the user's own, for a run of theirs that is not complete.
        results: the directory that holds the studies' directories.

    Raises:
        StudyError: there is nothing that could be read.
    """
    if not isinstance(what, str | os.PathLike):
        yield Whole(what, "the dataset")
        return
    found = _locate(os.fspath(what), results)
    if isinstance(found, Store):
        yield UnderWay(read_partial(status(found.out), experiments))
        return
    with opened_dataset(found) as dataset:
        yield Whole(dataset, str(found), found)


def _locate(text: str, results: Path) -> Path | Store:
    """The dataset that a text means, or the directory of a run without one."""
    path = Path(text)
    if text and "\0" not in text and not path.exists() and (results / text).is_dir():
        path = results / text
    if not path.exists() and text in {study.stem for study in find_studies()}:
        raise StudyError(
            f"study '{text}' has no results in {results}; `scbjax run {text}` makes them"
        )
    path = existing(str(path) if text else text, "folder, dataset or study")
    if path.is_file():
        return path
    if Store(path).manifest_path.exists():
        run = status(path)
        return run.dataset or Store(path)
    dataset = find_dataset(str(path), results)
    if dataset is None:
        status(path)  # which says what the folder is, if it is no run's
        raise StudyError(f"{path} holds no dataset")
    return dataset


def attribute(frame: xarray.Dataset, name: str) -> str:
    """A text among the attributes of a dataset; nothing if there is none."""
    found: Any = frame.attrs.get(name, "")
    return found if isinstance(found, str) else ""
