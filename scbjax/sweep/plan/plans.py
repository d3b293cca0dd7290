"""From programs to chunks that fit the memory: the plan of a study.

The grid of a program (outer x inner) is cut into chunks of one shape, so that it is compiled once.
Planning needs no JAX.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from scbjax.base import StudyError
from scbjax.costs import CACHE_BYTES, Cost
from scbjax.sweep.plan import cost
from scbjax.sweep.plan.programs import UNKNOWN, Program, grid_shape, programs_of
from scbjax.sweep.study.files import Study, fingerprint

Layout: TypeAlias = tuple[tuple[int, int, int], ...]
"""For every program of a plan: outer and inner points of a chunk, and outer points of a block."""

# Share of its points that a chunk may be padded by to be a whole number of larger blocks.
_PADDING_SHARE = 0.05
# The same to give every CPU device equally many. One device alone keeps the cores of a processor
# nine tenths busy, so that more padding would cost more than it gains.
_DEVICE_PADDING_SHARE = 0.1


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
        for program in programs_of(study)
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
    programs = list(programs_of(study))
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
