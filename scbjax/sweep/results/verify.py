"""Computing stored results again: a sample of a run's trajectories, or the study of a dataset.

What is computed again are whole vmapped blocks, by the program that made them, so that with the
same versions, device and code every bit has to agree. Elsewhere values may differ by rounding,
which the stages and thresholds of the algorithm can magnify; they count as equal within `RTOL` and
`ATOL`, counts within one.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
import numpy.typing as npt

from scbjax.base import Experiment, StudyError
from scbjax.sweep.engine.chunks import Executor
from scbjax.sweep.engine.here import plan_here, provenance
from scbjax.sweep.plan import cost
from scbjax.sweep.plan.plans import Plan, plan_with_layout
from scbjax.sweep.results.dataset import axes_of, dataset_name, is_of_task, is_whole, read_dataset
from scbjax.sweep.results.store import Manifest, status
from scbjax.sweep.study.files import Study, fingerprint, parse_study

if TYPE_CHECKING:
    import xarray

RTOL = 1e-3
"""Relative difference up to which values are equal within rounding."""
ATOL = 1e-4
"""The same for values that are differences of numbers of size one, such as signals. Two chunkings
of 200 float32 steps came to 1e-5."""
_COUNTS = 1.0  # integers: an entry at the edge of what counts as nonzero counts, or does not

Array: TypeAlias = npt.NDArray[Any]
Triple: TypeAlias = tuple[str, Array, Array]
"""A variable's name, its values as stored, and as computed again."""


@dataclass(frozen=True)
class Comparison:
    """How far stored values and those computed again agree.

    Attributes:
        variables: compared.
        identical_variables: those of them with the same bits throughout.
        values: compared.
        identical_values: those of them with the same bits; any NaN is like any other.
        largest_difference: between values that are both finite.
        largest_in: the variable that has it; empty if there is none.
        close: whether all values are equal within `RTOL` and `ATOL`, and integers within one.
    """

    variables: int
    identical_variables: int
    values: int
    identical_values: int
    largest_difference: float
    largest_in: str
    close: bool

    @property
    def identical(self) -> bool:
        """Whether all bits are the same."""
        return self.identical_values == self.values


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found.

    Attributes:
        name: the study's name.
        sampled: trajectories drawn.
        recomputed: trajectories computed again and compared, with those that share their blocks.
        total: trajectories of the study.
        changed: what is not as it was when the run began: versions, device, ...
        damaged: whether the checksum of the dataset does not hold.
        comparison: of all their values.
    """

    name: str
    sampled: int
    recomputed: int
    total: int
    changed: tuple[str, ...]
    damaged: bool
    comparison: Comparison

    @property
    def holds(self) -> bool:
        """Whether the dataset is what the study gives, bit for bit where nothing has changed."""
        found = self.comparison
        return not self.damaged and (found.close if self.changed else found.identical)


def compare(triples: Iterable[Triple]) -> Comparison:
    """Compares stored values with those computed again, variable by variable.

    >>> compare([("a", np.array([1.0, np.nan]), np.array([1.5, np.nan]))]).largest_difference
    0.5
    """
    found = [(name, *_compare(stored, again)) for name, stored, again in triples]
    largest = max(found, key=lambda each: each[3], default=("", 0, 0, 0.0, True))
    return Comparison(
        variables=len(found),
        identical_variables=sum(count == same for _, count, same, *_ in found),
        values=sum(count for _, count, *_ in found),
        identical_values=sum(same for _, _, same, *_ in found),
        largest_difference=largest[3],
        largest_in=largest[0] if largest[3] else "",
        close=all(close for *_, close in found),
    )


def _compare(stored: Array, again: Array) -> tuple[int, int, float, bool]:
    """Values, identical ones, largest difference, and whether all are close."""
    if stored.shape != again.shape or stored.dtype != again.dtype:
        return stored.size, 0, 0.0, False
    width = stored.dtype.itemsize
    bits = [np.ascontiguousarray(array).reshape(-1).view(f"u{width}") for array in (stored, again)]
    left, right = (np.asarray(array, np.float64).reshape(-1) for array in (stored, again))
    same = (bits[0] == bits[1]) | (np.isnan(left) & np.isnan(right))
    both = np.isfinite(left) & np.isfinite(right)
    gaps = np.abs(left[both] - right[both])
    close = same.copy()
    slack = ATOL if stored.dtype.kind == "f" else _COUNTS
    close[both] |= gaps <= slack + RTOL * np.abs(left[both])
    return left.size, int(same.sum()), float(gaps.max(initial=0.0)), bool(close.all())


def compare_datasets(study: Study, stored: "xarray.Dataset", again: "xarray.Dataset") -> Comparison:
    """Compares the variables of two datasets of a study; what only one has is different."""
    return compare(
        (str(name), _along(study, stored, again, name), _along(study, again, stored, name))
        for name in dict.fromkeys(map(str, [*stored.data_vars, *again.data_vars]))
    )


def _along(study: Study, dataset: "xarray.Dataset", other: "xarray.Dataset", name: str) -> Array:
    """A variable; of a task, whose parts older versions repeat along all axes, what both have."""
    if name not in dataset:
        return np.zeros(0)
    variable = dataset[name]
    if name in other and is_of_task(study, name):
        variable = variable.isel({dim: 0 for dim in variable.dims if dim not in other[name].dims})
    array: Array = variable.to_numpy()
    return array


# ----------------------------------------------------------------------------------------- a sampl


def verify(
    out: Path, *, count: int = 8, seed: int = 0, experiments: Sequence[Experiment] = ()
) -> Verification:
    """Computes a random sample of a study's trajectories again and compares it with the dataset.

    Trajectories are computed in blocks, as in the run, and the blocks that hold the sample are
    compared as a whole. If bits differ though nothing has changed since the run, their whole chunks
    are computed again, exactly as in the run, before anything is said.

    Args:
        out: the results directory.
        count: trajectories to draw.
        seed: of the draw.
        experiments: as for `scbjax.sweep.study.files.load_study`.

    Raises:
        StudyError: the directory holds no finished run, or what it holds can't be understood.
    """
    found = status(out)
    if found.dataset is None:
        raise StudyError(f"{out} has no dataset yet; run the study again to continue")
    plan = _stored_plan(out, found.manifest, experiments)
    dataset = read_dataset(found.dataset)
    if dataset.attrs.get("fingerprint") != plan.fingerprint:
        raise StudyError(f"{found.dataset} is not the dataset of the study in {out}")
    places = np.random.default_rng(seed).choice(
        plan.num_trajectories, min(count, plan.num_trajectories), replace=False
    )
    now = provenance()
    changed = tuple(name for name in now if found.manifest.provenance.get(name) != now[name])
    blocks = _in_blocks(plan)
    comparison, recomputed = _recompute(blocks, dataset, places)
    if not comparison.identical and not changed and blocks.layout != plan.layout:
        comparison, recomputed = _recompute(plan, dataset, places)
    return Verification(
        name=plan.study.name,
        sampled=len(places),
        recomputed=recomputed,
        total=plan.num_trajectories,
        changed=changed,
        damaged=not is_whole(found.dataset),
        comparison=comparison,
    )


def _stored_plan(out: Path, manifest: Manifest, experiments: Sequence[Experiment]) -> Plan:
    source = f"the study in {out}"
    study = parse_study(manifest.study, manifest.name, source=source, experiments=experiments)
    if fingerprint(study) != manifest.fingerprint:
        raise StudyError(f"the manifest in {out} has another fingerprint than its study")
    return plan_with_layout(study, manifest.layout, device_count=len(jax.local_devices()))


def _in_blocks(plan: Plan) -> Plan:
    """The plan in chunks as small as run the same code: a loop over blocks stays a loop."""
    layout = []
    for program in plan.programs:
        outer, inner = program.chunk_shape
        unit = program.devices * program.block
        layout.append((min(outer, 2 * unit), inner, program.block))
    return plan_with_layout(plan.study, layout, device_count=plan.device_count)


def _recompute(plan: Plan, dataset: "xarray.Dataset", places: Array) -> tuple[Comparison, int]:
    """Runs the chunks that hold some places, and compares all that they give with the dataset."""
    executor, triples, count = Executor(plan), [], 0
    for chunk in plan.chunks:
        own = plan.positions(chunk)
        if not np.isin(own, places).any():
            continue
        count += chunk.size
        for name, again in executor.run(chunk.index).arrays.items():
            stored, copied = _stored(dataset, name, plan)
            triples.append((name, stored[own], _settled(stored[own], again, copied[own])))
    return compare(_joined(triples)), count


def _stored(dataset: "xarray.Dataset", name: str, plan: Plan) -> tuple[Array, Array]:
    """A variable of the dataset, [trajectories, ...], and for which of them it is a copy.

    Datasets of older versions have all axes of the study throughout, and no copies.
    """
    variable = dataset.get(dataset_name(plan, name))
    sizes = {axis.name: size for axis, size in zip(plan.study.axes, plan.shape, strict=True)}
    kept = [] if variable is None else [axis for axis in sizes if axis in variable.dims]
    if (
        variable is None
        or not {*axes_of(plan.study, name)} <= {*kept}
        or variable.shape[: len(kept)] != tuple(sizes[axis] for axis in kept)
    ):
        stored_as = dataset_name(plan, name)
        raise StudyError(f"the dataset has no variable {stored_as} of the shape of its study")
    own = variable.shape[len(kept) :]
    array = variable.to_numpy().reshape(*(sizes[a] if a in kept else 1 for a in sizes), *own)
    whole = np.broadcast_to(array, (*plan.shape, *own)).reshape(plan.num_trajectories, *own)
    copied = np.ones(plan.shape, bool)
    copied[tuple(slice(None) if axis in kept else 0 for axis in sizes)] = False
    return whole, copied.reshape(-1)


def _settled(stored: Array, again: Array, copied: Array) -> Array:
    """What was computed again, with a copy in its place where one is close.

    A number that is stored once for many trajectories is the first one's: the program of another
    may round the last bit in another way.
    """
    if stored.shape != again.shape or stored.dtype != again.dtype or not copied.any():
        return again
    copied = copied.reshape(copied.shape + (1,) * (again.ndim - copied.ndim))
    return np.where(copied & np.isclose(again, stored, rtol=RTOL, atol=ATOL), stored, again)


def _joined(triples: Iterable[Triple]) -> list[Triple]:
    """One triple for each variable, of all its chunks."""
    parts: dict[str, list[tuple[Array, Array]]] = {}
    for name, stored, again in triples:
        parts.setdefault(name, []).append((stored.reshape(-1), again.reshape(-1)))
    return [
        (name, np.concatenate([pair[0] for pair in pairs]), np.concatenate([p[1] for p in pairs]))
        for name, pairs in parts.items()
    ]


# ---------------------------------------------------------------------------------------- a dataset


def gives_the_same_bits(stored: "xarray.Dataset", again: "xarray.Dataset") -> bool:
    """Whether two datasets of one study were made by the same plan, versions, device and code."""
    names = ("layout", *provenance())
    return "layout" in stored.attrs and all(
        stored.attrs.get(name) == again.attrs.get(name) for name in names
    )


def plan_of(
    study: Study, attributes: Mapping[str, Any], source: str, *, memory_bytes: int | None
) -> Plan:
    """The plan that made a dataset, if it is told and fits the memory; a new one otherwise.

    Args:
        study: the study.
        attributes: of the dataset.
        source: what messages call it.
        memory_bytes: budget of a chunk; given, it makes a new plan.

    Raises:
        StudyError: the attribute ``layout`` can't be understood, or is that of another study.
    """
    if memory_bytes is None and "layout" in attributes:
        try:
            layout = tuple((int(o), int(i), int(b)) for o, i, b in json.loads(attributes["layout"]))
        except (TypeError, ValueError, RecursionError, OverflowError):
            raise StudyError(f"the attribute layout of {source} can't be understood") from None
        plan = plan_with_layout(study, layout, device_count=len(jax.local_devices()))
        if plan.memory_bytes <= cost.default_memory_bytes():
            return plan
    return plan_here(study, memory_bytes=memory_bytes)
