"""From the grid of a study to compiled programs, and from programs to chunks that fit the memory.

The axes of a study are of two kinds. *Static* fields change shapes or the program itself, so every
combination of their values is a :class:`Program` with a compilation of its own. All other fields
are *traced*: they are arrays, and one program runs all their values. Traced axes come in two
layers, vmap inside vmap:

* the *outer* layer holds what changes the data (seeds, and what a task's tokens depend on);
* the *inner* layer holds what only the learner sees (rates, l1, ...), and what changes a task but
  not its data. The points of the inner layer share their data, which are drawn once for all of
  them: comparisons along it are paired, and its random bits are paid for once.

The grid of a program (outer x inner) is cut into chunks of one shape, so that it is compiled once.
Planning needs no JAX.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from scbjax.base import CACHE_BYTES, RECORD_EVERY, STEPS, Cost, Experiment, StudyError, Values
from scbjax.sweep.plan import cost
from scbjax.sweep.study.files import Axis, Study, fingerprint

Layout: TypeAlias = tuple[tuple[int, int, int], ...]
"""For every program of a plan: outer and inner points of a chunk, and outer points of a block."""

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

# Share of its points that a chunk may be padded by to be a whole number of larger blocks.
_PADDING_SHARE = 0.05
# The same to give every CPU device equally many. One device alone keeps the cores of a processor
# nine tenths busy, so that more padding would cost more than it gains.
_DEVICE_PADDING_SHARE = 0.1


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


@dataclass(frozen=True)
class Chunk:
    """A block of a program's grid that runs as one vmapped batch of trajectories.

    Attributes:
        index: its place in the plan.
        program: index of its program.
        outer: first point and end along the outer layer.
        inner: first point and end along the inner layer.
    """

    index: int
    program: int
    outer: tuple[int, int]
    inner: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Points along the two layers, without padding."""
        return self.outer[1] - self.outer[0], self.inner[1] - self.inner[0]

    @property
    def size(self) -> int:
        """Trajectories in it, without padding."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Plan:
    """How a study is run: its programs, and the chunks they are cut into.

    Attributes:
        study: the study.
        programs: one for every static combination.
        chunks: all chunks, program by program.
        device_count: devices that it was made for.
        budget: memory that a chunk may take over all devices, in bytes; None where nobody says it.
        settled: programs whose blocks stay as they are, since there are chunks of them.
    """

    study: Study
    programs: tuple[Program, ...]
    chunks: tuple[Chunk, ...]
    device_count: int = 1
    budget: int | None = None
    settled: frozenset[int] = frozenset()

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis of the study."""
        return grid_shape(self.study)

    @property
    def num_trajectories(self) -> int:
        """Points of the grid."""
        return math.prod(self.shape)

    @property
    def num_steps(self) -> int:
        """Steps of all trajectories together."""
        return sum(p.positions.size * p.num_steps for p in self.programs)

    @property
    def tokens(self) -> int:
        """Tokens that all trajectories read."""
        return sum(program.tokens for program in self.programs)

    @property
    def memory_bytes(self) -> int:
        """Estimated peak memory, in bytes: that of its largest chunk."""
        return max(program.memory_bytes for program in self.programs)

    @property
    def seconds(self) -> float:
        """Estimated time on two CPU cores with compilation."""
        compiling = cost.COMPILE_SECONDS * len(self.programs)
        return compiling + sum(program.seconds for program in self.programs)

    @cached_property
    def fingerprint(self) -> str:
        """The study's fingerprint."""
        return fingerprint(self.study)

    @property
    def layout(self) -> Layout:
        """Chunk shape and block of every program: with the study, they determine the plan."""
        return tuple((*program.chunk_shape, program.block) for program in self.programs)

    def seconds_of(self, chunk: Chunk) -> float:
        """Estimated run time of a chunk on two CPU cores, without compilation and padding."""
        program = self.programs[chunk.program]
        return program.seconds * chunk.size / program.positions.size

    def positions(self, chunk: Chunk) -> npt.NDArray[np.int64]:
        """Where the trajectories of a chunk stand in the flattened grid, [outer, inner]."""
        return self.programs[chunk.program].positions[slice(*chunk.outer), slice(*chunk.inner)]

    def in_blocks(self, index: int, block: int) -> "Plan":
        """The plan with other blocks in one program, as a run that is continued would have it.

        Args:
            index: of the program.
            block: outer points of a block; divides those of the program's chunks.
        """
        programs = list(self.programs)
        devices = sharing(programs[index].chunk_shape[0] // block, self.device_count)
        programs[index] = replace(programs[index], block=block, devices=devices)
        return replace(self, programs=tuple(programs))


Measure: TypeAlias = Callable[[Program], Cost]
"""What the trajectories of a program take."""


def make_plan(
    study: Study,
    *,
    memory_bytes: int | None = None,
    device_count: int = 1,
    cache_bytes: int | None = CACHE_BYTES,
    measure: Measure = lambda _: UNKNOWN,
) -> Plan:
    """Splits a study into programs, and these into chunks that fit a memory budget.

    Chunks are cut along the outer layer first: that costs nothing, while cutting the inner layer
    means drawing the same tokens once more for each part. Within a chunk, the outer layer is worked
    through in blocks whose temporaries stay in the processor's cache.

    Args:
        study: the study.
        memory_bytes: budget of a chunk, over all devices together; None for a share of the host's
            memory.
        device_count: devices that may share the outer layer.
        cache_bytes: size of the temporaries of a block; None for blocks as large as the chunk, as
            suits accelerators.
        measure: tells what the trajectories of a program take if the experiment does not.

    Returns:
        The plan. It depends on the arguments alone, not on the state of the machine.

    Raises:
        StudyError: a single trajectory does not fit the budget.
    """
    budget = cost.default_memory_bytes() if memory_bytes is None else memory_bytes
    most = device_count, cache_bytes
    programs = [
        _fit(replace(program, cost=study.experiment.cost or measure(program)), budget, *most)
        for program in _programs(study)
    ]
    return replace(_assemble(study, programs, device_count), budget=budget)


def plan_with_layout(
    study: Study, layout: Sequence[tuple[int, int, int]], *, device_count: int = 1
) -> Plan:
    """The plan of a study with given chunk shapes: what was begun is continued as it was cut.

    Args:
        study: the study.
        layout: the `Plan.layout` of an earlier plan of the same study.
        device_count: devices that may share the outer layer, be they more or fewer than before.

    Raises:
        StudyError: the layout belongs to another study.
    """
    programs = list(_programs(study))
    if len(layout) != len(programs):
        raise StudyError(f"programs of the layout: {len(layout)}; of the study: {len(programs)}")
    for program, (outer, inner, block) in zip(programs, layout, strict=True):
        # A chunk is padded to a whole number of blocks on every device: at most to twice its size.
        sound = min(outer, inner, block) >= 1 and outer % block == 0
        if not (sound and outer <= 2 * program.outer.size and inner <= program.inner.size):
            raise StudyError(f"the layout {outer}, {inner}, {block} does not fit the study")
    return _assemble(
        study,
        [
            replace(
                program,
                chunk_shape=(outer, inner),
                block=block,
                devices=sharing(outer // block, device_count),
            )
            for program, (outer, inner, block) in zip(programs, layout, strict=True)
        ],
        device_count,
    )


def sharing(blocks: int, device_count: int) -> int:
    """How many devices share so many blocks of a chunk evenly."""
    return max(n for n in range(1, device_count + 1) if blocks % n == 0)


def grid_shape(study: Study) -> tuple[int, ...]:
    """Length of each axis of a study."""
    return tuple(len(axis.values) for axis in study.axes)


def _assemble(study: Study, programs: Sequence[Program], device_count: int) -> Plan:
    blocks = (
        (program.index, outer, inner)
        for program in programs
        for outer in _ranges(program.outer.size, program.chunk_shape[0])
        for inner in _ranges(program.inner.size, program.chunk_shape[1])
    )
    chunks = tuple(Chunk(index, *block) for index, block in enumerate(blocks))
    return Plan(study, tuple(programs), chunks, device_count)


def _ranges(size: int, step: int) -> list[tuple[int, int]]:
    return [(start, min(start + step, size)) for start in range(0, size, step)]


def _programs(study: Study) -> Iterator[Program]:
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


def _fit(program: Program, budget: int, device_count: int, cache_bytes: int | None) -> Program:
    """The program with the largest even chunk in the budget, cut along its outer layer first."""
    outer, inner, values = program.outer.size, program.inner.size, program.fixed
    takes = program.cost
    one = takes.chunk_bytes(values, (1, 1), 1)
    if one > budget:
        raise StudyError(
            f"one trajectory needs about {cost.readable_bytes(one)}, "
            f"more than the memory budget of {cost.readable_bytes(budget)}"
        )
    devices = min(device_count, outer, max(1, budget // takes.chunk_bytes(values, (1, inner), 1)))
    if cache_bytes is not None:  # CPU devices share the cores
        devices = _without_padding(outer, devices)
    most = budget // devices // takes.chunk_bytes(values, (1, inner), 1)
    if most < 1:
        room = budget - takes.shared_bytes(values)
        most = room // (takes.kept_bytes(values) + takes.temporary_bytes(values))
        return replace(program, chunk_shape=(1, math.ceil(inner / math.ceil(inner / most))))
    if cache_bytes is not None:
        singly = takes.is_taken_singly(values)
        fitting = 1 if singly else cache_bytes // max(1, takes.step_bytes(values, inner))
        most = min(most, max(1, fitting))
    block = _even_block(math.ceil(outer / devices), most)
    unit = devices * block
    room = budget - devices * takes.block_bytes(values, (block, inner))
    most = room // (inner * takes.kept_bytes(values)) // unit * unit
    even = math.ceil(outer / math.ceil(outer / most))
    shape = min(math.ceil(even / unit) * unit, most), inner
    return replace(program, chunk_shape=shape, block=block, devices=devices)


def _without_padding(size: int, most: int) -> int:
    """The largest number of devices that can share so many points with little padding."""
    return max(
        count
        for count in range(1, most + 1)
        if count * math.ceil(size / count) <= (1 + _DEVICE_PADDING_SHARE) * size
    )


def _even_block(size: int, most: int) -> int:
    """A large block, of at most so many points, that needs next to no padding to fill a size."""
    count = math.ceil(size / most)
    while count * math.ceil(size / count) > (1 + _PADDING_SHARE) * size:
        count += 1
    return math.ceil(size / count)
