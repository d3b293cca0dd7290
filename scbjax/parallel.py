"""Many trajectories at once, on all devices: what ``vmap`` is to one of them.

XLA runs a small program on one core after the other loop by loop, so that ``jit(vmap(train))`` uses
little more than one core of a CPU. With a device for each core (:func:`use_all_cores`) trajectories
run side by side.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec

from scbjax.once import is_inside_program
from scbjax.sharding import shard_map
from scbjax.sweep.engine.backend import (
    compiler_options,
    cpu_device_count,
    make_cpu_devices,
    usable_cores,
    use_wide_registers,
)

_AXIS = "trajectories"


def use_all_cores() -> int:
    """Makes a CPU device of every core that this process may use, and uses all of their registers.

    To be called before JAX computes anything. On a processor that has AVX-512, XLA uses half of its
    registers unless it is told otherwise; here it is, by ``XLA_FLAGS`` of this process, so that
    what ``jax.jit`` compiles is as fast as sweeps are. What the environment says of either
    (``JAX_NUM_CPU_DEVICES``, ``XLA_FLAGS``) is left as it is.

    Returns:
        The number of devices that JAX has, CPU or others.

    Raises:
        RuntimeError: if JAX runs already and has one CPU device for several cores.
    """
    use_wide_registers()
    make_cpu_devices(None)
    count = jax.local_device_count()
    settled = cpu_device_count(None) is None
    if jax.default_backend() == "cpu" and count < usable_cores() and not settled:
        raise RuntimeError(
            f"JAX runs already, with {count} CPU device{'s' * (count > 1)}; use_all_cores() must "
            "be called before anything is computed"
        )
    return count


def map_trajectories(
    function: Callable[..., Any],
    in_axes: int | Sequence[Any] | None = 0,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Callable[..., Any]:
    """``jax.jit(jax.vmap(function))``, with the mapped axis shared out to all devices.

    Each device maps its own part and sends nothing to the others. Where the size of the axis is no
    multiple of the number of devices, the last place is computed again to fill up. Results do not
    depend on the number of devices, but for rounding. Called inside of ``jit`` it is part of that
    program; called by itself it is compiled with the options that sweeps have.

    Args:
        function: a pure function of trees of arrays, such as one that draws a task and trains.
        in_axes: for each argument 0, if it is mapped along its leading axis, or None; trees of
            these as for ``jax.vmap``.
        devices: those to use; None for all local ones.

    Returns:
        A function of the arguments with the axis in front; its results have it in front as well.

    Raises:
        ValueError: when called, if ``in_axes`` has other axes than 0 and None, or nothing is
            mapped, or mapped arrays differ in the size of their axis.

    Example:
        >>> def final_loss(key, l1):
        ...     return l1 * jax.random.uniform(key)
        >>> keys = jax.random.split(jax.random.key(0), 5)
        >>> map_trajectories(final_loss, in_axes=(0, None))(keys, 0.5).shape
        (5,)
    """
    chosen = list(jax.local_devices() if devices is None else devices)
    jitted: dict[bool, Any] = {}

    def mapped(*arguments: Any) -> Any:  # noqa: ANN401 - trees of arrays
        axes = _axis_of_each(in_axes, arguments)
        size = _size(axes, arguments)
        mesh = _mesh(chosen[: max(1, min(size, len(chosen)))])
        missing = -size % mesh.size
        places = jnp.minimum(jnp.arange(size + missing), size - 1)
        leaves, structure = jax.tree.flatten(arguments)
        # A scalar that is not mapped may be a number of Python.
        filled = [
            leaf[places] if missing and axis == 0 else jnp.asarray(leaf)
            for leaf, axis in zip(leaves, axes, strict=True)
        ]

        def of_leaves(*leaves: Any) -> Any:  # noqa: ANN401 - arrays
            return function(*jax.tree.unflatten(structure, leaves))

        part = jax.vmap(of_leaves, in_axes=tuple(axes))
        specs = tuple(PartitionSpec(_AXIS) if axis == 0 else PartitionSpec() for axis in axes)
        out = shard_map(part, mesh, specs, PartitionSpec(_AXIS))(*filled)
        return jax.tree.map(lambda array: array[:size], out) if missing else out

    def call(*arguments: Any) -> Any:  # noqa: ANN401 - trees of arrays
        traced = is_inside_program(arguments)
        if traced not in jitted:
            options = {} if traced else compiler_options(chosen[0].platform)
            jitted[traced] = jax.jit(mapped, compiler_options=options or None)
        return jitted[traced](*arguments)

    return call


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def _axis_of_each(in_axes: Any, arguments: tuple[Any, ...]) -> list[int | None]:  # noqa: ANN401
    """The axis of each array of the arguments, in order."""
    prefix = in_axes if isinstance(in_axes, tuple | list) else (in_axes,) * len(arguments)
    if len(prefix) != len(arguments):
        raise ValueError(f"in_axes has {len(prefix)} entries; there are {len(arguments)} arguments")

    def is_none(axis: Any) -> bool:  # noqa: ANN401 - anything in a tree
        return axis is None

    axes: list[int | None] = []
    for own, argument in zip(prefix, arguments, strict=True):
        spread = jax.tree.map(
            lambda axis, tree: jax.tree.map(lambda _: axis, tree), own, argument, is_leaf=is_none
        )
        axes += jax.tree.leaves(spread, is_leaf=is_none)
    for axis in axes:
        if axis is not None and axis != 0:
            raise ValueError(f"in_axes has {axis}; it must have 0 or None for each argument")
    return axes


def _size(axes: Sequence[int | None], arguments: tuple[Any, ...]) -> int:
    """The size of the axis that is mapped."""
    leaves = jax.tree.leaves(arguments)
    sizes = {jnp.shape(leaf)[:1] for leaf, axis in zip(leaves, axes, strict=True) if axis == 0}
    if not sizes:
        raise ValueError(f"in_axes is {[*axes]}; at least one argument must be mapped")
    if () in sizes:
        raise ValueError("a mapped argument holds a scalar; it must have a leading axis")
    if len(sizes) > 1:
        words = ", ".join(str(size[0]) for size in sorted(sizes))
        raise ValueError(f"mapped arguments have leading axes of sizes {words}; they must agree")
    return int(next(iter(sizes))[0])
