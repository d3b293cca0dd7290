"""From the grid of a study to compiled programs.

The axes of a study are of two kinds. *Static* fields change shapes or the program itself, so every
combination of their values is a :class:`Program` with a compilation of its own. All other fields
are *traced*: they are arrays, and one program runs all their values. Traced axes come in two
layers, vmap inside vmap:

* the *outer* layer holds what changes the data (seeds, and what a task's tokens depend on);
* the *inner* layer holds what only the learner sees (rates, l1, ...), and what changes a task but
  not its data. The points of the inner layer share their data, which are drawn once for all of
  them: comparisons along it are paired, and its random bits are paid for once.

Planning needs no JAX.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from scbjax.base import RECORD_EVERY, STEPS, Experiment
from scbjax.costs import CACHE_BYTES, Cost
from scbjax.sweep.study.files import Axis, Study
from scbjax.values import Values

Group: TypeAlias = tuple[tuple[str, Any], ...]
"""Static fields and their values."""

_STEP_SECONDS = 1e-4
"""What a step of a trajectory is said to take that nothing is known of: a fifth of what a small one
of the library's takes. It divides a progress bar among programs, which are alike."""

UNKNOWN = Cost(
    shared_bytes=lambda _: 0,
    kept_bytes=lambda _: 1,
    temporary_bytes=lambda _: 1,
    step_bytes=lambda _, __: 1,
    run_seconds=lambda values, shape: math.prod(shape) * values[STEPS.path] * _STEP_SECONDS,
    tokens=lambda _: 0,
    is_taken_singly=lambda _: False,
)
"""What trajectories take of which nothing is known."""


@dataclass(frozen=True)
class Layer:
    """The points of one vmapped layer of a program.

    Attributes:
        size: number of points.
        columns: for every field that varies within the layer, its value at each point.
    """

    size: int
    columns: Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Program:
    """One static combination: what is compiled once.

    Attributes:
        index: its place in the plan.
        experiment: what it computes.
        fixed: value of every field that no layer varies, by dotted path.
        outer: points that change the data.
        inner: points that share the data of an outer point.
        positions: [outer, inner] int64; where each trajectory stands in the study's flattened grid.
        chunk_shape: points (outer, inner) of each of its chunks; trailing chunks are padded to it.
        block: outer points of a chunk that a device works on at a time.
        devices: devices that share a chunk.
        cost: what its trajectories take.
    """

    index: int
    experiment: Experiment = field(compare=False)
    fixed: Mapping[str, Any]
    outer: Layer
    inner: Layer
    positions: npt.NDArray[np.int64] = field(compare=False)
    chunk_shape: tuple[int, int] = (1, 1)
    block: int = 1
    devices: int = 1
    cost: Cost = field(default=UNKNOWN, compare=False)

    @property
    def num_records(self) -> int:
        """Records of a trajectory, with that of its initial state."""
        return self.num_steps // self.record_every + 1

    @property
    def num_steps(self) -> int:
        """Steps of a trajectory."""
        return int(self.fixed[STEPS.path])

    @property
    def record_every(self) -> int:
        """Steps between two records."""
        return int(self.fixed[RECORD_EVERY.path])

    @property
    def memory_bytes(self) -> int:
        """Estimated peak memory of one chunk over all its devices, in bytes."""
        return self.cost.chunk_bytes(self.fixed, self.chunk_shape, self.devices * self.block)

    @property
    def is_taken_singly(self) -> bool:
        """Whether a block holds one outer point on any number of devices, for its size."""
        # By what the experiment says, not by what is measured here: it decides about the program.
        takes = self.experiment.cost or UNKNOWN
        large = 2 * takes.step_bytes(self.fixed, self.chunk_shape[1]) > CACHE_BYTES
        large |= takes.is_taken_singly(self.fixed)
        return self.chunk_shape[0] == 1 or (large and self.block == 1)

    @property
    def tokens(self) -> int:
        """Tokens that all its trajectories read, in all their steps."""
        return self.positions.size * self.cost.tokens(self.fixed)

    @property
    def seconds(self) -> float:
        """Estimated run time on two CPU cores, without compilation."""
        return self.cost.run_seconds(self.fixed, (self.outer.size, self.inner.size))


def grid_shape(study: Study) -> tuple[int, ...]:
    """Length of each axis of a study."""
    return tuple(len(axis.values) for axis in study.axes)


def programs_of(study: Study) -> Iterator[Program]:
    """The programs of a study, in the order of its axes, not yet cut into chunks."""
    layers = _layers(study)
    groups = [_rows_by_static_values(study, axis) for axis in study.axes]
    for index, combination in enumerate(itertools.product(*(group.items() for group in groups))):
        static = dict(pair for values, _ in combination for pair in values)
        rows = [rows for _, rows in combination]
        base = {**study.base, **static}
        outer, outer_rows = _layer(study, rows, base, [kind == "outer" for kind in layers])
        inner, inner_rows = _layer(study, rows, base, [kind == "inner" for kind in layers])
        varying = {*outer.columns, *inner.columns}
        lowered = _lowered(study, base)
        fixed = {path: value for path, value in lowered.items() if path not in varying}
        # An axis stands in one layer only, and each layer leaves the rows of the other's axes at 0.
        index_of_axis = outer_rows[:, :, None] + inner_rows[:, None, :]
        positions = _flat_positions(index_of_axis, grid_shape(study))
        known = study.experiment.cost or UNKNOWN
        yield Program(index, study.experiment, fixed, outer, inner, positions, cost=known)


def _flat_positions(rows: npt.NDArray[np.int64], shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    if not shape:  # a study without axes is one trajectory
        return np.zeros(rows.shape[1:], np.int64)
    return np.asarray(np.ravel_multi_index(tuple(rows), shape), np.int64)


def _lowered(study: Study, values: Values) -> dict[str, Any]:
    """The values of a point, or some of them, as the program sees them."""
    lowering = study.experiment.lowering
    return lowering.apply(values) if lowering else dict(values)


def _rows_by_static_values(
    study: Study, axis: Axis
) -> dict[tuple[tuple[str, Any], ...], list[int]]:
    """The rows of an axis, grouped by the values of its static fields."""
    static = {path for path in axis.fields if study.fields[path].kind == "static"}
    if not static:
        return {(): list(range(len(axis)))}
    groups: dict[Group, list[int]] = {}
    for row, values in enumerate(axis.values):
        point = _lowered(study, dict(zip(axis.fields, values, strict=True)))
        group = tuple((path, point[path]) for path in axis.fields if path in static)
        groups.setdefault(group, []).append(row)
    return groups


def _layers(study: Study) -> list[Literal["outer", "inner"]]:
    """The layer of every axis; a zip with an outer field belongs to the outer layer as a whole."""
    fields = study.fields
    outer = [
        any(fields[p].layer == "outer" and fields[p].kind != "static" for p in axis.fields)
        for axis in study.axes
    ]
    # Lowering makes some fields depend on others. A value that depends on both layers would belong
    # to neither, so then the axes concerned go to the outer one together.
    lowering = study.experiment.lowering
    if lowering and any(_is_lowered(study, axis) for axis in study.axes):
        linked = [not lowering.writes.isdisjoint(axis.fields) for axis in study.axes]
        if any(is_outer and link for is_outer, link in zip(outer, linked, strict=True)):
            outer = [is_outer or link for is_outer, link in zip(outer, linked, strict=True)]
    return ["outer" if is_outer else "inner" for is_outer in outer]


def _is_lowered(study: Study, axis: Axis) -> bool:
    """Whether some points of an axis are computed as others."""
    lowering = study.experiment.lowering
    if lowering is None or lowering.reads.isdisjoint(axis.fields):
        return False
    points = (dict(zip(axis.fields, row, strict=True)) for row in axis.values)
    return any(lowering.apply(point) != point for point in points)


def _layer(
    study: Study, rows: Sequence[Sequence[int]], base: Values, member: Sequence[bool]
) -> tuple[Layer, npt.NDArray[np.int64]]:
    """The points of a layer, and the row of every axis at each of them, [axes, points]."""
    axes, lowering = study.axes, study.experiment.lowering
    picked = [r if m else [0] for r, m in zip(rows, member, strict=True)]
    points = list(itertools.product(*picked))
    members = [axis for axis, m in zip(axes, member, strict=True) if m]
    swept = {path for axis in members for path in axis.fields}
    if lowering and any(_is_lowered(study, axis) for axis in members):
        swept |= lowering.writes
    lowers = lowering is not None and not swept.isdisjoint(lowering.writes)
    # Of the base, what lowering asks for and what it may replace: there may be a million points.
    asked = swept | lowering.reads if lowering and lowers else frozenset()
    needed = {path: base[path] for path in base if path in asked}
    values = []
    for point in points:
        own = dict(needed)
        for axis, row in zip(members, itertools.compress(point, member), strict=True):
            own.update(zip(axis.fields, axis.values[row], strict=True))
        values.append(_lowered(study, own) if lowers else own)
    columns = {
        path: tuple(value[path] for value in values)
        for path in study.fields
        if path in swept and study.fields[path].kind != "static"
    }
    return Layer(len(points), columns), np.array(points, np.int64).reshape(len(points), len(axes)).T
