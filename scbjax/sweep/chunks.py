"""One chunk of a plan: trajectories under vmap inside vmap, sharded over devices, in segments.

A program is compiled once, as two functions: one that draws the tasks and makes the initial states,
and one that takes any number of records. How many is an argument and not a shape, so that segments
can be as long as suits the clock and end where a snapshot is due, and still share one compilation.
"""

import contextlib
import ctypes
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scbjax import training
from scbjax.keys import THREEFRY
from scbjax.model import Params, map_attention
from scbjax.observables import OBSERVABLES
from scbjax.once import quick_options
from scbjax.sharding import shard_map
from scbjax.simulation import Simulation
from scbjax.sweep import cost
from scbjax.sweep.backend import compiler_options
from scbjax.sweep.fields import FIELDS
from scbjax.sweep.plan import Chunk, Layer, Plan, Program
from scbjax.task import (
    Task,
    pattern_signal,
    random_task,
    related_task,
    stationary_norm,
    transition_signal,
)
from scbjax.training import (
    NOT_DIVERGED,
    STATIC_FIELDS,
    TRACED_FIELDS,
    Settings,
    State,
    start_from,
)

HostArrays: TypeAlias = dict[str, npt.NDArray[Any]]
Values: TypeAlias = Mapping[str, Any]
Records: TypeAlias = dict[str, jax.Array]

SEGMENT_SECONDS = 2.0
"""Time that a segment is made to last: long against its overhead (on a CPU, the memory of its
temporaries is mapped anew), short for somebody who waits for it to end."""

_LIVE_METRIC = "attention_distance"
_OUTER = "outer"  # the mesh axis over which the outer layer is sharded
# What the seeds of a trajectory are folded into: a stream for each of its parts.
_STREAMS = {"task_seed": 0, "init_seed": 1, "data_seed": 2}
_SOURCE_STREAM = 3  # of the seed of the task
# The context in which JAX makes numbers of 64 bits has moved.
_allow_float64 = getattr(jax if hasattr(jax, "enable_x64") else jax.experimental, "enable_x64")  # noqa: B009


class _Learner(Protocol):
    """What moves and records a trajectory: :mod:`scbjax.training` or a simulation of it."""

    def init(self, key: jax.Array, task: Task, settings: Settings) -> State: ...

    def take_record(
        self, key: jax.Array, task: Task, settings: Settings, state: State, index: jax.Array
    ) -> tuple[State, Records]: ...


class Inputs(NamedTuple):
    """The numbers of a chunk, by dotted path.

    Attributes:
        outer: arrays [outer].
        inner: arrays [inner].
        fixed: scalars.
    """

    outer: dict[str, Any]
    inner: dict[str, Any]
    fixed: dict[str, Any]


class Carry(NamedTuple):
    """What a segment hands to the next one.

    Attributes:
        state: the learners, every leaf [outer, inner, ...].
        records: an array [records, outer, inner] for each variable, filled as far as the run is.
        diverged_at: step of the first record at which the parameters were not finite, or -1; int32
            [outer, inner].
    """

    state: State
    records: Records
    diverged_at: jax.Array


class Prepared(NamedTuple):
    """The beginning of a chunk.

    Attributes:
        tasks: leaves [outer, ...]; the pattern [outer, inner, T, N] if sparsity is an inner axis.
        carry: the initial states, and room for the records.
    """

    tasks: Task
    carry: Carry


@dataclasses.dataclass(frozen=True)
class ChunkResult:
    """What a chunk gives.

    Attributes:
        arrays: ``[outer, inner, ...]`` without padding: recorded variables [records], constants,
            ``diverged_at``, and, if kept, ``value`` and ``attention``, ``transition``,
            ``stationary`` and ``pattern``, and ``value_snapshots`` and ``attention_snapshots``
            [snapshots, ...].
        run_seconds: time in segments.
        compile_seconds: time in the compiler; zero where the program was compiled before.
    """

    arrays: HostArrays
    run_seconds: float
    compile_seconds: float


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
    """

    def __init__(self, plan: Plan, *, segment_seconds: float = SEGMENT_SECONDS) -> None:
        self._plan = plan
        self._segment_seconds = segment_seconds
        self._compiled: dict[int, _Compiled] = {}

    def run(
        self,
        index: int,
        *,
        checkpoint: Checkpoint | None = None,
        unfit: Callable[[Checkpoint, str], None] = lambda _, __: None,
        listen: Callable[[Segment], None] = lambda _: None,
        compiling: Callable[[Program], None] = lambda _: None,
    ) -> ChunkResult:
        """Runs one chunk from the beginning, or from a checkpoint.

        Args:
            index: its place in the plan.
            checkpoint: where to continue.
            unfit: called with a checkpoint that is of no use, and why; the chunk then begins anew.
            listen: called after each segment; what it raises ends the run.
            compiling: called before a program is compiled.

        Returns:
            The result. Its arrays depend on the plan alone, not on segments or checkpoints.
        """
        chunk = self._plan.chunks[index]
        program = self._plan.programs[chunk.program]
        with _numbers_of(program):
            compiled, compile_seconds = self._compile(program, compiling)
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
            return ChunkResult(run.results(), run.run_seconds, compile_seconds)

    def _compile(
        self, program: Program, compiling: Callable[[Program], None]
    ) -> tuple["_Compiled", float]:
        """The compiled program, and the seconds that it took to compile it, if it had to be."""
        if program.index in self._compiled:
            return self._compiled[program.index], 0.0
        compiling(program)
        # Whatever the user has set for JAX as a whole; steps have what the study says, and seeds
        # give the same numbers.
        with jax.default_matmul_precision("highest"), jax.threefry_partitionable(True):
            compiled = self._compiled[program.index] = _compile(program)
        _give_back_freed_memory()
        return compiled, compiled.seconds


def _numbers_of(program: Program) -> contextlib.AbstractContextManager[Any]:
    """What lets JAX make the numbers that a program works with."""
    double = program.fixed["task.dtype"] == "float64"
    return _allow_float64(True) if double else contextlib.nullcontext()


class _ChunkRun:
    """A chunk under way: its arrays on the devices, and how far they are."""

    def __init__(self, plan: Plan, chunk: Chunk, compiled: "_Compiled") -> None:
        self._study = plan.study
        self._chunk = chunk
        self._program = plan.programs[chunk.program]
        self._compiled = compiled
        self._inputs = compiled.place(chunk_inputs(self._program, chunk))
        prepared: Prepared = compiled.prepare(self._inputs)
        self._tasks, self._carry = prepared
        self._snapshots: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
        self.done = 0
        self.run_seconds = 0.0

    @property
    def _step(self) -> int:
        """Number of the step at which the latest record was taken."""
        return (self.done - 1) * int(self._program.fixed["train.record_every"])

    def segment(self, length: int) -> Segment:
        """Takes the given number of records, or fewer if a snapshot or the end comes first."""
        every = self._program.fixed["train.record_every"]
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
            params = self._params()
            self._snapshots.append((params["value"], params["attention"]))
        metric = _median(self._trim(np.asarray(latest)))
        return Segment(self._chunk, count, self.done, seconds, metric, self._checkpoint)

    def results(self) -> HostArrays:
        """The arrays of a finished chunk."""
        records = jax.device_get(self._carry.records)
        arrays: HostArrays = {name: np.moveaxis(kept, 0, 2) for name, kept in records.items()}
        arrays.update(jax.device_get(self._compiled.constants(self._inputs, self._tasks)))
        arrays["diverged_at"] = jax.device_get(self._carry.diverged_at)
        if self._study.final:
            arrays.update(self._params())
        if self._study.truth:
            arrays.update(self._truth())
        if self._snapshots:
            values, attentions = zip(*self._snapshots, strict=True)
            arrays["value_snapshots"] = np.stack(values, axis=2)
            arrays["attention_snapshots"] = np.stack(attentions, axis=2)
        return {name: np.ascontiguousarray(self._trim(array)) for name, array in arrays.items()}

    def _params(self) -> HostArrays:
        """V and A as they stand, [outer, inner, ...]."""
        name = self._program.fixed["model.attention_map"]
        params = map_attention(self._carry.state.params, name)
        arrays: HostArrays = jax.device_get(params)._asdict()
        return arrays

    def _truth(self) -> HostArrays:
        """P, mu and Q of every trajectory, those of an outer point repeated along the inner layer.

        ``pattern`` is mapped there by itself where the sparsity is.
        """
        tasks, shape = jax.device_get(self._tasks), self._program.chunk_shape
        mapped = _task_axes(self._inputs)
        return {
            name: np.broadcast_to(
                array if axis == 0 else array[:, None],
                (*shape, *array.shape[2 if axis == 0 else 1 :]),
            )
            for name, array, axis in zip(Task._fields, tasks, mapped, strict=True)
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continues from a checkpoint instead of from the start; ValueError if it can't be."""
        leaves, structure = jax.tree.flatten(self._carry)
        names = [f"carry_{number}" for number in range(len(leaves))]
        taken = (checkpoint.records - 1) * int(self._program.fixed["train.record_every"])
        due = sum(step <= taken for step in self._study.snapshots)
        kinds = ("value", "attention")
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
            (arrays[f"value_{number}"], arrays[f"attention_{number}"]) for number in range(due)
        ]

    def _checkpoint(self) -> Checkpoint:
        leaves = jax.device_get(jax.tree.leaves(self._carry))
        arrays = {f"carry_{number}": leaf for number, leaf in enumerate(leaves)}
        for number, (value, attention) in enumerate(self._snapshots):
            arrays.update({f"value_{number}": value, f"attention_{number}": attention})
        return Checkpoint(arrays, self.done, self.run_seconds)

    def _trim(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        outer, inner = self._chunk.shape
        return array[:outer, :inner]


def _median(values: npt.NDArray[Any]) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else math.nan


# ------------------------------------------------------------------------------------- compiling


@dataclasses.dataclass(frozen=True)
class _Compiled:
    """A compiled program, and how its inputs get to its devices."""

    place: Callable[[Inputs], Any]
    prepare: Callable[..., Any]
    constants: Callable[..., Any]
    segment: Callable[..., Any]
    seconds: float


def _compile(program: Program) -> _Compiled:
    """Compiles a program so that each device does its own part of the outer layer, and no more."""
    outer_size, inner_size = program.chunk_shape
    mesh = _mesh(program)
    part = outer_size // mesh.size, inner_size
    sharded, whole = PartitionSpec(_OUTER), PartitionSpec()
    on_inputs = cast("Any", Inputs)(sharded, whole, whole)
    on_carry = cast("Any", Carry)(sharded, PartitionSpec(None, _OUTER), sharded)
    on_prepared = cast("Any", Prepared)(sharded, on_carry)

    place = partial(jax.device_put, device=_shardings(mesh, on_inputs))
    inputs = place(chunk_inputs(program, Chunk(0, program.index, (0, 1), (0, 1))))
    start = time.perf_counter()
    prepare = _jit(partial(_prepare, program, part), mesh, (on_inputs,), on_prepared).lower(inputs)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), prepare.out_info)
    constants = _jit(partial(_constants, program, part), mesh, (on_inputs, sharded), sharded).lower(
        inputs, shapes.tasks
    )
    segment = _jit(
        partial(_segment, program, part),
        mesh,
        (on_inputs, sharded, on_carry, whole, whole),
        (on_carry, sharded),
        donate_argnums=(2,),
    ).lower(inputs, shapes.tasks, shapes.carry, np.int32(0), np.int32(0))
    options = compiler_options(mesh.devices.flat[0].platform)
    # What runs once is to be ready soon.
    once = {**options, **quick_options()}
    return _Compiled(
        place,
        prepare.compile(compiler_options=once),
        constants.compile(compiler_options=once),
        segment.compile(compiler_options=options),
        time.perf_counter() - start,
    )


def _give_back_freed_memory() -> None:
    """Hands the compiler's freed memory, some 200 MB that glibc would keep, to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _jit(
    function: Callable[..., Any],
    mesh: Mesh,
    in_specs: tuple[Any, ...],
    out_specs: Any,  # noqa: ANN401 - a spec in the place of each subtree
    donate_argnums: tuple[int, ...] = (),
) -> Any:  # noqa: ANN401 - the type of jitted functions is not public
    """Compiles a function of the part that a device holds.

    With the parts made explicit nothing is sent between devices; left to itself, the partitioner
    gathers all parts on every device for operations that it can't split, such as top_k on a CPU.
    """
    return jax.jit(
        shard_map(function, mesh, in_specs, out_specs),
        in_shardings=_shardings(mesh, in_specs),
        out_shardings=_shardings(mesh, out_specs),
        donate_argnums=donate_argnums,
    )


def _shardings(mesh: Mesh, specs: Any) -> Any:  # noqa: ANN401 - trees of specs and of shardings
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda spec: isinstance(spec, PartitionSpec),
    )


def _mesh(program: Program) -> Mesh:
    """The devices that share a chunk, or fewer if the process has not so many."""
    devices, blocks = jax.local_devices(), program.chunk_shape[0] // program.block
    most = min(program.devices, len(devices))
    count = max(n for n in range(1, most + 1) if blocks % n == 0)
    return jax.make_mesh((count,), (_OUTER,), axis_types=(AxisType.Auto,), devices=devices[:count])


# ------------------------------------------------------------------------------ what is compiled


def _prepare(program: Program, shape: tuple[int, int], inputs: Inputs) -> Prepared:
    """Draws the tasks of a part of the grid of this shape, and makes the initial states.

    Block by block, so that the temporaries are those of one block.
    """
    block = program.block, shape[1]

    def make(number: jax.Array) -> tuple[Task, State]:
        own = inputs._replace(outer=_slice(inputs.outer, number * program.block, program.block))
        tasks = _draw_tasks(program, block, own)
        state = _over_grid(program, block, partial(_begin, program), own, tasks)
        if program.fixed["train.start"] != "uniform":
            state = _over_grid(program, block, partial(_start_from, program), own, tasks, state)
        return tasks, state

    tasks, state = _by_blocks(program, shape, make)
    records = {
        name: jnp.zeros((program.num_records, *shape), _record_dtype(program, name))
        for name in _variables(program)
    }
    diverged_at = jnp.full(shape, NOT_DIVERGED, jnp.int32)
    return Prepared(tasks, Carry(state, records, diverged_at))


def _constants(
    program: Program, shape: tuple[int, int], inputs: Inputs, tasks: Task
) -> dict[str, jax.Array]:
    """K_P, K_Q and ``|mu|^2`` of the tasks of a part of the grid; [outer, inner].

    A program of its own: joined to what draws a task, a sum of products has another last bit where
    a device has one block than where it has several.
    """

    def of_task(_: Values, task: Task) -> dict[str, jax.Array]:
        return {
            "transition_signal": transition_signal(task),
            "pattern_signal": pattern_signal(task, program.fixed["task.context_length"]),
            "stationary_norm": stationary_norm(task),
        }

    def make(number: jax.Array) -> dict[str, jax.Array]:
        outer, own = _slice((inputs.outer, tasks), number * program.block, program.block)
        block, parts = (program.block, shape[1]), inputs._replace(outer=outer)
        constants: dict[str, jax.Array] = _over_grid(program, block, of_task, parts, own)
        return constants

    made: dict[str, jax.Array] = _by_blocks(program, shape, make)
    return made


def _by_blocks(program: Program, shape: tuple[int, int], make: Callable[[jax.Array], Any]) -> Any:  # noqa: ANN401 - what the function returns, for the whole part
    """What a function gives for the number of each block, joined along the outer layer."""
    count = shape[0] // program.block
    if count == 1:
        return make(jnp.zeros((), jnp.int32))
    # Not by a map, whose result would be held twice.
    made = jax.tree.map(
        lambda part: jnp.zeros((shape[0], *part.shape[1:]), part.dtype),
        jax.eval_shape(make, jnp.zeros((), jnp.int32)),
    )
    return jax.lax.fori_loop(
        0, count, lambda number, made: _put(made, make(number), number * program.block), made
    )


def _record_dtype(program: Program, name: str) -> str:
    dtype = OBSERVABLES[name].dtype
    return program.fixed["task.dtype"] if dtype == "float32" else dtype


def _begin(program: Program, values: Values, task: Task) -> State:
    """The uniform start of one trajectory."""
    return _learner(program).init(_key(values, "init_seed"), task, _settings(program, values))


def _start_from(program: Program, values: Values, task: Task, state: State) -> State:
    """The start of one transfer."""
    source, settings = _draw_source(program, values, task), _settings(program, values)
    return start_from(_key(values, "data_seed"), source, task, settings, state)


def _segment(
    program: Program,
    shape: tuple[int, int],
    inputs: Inputs,
    tasks: Task,
    carry: Carry,
    done: jax.Array,
    count: jax.Array,
) -> tuple[Carry, jax.Array]:
    """Takes ``count`` records after the first ``done``, with the steps that lead to them.

    One block follows the other, so that what a step works on stays in the cache and the temporaries
    are those of one block.

    Returns:
        The carry, and the latest record of one variable.
    """
    blocks = shape[0] // program.block

    def take(index: jax.Array, carry: Carry) -> Carry:
        take_block = partial(_take, program, shape[1], inputs, tasks, index)
        taken: Carry = jax.lax.fori_loop(0, blocks, take_block, carry)
        return taken

    carry = jax.lax.fori_loop(done, done + count, take, carry)
    return carry, carry.records[live_metric(_variables(program))][done + count - 1]


def _take(
    program: Program,
    inner_size: int,
    inputs: Inputs,
    tasks: Task,
    index: jax.Array,
    number: jax.Array,
    carry: Carry,
) -> Carry:
    """Takes one record of one block, in the place of its part of the carry."""
    shape, first = (program.block, inner_size), number.astype(jnp.int32) * program.block
    outer, tasks, state, diverged_at = _slice(
        (inputs.outer, tasks, carry.state, carry.diverged_at), first, program.block
    )
    inputs = inputs._replace(outer=outer)
    take = partial(_take_record, program, index)
    state, record = _over_grid(program, shape, take, inputs, tasks, state)
    newly = (diverged_at == NOT_DIVERGED) & ~_are_finite(state.params)
    diverged_at = jnp.where(newly, index * program.fixed["train.record_every"], diverged_at)
    record = _without_diverged(record, diverged_at != NOT_DIVERGED)
    return Carry(
        _put(carry.state, state, first),
        {
            name: jax.lax.dynamic_update_slice(
                kept, record[name][None], (index, first, np.int32(0))
            )
            for name, kept in carry.records.items()
        },
        _put(carry.diverged_at, diverged_at, first),
    )


def _are_finite(params: Params) -> jax.Array:
    """Which trajectories have finite parameters; [outer, inner] of leaves [outer, inner, ...]."""
    value, attention = (jnp.all(jnp.isfinite(leaf), axis=(2, 3)) for leaf in params)
    return value & attention


def _without_diverged(record: Records, diverged: jax.Array) -> Records:
    """A record [outer, inner] with NaN where a trajectory has diverged; integers have none."""
    return {
        name: jnp.where(diverged, jnp.nan, value)
        if jnp.issubdtype(value.dtype, jnp.floating)
        else value
        for name, value in record.items()
    }


def _take_record(
    program: Program, index: jax.Array, values: Values, task: Task, state: State
) -> tuple[State, Records]:
    """One record of one trajectory, with the steps that lead to it."""
    settings = _settings(program, values, record=_variables(program))
    key = _key(values, "data_seed")
    return _learner(program).take_record(key, task, settings, state, index)


def _learner(program: Program) -> _Learner:
    """Training on real contexts, or the simulation where only tagged positions get tokens."""
    length: int = program.fixed["task.context_length"]
    return training if cost.rows(program.fixed) == length else Simulation(length)


def _slice(tree: Any, first: jax.Array, size: int) -> Any:  # noqa: ANN401 - any tree of arrays
    """A part of every array along its first axis."""
    return jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, first, size), tree)


def _put(tree: Any, part: Any, first: jax.Array) -> Any:  # noqa: ANN401 - any tree of arrays
    """The arrays with a part of each replaced along its first axis; the inverse of `_slice`."""
    update = jax.lax.dynamic_update_slice_in_dim
    return jax.tree.map(lambda whole, new: update(whole, new, first, 0), tree, part)


def live_metric(variables: Sequence[str]) -> str:
    """The variable that is shown while a run goes on."""
    return _LIVE_METRIC if _LIVE_METRIC in variables else variables[0]


def _draw_tasks(program: Program, shape: tuple[int, int], inputs: Inputs) -> Task:
    def draw(outer: Values, sparsity: Values) -> Task:
        return _draw_task(program, {**inputs.fixed, **outer, **sparsity})

    # Mapped over the sparsity alone, with P and mu declared as not mapped: should they come to
    # depend on it, tokens would no longer be shared along the inner layer, and this fails.
    sparsity = {path: inputs.inner[path] for path in inputs.inner if path == "task.sparsity"}
    if sparsity:
        draw = jax.vmap(draw, in_axes=(None, 0), out_axes=_task_axes(inputs))
    over_outer = jax.vmap(draw, in_axes=(0, None), axis_size=shape[0])
    return over_outer(inputs.outer, sparsity)


def _draw_task(program: Program, values: Values) -> Task:
    """A task: drawn in float32, so that it is the same one whatever dtype it is held in."""
    values = _in_float32(values)
    task = random_task(
        _key(values, "task_seed"),
        num_tokens=program.fixed["task.num_tokens"],
        context_length=cost.rows(program.fixed),
        sparsity=values["task.sparsity"],
        skew=values["task.skew"],
        transition_signal=values.get("task.transition_signal"),
        max_sparsity=_max_sparsity(program),
    )
    return _held(program, task)


def _draw_source(program: Program, values: Values, task: Task) -> Task:
    """The related task of a transfer, with a pattern of its own; see :func:`_draw_task`."""
    values = _in_float32(values)
    source = related_task(
        _key(values, "task_seed", _SOURCE_STREAM),
        Task(*_in_float32(task._asdict()).values()),
        correlation=values["transfer.correlation"],
        sparsity=values["task.sparsity"],
        skew=values["task.skew"],
        max_sparsity=_max_sparsity(program),
    )
    return _held(program, source)


def _held(program: Program, task: Task) -> Task:
    return Task(*(array.astype(program.fixed["task.dtype"]) for array in task))


def _in_float32(values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {
        name: value.astype(jnp.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value
        for name, value in values.items()
    }


def _max_sparsity(program: Program) -> int:
    path = "task.sparsity"
    columns = (program.outer.columns, program.inner.columns)
    sparsities = [column[path] for column in columns if path in column] or [(program.fixed[path],)]
    return int(max(*sparsities))


def _task_axes(inputs: Inputs) -> Any:  # noqa: ANN401 - axes in the place of a task's arrays
    """How a task varies along the inner layer: by its pattern, if by anything."""
    return cast("Any", Task)(None, None, 0 if "task.sparsity" in inputs.inner else None)


def _over_grid(
    program: Program,
    shape: tuple[int, int],
    function: Callable[..., Any],
    inputs: Inputs,
    tasks: Task,
    *batched: Any,  # noqa: ANN401 - trees of arrays [outer, inner, ...]
) -> Any:  # noqa: ANN401 - what the function returns, with two axes in front
    """Maps a function of (values, task, ...) over both layers of a part of the grid."""
    outer_size, inner_size = shape
    both = (0,) * len(batched)

    def at_point(outer: Values, inner: Values, task: Task, *rest: Any) -> Any:  # noqa: ANN401
        return function({**inputs.fixed, **outer, **inner}, task, *rest)

    axes = (None, 0, _task_axes(inputs), *both)
    over_inner = over_axis(at_point, axes, inner_size)
    # Not by the size of the part, which depends on the number of devices: the same bits on any.
    mapped = over_axis if program.is_taken_singly else _vmap
    over_outer = mapped(over_inner, (0, None, 0, *both), outer_size)
    return over_outer(inputs.outer, inputs.inner, tasks, *batched)


def over_axis(
    function: Callable[..., Any], in_axes: tuple[Any, ...], size: int
) -> Callable[..., Any]:
    """``vmap`` over leading axes; those of size 1 are only taken off and put on again.

    Under vmap both sides of a branch are computed, and look-ups get one index more, which costs a
    single large trajectory dearly.

    Args:
        function: of trees of arrays.
        in_axes: as those of ``vmap``, with 0 and None.
        size: of the axes.

    Returns:
        The function of trees of arrays with an axis in front, which its results have as well.
    """
    if size > 1:
        return _vmap(function, in_axes, size)

    def applied(*arguments: Any) -> Any:  # noqa: ANN401 - trees of arrays
        own = jax.tree.map(
            lambda axis, tree: tree if axis is None else jax.tree.map(lambda a: a[0], tree),
            in_axes,
            arguments,
            is_leaf=lambda axis: axis is None,
        )
        return jax.tree.map(lambda a: a[None], function(*own))

    return applied


def _vmap(function: Callable[..., Any], in_axes: tuple[Any, ...], size: int) -> Callable[..., Any]:
    return jax.vmap(function, in_axes, axis_size=size)


def _settings(program: Program, values: Values, record: tuple[str, ...] = ()) -> Settings:
    """The settings at a point: static fields from the program, the others from traced values."""
    static = {path.rpartition(".")[2]: value for path, value in program.fixed.items()}
    traced = {path.rpartition(".")[2]: value for path, value in values.items()}
    return Settings(
        record=record,
        **{name: static[name] for name in STATIC_FIELDS if name in static},
        **{name: traced[name] for name in TRACED_FIELDS if name in traced},
    )


def _key(values: Values, seed: str, stream: int | None = None) -> jax.Array:
    """The key of one part of a trajectory: made of seeds alone, wherever it stands in the grid.

    And whatever generator the process has as its default: under vmap, those of the family rbg draw
    from the keys of all trajectories.
    """
    number = _STREAMS[seed] if stream is None else stream
    root = jax.random.fold_in(jax.random.key(values["root_seed"], impl=THREEFRY), number)
    return jax.random.fold_in(root, values[seed] if seed in values else values["seed"])


def _variables(program: Program) -> tuple[str, ...]:
    return tuple(program.fixed["record.variables"])


# ------------------------------------------------------------------------------------- its inputs


def chunk_inputs(program: Program, chunk: Chunk) -> Inputs:
    """The numbers of a chunk on the host, padded to the program's chunk shape with its last point.

    Args:
        program: the program.
        chunk: one of its chunks.

    Returns:
        Arrays of int32 and of the floats of the program; fields that are left to the library (None)
        are absent.
    """
    fixed = {
        path: _as_array(program, path, value)
        for path, value in program.fixed.items()
        if _is_traced(path) and value is not None
    }
    outer_size, inner_size = program.chunk_shape
    return Inputs(
        outer=_layer_inputs(program, program.outer, chunk.outer[0], outer_size),
        inner=_layer_inputs(program, program.inner, chunk.inner[0], inner_size),
        fixed=fixed,
    )


def _layer_inputs(
    program: Program, layer: Layer, first: int, size: int
) -> dict[str, npt.NDArray[Any]]:
    points = np.minimum(np.arange(first, first + size), layer.size - 1)
    return {
        path: _as_array(program, path, column)[points] for path, column in layer.columns.items()
    }


def _is_traced(path: str) -> bool:
    return FIELDS[path].kind in {"traced", "data"} or path == "root_seed"


def _as_array(program: Program, path: str, value: npt.ArrayLike) -> npt.NDArray[Any]:
    floats = program.fixed["task.dtype"]
    return np.asarray(value, floats if FIELDS[path].type is float else np.int32)
