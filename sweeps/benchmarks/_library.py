"""What the benchmarks time of this library, the floors that it is held against, and its HLO."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from _hlo import count
from _measure import Contender, Payload
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from scbjax.composition import LearnerState
from scbjax.losses import loss, sample_gradients
from scbjax.model import Params
from scbjax.paper import init, step, stored
from scbjax.sampling import (
    POSITION_MAJOR_LIMIT,
    AnyBatch,
    Batch,
    Sampler,
    draw_step,
    fold_in,
    make_sampler,
    make_seed,
)
from scbjax.settings import Settings
from scbjax.sharding import shard_map
from scbjax.sweep.engine.backend import compiler_options
from scbjax.sweep.engine.mapped import over_axis
from scbjax.task import Task, random_task
from scbjax.words import Seed

OURS: Final = "scbjax"
FLOOR: Final = "one random word a token"
COPY: Final = "memory copy"
SPARSITY: Final = 2  # Q of the paper's main setting
L1: Final = 1e-5  # lambda of the paper's main setting
COPY_BYTES: Final = 2**28  # far more than any cache holds
ARITHMETIC: Final = "elementwise operations"
CHAIN_ELEMENTS: Final = 2**13  # 32 KiB
CHAIN_LENGTH: Final = 64

# What is done of a step: drawing the batch; then also its gradient; then also eqs. 4 to 6.
Part: TypeAlias = Literal["sample", "gradient", "step"]
PARTS: Final[tuple[Part, ...]] = ("sample", "gradient", "step")


class Size(NamedTuple):
    """The size of a measurement: N, T, B and the number of trajectories S."""

    num_tokens: int
    context_length: int
    batch_size: int
    trajectories: int

    @property
    def tokens(self) -> int:
        """Context tokens in one step of all trajectories."""
        return self.context_length * self.batch_size * self.trajectories


def settings_for(size: Size) -> Settings:
    """The settings of the steps that are timed: those of the paper's second stage."""
    return Settings(batch_size=size.batch_size, steps=1, record_every=1, record=(), l1=L1)


def draw_tasks(size: Size) -> Task:
    """One task for every trajectory, [S, ...]."""

    def draw(key: jax.Array) -> Task:
        return random_task(
            key,
            num_tokens=size.num_tokens,
            context_length=size.context_length,
            sparsity=SPARSITY,
        )

    tasks: Task = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), size.trajectories))
    return tasks


def start(task: Task, settings: Settings) -> LearnerState:
    """A state half-way through the second stage, where every part of a step has work to do."""
    state = init(jax.random.key(0), task, settings)
    halfway = jax.tree.map(
        lambda begin, end: 0.5 * (begin + end), state.params, Params(task.transition, task.pattern)
    )
    return state._replace(params=halfway, stage=jnp.full_like(state.stage, 2))


class Held(NamedTuple):
    """What numbers a step is made of.

    Attributes:
        params: what V and A are carried in from step to step.
        step: what a step computes in, and has mu in. Tokens are drawn in float32 in any case.
    """

    params: str = "float32"
    step: str = "float32"


SINGLE: Final = Held()


def held_in(tree: Any, dtype: str) -> Any:  # noqa: ANN401 - a tree of arrays
    """The arrays of floats in another dtype."""

    def hold(leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(hold, tree)


def library(
    size: Size,
    part: Part = "step",
    name: str = OURS,
    *,
    devices: int = 1,
    held: Held = SINGLE,
) -> Contender:
    """Steps of this library as a sweep takes them; a unit is one step of all S trajectories.

    Trajectories are under vmap in blocks as large as a sweep has them (`scbjax.sweep.plan`), and a
    block takes all the steps of a call before the next one, as it takes those up to a record.

    Args:
        size: what is run; S must be a multiple of the number of devices.
        part: how much of a step.
        name: the contender's name.
        devices: how many devices the trajectories are spread over.
        held: the numbers of a whole step.
    """
    settings, tasks = settings_for(size), draw_tasks(size)
    samplers = jax.jit(jax.vmap(make_sampler))(tasks)
    keys = jax.random.split(jax.random.key(1), size.trajectories)
    seeds = jax.vmap(make_seed)(keys)
    states = jax.jit(jax.vmap(lambda task: stored(start(task, settings), task, settings)))(tasks)

    def draw(index: jax.Array, sampler: Sampler, seed: Seed) -> AnyBatch:
        return draw_step(fold_in(seed, index), sampler, size.batch_size)

    def move(
        index: jax.Array, state: LearnerState, task: Task, sampler: Sampler, seed: Seed
    ) -> LearnerState:
        batch = draw(index, sampler, seed)
        return stored(
            step_in(held, stored(state, task, settings), batch, task, settings), task, settings
        )

    def found(
        index: jax.Array,
        last: Any,  # noqa: ANN401 - what was found before
        state: LearnerState,
        task: Task,
        sampler: Sampler,
        seed: Seed,
    ) -> Any:  # noqa: ANN401 - what steps read of a batch; or a gradient
        del last
        batch = draw(index, sampler, seed)
        if part == "sample":
            return batch
        params = stored(state, task, settings).params
        if size.num_tokens > POSITION_MAJOR_LIMIT:  # the form that steps have it in
            assert isinstance(batch, Batch)
            return sample_gradients(params, batch)[1]
        return jax.grad(loss)(params, batch)

    if part == "step":
        states = states._replace(params=held_in(states.params, held.params))
        return _compiled_sweep(name, move, (states, (tasks, samplers, seeds)), size, devices)
    inputs = (states, tasks, samplers, seeds)
    shapes = jax.eval_shape(jax.vmap(found, (None,) * 2 + (0,) * 4), jnp.int32(0), None, *inputs)
    last = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return _compiled_sweep(name, found, (last, inputs), size, devices)


def step_in(
    held: Held, state: LearnerState, batch: AnyBatch, task: Task, settings: Settings
) -> LearnerState:
    """One step in the given numbers; the state's own dtypes are kept."""
    moved, _ = step(held_in(state, held.step), batch, held_in(task, held.step), settings)
    kept: LearnerState = jax.tree.map(lambda new, old: new.astype(old.dtype), moved, state)
    return kept


def random_words(size: Size) -> Contender:
    """The floor: one 32-bit word a token from jax.random.bits, and nothing else."""
    keys = jax.random.split(jax.random.key(1), size.trajectories)
    shape = (size.batch_size, size.context_length)

    def body(index: jax.Array, carry: jax.Array, key: jax.Array) -> jax.Array:
        del carry
        return jax.random.bits(jax.random.fold_in(key, index), shape, jnp.uint32)

    words = jnp.zeros((size.trajectories, *shape), jnp.uint32)
    return _compiled_sweep(FLOOR, body, (words, (keys,)), size)


def memory_copy(name: str = COPY, size: int = COPY_BYTES) -> Contender:
    """The memory's bandwidth: an array far larger than the caches is read and written once.

    Args:
        name: the contender's name.
        size: bytes of the array; with few of them it is the bandwidth of a cache.
    """
    array = jnp.zeros((size // 4,), jnp.float32)

    def loop(first: jax.Array, count: jax.Array, carry: jax.Array, one: jax.Array) -> jax.Array:
        copied: jax.Array = jax.lax.fori_loop(
            first, first + count, lambda _, carry: carry + one, carry
        )
        return copied

    # An argument: adding a constant of the program might be simplified away in a loop.
    return _compiled_loop(name, loop, array, (jnp.ones(()),), 2 * size)


def arithmetic() -> Contender:
    """The rate of elementwise operations: long chains of them on an array that stays in a cache."""
    array = jnp.zeros((CHAIN_ELEMENTS,), jnp.float32)

    def loop(
        first: jax.Array, count: jax.Array, carry: jax.Array, by: jax.Array, more: jax.Array
    ) -> jax.Array:
        def chain(_: jax.Array, carry: jax.Array) -> jax.Array:
            for _link in range(CHAIN_LENGTH // 2):
                carry = carry * by + more
            return carry

        done: jax.Array = jax.lax.fori_loop(first, first + count, chain, carry)
        return done

    inputs = (jnp.full((), 0.5), jnp.ones(()))
    return _compiled_loop(ARITHMETIC, loop, array, inputs, CHAIN_LENGTH * CHAIN_ELEMENTS)


def block_of(size: Size, devices: int = 1) -> int:
    """Trajectories that a device works on at a time, as in a sweep of so many on this machine."""
    from _studies import plan_sweep

    plan = plan_sweep(
        num_tokens=size.num_tokens,
        context_length=size.context_length,
        batch_size=size.batch_size,
        steps=1,
        seeds=size.trajectories,
    )
    each, most = size.trajectories // devices, plan.programs[0].block
    return max(count for count in range(1, min(each, most) + 1) if each % count == 0)


def _compiled_sweep(
    name: str, body: Callable[..., Any], arrays: tuple[Any, Any], size: Size, devices: int = 1
) -> Contender:
    """Repeats ``carry = body(index, carry, *inputs)`` for all trajectories, block by block.

    Args:
        name: the contender's name.
        body: a step of one trajectory.
        arrays: carry and inputs, with the trajectories as the leading axis.
        size: what is run.
        devices: how many devices the trajectories are spread over.
    """
    block = block_of(size, devices)
    over_block = over_axis(body, (None, 0, *(0,) * len(arrays[1])), block)

    def loop(first: jax.Array, count: jax.Array, carry: Any, *inputs: Any) -> Any:  # noqa: ANN401
        def take(number: jax.Array, carry: Any) -> Any:  # noqa: ANN401
            def own(leaf: jax.Array) -> jax.Array:
                return jax.lax.dynamic_slice_in_dim(leaf, number * block, block)

            def put(leaf: jax.Array, part: jax.Array) -> jax.Array:
                return jax.lax.dynamic_update_slice_in_dim(leaf, part, number * block, 0)

            mine = jax.tree.map(own, inputs)
            moved = jax.lax.fori_loop(
                first,
                first + count,
                lambda index, carry: over_block(index, carry, *mine),
                jax.tree.map(own, carry),
            )
            return jax.tree.map(put, carry, moved)

        blocks = size.trajectories // devices // block
        return jax.lax.fori_loop(np.int32(0), np.int32(blocks), take, carry)

    mesh = jax.make_mesh(
        (devices,), ("trajectory",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    spread, whole = PartitionSpec("trajectory"), PartitionSpec()
    specs = (whole, whole, spread, *(spread,) * len(arrays[1]))
    carry, inputs = jax.device_put(arrays, NamedSharding(mesh, spread))
    found = _compiled_loop(name, shard_map(loop, mesh, specs, spread), carry, inputs, size.tokens)
    return replace(found, notes={**found.notes, "block": block, "devices": devices})


def _compiled_loop(
    name: str,
    loop: Callable[..., Any],
    carry: Any,  # noqa: ANN401 - a tree of arrays
    inputs: tuple[Any, ...],
    work: float,
) -> Contender:
    """Compiles ``carry = loop(first, count, carry, *inputs)``, which takes ``count`` steps."""
    # Copied: buffers are donated, and what the caller gave may be an input as well.
    held = [jax.tree.map(jnp.copy, carry)]
    begin = time.perf_counter()
    lowered = jax.jit(loop, donate_argnums=2).lower(np.int32(0), np.int32(1), held[0], *inputs)
    options = compiler_options(jax.devices()[0].platform)
    compiled = lowered.compile(compiler_options=options)
    seconds = time.perf_counter() - begin
    done = [0]

    def run(count: int) -> None:
        held[0] = compiled(np.int32(done[0]), np.int32(count), held[0], *inputs)
        jax.block_until_ready(held[0])
        done[0] += count

    return Contender(name, run, work, {"compile_seconds": seconds})


# ------------------------------------------------------------------------- what the compiler made


def lowered_step(size: Size, *, device: Any = None) -> Any:  # noqa: ANN401 - a `jax.stages.Lowered`
    """One step of so many trajectories under vmap, before it is compiled; nothing is computed.

    Args:
        size: what is run.
        device: of this process, or one that there is only a compiler for (`jax.experimental.
            topologies`); the first of this process if left out.
    """
    device = jax.devices()[0] if device is None else device
    place, settings = SingleDeviceSharding(device), settings_for(size)

    def inputs() -> tuple[Any, ...]:
        tasks = draw_tasks(size)
        seeds = jax.vmap(make_seed)(jax.random.split(jax.random.key(1), size.trajectories))
        states = jax.vmap(lambda task: stored(start(task, settings), task, settings))(tasks)
        return states, tasks, jax.vmap(make_sampler)(tasks), seeds

    def one_step(state: LearnerState, task: Task, sampler: Any, seed: Seed) -> LearnerState:  # noqa: ANN401
        batch = draw_step(seed, sampler, size.batch_size)
        state, _ = step(stored(state, task, settings), batch, task, settings)
        return stored(state, task, settings)

    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(inputs),
    )
    steps = jax.jit(jax.vmap(one_step), donate_argnums=0, in_shardings=place, out_shardings=place)
    return steps.trace(*shapes).lower(lowering_platforms=(platform_of(device),))


def platform_of(device: Any) -> str:  # noqa: ANN401 - a device, or the description of one
    """What a device's platform is called where programs are lowered for it."""
    return "cuda" if device.platform == "gpu" else str(device.platform)


def census(size: Size) -> Payload:
    """Counts of one step of a block of trajectories, from the program that XLA compiled for it.

    Returns:
        Per token: bytes that pass between kernels, operations, and random words; and the number of
        kernels, scatters, gathers and matrix products.
    """
    size = size._replace(trajectories=block_of(size))
    program = lowered_step(size).compile(
        compiler_options=compiler_options(jax.devices()[0].platform)
    )
    text = program.as_text() or ""
    found, memory = count(text), program.memory_analysis()
    return {
        "bytes": found.bytes / size.tokens,
        "operations": found.operations / size.tokens,
        "random_words": found.random_words / size.tokens,
        "temporary_bytes": getattr(memory, "temp_size_in_bytes", 0) / size.tokens,
        "kernels": int(found.kernels),
        "scatters": _count(text, "scatter"),
        "gathers": _count(text, "gather"),
        "products": _count(text, "dot") + _count(text, "custom-call"),
    }


def _count(text: str, opcode: str) -> int:
    return len(re.findall(rf"= \S+ {opcode}\(", text))
