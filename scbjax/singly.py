"""``vmap`` that works on one trajectory after the other.

Under ``vmap`` every operation is done for all trajectories before the next one begins. On a CPU a
step with a large vocabulary then leaves the cache, look-ups get an index more, and both sides of
every branch are computed. What :func:`one_by_one` makes is mapped by a loop.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.custom_batching import custom_vmap

from scbjax.blocks import has_blocks
from scbjax.sharding import is_split


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that does the same, and that ``vmap`` maps by a loop on a CPU.

    Differentiable as the function is; but reverse-mode derivatives of a function with branches are
    to be taken inside of the ``vmap``, as in ``vmap(grad(...))``: around it JAX can't transpose
    the branches.

    Args:
        function: of trees of arrays; the result is a tree of arrays.

    Returns:
        The function.

    Example:
        >>> square = one_by_one(lambda x: x * x)
        >>> jax.vmap(square)(jax.numpy.arange(3)).tolist(), float(jax.grad(square)(3.0))
        ([0, 1, 4], 6.0)
    """
    return _on_cpu(function, lambda _: 1)


def few_at_once(function: Callable[..., Any], few: int) -> Callable[..., Any]:
    """:func:`one_by_one`, but so many at once, and all that have the first argument in common.

    What is mapped with one first argument, such as a key, shares what is made of it.

    Args:
        function: of trees of arrays; the result is a tree of arrays.
        few: how many at most; as many as divide the size of the axis.

    Returns:
        The function.

    Example:
        >>> scaled = few_at_once(lambda x, y: x * y, 2)
        >>> over_both = jax.vmap(jax.vmap(scaled, (None, 0)), (0, None))
        >>> over_both(jax.numpy.arange(4), jax.numpy.arange(3)).tolist()
        [[0, 0, 0], [0, 1, 2], [0, 2, 4], [0, 3, 6]]
    """
    return _on_cpu(function, lambda is_mapped: few if is_mapped[0] else None)


Choose = Callable[[list[bool]], int | None]
"""How many places of an axis to map at once, None for all, by which arrays have the axis."""


def _on_cpu(function: Callable[..., Any], choose: Choose) -> Callable[..., Any]:
    """The function, mapped by a loop where that is faster."""

    def call(*arguments: Any) -> Any:  # noqa: ANN401 - those of the function
        if not has_blocks() or is_split():
            return function(*arguments)
        leaves, structure = jax.tree.flatten(arguments)

        def of_leaves(*leaves: Any) -> Any:  # noqa: ANN401 - arrays
            return function(*jax.tree.unflatten(structure, leaves))

        return _looped(of_leaves, choose)(*leaves)

    return call


def _looped(function: Callable[..., Any], choose: Choose) -> Callable[..., Any]:
    """The same for functions of arrays."""
    batched = custom_vmap(function)

    @batched.def_vmap
    def over_axis(size: int, is_mapped: list[bool], *leaves: Any) -> tuple[Any, Any]:  # noqa: ANN401
        at_once = choose(is_mapped) or size

        def whole(*leaves: Any) -> Any:  # noqa: ANN401 - arrays
            mapped = [leaf for leaf, own in zip(leaves, is_mapped, strict=True) if own]

            def of_mapped(mapped: list[Any]) -> Any:  # noqa: ANN401 - arrays
                own = iter(mapped)
                both = zip(leaves, is_mapped, strict=True)
                return function(*(next(own) if is_own else leaf for leaf, is_own in both))

            return _map(of_mapped, mapped, size, at_once)

        # Looped in its turn, where a vmap stands around this one.
        out = _looped(whole, choose)(*leaves)
        return out, jax.tree.map(lambda _: True, out)

    # What is mapped by a rule has no derivative of its own: it is that of the function.
    own = jax.custom_jvp(batched)
    own.defjvp(lambda primals, tangents: jax.jvp(function, primals, tangents))
    return own


def _map(function: Callable[[Any], Any], mapped: Any, size: int, most: int) -> Any:  # noqa: ANN401 - trees of arrays
    """The function at every place of an axis, the most places that divide its size at once."""
    at_once = max(count for count in range(1, min(most, size) + 1) if size % count == 0)
    if at_once == 1:
        return jax.lax.map(function, mapped)
    if at_once == size:
        return jax.vmap(function)(mapped)
    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, at_once, *leaf.shape[1:]), mapped)
    out = jax.lax.map(jax.vmap(function), parts)
    return jax.tree.map(lambda leaf: leaf.reshape(size, *leaf.shape[2:]), out)
