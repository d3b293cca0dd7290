"""What there is of a run that is not complete, as parts of the dataset that it will be.

Finished chunks hold all that a dataset has of their trajectories. A chunk under way has a
checkpoint: what was recorded so far and the snapshots taken so far, but not the task, which is
written when the chunk is finished. All else is NaN. JAX is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scbjax.base import NOT_DIVERGED, Experiment, StudyError, Variable
from scbjax.sweep.plan.plans import Chunk, Plan, plan_with_layout
from scbjax.sweep.results.arrays import Arrays, DamagedError
from scbjax.sweep.results.dataset import dataset_name, describe, frame_of, variables_of
from scbjax.sweep.results.store import Status, Store
from scbjax.sweep.study.files import parse_study

if TYPE_CHECKING:
    import xarray

Places = npt.NDArray[np.int_]
_SNAPSHOTS = "_snapshots"


@dataclass(frozen=True)
class Partial:
    """The results of a run that is not complete.

    Attributes:
        plan: the plan, as the manifest has it.
        store: the results directory.
        records: how many records of each trajectory there are, [axes].
        damaged: files that are there and were not used, since they are not as they were written.
    """

    plan: Plan
    store: Store
    records: npt.NDArray[np.int_]
    damaged: tuple[Path, ...]
    _latest: dict[int, Arrays] = field(default_factory=dict, repr=False, compare=False)

    @property
    def variables(self) -> Mapping[str, Variable]:
        """What the dataset will hold, by name, with the dimensions after those of the axes."""
        study = self.plan.study
        return {dataset_name(self.plan, name): v for name, v in variables_of(study).items()}

    @cached_property
    def frame(self) -> xarray.Dataset:
        """The dataset without its variables."""
        return frame_of(self.plan, {})

    def select(self, names: Sequence[str], keep: Mapping[str, Places]) -> xarray.Dataset:
        """Some variables at some places of their dimensions, with all axes of the study.

        Args:
            names: of the variables.
            keep: places along axes, ``step`` or ``snapshot``; all of them where none are given.

        Returns:
            The dataset, in memory. What is not there is NaN, so that integers are floats.

        Raises:
            StudyError: a chunk can't be read any more.
        """
        import xarray

        study = self.plan.study
        axes = tuple(axis.name for axis in study.axes)
        every = {axis.name: np.arange(len(axis)) for axis in study.axes}
        kept = {axis: np.asarray(keep.get(axis, places)) for axis, places in every.items()}
        shape = tuple(map(len, kept.values()))
        slots = np.full(self.plan.shape, -1)
        slots[np.ix_(*kept.values())] = np.arange(np.prod(shape, dtype=int)).reshape(shape)
        parts = {name: self._empty(name, int(np.prod(shape, dtype=int)), keep) for name in names}
        for chunk in self.plan.chunks:
            slot = slots.ravel()[self.plan.positions(chunk)]
            if (slot >= 0).any() and self._records_of(chunk):
                self._fill(parts, chunk, slot, keep)
        frame = self.frame.isel(dict(keep), missing_dims="ignore")
        found = {}
        for name, part in parts.items():
            variable = self.variables[name]
            dims = (*axes, *variable.dims)
            array = part.reshape(*shape, *part.shape[1:])
            found[name] = xarray.Variable(dims, array, dict(describe(variable)))
        return frame.assign(found)

    def _empty(self, name: str, count: int, keep: Mapping[str, Places]) -> npt.NDArray[Any]:
        variable, study, sizes = self.variables[name], self.plan.study, self.frame.sizes
        shape = (len(keep[dim]) if dim in keep else sizes[dim] for dim in variable.dims)
        # Integers that are not there are NaN too; those of 32 bits fit into floats of 64.
        dtype = study.experiment.dtype(study.base) if variable.dtype == "float32" else "float64"
        return np.full((count, *shape), np.nan, dtype)

    def _records_of(self, chunk: Chunk) -> int:
        return int(self.records.ravel()[self.plan.positions(chunk)[0, 0]])

    def _fill(
        self,
        parts: Mapping[str, npt.NDArray[Any]],
        chunk: Chunk,
        slot: Places,
        keep: Mapping[str, Places],
    ) -> None:
        """Puts what a chunk has in its places."""
        arrays = self._arrays(chunk)
        own = {dataset_name(self.plan, name): name for name in variables_of(self.plan.study)}
        for name, part in parts.items():
            array = arrays.get(own[name])
            if array is None:
                continue
            for axis, dim in enumerate(self.variables[name].dims):
                if dim in keep:
                    array = np.take(array, keep[dim], axis=2 + axis)
            part[slot[slot >= 0]] = array[slot >= 0]

    def _arrays(self, chunk: Chunk) -> Arrays:
        """What there is of a chunk, [outer, inner, ...] by name."""
        if chunk.index not in self._latest:
            arrays = self._load(chunk)
            self._latest.clear()  # of many parts that are asked for in turn, most lie in one chunk
            self._latest[chunk.index] = arrays
        return self._latest[chunk.index]

    def _load(self, chunk: Chunk) -> Arrays:
        try:
            try:
                return self.store.load_chunk(self.plan, chunk)[0]
            except (FileNotFoundError, DamagedError):
                return _under_way(self.plan, chunk, *self.store.load_checkpoint(self.plan, chunk))
        except (FileNotFoundError, DamagedError) as error:
            raise StudyError(
                f"{self.store.out} has changed while it was read ({error}); try again"
            ) from None


def read_partial(found: Status, experiments: Sequence[Experiment] = ()) -> Partial:
    """What there is of a run that is not complete.

    Args:
        found: how far the run is.
        experiments: as for `scbjax.sweep.study.files.load_study`.

    Returns:
        It; every file in it is whole.

    Raises:
        StudyError: the study in the manifest is not one of this version, or nothing is there yet.
    """
    manifest, store = found.manifest, Store(found.out)
    study = parse_study(
        manifest.study, manifest.name, source=str(store.manifest_path), experiments=experiments
    )
    plan = plan_with_layout(study, manifest.layout)
    if plan.fingerprint != manifest.fingerprint:
        raise StudyError(f"{store.manifest_path} is of another version of the study's experiment")
    records = np.zeros(plan.num_trajectories, int)
    damaged: list[Path] = []
    for chunk in plan.chunks:
        records[plan.positions(chunk)] = _count_records(plan, store, chunk, damaged)
    if not records.any():
        raise StudyError(
            f"{found.out} has no results yet: no chunk is done and none has a checkpoint; "
            "running the study again goes on from there"
        )
    return Partial(plan, store, records.reshape(plan.shape), tuple(damaged))


def _count_records(plan: Plan, store: Store, chunk: Chunk, damaged: list[Path]) -> int:
    """How many records of a chunk there are; notes the files that are damaged."""
    total = plan.programs[chunk.program].num_records
    for load, path, count in (
        (store.load_chunk, store.chunk_path(chunk), lambda _: total),
        (store.load_checkpoint, store.checkpoint_path(chunk), lambda facts: facts["records"]),
    ):
        try:
            return min(total, int(count(load(plan, chunk)[1])))
        except FileNotFoundError:
            continue
        except (DamagedError, KeyError, TypeError, ValueError):
            damaged.append(path)
    return 0


def _under_way(plan: Plan, chunk: Chunk, arrays: Arrays, facts: Mapping[str, Any]) -> Arrays:
    """What a checkpoint has, as a finished chunk would have it; NaN in the place of the rest.

    A checkpoint is the leaves of a carry (`scbjax.sweep.engine.mapped.Carry`) in the order of
    ``jax.tree``: the state, the records by sorted names, and ``diverged_at``.
    """
    study, outer, inner = plan.study, *chunk.shape
    leaves = [arrays[f"carry_{n}"] for n in range(sum(name[:6] == "carry_" for name in arrays))]
    names = sorted(study.variables)
    if len(leaves) <= len(names):
        raise DamagedError("it holds other arrays than the program has")
    found: dict[str, npt.NDArray[Any]] = {}
    records = int(facts["records"])
    for name, leaf in zip(names, leaves[-1 - len(names) : -1], strict=True):
        array = np.moveaxis(leaf, 0, 2)[:outer, :inner].astype(np.result_type(leaf, np.float32))
        array[:, :, records:] = np.nan
        found[name] = array
    # Of a trajectory that has not come to its end nobody knows that it will not diverge.
    diverged = leaves[-1][:outer, :inner].astype(float)
    found["diverged_at"] = np.where(diverged == NOT_DIVERGED, np.nan, diverged)
    for kind in study.experiment.kept:
        taken = [
            arrays[key] for n in range(len(study.snapshots)) if (key := f"{kind}_{n}") in arrays
        ]
        if taken:
            stack = np.stack(taken, axis=2)[:outer, :inner]
            room = [(0, 0)] * stack.ndim
            room[2] = (0, len(study.snapshots) - len(taken))
            found[f"{kind}{_SNAPSHOTS}"] = np.pad(stack, room, constant_values=np.nan)
    return found
