"""Mini-batches of the sparse contextual bigram: the one place where random bits are spent.

A sample is a context ``x_1 .. x_T`` and a query ``x_{T+1}``, all i.i.d. from mu, and a label drawn
as eq. 1 of Ren, Wang & Lee (2024) says: draw a position s from column ``x_{T+1}`` of Q, then take
one step of P from ``x_s``. Tokens and queries depend on mu alone, so that a ``vmap`` over tasks
which share mu draws them once.

Tokens come from 32-bit words by integer arithmetic: 2^32 words are dealt out to the N tokens, and a
token's probability is its share of them, off by less than 2^-22 (mostly the rounding of mu itself
in float32). Up to N = 32 one word gives several tokens: the words are dealt out to tuples, whose
probabilities are off from the products of their tokens' by less than 2^-30.

Words come from Threefry-2x32 (Salmon, Moraes, Dror & Shaw 2011), the generator behind JAX's default
keys, in counter mode: with 20 rounds as there, or with 13, the fewest for which its authors publish
known answers. It is written out here because, as plain arithmetic, it is compiled into one loop,
and a token can be computed from its place alone.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from scbjax.arguments import SIZES, Numbers, as_integer, check_is, check_number, outline
from scbjax.blocks import fill
from scbjax.keys import as_threefry
from scbjax.once import compiled_quickly, level_for
from scbjax.sharding import COLUMNS, ROWS, WHOLE, Part, is_split, on_parts
from scbjax.task import PRECISION, Task, check_one_task
from scbjax.tuples import PACKED_LIMIT, token_at, tuple_shape, unpack

# Up to this vocabulary size a word gives several tokens, and positions are the slow axis in memory,
# so that sums over positions and choices by token run over samples in vector registers; above it a
# word gives one token, and samples are the slow axis (measured).
POSITION_MAJOR_LIMIT = 32

_WORD = jnp.uint32
_WORD_BITS = 32
_HALF_RANGE = 2**16
# More than what float32 rounding of a sum of probabilities can add.
_FIRST_HELPING = 1.0 - 2.0**-20
# Positions are found by their block first: a distribution function over all of them would be as
# large as A, and summing it up would take longer than a step.
_BLOCK = 32
_UNIFORM_BITS = 24  # the most that float32 holds exactly
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
_GROUP = 4  # rounds between two additions of the key

# Counter streams of one batch.
_TOKENS, _QUERIES, _POSITIONS, _STEPS = range(4)


Generator = Literal["threefry-20", "threefry-13"]
_ROUNDS: dict[Generator, int] = {"threefry-20": 20, "threefry-13": 13}


@dataclass(frozen=True)
class Seed:
    """What all random words of a mini-batch come from: a pytree with one array.

    Attributes:
        words: the key of the generator, [2] uint32.
        rounds: those of Threefry; static.
    """

    words: jax.Array
    rounds: int = 20


jax.tree_util.register_dataclass(Seed, data_fields=["words"], meta_fields=["rounds"])


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
    block_cdf, pattern_sums = on_parts(_block_cdf, (ROWS,), (ROWS, WHOLE))(task.pattern)
    return Sampler(
        token_table=make_token_table(task.stationary),
        block_cdf=block_cdf,
        pattern=task.pattern,
        pattern_sums=pattern_sums,
        label_cdf=_distribution_functions(task.transition),
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
    return query, _levels(seed, _POSITIONS, sampler.pattern_sums[query])


def make_seed(key: jax.Array, generator: Generator = "threefry-20") -> Seed:
    """The seed that stands for a PRNG key of any kind; see :func:`scbjax.keys.as_threefry`.

    Args:
        key: a PRNG key.
        generator: what turns the seed into random words.
    """
    return Seed(jax.random.bits(as_threefry(key), (2,), _WORD), _ROUNDS[generator])


def fold_in(seed: Seed, index: jax.Array | int) -> Seed:
    """The seed of batch ``index`` of a sequence of batches."""
    index = jnp.asarray(index).astype(_WORD)
    return replace(seed, words=jnp.stack(threefry(seed.words, index, jnp.zeros_like(index))))


def threefry(
    words: jax.Array, high: jax.Array, low: jax.Array, rounds: int = 20
) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32: two random words for each counter ``(high, low)``, elementwise.

    Args:
        words: the generator's key, [2] uint32.
        high: first counter word, uint32.
        low: second counter word, uint32, of the same shape.
        rounds: how often the words are mixed.

    Returns:
        Two arrays of words of that shape.

    Example:
        >>> zero = jnp.zeros((), jnp.uint32)
        >>> [hex(int(word)) for word in threefry(jnp.zeros(2, jnp.uint32), zero, zero)]
        ['0x6b200159', '0x99ba4efe']
    """
    keys = (words[0], words[1], words[0] ^ words[1] ^ _WORD(_PARITY))
    x, y = high + keys[0], low + keys[1]
    for number in range(rounds):
        rotation = _ROTATIONS[number % len(_ROTATIONS)]
        x = x + y
        y = x ^ ((y << _WORD(rotation)) | (y >> _WORD(_WORD_BITS - rotation)))
        group, last = divmod(number, _GROUP)
        if last == _GROUP - 1:
            x = x + keys[(group + 1) % 3]
            y = y + keys[(group + 2) % 3] + _WORD(group + 1)
    return x, y


def draw_tokens(
    seed: Seed, stream: int, table: jax.Array, num_tokens: int, shape: tuple[int, ...]
) -> jax.Array:
    """Draws i.i.d. tokens of the given shape from a token table, in :func:`token_dtype`."""
    if num_tokens <= POSITION_MAJOR_LIMIT:
        return _draw_packed_tokens(seed, stream, table, num_tokens, shape)
    return _from_pair(_word_pair(seed, stream, shape), table, num_tokens, shape[0])


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
        counter = _counter(begin + first, (rows, shape[1]))
        return _look_up(_words_of(seed, stream, counter)[0], table).astype(jnp.uint16)

    return fill(make_tuples, shape, jnp.uint16, shape[1])


def draw_positions(seed: Seed, stream: int, sampler: Sampler, query: jax.Array) -> jax.Array:
    """Draws a position s ~ q^(k) for each given query k [B]; int32 [B]."""

    def find(part: Part, sampler: Sampler, query: jax.Array, level: jax.Array) -> jax.Array:
        mine, position = _find_positions(sampler, query, level)
        first = part.index * sampler.pattern.shape[0]
        return part.total(jnp.where(mine, first + position, 0))

    level = _levels(seed, stream, sampler.pattern_sums[query])
    position: jax.Array = on_parts(find, (_SPLIT_SAMPLER, WHOLE, WHOLE), WHOLE)(
        sampler, query, level
    )
    return position


def draw_from_columns(seed: Seed, stream: int, cdf: jax.Array, columns: jax.Array) -> jax.Array:
    """Draws a row (int32) for each given column [B] of a table of distribution functions [R, C]."""
    # Scaled by the last entry: a column's rounded sum need not be one, and a row past it must not
    # be drawn.
    level = _levels(seed, stream, cdf[-1, columns])
    return _first_above(cdf, columns, level)


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
    source = _entry(tokens, jnp.arange(shape[0]), position).astype(jnp.int32)
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
    positions = (start + jnp.arange(count, dtype=jnp.int32)).astype(_WORD)
    rows = jnp.arange(-(-batch_size // 2), dtype=_WORD)[:, None]
    pair = _words_of(seed, _TOKENS, rows * _WORD(context_length) + positions[None, :])
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
    block = jnp.clip(_first_above(cdf, query, level) - 1, 0, cdf.shape[0] - 2)
    steps = jnp.arange(_BLOCK, dtype=jnp.int32)[None, :]
    rows = block[:, None] * _BLOCK + steps
    last = sampler.pattern.shape[0] - 1
    weights = _entry(sampler.pattern, jnp.minimum(rows, last), query[:, None])
    weights = jnp.where(rows <= last, weights, 0.0)
    inside = (level - _entry(cdf, block, query))[:, None]
    # A product with a triangle: XLA compiles a running sum to a sum over the block for each entry.
    # With all digits, whatever the precision of steps: what is drawn must not depend on it.
    triangle = jnp.asarray(np.triu(np.ones((_BLOCK, _BLOCK), weights.dtype)))
    upto = jnp.matmul(weights, triangle, precision=PRECISION)
    passed = (weights > 0) & (upto > inside)
    step = jnp.min(jnp.where(passed, steps, _BLOCK), axis=1)
    # Rounding may put the level past the end of the block: then it is its last with weight.
    final = jnp.max(jnp.where(weights > 0, steps, 0), axis=1)
    return mine, block * _BLOCK + jnp.minimum(step, final)


def _levels(seed: Seed, stream: int, upper: jax.Array) -> jax.Array:
    """Uniform numbers below each of the given ones [B]."""

    def make_words(first: jax.Array, rows: int) -> jax.Array:
        return _words_of(seed, stream, _counter(first, (rows,)))[0]

    words = fill(make_words, upper.shape, _WORD, 1)
    uniform = (words >> _WORD(_WORD_BITS - _UNIFORM_BITS)).astype(upper.dtype)
    level: jax.Array = uniform * 2.0**-_UNIFORM_BITS * upper
    return level


def _first_above(table: jax.Array, columns: jax.Array, level: jax.Array) -> jax.Array:
    """The first row in which each of the columns [B] of a rising table is above the level."""
    rows = table.shape[0]
    row = jnp.zeros(columns.shape, jnp.int32)
    for bit in reversed(range((rows - 1).bit_length())):
        below = _entry(table, jnp.minimum(row + 2**bit, rows) - 1, columns) <= level
        # A chain of sums: one of selections is what LLVM may spend minutes on.
        row = row + 2**bit * below.astype(jnp.int32)
    return row


def _block_cdf(part: Part, pattern: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``Sampler.block_cdf`` of a part of the positions, and ``Sampler.pattern_sums``."""
    own = _distribution_functions(_block_sums(pattern))
    # Summed up in order, so that a part ends with the very number that the next one begins with.
    totals = part.gather(own[-1])
    ends = _distribution_functions(totals)
    start = jnp.where(part.index > 0, ends[jnp.maximum(part.index - 1, 0)], 0.0)[None]
    return jnp.concatenate([start, start + own]), ends[-1]


def _distribution_functions(table: jax.Array) -> jax.Array:
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
    whole = pattern.shape[0] // _BLOCK * _BLOCK
    sums = jnp.sum(pattern[:whole].reshape(-1, _BLOCK, pattern.shape[1]), axis=1)
    if whole == pattern.shape[0]:
        return sums
    return jnp.concatenate([sums, jnp.sum(pattern[whole:], axis=0, keepdims=True)])


def _entry(table: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Entries of a matrix at valid indices; the default mode would check them once more."""
    entries: jax.Array = table.at[rows, columns].get(mode="promise_in_bounds")
    return entries


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
    counts = _word_counts(probabilities)
    num_tokens = counts.shape[0]
    if num_tokens > POSITION_MAJOR_LIMIT:
        return alias_table(counts)
    bits, count = tuple_shape(num_tokens)
    counts = jnp.zeros((2**bits,), _WORD).at[:num_tokens].set(counts)
    # A loop over arrays of the final size, of which the first part is in use, so that what appends
    # a token is compiled once.
    tuples = jnp.zeros((2 ** (bits * count),), _WORD).at[: 2**bits].set(counts)
    return alias_table(
        jax.lax.fori_loop(0, count - 1, lambda _, t: _append_counts(t, counts), tuples)
    )


def _append_counts(tuples: jax.Array, counts: jax.Array) -> jax.Array:
    """Deals out the words of tuples i to (i, j): ``tuples[i] counts[j] / 2^32``, rounded.

    The words of i are cut where the running sum of the counts of j, scaled down, is nearest to a
    whole number: i keeps exactly its words, and what j gains and loses by rounding averages out.
    The size of the array stays what it is: tuples that have no room for one more token are none.
    """
    tuples = tuples[: tuples.shape[0] // counts.shape[0]]
    before = jnp.cumsum(counts, dtype=_WORD) - counts
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
    half, mask = _WORD(_WORD_BITS // 2), _WORD(_HALF_RANGE - 1)
    high, low = (first >> half, second >> half), (first & mask, second & mask)
    middle = high[0] * low[1] + (low[0] * low[1] >> half)
    carried = (middle & mask) + low[0] * high[1]
    whole = high[0] * high[1] + (middle >> half) + (carried >> half)
    rounded: jax.Array = whole + (first * second >> _WORD(_WORD_BITS - 1))
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
    capacity = _WORD(2 ** (_WORD_BITS - index_bits))
    counts = jnp.zeros((cells,), _WORD).at[: counts.shape[0]].set(counts)
    poor = counts <= capacity
    lacking = jnp.where(poor, capacity - counts, _WORD(0))
    lacked = jnp.cumsum(lacking, dtype=_WORD)
    spare = jnp.cumsum(jnp.where(poor, _WORD(0), counts - capacity), dtype=_WORD)
    # Giving ends at the first poor cell that takes all that is left of a rich one, or more.
    given = jnp.where(poor, lacked - lacking, spare)
    taker, alias = _search(jnp.stack([lacked, spare]), jnp.stack([spare, given + _WORD(1)]))
    last_taker = jnp.minimum(taker, cells - 1)
    threshold = jnp.where(poor, counts, capacity - (lacked[last_taker] - spare))
    entries = (threshold << _WORD(index_bits)) | alias.astype(_WORD)
    # A threshold of a full cell has no room in the entry.
    table: jax.Array = jnp.where(threshold == capacity, jnp.arange(cells, dtype=_WORD), entries)
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


def _from_pair(
    pair: tuple[jax.Array, jax.Array], table: jax.Array, num_tokens: int, length: int
) -> jax.Array:
    """The first tokens along the leading axis, given both halves of their words; for N > 32."""
    return _look_up(jnp.concatenate(pair)[:length], table).astype(token_dtype(num_tokens))


def _look_up(words: jax.Array, table: jax.Array) -> jax.Array:
    """What each word gives by an alias table."""
    # Both are stored: each loop that uses words would compute them anew, and a look-up that is
    # fused with what uses it is compiled to scalar code.
    words = jax.lax.optimization_barrier(words)
    index_bits = _index_bits(table.shape[0])
    cell = words >> _WORD(_WORD_BITS - index_bits)
    entry = jax.lax.optimization_barrier(table.at[cell].get(mode="promise_in_bounds"))
    own = (words & _WORD(2 ** (_WORD_BITS - index_bits) - 1)) < (entry >> _WORD(index_bits))
    # A full cell has threshold 0 and itself as alias.
    return jnp.where(own, cell, entry & _WORD(2**index_bits - 1))


def _word_pair(seed: Seed, stream: int, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Two arrays of words, each with half (rounded up) of the leading axis of the shape."""
    half = (-(-shape[0] // 2), *shape[1:])
    return _words_of(seed, stream, jax.lax.iota(_WORD, int(np.prod(half))).reshape(half))


def _counter(first: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Numbers of the entries of an array, row by row, that begins with row ``first``."""
    width = math.prod(shape[1:])
    own = jax.lax.iota(_WORD, math.prod(shape)).reshape(shape)
    counter: jax.Array = own + first.astype(_WORD) * _WORD(width)
    return counter


def _words_of(seed: Seed, stream: int, counter: jax.Array) -> tuple[jax.Array, jax.Array]:
    return threefry(seed.words, counter, jnp.full(counter.shape, stream, _WORD), seed.rounds)


def _word_counts(probabilities: jax.Array) -> jax.Array:
    """Deals out 2^32 words by probability: uint32 [N], each at least 1, summing to 2^32 (or 0).

    A first helping, a little too small, comes from the top 16 bits and the rest, which float32
    holds apart exactly. What is left is dealt out by probability again, then one word each, so that
    neither the rounding of the sum of the probabilities nor that of the words falls on one token.
    """
    shares = probabilities / jnp.sum(probabilities)
    scaled = shares * (_HALF_RANGE * _FIRST_HELPING)
    high = jnp.floor(scaled)
    low = jnp.floor((scaled - high) * _HALF_RANGE)
    counts = jnp.maximum(high.astype(_WORD) * _WORD(_HALF_RANGE) + low.astype(_WORD), _WORD(1))
    second = jnp.floor(shares * jnp.maximum(_words_left(counts), 0).astype(shares.dtype))
    counts = counts + second.astype(_WORD)
    each = jnp.arange(counts.shape[0], dtype=jnp.int32) < _words_left(counts)
    counts = counts + each.astype(_WORD)
    dealt: jax.Array = counts.at[jnp.argmax(counts)].add(_words_left(counts).astype(_WORD))
    return dealt


def _words_left(counts: jax.Array) -> jax.Array:
    """2^32 minus the sum of the counts, int32; negative where too many were dealt out."""
    left: jax.Array = (_WORD(0) - jnp.sum(counts, dtype=_WORD)).astype(jnp.int32)
    return left


def _index_bits(num_tokens: int) -> int:
    return (num_tokens - 1).bit_length()
