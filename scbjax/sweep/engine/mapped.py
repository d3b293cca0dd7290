"""What a program computes: the functions of one trajectory under vmap inside vmap, in blocks.

Everything here is pure and is traced once. The outer layer is worked through in blocks, so that
what a step works on stays in a processor's cache; within a block all learners of an outer point
share what is drawn for it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from scbjax.base import NOT_DIVERGED, Experiment, Functions, Keys
from scbjax.keys import THREEFRY
from scbjax.sweep.engine.inputs import Inputs, dtype_of
from scbjax.sweep.plan.programs import Program
from scbjax.sweep.study.fields import fields_of
from scbjax.values import Values

Records: TypeAlias = dict[str, jax.Array]


class Carry(NamedTuple):
    """What a segment hands to the next one.

    Attributes:
        state: the learners, every leaf [outer, inner, ...].
        records: an array [records, outer, inner] for each variable, filled as far as the run is.
        diverged_at: step of the first record at which the parameters were not finite, or -1; int32
            [outer, inner].
    """

    state: Any
    records: Records
    diverged_at: jax.Array


class Prepared(NamedTuple):
    """The beginning of a chunk.

    Attributes:
        tasks: leaves [outer, ...]; those that vary along the inner layer [outer, inner, ...].
        carry: the initial states, and room for the records.
    """

    tasks: Any
    carry: Carry


def prepare(program: Program, shape: tuple[int, int], inputs: Inputs) -> Prepared:
    """Draws the tasks of a part of the grid of this shape, and makes the initial states.

    Block by block, so that the temporaries are those of one block.
    """
    block = program.block, shape[1]

    def start(values: Values, task: Any) -> Any:  # noqa: ANN401 - trees of the experiment
        return functions.start(keys_of(values), values, task)

    def make(number: jax.Array) -> tuple[Any, Any]:
        own = inputs._replace(outer=_slice(inputs.outer, number * program.block, program.block))
        tasks = _draw_tasks(program, functions, block, own)
        return tasks, _over_grid(program, functions, block, start, own, tasks)

    functions = functions_of(program)
    tasks, state = _by_blocks(program, shape, make)
    records = _room_for_records(program, shape)
    diverged_at = jnp.full(shape, NOT_DIVERGED, jnp.int32)
    return Prepared(tasks, Carry(state, records, diverged_at))


def constants(
    program: Program,
    shape: tuple[int, int],
    inputs: Inputs,
    tasks: Any,  # noqa: ANN401 - a tree
) -> dict[str, jax.Array]:
    """The constants of the tasks of a part of the grid; [outer, inner].

    A program of its own: joined to what draws a task, a sum of products has another last bit where
    a device has one block than where it has several.
    """
    functions = functions_of(program)

    def of_task(_: Values, task: Any) -> Mapping[str, jax.Array]:  # noqa: ANN401 - a tree
        return functions.constants(task)

    def make(number: jax.Array) -> dict[str, jax.Array]:
        outer, own = _slice((inputs.outer, tasks), number * program.block, program.block)
        block, parts = (program.block, shape[1]), inputs._replace(outer=outer)
        constants: dict[str, jax.Array] = _over_grid(program, functions, block, of_task, parts, own)
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


def _room_for_records(program: Program, shape: tuple[int, int]) -> Records:
    """Arrays [records, outer, inner, ...] of zeros for all that is recorded."""
    variables = {name: program.experiment.variables[name] for name in variables_of(program)}
    has_dims = any(variable.dims for variable in variables.values())
    sizes = program.experiment.sizes(program.fixed) if has_dims else {}
    return {
        name: jnp.zeros(
            (program.num_records, *shape, *(sizes[dim] for dim in variable.dims)),
            dtype_of(program) if variable.dtype == "float32" else variable.dtype,
        )
        for name, variable in variables.items()
    }


def take_records(
    program: Program,
    shape: tuple[int, int],
    inputs: Inputs,
    tasks: Any,  # noqa: ANN401 - a tree of the experiment
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
    blocks, functions = shape[0] // program.block, functions_of(program)

    def take(index: jax.Array, carry: Carry) -> Carry:
        take_block = partial(_take, program, functions, shape[1], inputs, tasks, index)
        taken: Carry = jax.lax.fori_loop(0, blocks, take_block, carry)
        return taken

    carry = jax.lax.fori_loop(done, done + count, take, carry)
    return carry, carry.records[live_metric(program.experiment, variables_of(program))][
        done + count - 1
    ]


def _take(
    program: Program,
    functions: Functions,
    inner_size: int,
    inputs: Inputs,
    tasks: Any,  # noqa: ANN401 - a tree of the experiment
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

    def take(values: Values, task: Any, state: Any) -> Any:  # noqa: ANN401 - trees
        return functions.take_record(keys_of(values), values, task, state, index)

    state, record = _over_grid(program, functions, shape, take, inputs, tasks, state)
    newly = (diverged_at == NOT_DIVERGED) & ~jax.vmap(jax.vmap(functions.is_finite))(state)
    diverged_at = jnp.where(newly, index * program.record_every, diverged_at)
    record = _without_diverged(record, diverged_at != NOT_DIVERGED)
    return Carry(
        _put(carry.state, state, first),
        {
            name: jax.lax.dynamic_update_slice(
                kept, record[name][None], (index, first, *(np.int32(0),) * (kept.ndim - 2))
            )
            for name, kept in carry.records.items()
        },
        _put(carry.diverged_at, diverged_at, first),
    )


def _without_diverged(record: Records, diverged: jax.Array) -> Records:
    """A record [outer, inner, ...] with NaN where a trajectory has diverged; integers have none."""
    return {
        name: jnp.where(jnp.expand_dims(diverged, tuple(range(2, value.ndim))), jnp.nan, value)
        if jnp.issubdtype(value.dtype, jnp.floating)
        else value
        for name, value in record.items()
    }


def functions_of(program: Program) -> Functions:
    """What a program is compiled of."""
    varying = {**program.outer.columns, **program.inner.columns}
    return program.experiment.build(program.fixed, varying)


def _slice(tree: Any, first: jax.Array, size: int) -> Any:  # noqa: ANN401 - any tree of arrays
    """A part of every array along its first axis."""
    return jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, first, size), tree)


def _put(tree: Any, part: Any, first: jax.Array) -> Any:  # noqa: ANN401 - any tree of arrays
    """The arrays with a part of each replaced along its first axis; the inverse of `_slice`."""
    update = jax.lax.dynamic_update_slice_in_dim
    return jax.tree.map(lambda whole, new: update(whole, new, first, 0), tree, part)


def live_metric(experiment: Experiment, variables: Sequence[str]) -> str:
    """The variable that is shown while a run goes on."""
    return experiment.live if experiment.live in variables else variables[0]


def _draw_tasks(
    program: Program, functions: Functions, shape: tuple[int, int], inputs: Inputs
) -> Any:  # noqa: ANN401 - a tree of the experiment
    def draw(outer: Values, own: Values) -> Any:  # noqa: ANN401 - a tree of the experiment
        values = {**inputs.fixed, **outer, **own}
        return functions.draw(keys_of(values), values)

    # Mapped over the values that draw alone, with the rest of the task declared as not mapped:
    # should it come to depend on them, data would no longer be shared along the inner layer, and
    # this fails.
    own = {path: inputs.inner[path] for path in _drawn_along_inner(program)}
    if own:
        axes = task_axes(program, functions)
        draw = jax.vmap(draw, in_axes=(None, 0), out_axes=axes)
    over_outer = jax.vmap(draw, in_axes=(0, None), axis_size=shape[0])
    return over_outer(inputs.outer, own)


def _drawn_along_inner(program: Program) -> list[str]:
    """The fields of the inner layer that a task depends on."""
    fields = fields_of(program.experiment)
    return [path for path in program.inner.columns if fields[path].draws]


def task_axes(program: Program, functions: Functions) -> Any:  # noqa: ANN401 - axes, as of vmap
    """How a task varies along the inner layer, if it does."""
    return functions.along_inner if _drawn_along_inner(program) else None


def _over_grid(
    program: Program,
    functions: Functions,
    shape: tuple[int, int],
    function: Callable[..., Any],
    inputs: Inputs,
    tasks: Any,  # noqa: ANN401 - a tree of the experiment
    *batched: Any,  # noqa: ANN401 - trees of arrays [outer, inner, ...]
) -> Any:  # noqa: ANN401 - what the function returns, with two axes in front
    """Maps a function of (values, task, ...) over both layers of a part of the grid."""
    outer_size, inner_size = shape
    both = (0,) * len(batched)

    def at_point(outer: Values, inner: Values, task: Any, *rest: Any) -> Any:  # noqa: ANN401
        return function({**inputs.fixed, **outer, **inner}, task, *rest)

    axes = (None, 0, task_axes(program, functions), *both)
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


def keys_of(values: Values) -> Keys:
    """The keys of a trajectory: made of seeds alone, wherever it stands in the grid.

    And whatever generator the process has as its default: under vmap, those of the family rbg draw
    from the keys of all trajectories.
    """

    def key(seed: str, stream: int) -> jax.Array:
        root = jax.random.fold_in(jax.random.key(values["root_seed"], impl=THREEFRY), stream)
        return jax.random.fold_in(root, values[seed] if seed in values else values["seed"])

    return Keys(key)


def variables_of(program: Program) -> tuple[str, ...]:
    """Names of what is recorded."""
    return tuple(program.fixed["record.variables"])
