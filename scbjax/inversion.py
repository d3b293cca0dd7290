"""Distribution functions, a column for each query or token, and where they exceed a level."""

import jax
import jax.numpy as jnp

from scbjax.blocks import fill
from scbjax.sharding import Part
from scbjax.words import WORD, WORD_BITS, Seed, counter_of, words_of

# Positions are found by their block first: a distribution function over all of them would be as
# large as A, and summing it up would take longer than a step.
BLOCK = 32
_UNIFORM_BITS = 24  # the most that float32 holds exactly


def draw_from_columns(seed: Seed, stream: int, cdf: jax.Array, columns: jax.Array) -> jax.Array:
    """Draws a row (int32) for each given column [B] of a table of distribution functions [R, C]."""
    # Scaled by the last entry: a column's rounded sum need not be one, and a row past it must not
    # be drawn.
    level = levels_below(seed, stream, cdf[-1, columns])
    return first_above(cdf, columns, level)


def levels_below(seed: Seed, stream: int, upper: jax.Array) -> jax.Array:
    """Uniform numbers below each of the given ones [B]."""

    def make_words(first: jax.Array, rows: int) -> jax.Array:
        return words_of(seed, stream, counter_of(first, (rows,)))[0]

    words = fill(make_words, upper.shape, WORD, 1)
    uniform = (words >> WORD(WORD_BITS - _UNIFORM_BITS)).astype(upper.dtype)
    level: jax.Array = uniform * 2.0**-_UNIFORM_BITS * upper
    return level


def first_above(table: jax.Array, columns: jax.Array, level: jax.Array) -> jax.Array:
    """The first row in which each of the columns [B] of a rising table is above the level."""
    rows = table.shape[0]
    row = jnp.zeros(columns.shape, jnp.int32)
    for bit in reversed(range((rows - 1).bit_length())):
        below = entry_of(table, jnp.minimum(row + 2**bit, rows) - 1, columns) <= level
        # A chain of sums: one of selections is what LLVM may spend minutes on.
        row = row + 2**bit * below.astype(jnp.int32)
    return row


def block_cdf_of(part: Part, pattern: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``Sampler.block_cdf`` of a part of the positions, and ``Sampler.pattern_sums``."""
    own = distribution_functions(_block_sums(pattern))
    # Summed up in order, so that a part ends with the very number that the next one begins with.
    totals = part.gather(own[-1])
    ends = distribution_functions(totals)
    start = jnp.where(part.index > 0, ends[jnp.maximum(part.index - 1, 0)], 0.0)[None]
    return jnp.concatenate([start, start + own]), ends[-1]


def distribution_functions(table: jax.Array) -> jax.Array:
    """Running sums along the rows of [R, C], in order.

    The tree that :func:`jax.numpy.cumsum` adds along rounds neighbouring sums differently, which
    would give rows of weight zero a chance.
    """

    def add(total: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        return total + row, total + row

    sums: jax.Array = jax.lax.scan(add, jnp.zeros_like(table[0]), table)[1]
    return sums


def _block_sums(pattern: jax.Array) -> jax.Array:
    """Sums over blocks of positions, the last one shorter where T asks for it: [T / 32, N]."""
    whole = pattern.shape[0] // BLOCK * BLOCK
    sums = jnp.sum(pattern[:whole].reshape(-1, BLOCK, pattern.shape[1]), axis=1)
    if whole == pattern.shape[0]:
        return sums
    return jnp.concatenate([sums, jnp.sum(pattern[whole:], axis=0, keepdims=True)])


def entry_of(table: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Entries of a matrix at valid indices; the default mode would check them once more."""
    entries: jax.Array = table.at[rows, columns].get(mode="promise_in_bounds")
    return entries
