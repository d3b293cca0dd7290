"""One chunk of a plan: trajectories under vmap inside vmap, sharded over devices, in segments.

A program is compiled once, as two functions: one that draws the tasks and makes the initial states,
and one that takes any number of records. How many is an argument and not a shape, so that segments
can be as long as suits the clock and end where a snapshot is due, and still share one compilation.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
import numpy.typing as npt

from scbjax.sweep.engine.compiled import Compiled, compile_program, give_back_freed_memory
from scbjax.sweep.engine.inputs import chunk_inputs, numbers_of
from scbjax.sweep.engine.mapped import Prepared, task_axes
from scbjax.sweep.engine.memory import Memory, in_smaller_blocks
from scbjax.sweep.plan.plans import Chunk, Plan
from scbjax.sweep.plan.programs import Program

HostArrays: TypeAlias = dict[str, npt.NDArray[Any]]
Exceeding: TypeAlias = Callable[[Program, Memory, int | None], None]
"""What hears of a program that takes more than the budget, what it takes, and the points of the
blocks that it is compiled in anew, if it is."""

SEGMENT_SECONDS = 2.0
"""Time that a segment is made to last: long against its overhead (on a CPU, the memory of its
temporaries is mapped anew), short for somebody who waits for it to end."""


@dataclasses.dataclass(frozen=True)
class ChunkResult:
    """What a chunk gives.

    Attributes:
        arrays: ``[outer, inner, ...]`` without padding: recorded variables [records, ...],
            constants, ``diverged_at``, and, if they are kept, the parameters, their snapshots
            (``value_snapshots`` [snapshots, ...] and the like) and the task.
        run_seconds: time in segments.
        compile_seconds: time in the compiler; zero where the program was compiled before.
        block: outer points of the blocks that it was computed in.
    """

    arrays: HostArrays
    run_seconds: float
    compile_seconds: float
    block: int


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A chunk in the middle.

    Attributes:
        arrays: the carry and the snapshots taken so far, as they are, with padding.
        records: records taken.
        run_seconds: time in segments so far.
    """

    arrays: HostArrays
    records: int
    run_seconds: float


@dataclasses.dataclass(frozen=True)
class Segment:
    """A segment that has just ended.

    Attributes:
        chunk: the chunk it belongs to.
        records: records that it took.
        records_done: records of the chunk so far.
        seconds: time it took.
        metric: median of the newest record of one variable, over trajectories where it is finite.
        checkpoint: fetches the chunk as it stands; None where it runs on another machine.
    """

    chunk: Chunk
    records: int
    records_done: int
    seconds: float
    metric: float
    checkpoint: Callable[[], Checkpoint] | None


class Executor:
    """Runs chunks of a plan on the devices of this process, and compiles each program once.

    Args:
        plan: the plan.
        segment_seconds: time that a segment is made to last.
        ahead: modules that are loaded while the compiler works (`compile_program`).
    """

    def __init__(
        self, plan: Plan, *, segment_seconds: float = SEGMENT_SECONDS, ahead: Sequence[str] = ()
    ) -> None:
        self._plan = plan
        self._ahead = ahead
        self._segment_seconds = segment_seconds
        self._compiled: dict[int, Compiled] = {}

    def run(
        self,
        index: int,
        *,
        checkpoint: Checkpoint | None = None,
        unfit: Callable[[Checkpoint, str], None] = lambda _, __: None,
        listen: Callable[[Segment], None] = lambda _: None,
        compiling: Callable[[Program], None] = lambda _: None,
        exceeding: Exceeding = lambda *_: None,
    ) -> ChunkResult:
        """Runs one chunk from the beginning, or from a checkpoint.

        Args:
            index: its place in the plan.
            checkpoint: where to continue.
            unfit: called with a checkpoint that is of no use, and why; the chunk then begins anew.
            listen: called after each segment; what it raises ends the run.
            compiling: called before a program is compiled.
            exceeding: called with a compiled program that takes more than the plan's budget, what
                it takes, and the points of the smaller blocks that it is compiled in anew; None if
                it runs as it is.

        Returns:
            The result. Its arrays depend on the plan and on the compiler alone, not on segments or
            checkpoints.
        """
        chunk = self._plan.chunks[index]
        with numbers_of(self._plan.programs[chunk.program]):
            compiled, compile_seconds = self._compiled_of(chunk.program, compiling, exceeding)
            program = self._plan.programs[chunk.program]
            run = _ChunkRun(self._plan, chunk, compiled)
            if checkpoint is not None:
                try:
                    run.restore(checkpoint)
                except ValueError as error:
                    unfit(checkpoint, str(error))
            length = 2  # the first tells how long a record takes; that of the start takes less
            while run.done < program.num_records:
                segment = run.segment(length)
                length = max(1, round(segment.records * self._segment_seconds / segment.seconds))
                listen(segment)
            return ChunkResult(run.results(), run.run_seconds, compile_seconds, program.block)

    def _compiled_of(
        self, index: int, compiling: Callable[[Program], None], exceeding: Exceeding
    ) -> tuple["Compiled", float]:
        """The compiled program, and the seconds that it took to compile it, if it had to be.

        Where it takes more than the budget, it is compiled again in smaller blocks, if they help.
        """
        if index in self._compiled:
            return self._compiled[index], 0.0
        seconds = 0.0
        while True:
            program, budget = self._plan.programs[index], self._plan.budget
            compiled = self._compile(program, compiling)
            seconds += compiled.seconds
            taken, smaller = compiled.memory, None
            if budget is not None and taken is not None and taken.total > budget:
                smaller = in_smaller_blocks(self._plan, index, taken)
                block = None if smaller is None else smaller.programs[index].block
                exceeding(program, taken, block)
            if smaller is None:
                self._compiled[index] = compiled
                return compiled, seconds
            self._plan = smaller

    def _compile(self, program: Program, compiling: Callable[[Program], None]) -> "Compiled":
        """Compiles a program."""
        compiling(program)
        # Whatever the user has set for JAX as a whole; steps have what the study says, and seeds
        # give the same numbers.
        with jax.default_matmul_precision("highest"), jax.threefry_partitionable(True):
            compiled = compile_program(program, self._ahead)
        give_back_freed_memory()
        return compiled


class _ChunkRun:
    """A chunk under way: its arrays on the devices, and how far they are."""

    def __init__(self, plan: Plan, chunk: Chunk, compiled: "Compiled") -> None:
        self._study = plan.study
        self._chunk = chunk
        self._program = plan.programs[chunk.program]
        self._compiled = compiled
        self._inputs = compiled.place(chunk_inputs(self._program, chunk))
        prepared: Prepared = compiled.prepare(self._inputs)
        self._tasks, self._carry = prepared
        self._snapshots: list[HostArrays] = []
        self.done = 0
        self.run_seconds = 0.0

    @property
    def _step(self) -> int:
        """Number of the step at which the latest record was taken."""
        return (self.done - 1) * self._program.record_every

    def segment(self, length: int) -> Segment:
        """Takes the given number of records, or fewer if a snapshot or the end comes first."""
        every = self._program.record_every
        ends = [step // every + 1 for step in self._study.snapshots] + [self._program.num_records]
        count = min(length, min(end for end in ends if end > self.done) - self.done)
        start = time.perf_counter()
        self._carry, latest = self._compiled.segment(
            self._inputs, self._tasks, self._carry, np.int32(self.done), np.int32(count)
        )
        jax.block_until_ready((self._carry, latest))
        seconds = time.perf_counter() - start
        self.done += count
        self.run_seconds += seconds
        if self._step in self._study.snapshots:
            self._snapshots.append(self._kept())
        metric = _median(self._trim(np.asarray(latest)))
        return Segment(self._chunk, count, self.done, seconds, metric, self._checkpoint)

    def results(self) -> HostArrays:
        """The arrays of a finished chunk."""
        records = jax.device_get(self._carry.records)
        arrays: HostArrays = {name: np.moveaxis(kept, 0, 2) for name, kept in records.items()}
        arrays.update(jax.device_get(self._compiled.constants(self._inputs, self._tasks)))
        arrays["diverged_at"] = jax.device_get(self._carry.diverged_at)
        if self._study.final:
            arrays.update(self._kept())
        if self._study.truth:
            arrays.update(self._truth())
        for name in self._snapshots[0] if self._snapshots else ():
            taken = [snapshot[name] for snapshot in self._snapshots]
            arrays[f"{name}_snapshots"] = np.stack(taken, axis=2)
        return {name: np.ascontiguousarray(self._trim(array)) for name, array in arrays.items()}

    def _kept(self) -> HostArrays:
        """The parameters as they stand, [outer, inner, ...]."""
        kept = jax.vmap(jax.vmap(self._compiled.functions.kept))(self._carry.state)
        return dict(jax.device_get(kept))

    def _truth(self) -> HostArrays:
        """The task of every trajectory, [outer, inner, ...]."""
        functions, size = self._compiled.functions, self._program.chunk_shape[1]
        truth = jax.vmap(
            functions.truth, in_axes=(task_axes(self._program, functions),), axis_size=size
        )
        return dict(jax.device_get(jax.vmap(truth)(self._tasks)))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continues from a checkpoint instead of from the start; ValueError if it can't be."""
        leaves, structure = jax.tree.flatten(self._carry)
        names = [f"carry_{number}" for number in range(len(leaves))]
        taken = (checkpoint.records - 1) * self._program.record_every
        due = sum(step <= taken for step in self._study.snapshots)
        kinds = tuple(self._study.experiment.kept)
        kept = [f"{kind}_{number}" for number in range(due) for kind in kinds]
        arrays = checkpoint.arrays
        shapes = [getattr(arrays.get(name), "shape", None) for name in names]
        if arrays.keys() != {*names, *kept} or shapes != [leaf.shape for leaf in leaves]:
            raise ValueError("it holds other arrays than the program has")
        if [arrays[name].dtype for name in names] != [leaf.dtype for leaf in leaves]:
            raise ValueError("it has another precision than the program")
        if not 0 < checkpoint.records < self._program.num_records:
            raise ValueError(f"it has {checkpoint.records} records")
        placed = [
            jax.device_put(arrays[name], leaf.sharding)
            for name, leaf in zip(names, leaves, strict=True)
        ]
        self._carry = jax.tree.unflatten(structure, placed)
        self.done, self.run_seconds = checkpoint.records, checkpoint.run_seconds
        self._snapshots = [
            {kind: arrays[f"{kind}_{number}"] for kind in kinds} for number in range(due)
        ]

    def _checkpoint(self) -> Checkpoint:
        leaves = jax.device_get(jax.tree.leaves(self._carry))
        arrays = {f"carry_{number}": leaf for number, leaf in enumerate(leaves)}
        for number, snapshot in enumerate(self._snapshots):
            arrays.update({f"{kind}_{number}": array for kind, array in snapshot.items()})
        return Checkpoint(arrays, self.done, self.run_seconds)

    def _trim(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        outer, inner = self._chunk.shape
        return array[:outer, :inner]


def _median(values: npt.NDArray[Any]) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else math.nan
