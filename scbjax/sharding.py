"""One trajectory on many devices: what has an axis of positions is split along it.

A [T, N], Q [T, N] and the contexts [B, T] are cut into as many parts as there are devices. Inside
:func:`over_positions` XLA partitions what is elementwise or a sum over positions, and adds up the
sums of the parts. Where it would gather an array first (searches, scatters, sorts), a function says
with :func:`on_parts` what each device does with its part; what these functions exchange does not
grow with T either. Elsewhere there is one part, which is the whole.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec

# The mesh axis along which positions are split.
_POSITIONS = "positions"
WHOLE = PartitionSpec()
ROWS = PartitionSpec(_POSITIONS)
COLUMNS = PartitionSpec(None, _POSITIONS)

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class Part:
    """A device's part of the positions.

    Attributes:
        index: the number of the part, an int32 scalar.
        count: number of parts.
    """

    index: jax.Array | int
    count: int

    def total(self, array: jax.Array) -> jax.Array:
        """The sum over all parts, the same on every device."""
        return array if self.count == 1 else jax.lax.psum(array, _POSITIONS)

    def gather(self, array: jax.Array) -> jax.Array:
        """The arrays of all parts, stacked along a new first axis; they must be small."""
        parts = jnp.arange(self.count).reshape(-1, *(1,) * array.ndim)
        # As a sum, which the partitioner may merge with others.
        return self.total(jnp.where(parts == self.index, array[None], jnp.zeros((), array.dtype)))


def over_positions(
    function: Callable[_Arguments, _Result], devices: Sequence[jax.Device] | None = None
) -> Callable[_Arguments, _Result]:
    """Compiles a function so that every [T, N] and [B, T] in it is split over devices.

    Devices exchange sums over their parts, of sizes like [N], [B, N] and [N, N], and nothing that
    grows with T. Results are those of ``jax.jit(function)`` up to the rounding of these sums: the
    same random bits are drawn, each on the device that needs them. Arguments that are not split
    yet are cut up when the function is called; results stay split where they were made.

    Args:
        function: what is to be compiled, such as :func:`scbjax.training.train`; made of functions
            of this library, with arrays as arguments.
        devices: the devices, all there are by default, of all processes. Their number must divide
            T, or tracing raises a ``ValueError``.

    Returns:
        The compiled function. Like that of ``jax.jit`` it is to be kept: it remembers what it has
        compiled.

    Example:
        >>> from functools import partial
        >>> from scbjax.task import random_task
        >>> from scbjax.training import train
        >>> from scbjax.settings import Settings
        >>> draw = partial(random_task, num_tokens=3, context_length=64, sparsity=2)
        >>> task = over_positions(draw)(jax.random.key(0))
        >>> settings = Settings(batch_size=32, steps=20, record_every=20, record=("stage",))
        >>> over_positions(train)(jax.random.key(1), task, settings).params.attention.shape
        (64, 3)
    """
    mesh = _mesh_of(jax.devices() if devices is None else devices)
    compiled = jax.jit(function)

    @functools.wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with _use(mesh):
            result: _Result = compiled(*args, **kwargs)
        return result

    return call


def is_split() -> bool:
    """Whether this is inside `over_positions`."""
    return _mesh() is not None


def split(array: jax.Array) -> jax.Array:
    """An array whose first axis is that of positions, split along it inside `over_positions`."""
    mesh = _mesh()
    if mesh is None:
        return array
    _check_divisible(array.shape[0], mesh.size)
    constrained: jax.Array = jax.lax.with_sharding_constraint(array, ROWS)
    return constrained


def on_parts(
    function: Callable[..., Any],
    in_specs: tuple[Any, ...],  # a spec in the place of each argument
    out_specs: Any,  # noqa: ANN401 - the same for the result
) -> Callable[..., Any]:
    """Makes every device apply a function to its part of the arrays.

    Args:
        function: called with a :class:`Part` and with the parts of the arguments.
        in_specs: how each argument is split: ``ROWS`` and ``COLUMNS`` have positions in the first
            and in the second axis, ``WHOLE`` has none.
        out_specs: how the result is split; for ``WHOLE`` all devices must return the same.

    Returns:
        A function of the whole arrays.
    """
    mesh = _mesh()
    if mesh is None:
        return functools.partial(function, Part(0, 1))
    count = mesh.size

    def on_part(*arrays: Any) -> Any:  # noqa: ANN401 - what the function takes and returns
        return function(Part(jax.lax.axis_index(_POSITIONS), count), *arrays)

    def call(*arrays: Any) -> Any:  # noqa: ANN401
        for array, spec in zip(arrays, in_specs, strict=True):
            if spec in (ROWS, COLUMNS):
                _check_divisible(array.shape[spec.index(_POSITIONS)], count)
        return shard_map(on_part, mesh, in_specs, out_specs)(*arrays)

    return call


def largest_rows(matrix: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The largest entries of each column of [T, C], in falling order: values and rows, [count, C].

    Of equal entries those of the first rows are taken.
    """

    def find(part: Part, matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, rows = jax.lax.top_k(matrix.T, min(count, matrix.shape[0]))
        values, rows = merge_largest(part, values, rows + part.index * matrix.shape[0], count)
        return values.T, rows.T

    found: tuple[jax.Array, jax.Array] = on_parts(find, (ROWS,), (WHOLE, WHOLE))(matrix)
    return found


def merge_largest(
    part: Part, values: jax.Array, rows: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    """The largest of what all parts have found, in falling order, for use inside `on_parts`.

    Args:
        part: the device's part.
        values: the largest values of the part, [C, found], in falling order.
        rows: the rows where they stand in the whole, [C, found].
        count: how many are wanted.

    Returns:
        Values and rows, [C, count], the same on every device.
    """
    if part.count == 1:
        return values, rows
    # Candidates in the order of their rows, so that ties are broken as in one part.
    values, rows = (
        part.gather(array).swapaxes(0, 1).reshape(array.shape[0], -1) for array in (values, rows)
    )
    best, which = jax.lax.top_k(values, count)
    return best, jnp.take_along_axis(rows, which, axis=1)


def every_nth_row(matrix: jax.Array, stride: int) -> jax.Array:
    """``matrix[::stride]``, on every device."""

    def pick(part: Part, rows: jax.Array) -> jax.Array:
        if part.count == 1:
            return rows[::stride]
        length = rows.shape[0]
        place = jnp.arange(0, length * part.count, stride) - part.index * length
        mine = (place >= 0) & (place < length)
        picked = rows[jnp.clip(place, 0, length - 1)]
        return part.total(jnp.where(mine[:, None], picked, jnp.zeros((), rows.dtype)))

    picked: jax.Array = on_parts(pick, (ROWS,), WHOLE)(matrix)
    return picked


def shard_map(
    function: Callable[..., Any],
    mesh: Any,  # noqa: ANN401 - abstract or not
    in_specs: Any,  # noqa: ANN401 - a spec in the place of each subtree
    out_specs: Any,  # noqa: ANN401
) -> Callable[..., Any]:
    """``jax.shard_map`` without its checks of replication."""
    mapped: Callable[..., Any] = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return mapped


def _check_divisible(length: int, count: int) -> None:
    if length % count:
        below = length // count * count
        nearest = " and ".join(str(n) for n in (below, below + count) if n)
        raise ValueError(
            f"context_length is {length}; it must be a multiple of the number of devices, {count} "
            f"(nearest: {nearest})"
        )


def _mesh() -> Any:  # noqa: ANN401 - the type of abstract meshes is not public in all versions
    """The mesh of devices that positions are split over, None elsewhere.

    It is JAX's ambient one: JAX knows that what it has traced and compiled depends on it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if _POSITIONS in mesh.axis_names else None


def _mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    return jax.make_mesh(
        (len(devices),), (_POSITIONS,), axis_types=(AxisType.Auto,), devices=tuple(devices)
    )


def _use(mesh: Mesh) -> AbstractContextManager[Any]:
    context: AbstractContextManager[Any] = jax.set_mesh(mesh)
    return context
