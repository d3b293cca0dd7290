"""Alias tables: random words dealt out to tokens, or to tuples of tokens, by integer arithmetic.

2^32 words are dealt out to what is drawn, and a probability is a share of them.
"""

import jax
import jax.numpy as jnp

from scbjax.words import WORD, WORD_BITS

_HALF_RANGE = 2**16
# More than what float32 rounding of a sum of probabilities can add.
_FIRST_HELPING = 1.0 - 2.0**-20


def append_counts(tuples: jax.Array, counts: jax.Array) -> jax.Array:
    """Deals out the words of tuples i to (i, j): ``tuples[i] counts[j] / 2^32``, rounded.

    The words of i are cut where the running sum of the counts of j, scaled down, is nearest to a
    whole number: i keeps exactly its words, and what j gains and loses by rounding averages out.
    The size of the array stays what it is: tuples that have no room for one more token are none.
    """
    tuples = tuples[: tuples.shape[0] // counts.shape[0]]
    before = jnp.cumsum(counts, dtype=WORD) - counts
    # The sum wraps around: 0 is 2^32 behind the last token that has words.
    started = jnp.cumsum((counts > 0).astype(jnp.int32)) - (counts > 0).astype(jnp.int32) > 0
    cuts = jnp.where(
        (started & (before == 0))[None, :],
        tuples[:, None],
        _rounded_product(tuples[:, None], before[None, :]),
    )
    ends = jnp.concatenate([cuts[:, 1:], tuples[:, None]], axis=1)
    dealt: jax.Array = (ends - cuts).ravel()
    return dealt


def _rounded_product(first: jax.Array, second: jax.Array) -> jax.Array:
    """The products of 32-bit numbers, divided by 2^32 and rounded."""
    half, mask = WORD(WORD_BITS // 2), WORD(_HALF_RANGE - 1)
    high, low = (first >> half, second >> half), (first & mask, second & mask)
    middle = high[0] * low[1] + (low[0] * low[1] >> half)
    carried = (middle & mask) + low[0] * high[1]
    whole = high[0] * high[1] + (middle >> half) + (carried >> half)
    rounded: jax.Array = whole + (first * second >> WORD(WORD_BITS - 1))
    return rounded


def alias_table(counts: jax.Array) -> jax.Array:
    """Walker's alias method on integers: a table of M = 2^m >= N cells of 2^(32-m) words each.

    A word's top m bits choose a cell; the other bits are compared with the cell's threshold: below
    it the token is the cell's own number, else the cell's alias. Both are packed in one 32-bit
    entry, threshold above, alias below, so that a draw is a single look-up.

    Cells that lack words are filled up in order by those with too many, also in order; one that is
    left with too few is itself filled up by the next. With running sums of what is lacked and of
    what is left over, each cell finds its alias by itself (Huebschle-Schneider & Sanders 2019).

    Args:
        counts: words that belong to each token, uint32 [N], summing to 2^32.

    Returns:
        The entries, uint32 [M]. Every token is given exactly its number of words.
    """
    index_bits = _index_bits(counts.shape[0])
    cells = 2**index_bits
    capacity = WORD(2 ** (WORD_BITS - index_bits))
    counts = jnp.zeros((cells,), WORD).at[: counts.shape[0]].set(counts)
    poor = counts <= capacity
    lacking = jnp.where(poor, capacity - counts, WORD(0))
    lacked = jnp.cumsum(lacking, dtype=WORD)
    spare = jnp.cumsum(jnp.where(poor, WORD(0), counts - capacity), dtype=WORD)
    # Giving ends at the first poor cell that takes all that is left of a rich one, or more.
    given = jnp.where(poor, lacked - lacking, spare)
    taker, alias = _search(jnp.stack([lacked, spare]), jnp.stack([spare, given + WORD(1)]))
    last_taker = jnp.minimum(taker, cells - 1)
    threshold = jnp.where(poor, counts, capacity - (lacked[last_taker] - spare))
    entries = (threshold << WORD(index_bits)) | alias.astype(WORD)
    # A threshold of a full cell has no room in the entry.
    table: jax.Array = jnp.where(threshold == capacity, jnp.arange(cells, dtype=WORD), entries)
    return table


def _search(rising: jax.Array, values: jax.Array) -> jax.Array:
    """The first places at which rows [R, M] of rising words reach values [R, K]; M if they don't.

    One loop for all rows: it is compiled once.
    """
    size = rising.shape[1]

    def narrow(number: jax.Array, place: jax.Array) -> jax.Array:
        step = jnp.int32(2 ** size.bit_length()) >> (number + 1)
        below = jnp.take_along_axis(rising, jnp.minimum(place + step, size) - 1, axis=1) < values
        return jnp.where(below & (place + step <= size), place + step, place)

    places: jax.Array = jax.lax.fori_loop(
        0, size.bit_length(), narrow, jnp.zeros(values.shape, jnp.int32)
    )
    return places


def look_up(words: jax.Array, table: jax.Array) -> jax.Array:
    """What each word gives by an alias table."""
    # Both are stored: each loop that uses words would compute them anew, and a look-up that is
    # fused with what uses it is compiled to scalar code.
    words = jax.lax.optimization_barrier(words)
    index_bits = _index_bits(table.shape[0])
    cell = words >> WORD(WORD_BITS - index_bits)
    entry = jax.lax.optimization_barrier(table.at[cell].get(mode="promise_in_bounds"))
    own = (words & WORD(2 ** (WORD_BITS - index_bits) - 1)) < (entry >> WORD(index_bits))
    # A full cell has threshold 0 and itself as alias.
    return jnp.where(own, cell, entry & WORD(2**index_bits - 1))


def word_counts(probabilities: jax.Array) -> jax.Array:
    """Deals out 2^32 words by probability: uint32 [N], each at least 1, summing to 2^32 (or 0).

    A first helping, a little too small, comes from the top 16 bits and the rest, which float32
    holds apart exactly. What is left is dealt out by probability again, then one word each, so that
    neither the rounding of the sum of the probabilities nor that of the words falls on one token.
    """
    shares = probabilities / jnp.sum(probabilities)
    scaled = shares * (_HALF_RANGE * _FIRST_HELPING)
    high = jnp.floor(scaled)
    low = jnp.floor((scaled - high) * _HALF_RANGE)
    counts = jnp.maximum(high.astype(WORD) * WORD(_HALF_RANGE) + low.astype(WORD), WORD(1))
    second = jnp.floor(shares * jnp.maximum(_words_left(counts), 0).astype(shares.dtype))
    counts = counts + second.astype(WORD)
    each = jnp.arange(counts.shape[0], dtype=jnp.int32) < _words_left(counts)
    counts = counts + each.astype(WORD)
    dealt: jax.Array = counts.at[jnp.argmax(counts)].add(_words_left(counts).astype(WORD))
    return dealt


def _words_left(counts: jax.Array) -> jax.Array:
    """2^32 minus the sum of the counts, int32; negative where too many were dealt out."""
    left: jax.Array = (WORD(0) - jnp.sum(counts, dtype=WORD)).astype(jnp.int32)
    return left


def _index_bits(num_tokens: int) -> int:
    return (num_tokens - 1).bit_length()
