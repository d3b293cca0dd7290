"""Programs compiled for the devices that share a chunk, and what they take."""

import contextlib
import ctypes
import dataclasses
import importlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scbjax.base import Functions
from scbjax.once import quick_options
from scbjax.sharding import shard_map
from scbjax.sweep.engine.backend import compiler_options
from scbjax.sweep.engine.inputs import Inputs, chunk_inputs, numbers_of
from scbjax.sweep.engine.mapped import (
    Carry,
    Prepared,
    constants,
    functions_of,
    prepare,
    take_records,
)
from scbjax.sweep.engine.memory import Memory
from scbjax.sweep.plan.plans import Chunk
from scbjax.sweep.plan.programs import Program
from scbjax.sweep.study.experiments import calling

_OUTER = "outer"  # the mesh axis over which the outer layer is sharded


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program, what it was compiled of, and how its inputs get to its devices.

    `memory` is what the compiler says that a chunk takes, over all devices; None where it says
    nothing.
    """

    functions: Functions
    place: Callable[[Inputs], Any]
    prepare: Callable[..., Any]
    constants: Callable[..., Any]
    segment: Callable[..., Any]
    seconds: float
    memory: Memory | None


class Jitted(NamedTuple):
    """A function under `jax.jit`, and what it is called with: arrays, or their shapes."""

    function: Any
    arguments: tuple[Any, ...]


class Parts(NamedTuple):
    """What a program is compiled of; nothing of it has been compiled, or belongs to a platform.

    Attributes:
        prepare: makes the beginning of a chunk of its numbers.
        constants: of the tasks of a chunk.
        segment: takes any number of records.
    """

    prepare: Jitted
    constants: Jitted
    segment: Jitted


def parts_of(program: Program, mesh: Mesh) -> Parts:
    """The functions of a program, of which each device does its own part of the outer layer.

    Args:
        program: the program.
        mesh: the devices that share a chunk, along one axis (`mesh_of`).
    """
    outer_size, inner_size = program.chunk_shape
    part = outer_size // mesh.size, inner_size
    sharded, whole = PartitionSpec(_OUTER), PartitionSpec()
    on_inputs = _on_inputs()
    on_carry = cast("Any", Carry)(sharded, PartitionSpec(None, _OUTER), sharded)
    on_prepared = cast("Any", Prepared)(sharded, on_carry)

    inputs = jax.tree.map(_shape_of, chunk_inputs(program, Chunk(0, program.index, (0, 1), (0, 1))))
    first = _jit(partial(prepare, program, part), mesh, (on_inputs,), on_prepared)
    made = jax.eval_shape(first, inputs)
    told = _jit(partial(constants, program, part), mesh, (on_inputs, sharded), sharded)
    segment = _jit(
        partial(take_records, program, part),
        mesh,
        (on_inputs, sharded, on_carry, whole, whole),
        (on_carry, sharded),
        donate_argnums=(2,),
    )
    tasks, carry = jax.tree.map(_shape_of, (made.tasks, made.carry))
    return Parts(
        Jitted(first, (inputs,)),
        Jitted(told, (inputs, tasks)),
        Jitted(segment, (inputs, tasks, carry, np.int32(0), np.int32(0))),
    )


def compile_program(program: Program, ahead: Sequence[str] = ()) -> Compiled:
    """Compiles a program so that each device does its own part of the outer layer, and no more.

    The compiler leaves Python free: the two small programs are compiled while the large one is
    traced.

    Args:
        program: the program.
        ahead: modules that are loaded while the large one is compiled, since the process goes on
            with them.
    """
    with calling(program.experiment):
        return _compile_program(program, ahead)


def _compile_program(program: Program, ahead: Sequence[str]) -> Compiled:
    mesh = mesh_of(program)
    start = time.perf_counter()
    parts = parts_of(program, mesh)
    options = compiler_options(mesh.devices.flat[0].platform)
    # What runs once is to be ready soon.
    once = {**options, **quick_options()}
    with ThreadPoolExecutor(max_workers=2) as others:
        first, told = (
            others.submit(_lowered(part).compile, compiler_options=once)
            for part in (parts.prepare, parts.constants)
        )
        segment = _lowered(parts.segment)
        others.submit(_load, ahead)
        taking = segment.compile(compiler_options=options)
        return Compiled(
            functions_of(program),
            partial(jax.device_put, device=_shardings(mesh, _on_inputs())),
            first.result(),
            told.result(),
            taking,
            time.perf_counter() - start,
            _memory_of(taking, mesh.size),
        )


def _lowered(part: Jitted) -> Any:  # noqa: ANN401 - of JAX, untyped
    return part.function.lower(*part.arguments)


def _load(modules: Sequence[str]) -> None:
    """Loads modules; those that are not there are left to whoever needs them."""
    for name in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _on_inputs() -> Any:  # noqa: ANN401 - a tree of specs
    whole = PartitionSpec()
    return cast("Any", Inputs)(PartitionSpec(_OUTER), whole, whole)


def _shape_of(array: Any) -> jax.ShapeDtypeStruct:  # noqa: ANN401 - of NumPy, or a shape
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _memory_of(compiled: Any, devices: int) -> Memory | None:  # noqa: ANN401 - of JAX, untyped
    """What a compiled program takes on all devices; the compiler tells that of one."""
    found = compiled.memory_analysis()
    if found is None:  # not every backend has it
        return None
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(devices * int(kept), devices * int(found.temp_size_in_bytes))


def memory_of_one(program: Program) -> tuple[int, int]:
    """Bytes that one trajectory of a program keeps, and those of its temporaries.

    The first are the size of its state, its task and its records; the second are asked of the
    compiler, which this takes some seconds of.
    """
    shape = (1, 1)
    inputs = chunk_inputs(program, Chunk(0, 0, (0, 1), (0, 1)))
    number = jax.ShapeDtypeStruct((), np.int32)
    with numbers_of(program), calling(program.experiment):
        prepared = jax.eval_shape(partial(prepare, program, shape), inputs)
        segment = jax.jit(partial(take_records, program, shape), donate_argnums=(2,))
        lowered = segment.lower(inputs, prepared.tasks, prepared.carry, number, number)
        memory: Any = lowered.compile(
            compiler_options=cast("Any", quick_options())
        ).memory_analysis()
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(prepared))
    return int(kept), int(memory.temp_size_in_bytes)


def give_back_freed_memory() -> None:
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


def mesh_of(program: Program) -> Mesh:
    """The devices that share a chunk, or fewer if the process has not so many."""
    devices, blocks = jax.local_devices(), program.chunk_shape[0] // program.block
    most = min(program.devices, len(devices))
    count = max(n for n in range(1, most + 1) if blocks % n == 0)
    return jax.make_mesh((count,), (_OUTER,), axis_types=(AxisType.Auto,), devices=devices[:count])
