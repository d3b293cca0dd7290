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

    def call(*arguments: Any) -> Any:  # noqa: ANN401 - those of the function
        if not has_blocks() or is_split():
            return function(*arguments)
        leaves, structure = jax.tree.flatten(arguments)

        def of_leaves(*leaves: Any) -> Any:  # noqa: ANN401 - arrays
            return function(*jax.tree.unflatten(structure, leaves))

        return _looped(of_leaves)(*leaves)

    return call


def _looped(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for functions of arrays."""
    batched = custom_vmap(function)

    @batched.def_vmap
    def over_axis(_: int, is_mapped: list[bool], *leaves: Any) -> tuple[Any, Any]:  # noqa: ANN401
        def whole(*leaves: Any) -> Any:  # noqa: ANN401 - arrays
            mapped = [leaf for leaf, own in zip(leaves, is_mapped, strict=True) if own]

            def of_mapped(mapped: list[Any]) -> Any:  # noqa: ANN401 - arrays
                own = iter(mapped)
                both = zip(leaves, is_mapped, strict=True)
                return function(*(next(own) if is_own else leaf for leaf, is_own in both))

            return jax.lax.map(of_mapped, mapped)

        # Looped in its turn, where a vmap stands around this one.
        out = _looped(whole)(*leaves)
        return out, jax.tree.map(lambda _: True, out)

    # What is mapped by a rule has no derivative of its own: it is that of the function.
    own = jax.custom_jvp(batched)
    own.defjvp(lambda primals, tangents: jax.jvp(function, primals, tangents))
    return own
