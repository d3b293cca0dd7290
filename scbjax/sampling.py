"""Mini-batches of the sparse contextual bigram: the one place where random bits are spent.

A sample is a context ``x_1 .. x_T`` and a query ``x_{T+1}``, all i.i.d. from mu, and a label drawn
as eq. 1 of Ren, Wang & Lee (2024) says: draw a position s from column ``x_{T+1}`` of Q, then take
one step of P from ``x_s``. Tokens and queries depend on mu alone, so that a ``vmap`` over tasks
which share mu draws them once.

Discrete draws invert the distribution function on unsigned 32-bit integers: a token is the interval
that a random word falls in; its probability is that of mu up to a few float32 roundings of mu
itself (below 2^-22).
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scbjax.task import Task

# Up to this vocabulary size a token is found by comparing with every threshold (vectorises); above
# it by bisection.
_COMPARE_LIMIT = 32
_WORD = jnp.uint32


class Batch(NamedTuple):
    """A mini-batch of B samples.

    Attributes:
        tokens: the contexts, [B, T], in the smallest unsigned integer type that holds N - 1.
        query: the query tokens ``x_{T+1}``, [B] int32.
        label: the labels ``x_o``, [B] int32.
    """

    tokens: jax.Array
    query: jax.Array
    label: jax.Array


class Sampler(NamedTuple):
    """The distribution functions of a task, computed once by :func:`make_sampler`.

    Attributes:
        token_thresholds: [N - 1] uint32; a token is the number of thresholds that a random word has
            reached.
        position_cdf: [T, N]; the distribution function of the positions, a column for each query.
        label_cdf: [N, N]; the distribution function of the labels, a column for each current token.
    """

    token_thresholds: jax.Array
    position_cdf: jax.Array
    label_cdf: jax.Array


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


def make_sampler(task: Task) -> Sampler:
    """Prepares the distribution functions of a task; call it once, outside the loop over steps."""
    return Sampler(
        token_thresholds=_thresholds(task.stationary),
        position_cdf=jnp.cumsum(task.pattern, axis=0),
        label_cdf=jnp.cumsum(task.transition, axis=0),
    )


def sample_batch(key: jax.Array, task: Task, batch_size: int) -> Batch:
    """Draws a mini-batch from the law of the task (eq. 1).

    Args:
        key: a PRNG key.
        task: the task.
        batch_size: B >= 1, the number of samples.

    Returns:
        The batch: tokens [B, T], query [B], label [B].

    Raises:
        ValueError: if ``batch_size`` is not positive.

    Example:
        >>> from scbjax.task import random_task
        >>> task = random_task(jax.random.key(0), num_tokens=3, context_length=50, sparsity=2)
        >>> batch = sample_batch(jax.random.key(1), task, 4)
        >>> batch.tokens.shape, batch.tokens.dtype.name, batch.label.shape
        ((4, 50), 'uint8', (4,))
    """
    return draw_batch(key, make_sampler(task), batch_size)


def draw_batch(key: jax.Array, sampler: Sampler, batch_size: int) -> Batch:
    """Like :func:`sample_batch`, with the sampler already made."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    context_length, num_tokens = sampler.position_cdf.shape
    chex.assert_shape(sampler.label_cdf, (num_tokens, num_tokens))
    key_tokens, key_query, key_label = jax.random.split(key, 3)
    dtype = token_dtype(num_tokens)
    tokens = draw_tokens(key_tokens, sampler.token_thresholds, (batch_size, context_length)).astype(
        dtype
    )
    query = draw_tokens(key_query, sampler.token_thresholds, (batch_size,))
    key_position, key_step = jax.random.split(key_label)
    position = draw_from_columns(key_position, sampler.position_cdf, query)
    source = jnp.take_along_axis(tokens, position[:, None], axis=1)[:, 0].astype(jnp.int32)
    return Batch(tokens, query, draw_from_columns(key_step, sampler.label_cdf, source))


def draw_tokens(key: jax.Array, thresholds: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws i.i.d. tokens of the given shape (int32) from integer thresholds [N - 1]."""
    words = jax.random.bits(key, shape, _WORD)
    if thresholds.shape[0] >= _COMPARE_LIMIT:
        return jnp.searchsorted(thresholds, words, side="right").astype(jnp.int32)
    token = jnp.zeros(shape, jnp.int32)
    for index in range(thresholds.shape[0]):
        token = token + (words >= thresholds[index]).astype(jnp.int32)
    return token


def draw_from_columns(key: jax.Array, cdf: jax.Array, columns: jax.Array) -> jax.Array:
    """Draws a row (int32) for each given column [B] of a table of distribution functions [R, C]."""
    rows = cdf.shape[0]
    # Scaled by the last entry: a column's rounded sum need not be one, and a row past it must not
    # be drawn.
    level = jax.random.uniform(key, columns.shape, cdf.dtype) * cdf[-1, columns]
    low = jnp.zeros(columns.shape, jnp.int32)
    high = jnp.full(columns.shape, rows - 1, jnp.int32)
    for _ in range(max(1, (rows - 1).bit_length())):
        middle = (low + high) // 2
        below = cdf[middle, columns] <= level
        low, high = jnp.where(below, middle + 1, low), jnp.where(below, high, middle)
        low = jnp.minimum(low, high)
    return low


def _thresholds(probabilities: jax.Array) -> jax.Array:
    """Cumulative probabilities as 32-bit words [N - 1]: a token is the number of words reached.

    Each probability is turned into a number of words before the (exact, integer) cumulative sum: in
    float32 the sum itself would round.
    """
    scaled = probabilities[:-1] / jnp.sum(probabilities) * 2.0**16
    high = jnp.floor(scaled)
    low = jnp.floor((scaled - high) * 2.0**16)
    counts = high.astype(_WORD) * _WORD(2**16) + low.astype(_WORD)
    words = jnp.cumsum(counts, dtype=_WORD)
    # A last token of probability below rounding lets the sum pass 2^32; such thresholds are never
    # to be reached.
    wrapped = jax.lax.cummax((words < counts).astype(jnp.int32)) > 0
    return jnp.where(wrapped, _WORD(2**32 - 1), words)
