"""Mini-batches of the sparse contextual bigram: the one place where random bits are spent.

A sample is a context ``x_1 .. x_T`` and a query ``x_{T+1}``, all i.i.d. from mu, and a label drawn
as eq. 1 of Ren, Wang & Lee (2024) says: draw a position s from column ``x_{T+1}`` of Q, then take
one step of P from ``x_s``. Tokens and queries depend on mu alone, so that a ``vmap`` over tasks
which share mu draws them once.

Tokens come from 32-bit words by integer arithmetic: 2^32 words are dealt out to the N tokens, and a
token's probability is its share of them, off by less than 2^-22 (mostly the rounding of mu itself
in float32). Up to N = 32 one word gives several tokens: the words are dealt out to tuples, whose
probabilities are off from the products of their tokens' by less than 2^-30.

How words are made is in :mod:`scbjax.words`, how they are dealt out in :mod:`scbjax.alias`, and how
positions and labels are found in :mod:`scbjax.inversion`.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from scbjax.alias import alias_table, append_counts, look_up, word_counts
from scbjax.arguments import SIZES, Numbers, as_integer, check_is, check_number, outline
from scbjax.blocks import fill
from scbjax.inversion import (
    BLOCK,
    block_cdf_of,
    distribution_functions,
    draw_from_columns,
    entry_of,
    first_above,
    levels_below,
)
from scbjax.keys import as_threefry
from scbjax.once import compiled_quickly, level_for
from scbjax.parameters import DEFAULTS, Generator
from scbjax.sharding import COLUMNS, ROWS, WHOLE, Part, is_split, on_parts
from scbjax.task import PRECISION, Task, check_one_task
from scbjax.tuples import PACKED_LIMIT, token_at, tuple_shape, unpack
from scbjax.words import WORD, Seed, counter_of, threefry, word_pair, words_of

# Up to this vocabulary size a word gives several tokens, and positions are the slow axis in memory,
# so that sums over positions and choices by token run over samples in vector registers; above it a
# word gives one token, and samples are the slow axis (measured).
POSITION_MAJOR_LIMIT = 32

# Counter streams of one batch.
_TOKENS, _QUERIES, _POSITIONS, _STEPS = range(4)

_ROUNDS: dict[Generator, int] = {"threefry-20": 20, "threefry-13": 13}


class Batch(NamedTuple):
    """A mini-batch of B samples.

    A user may make one of any integers. Tokens outside of 0 .. N - 1 would give numbers, but wrong
    ones: :func:`check_batch` tells.

    Attributes:
        tokens: the contexts, [B, T], in the smallest unsigned integer type that holds N - 1.
        query: the query tokens ``x_{T+1}``, [B] int32.
        label: the labels ``x_o``, [B] int32.
    """

    tokens: jax.Array
    query: jax.Array
    label: jax.Array

    def __repr__(self) -> str:
        """Dtypes and shapes, not the arrays."""
        return outline(self)


class PackedBatch(NamedTuple):
    """A mini-batch of B samples of at most four tokens, as it is drawn (:mod:`scbjax.tuples`).

    Attributes:
        tuples: the contexts, several tokens in a number, [ceil(T / c), B] uint16.
        query: the query tokens, [B] int32.
        label: the labels, [B] int32.
    """

    tuples: jax.Array
    query: jax.Array
    label: jax.Array

    def __repr__(self) -> str:
        """Dtypes and shapes, not the arrays."""
        return outline(self)


AnyBatch: TypeAlias = Batch | PackedBatch


class Sampler(NamedTuple):
    """The distribution functions of a task, computed once by :func:`make_sampler`.

    Attributes:
        token_table: uint32; an alias table of tokens, for N <= 32 of tuples of tokens (see
            :func:`make_token_table`).
        block_cdf: [T / 32 + 1, N]; the distribution function of the positions, a column for each
            query, at the beginning of every block of 32 positions and at the end of the last. Where
            positions are split over devices, every part of them has such a table.
        pattern: Q [T, N], for the steps within a block.
        pattern_sums: [N]; the last row of ``block_cdf``, one up to rounding.
        label_cdf: [N, N]; the distribution function of the labels, a column for each token.
    """

    token_table: jax.Array
    block_cdf: jax.Array
    pattern: jax.Array
    pattern_sums: jax.Array
    label_cdf: jax.Array


_SPLIT_SAMPLER = cast("Any", Sampler)(WHOLE, ROWS, ROWS, WHOLE, WHOLE)


def token_dtype(num_tokens: int) -> np.dtype[Any]:
    """The smallest unsigned integer type that holds the tokens 0 .. N - 1.

    Example:
        >>> token_dtype(256).name, token_dtype(257).name
        ('uint8', 'uint16')
    """
    for dtype in (np.uint8, np.uint16):
        if num_tokens - 1 <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.uint32)


def check_batch(batch: AnyBatch, num_tokens: int | Task, context_length: int | None = None) -> None:
    """Raises an error if a batch is none of N tokens and contexts of length T.

    The functions that are given a batch call it themselves, before they do anything else. Shapes
    and dtypes are known always; the tokens are only where they are concrete, which is to say
    outside of ``jit``, ``vmap`` and the like. There they are checked with
    :func:`jax.experimental.checkify.debug_check`, which costs nothing and does nothing, unless
    :func:`jax.experimental.checkify.checkify` has been put around the whole function:

        error, value = checkify.checkify(jax.jit(loss))(params, batch)
        error.throw()

    Args:
        batch: the batch.
        num_tokens: N, or the task, which says T as well.
        context_length: T; that of the task, if a task is given.

    Raises:
        TypeError: if it is no batch.
        ValueError: naming the array, and what is wrong with it.

    Example:
        >>> batch = Batch(jnp.array([[0, 3]]), jnp.array([1]), jnp.array([2]))
        >>> check_batch(batch, num_tokens=4, context_length=2)
        >>> check_batch(batch, num_tokens=3, context_length=2)
        Traceback (most recent call last):
        ...
        ValueError: batch.tokens[0, 1] is 3; it must be between 0 and N - 1 = 2
    """
    if isinstance(num_tokens, Task):
        context_length, num_tokens = num_tokens.context_length, num_tokens.num_tokens
    if isinstance(batch, PackedBatch):
        samples = np.shape(batch.tuples)[1:]
    else:
        check_is("batch", batch, Batch, "such as sample_batch draws")
        check_contexts(batch.tokens, num_tokens, context_length, "batch.tokens")
        samples = np.shape(batch.tokens)[:1]
    for name in ("query", "label"):
        check_tokens(getattr(batch, name), num_tokens, samples, f"batch.{name}")


def check_contexts(
    tokens: jax.Array, num_tokens: int, context_length: int | None, name: str = "tokens"
) -> None:
    """Like :func:`check_batch`, of contexts [B, T] alone."""
    shape = np.shape(tokens)
    length = "T" if context_length is None else context_length
    if len(shape) != 2 or (context_length is not None and shape[1] != context_length):
        raise ValueError(f"{name} has shape {list(shape)}; it must be [B, T] with T = {length}")
    check_tokens(tokens, num_tokens, shape, name)


def check_tokens(
    tokens: jax.Array, num_tokens: int, shape: tuple[int, ...], name: str = "query"
) -> None:
    """Like :func:`check_batch`, of an array of tokens that is to have a shape."""
    if np.shape(tokens) != shape:
        raise ValueError(f"{name} has shape {list(np.shape(tokens))}; it must be {list(shape)}")
    check_number(name, tokens, Numbers(0, num_tokens - 1, whole=True, limit="N - 1"))
    if isinstance(tokens, jax.core.Tracer):
        own = tokens.astype(jnp.int32)  # those above its range become negative
        checkify.debug_check(
            jnp.all((own >= 0) & (own < num_tokens)),
            f"{name} holds {{low}} to {{high}}; it must be between 0 and N - 1 = {num_tokens - 1}",
            low=jnp.min(own),
            high=jnp.max(own),
        )


def make_sampler(task: Task) -> Sampler:
    """Prepares the distribution functions of a task; call it once, outside the loop over steps.

    Always in float32, so that a task gives the same draws whatever dtype it is held in.
    """
    task = Task(*(array.astype(jnp.float32) for array in task))
    block_cdf, pattern_sums = on_parts(block_cdf_of, (ROWS,), (ROWS, WHOLE))(task.pattern)
    return Sampler(
        token_table=make_token_table(task.stationary),
        block_cdf=block_cdf,
        pattern=task.pattern,
        pattern_sums=pattern_sums,
        label_cdf=distribution_functions(task.transition),
    )


_sampler_of = compiled_quickly(make_sampler, level=lambda task: level_for(task.num_tokens))


def sample_batch(key: jax.Array, task: Task, batch_size: int) -> Batch:
    """Draws a mini-batch from the law of the task (eq. 1).

    Args:
        key: a PRNG key.
        task: the task.
        batch_size: B >= 1, the number of samples.

    Returns:
        The batch: tokens [B, T], query [B], label [B].

    Raises:
        TypeError: if the key is no key, or the task no task.
        ValueError: if ``batch_size`` is no positive integer, or key or task are several.

    Example:
        >>> from scbjax.task import random_task
        >>> task = random_task(jax.random.key(0), num_tokens=3, context_length=50, sparsity=2)
        >>> batch = sample_batch(jax.random.key(1), task, 4)
        >>> batch.tokens.shape, batch.tokens.dtype.name, batch.label.shape
        ((4, 50), 'uint8', (4,))
    """
    key = as_threefry(key)
    check_one_task("task", task)
    batch_size = as_integer("batch_size", batch_size, SIZES)
    batch: Batch = _sample_batch(key, _sampler_of(task), batch_size)
    return batch


# Compiled as a whole also where the caller compiles nothing, which is quicker from the first batch.
@partial(jax.jit, static_argnames="batch_size")
def _sample_batch(key: jax.Array, sampler: Sampler, batch_size: int) -> Batch:
    return draw_batch(make_seed(key), sampler, batch_size)


def draw_batch(seed: Seed, sampler: Sampler, batch_size: int) -> Batch:
    """Like :func:`sample_batch`, with a seed (:func:`make_seed`) and the sampler already made."""
    query, level = _draw_queries(seed, sampler, batch_size)
    draw = on_parts(
        partial(_draw_contexts, sampler.pattern.shape[0]),
        (WHOLE, _SPLIT_SAMPLER, WHOLE, WHOLE),
        (COLUMNS, WHOLE),
    )
    tokens, source = draw(seed, sampler, query, level)
    return Batch(tokens, query, draw_from_columns(seed, _STEPS, sampler.label_cdf, source))


def draw_step(seed: Seed, sampler: Sampler, batch_size: int) -> AnyBatch:
    """The batch of :func:`draw_batch` in the form that is fastest for a step of training.

    Packed, where the vocabulary is small enough and positions are not split over devices.
    """
    context_length, num_tokens = sampler.pattern.shape
    if num_tokens > PACKED_LIMIT or is_split():
        return draw_batch(seed, sampler, batch_size)
    query, level = _draw_queries(seed, sampler, batch_size)
    shape = (-(-context_length // tuple_shape(num_tokens)[1]), batch_size)
    tuples = _draw_tuples(seed, _TOKENS, sampler.token_table, jnp.zeros((), jnp.int32), shape)
    _, position = _find_positions(sampler, query, level)
    source = token_at(tuples, position, num_tokens)
    return PackedBatch(tuples, query, draw_from_columns(seed, _STEPS, sampler.label_cdf, source))


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")


def _draw_queries(seed: Seed, sampler: Sampler, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """The queries [B], and where on the distribution functions of their positions [B]."""
    _check_batch_size(batch_size)
    num_tokens = sampler.pattern.shape[1]
    chex.assert_shape(sampler.label_cdf, (num_tokens, num_tokens))
    query = draw_tokens(seed, _QUERIES, sampler.token_table, num_tokens, (batch_size,))
    query = query.astype(jnp.int32)
    return query, levels_below(seed, _POSITIONS, sampler.pattern_sums[query])


def make_seed(key: jax.Array, generator: Generator = DEFAULTS["generator"]) -> Seed:
    """The seed that stands for a PRNG key of any kind; see :func:`scbjax.keys.as_threefry`.

    Args:
        key: a PRNG key.
        generator: what turns the seed into random words.
    """
    return Seed(jax.random.bits(as_threefry(key), (2,), WORD), _ROUNDS[generator])


def fold_in(seed: Seed, index: jax.Array | int) -> Seed:
    """The seed of batch ``index`` of a sequence of batches."""
    index = jnp.asarray(index).astype(WORD)
    return replace(seed, words=jnp.stack(threefry(seed.words, index, jnp.zeros_like(index))))


def draw_tokens(
    seed: Seed, stream: int, table: jax.Array, num_tokens: int, shape: tuple[int, ...]
) -> jax.Array:
    """Draws i.i.d. tokens of the given shape from a token table, in :func:`token_dtype`."""
    if num_tokens <= POSITION_MAJOR_LIMIT:
        return _draw_packed_tokens(seed, stream, table, num_tokens, shape)
    return _from_pair(word_pair(seed, stream, shape), table, num_tokens, shape[0])


def draw_contexts(
    seed: Seed, stream: int, table: jax.Array, num_tokens: int, shape: tuple[int, int]
) -> jax.Array:
    """Draws tokens [B, T], in the order in memory that suits the size of the vocabulary."""
    if num_tokens <= POSITION_MAJOR_LIMIT:
        return draw_tokens(seed, stream, table, num_tokens, shape[::-1]).T
    return draw_tokens(seed, stream, table, num_tokens, shape)


def _draw_packed_tokens(
    seed: Seed,
    stream: int,
    table: jax.Array,
    num_tokens: int,
    shape: tuple[int, ...],
    start: jax.Array | int = 0,
) -> jax.Array:
    """Draws tokens of a small vocabulary, those from row ``start`` on.

    A token depends on its place and on nothing else that is drawn, and a window can be drawn alone.
    """
    count = tuple_shape(num_tokens)[1]
    # A window that begins in the middle of a tuple ends in the middle of one more.
    rows = -(-shape[0] // count) + (not isinstance(start, int))
    begin = jnp.asarray(start, jnp.int32) // count
    tuples = _draw_tuples(seed, stream, table, begin, (rows, math.prod(shape[1:])))
    tokens = unpack(tuples, num_tokens, token_dtype(num_tokens))
    tokens = tokens.reshape(rows * count, *shape[1:])
    drawn: jax.Array = jax.lax.dynamic_slice_in_dim(tokens, start - begin * count, shape[0])
    return drawn


def _draw_tuples(
    seed: Seed, stream: int, table: jax.Array, begin: jax.Array, shape: tuple[int, int]
) -> jax.Array:
    """Draws tuples of neighbours along the leading axis, one from each word: uint16.

    The tuple at row r and column b, out of w columns, is looked up with the first word that
    Threefry gives for the counter ``(w r + b, stream)``. (The second words are not used: XLA would
    compile a loop for each of the two, and compute both in either.)

    Args:
        seed: the seed.
        stream: the counter's stream.
        table: alias table of tuples.
        begin: the first row, int32.
        shape: rows and columns.
    """

    def make_tuples(first: jax.Array, rows: int) -> jax.Array:
        counter = counter_of(begin + first, (rows, shape[1]))
        return look_up(words_of(seed, stream, counter)[0], table).astype(jnp.uint16)

    return fill(make_tuples, shape, jnp.uint16, shape[1])


def draw_positions(seed: Seed, stream: int, sampler: Sampler, query: jax.Array) -> jax.Array:
    """Draws a position s ~ q^(k) for each given query k [B]; int32 [B]."""

    def find(part: Part, sampler: Sampler, query: jax.Array, level: jax.Array) -> jax.Array:
        mine, position = _find_positions(sampler, query, level)
        first = part.index * sampler.pattern.shape[0]
        return part.total(jnp.where(mine, first + position, 0))

    level = levels_below(seed, stream, sampler.pattern_sums[query])
    position: jax.Array = on_parts(find, (_SPLIT_SAMPLER, WHOLE, WHOLE), WHOLE)(
        sampler, query, level
    )
    return position


def _draw_contexts(
    context_length: int,
    part: Part,
    seed: Seed,
    sampler: Sampler,
    query: jax.Array,
    level: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The tokens [B, T] of a part of the positions, and those that the labels come from [B]."""
    count, num_tokens = sampler.pattern.shape
    shape = (query.shape[0], context_length)
    if part.count == 1:
        tokens = draw_contexts(seed, _TOKENS, sampler.token_table, num_tokens, shape)
    else:
        window = (part.index * count, count)
        tokens = _draw_window(seed, sampler.token_table, num_tokens, shape, window)
    mine, position = _find_positions(sampler, query, level)
    source = entry_of(tokens, jnp.arange(shape[0]), position).astype(jnp.int32)
    return tokens, part.total(jnp.where(mine, source, 0))


def _draw_window(
    seed: Seed,
    table: jax.Array,
    num_tokens: int,
    shape: tuple[int, int],
    window: tuple[jax.Array | int, int],
) -> jax.Array:
    """Columns ``start .. start + count`` of the contexts [B, T] of this shape, [B, count]."""
    start, count = window
    batch_size, context_length = shape
    start = jnp.asarray(start, jnp.int32)
    if num_tokens <= POSITION_MAJOR_LIMIT:
        shape = (count, batch_size)
        return _draw_packed_tokens(seed, _TOKENS, table, num_tokens, shape, start).T
    positions = (start + jnp.arange(count, dtype=jnp.int32)).astype(WORD)
    rows = jnp.arange(-(-batch_size // 2), dtype=WORD)[:, None]
    pair = words_of(seed, _TOKENS, rows * WORD(context_length) + positions[None, :])
    return _from_pair(pair, table, num_tokens, batch_size)


def _find_positions(
    sampler: Sampler, query: jax.Array, level: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Where the columns [B] pass the levels: whether in this part of the positions, and at which.

    Returns:
        Booleans [B], and positions [B] counted from the beginning of the part.
    """
    cdf = sampler.block_cdf
    mine = (cdf[0, query] <= level) & (level < cdf[-1, query])
    block = jnp.clip(first_above(cdf, query, level) - 1, 0, cdf.shape[0] - 2)
    steps = jnp.arange(BLOCK, dtype=jnp.int32)[None, :]
    rows = block[:, None] * BLOCK + steps
    last = sampler.pattern.shape[0] - 1
    weights = entry_of(sampler.pattern, jnp.minimum(rows, last), query[:, None])
    weights = jnp.where(rows <= last, weights, 0.0)
    inside = (level - entry_of(cdf, block, query))[:, None]
    # A product with a triangle: XLA compiles a running sum to a sum over the block for each entry.
    # With all digits, whatever the precision of steps: what is drawn must not depend on it.
    triangle = jnp.asarray(np.triu(np.ones((BLOCK, BLOCK), weights.dtype)))
    upto = jnp.matmul(weights, triangle, precision=PRECISION)
    passed = (weights > 0) & (upto > inside)
    step = jnp.min(jnp.where(passed, steps, BLOCK), axis=1)
    # Rounding may put the level past the end of the block: then it is its last with weight.
    final = jnp.max(jnp.where(weights > 0, steps, 0), axis=1)
    return mine, block * BLOCK + jnp.minimum(step, final)


def make_token_table(probabilities: jax.Array) -> jax.Array:
    """What turns words into tokens: an alias table, for N <= 32 of tuples of tokens.

    A tuple of c tokens, b bits each, is a number of b c <= 12 bits, the first token in the top
    ones: 12 tokens of one bit for N = 2, 6 of 2 bits up to N = 4, 4 of 3 bits up to N = 8, 3 of 4
    bits up to N = 16, and 2 of 5 bits up to N = 32.

    Args:
        probabilities: mu [N].

    Returns:
        The table: uint32 [M], see :func:`alias_table`.
    """
    counts = word_counts(probabilities)
    num_tokens = counts.shape[0]
    if num_tokens > POSITION_MAJOR_LIMIT:
        return alias_table(counts)
    bits, count = tuple_shape(num_tokens)
    counts = jnp.zeros((2**bits,), WORD).at[:num_tokens].set(counts)
    # A loop over arrays of the final size, of which the first part is in use, so that what appends
    # a token is compiled once.
    tuples = jnp.zeros((2 ** (bits * count),), WORD).at[: 2**bits].set(counts)
    return alias_table(
        jax.lax.fori_loop(0, count - 1, lambda _, t: append_counts(t, counts), tuples)
    )


def _from_pair(
    pair: tuple[jax.Array, jax.Array], table: jax.Array, num_tokens: int, length: int
) -> jax.Array:
    """The first tokens along the leading axis, given both halves of their words; for N > 32."""
    return look_up(jnp.concatenate(pair)[:length], table).astype(token_dtype(num_tokens))
