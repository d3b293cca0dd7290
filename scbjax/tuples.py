"""Contexts of a small vocabulary as they are drawn: several tokens of a sample in one number.

A tuple holds c neighbouring tokens of a context, b bits each, the first in the top ones; tuples
[ceil(T / c), B] are the contexts of B samples, filled up behind the end with tokens that mean
nothing. For N <= 4, where c is 6 or more, a step works on tuples: a token's bits are compared in
place, and single tokens are never stored.
"""

import jax
import jax.numpy as jnp
import numpy as np

from scbjax.blocks import count_blocks, fill, repeat
from scbjax.task import product

# The alias table of tuples then takes 16 KiB, a part of a core's fastest cache.
_TUPLE_BITS = 12
# Up to this vocabulary size weights are chosen by query and token in vector registers (measured:
# from 5 on, where a tuple holds four tokens, there is nothing to win).
PACKED_LIMIT = 4
# Rows that are added before the sum is written, at least: XLA forms a value that is used in more
# than 15 places once, and does not recompute it, element by element, for each.
_TERMS = 16


def tuple_shape(num_tokens: int) -> tuple[int, int]:
    """Bits of a token, and tokens of a tuple.

    Example:
        >>> [tuple_shape(n) for n in (2, 3, 32)]
        [(1, 12), (2, 6), (5, 2)]
    """
    bits = max(1, (num_tokens - 1).bit_length())
    return bits, _TUPLE_BITS // bits


def unpack(tuples: jax.Array, num_tokens: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The tokens [R c, ...] of tuples [R, ...].

    Example:
        >>> unpack(jnp.array([0b001000_000000, 0b010000_000000], jnp.uint16), 3, jnp.uint8).tolist()
        [0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    """
    bits, count = tuple_shape(num_tokens)
    shifts = _shifts(num_tokens).reshape(1, count, *(1,) * (tuples.ndim - 1))
    tokens: jax.Array = ((tuples[:, None] >> shifts) & jnp.uint16(2**bits - 1)).astype(dtype)
    return tokens.reshape(tuples.shape[0] * count, *tuples.shape[1:])


def attend_tuples(attention: jax.Array, tuples: jax.Array, query: jax.Array) -> jax.Array:
    """``h = X a^(k)``: [B, N] from A [T, N], tuples [ceil(T / c), B] and queries [B]."""
    num_tokens, (rows, width) = attention.shape[1], tuples.shape
    bits, count = tuple_shape(num_tokens)
    group = -(-_TERMS // count)
    blocks = count_blocks(rows, count * width)
    size = -(-rows // (group * blocks))
    # Filled up with rows of no weight.
    missing = size * group * blocks - rows
    attention_rows = _in_tuples(attention, rows + missing, count)
    tuples = jnp.pad(tuples, ((0, missing), (0, 0)))
    others = jnp.arange(1, num_tokens, dtype=tuples.dtype)[None, :, None]

    def add(index: jax.Array, sums: jax.Array) -> jax.Array:
        own, mine = (
            jax.lax.dynamic_slice_in_dim(array, index * (group * size), group * size)
            for array in (attention_rows, tuples)
        )
        for start in range(0, group * size, size):
            part = slice(start, start + size)
            for place, shift in enumerate(_shifts(num_tokens)):
                weights = _choose(
                    [own[part, place, k, None] for k in range(num_tokens)], query[None, :]
                )
                bits_here = mine[part, None] & (tuples.dtype.type(2**bits - 1) << shift)
                chosen = bits_here == (others << shift)
                sums = sums + jnp.where(chosen, weights[:, None], 0.0)
        return sums

    sums = repeat(blocks, add, jnp.zeros((size, num_tokens - 1, width), attention.dtype))
    sums = jnp.sum(sums, axis=0)
    # What the other tokens leave of the column's sum: one pass over the tokens less.
    first = jnp.sum(attention, axis=0)[query] - jnp.sum(sums, axis=0)
    return jnp.concatenate([first[None, :], sums]).T


def transpose_tuples(
    scores: jax.Array, tuples: jax.Array, query: jax.Array, context_length: int
) -> jax.Array:
    """The adjoint of :func:`attend_tuples`: [T, N] from scores [B, N], tuples and queries [B]."""
    num_tokens, (rows, width) = scores.shape[1], tuples.shape
    bits, count = tuple_shape(num_tokens)
    classes = jnp.arange(num_tokens, dtype=query.dtype)[None, :]
    by_query = (query[:, None] == classes).astype(scores.dtype)
    shifts = _shifts(num_tokens)[None, :, None]

    def spread(first: jax.Array, rows: int) -> jax.Array:
        own = jax.lax.dynamic_slice_in_dim(tuples, first, rows)[:, None] >> shifts
        tokens = own & tuples.dtype.type(2**bits - 1)
        values = _choose([scores.T[None, None, n] for n in range(num_tokens)], tokens)
        sums = product(values.reshape(rows * count, width), by_query)
        return sums.reshape(rows, count, num_tokens)

    spreaded = fill(spread, (rows, count, num_tokens), scores.dtype, count * width)
    return spreaded.reshape(rows * count, num_tokens)[:context_length]


def token_at(tuples: jax.Array, position: jax.Array, num_tokens: int) -> jax.Array:
    """The token at a position [B] of each context, int32 [B]."""
    bits, count = tuple_shape(num_tokens)
    row, place = position // count, position % count
    columns = jnp.arange(tuples.shape[1], dtype=row.dtype)
    own = tuples.at[row, columns].get(mode="promise_in_bounds").astype(jnp.int32)
    token: jax.Array = (own >> (bits * (count - 1 - place))) & (2**bits - 1)
    return token


def _choose(values: list[jax.Array], index: jax.Array) -> jax.Array:
    """The values of which each index [...] is the number."""
    chosen = values[0]
    for number, value in enumerate(values[1:], 1):
        chosen = jnp.where(index == jnp.asarray(number, index.dtype), value, chosen)
    return chosen


def _in_tuples(attention: jax.Array, rows: int, count: int) -> jax.Array:
    """A [rows, c, N], with zeros behind the end."""
    missing = rows * count - attention.shape[0]
    return jnp.pad(attention, ((0, missing), (0, 0))).reshape(rows, count, attention.shape[1])


def _shifts(num_tokens: int) -> np.ndarray:
    bits, count = tuple_shape(num_tokens)
    return np.arange(bits * (count - 1), -1, -bits, dtype=np.uint16)
