"""Arrays over positions, made or summed up block by block on a CPU.

XLA compiles what is written as one expression into loops over whole arrays, which leave the cache,
and computes a value anew in every loop that uses it. The body of a loop over blocks ends where it
says, and what it holds stays in the cache. Accelerators get one block: they have the bandwidth, and
would wait for the launch of every block.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
import numpy as np

# Elements of a block: starting it takes no time in comparison, and 128 KiB stay in the cache.
BLOCK_ELEMENTS = 2**15
# Rows that are added before the sum is written. XLA forms a value that is used in more than 15
# places once, and does not recompute it, element by element, for each.
_TERMS = 20


_platform: ContextVar[str | None] = ContextVar("platform", default=None)


def has_blocks() -> bool:
    """Whether there is more than one block on the platform that programs are traced for."""
    return (_platform.get() or jax.default_backend()) == "cpu"


@contextmanager
def for_platform(name: str) -> Iterator[None]:
    """Within it, what is traced is the program of another platform than JAX runs on.

    To lower it for that platform is up to the caller, as by `jax.export`. What JAX has traced
    before is forgotten at both ends, since JAX can't tell it from what it would trace now.

    Args:
        name: a platform of JAX, such as ``cuda`` or ``tpu``.

    Example:
        >>> with for_platform("tpu"):
        ...     has_blocks()
        False
    """
    jax.clear_caches()
    token = _platform.set(name)
    try:
        yield
    finally:
        _platform.reset(token)
        jax.clear_caches()


def fill(
    make: Callable[[jax.Array, int], jax.Array],
    shape: tuple[int, ...],
    dtype: jax.typing.DTypeLike,
    width: int,
) -> jax.Array:
    """An array made in blocks of its leading axis.

    Args:
        make: gives ``count`` rows from row ``first`` on, of (first, count); first is an int32
            scalar that may be traced.
        shape: shape of the array.
        dtype: its dtype.
        width: elements that are worked on to make a row.

    Returns:
        The array.

    Example:
        >>> fill(lambda first, count: first + jnp.arange(count), (4,), jnp.int32, 1).tolist()
        [0, 1, 2, 3]
    """
    rows = shape[0]
    blocks = count_blocks(rows, width)
    if blocks == 1:
        return make(jnp.zeros((), jnp.int32), rows)
    count = -(-rows // blocks)

    def write(index: jax.Array, array: jax.Array) -> jax.Array:
        # The last block begins earlier where it would be shorter, and makes some rows once more.
        first = jnp.minimum(index * count, rows - count)
        return jax.lax.dynamic_update_slice_in_dim(array, make(first, count), first, axis=0)

    array: jax.Array = repeat(blocks, write, jnp.zeros(shape, dtype))
    return array


def sum_by_class(
    weigh: Callable[[jax.Array], jax.Array], rows: jax.Array, classes: jax.Array, num_classes: int
) -> jax.Array:
    """Sums along the columns of weights, for each class but the first.

    Args:
        weigh: gives weights [R, B] of any number R of rows.
        rows: what the weights are made of, [T, ...].
        classes: the class of every weight, unsigned integers [T, B].
        num_classes: the number N of classes.

    Returns:
        The sums, [N - 1, B].

    Example:
        >>> classes = jnp.array([[1], [0], [1]], jnp.uint8)
        >>> sum_by_class(lambda rows: rows, jnp.array([[1.0], [2.0], [4.0]]), classes, 2).tolist()
        [[5.0]]
    """
    length, width = classes.shape
    blocks = count_blocks(length, width)
    count = -(-length // (_TERMS * blocks))
    # Filled up with the first class, for which there is no sum.
    missing = _TERMS * count * blocks - length
    rows, classes = (jnp.pad(array, ((0, missing), (0, 0))) for array in (rows, classes))
    others = jnp.arange(1, num_classes, dtype=classes.dtype)[None, :, None]

    def add(index: jax.Array, sums: jax.Array) -> jax.Array:
        own, mine = (
            jax.lax.dynamic_slice_in_dim(array, index * (_TERMS * count), _TERMS * count)
            for array in (rows, classes)
        )
        weights = weigh(own)
        for start in range(0, _TERMS * count, count):
            part = slice(start, start + count)
            sums = sums + jnp.where(mine[part, None] == others, weights[part, None], 0.0)
        return sums

    dtype = jax.eval_shape(weigh, rows).dtype
    # Classes inside: what is compared with each of them stays in the fastest cache.
    sums = repeat(blocks, add, jnp.zeros((count, num_classes - 1, width), dtype))
    return jnp.sum(sums, axis=0)


def count_blocks(rows: int, width: int) -> int:
    """Into how many blocks so many rows are cut, each of which works on ``width`` elements."""
    # At least two: XLA dissolves a loop of one, and fuses its body with what uses the array.
    return min(rows, max(2, -(-rows * width // BLOCK_ELEMENTS))) if has_blocks() else 1


def repeat(
    times: int, function: Callable[[jax.Array, jax.Array], jax.Array], array: jax.Array
) -> jax.Array:
    """Applies a function of (index, array) so many times."""
    repeated: jax.Array = jax.lax.fori_loop(np.int32(0), np.int32(times), function, array)
    return repeated
