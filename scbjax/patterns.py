"""Random patterns: uniform supports, found part by part, and weights in a box of the simplex."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

from scbjax.sharding import WHOLE, Part, merge_largest, on_parts, split


def shrink_to_box(
    point: jax.Array,
    centre: jax.Array,
    low: jax.Array,
    high: jax.Array,
    largest: float | jax.Array = 1.0,
) -> jax.Array:
    """Moves points of the simplex (last axis) towards the centre until they lie in [low, high]."""
    step = point - centre
    tiny = jnp.finfo(point.dtype).tiny
    room = jnp.where(
        step > 0,
        (high - centre) / jnp.maximum(step, tiny),
        (centre - low) / jnp.maximum(-step, tiny),
    )
    room = jnp.where(step == 0, jnp.inf, room)
    scale = jnp.minimum(jnp.min(room, axis=-1, keepdims=True), largest)
    return centre + jnp.minimum(scale, 1.0) * step


def random_pattern(
    key: jax.Array,
    shape: tuple[int, int],
    sparsity: int | jax.Array,
    skew: float | jax.Array,
    max_sparsity: int,
    dtype: jax.typing.DTypeLike,
) -> jax.Array:
    """Columns with uniform supports, nested as the sparsity grows, and weights in [1/(CQ), C/Q]."""
    num_tokens = shape[1]
    key_position, key_weight = jax.random.split(key)
    positions = _random_positions(key_position, shape, max_sparsity)
    # A key of its own for every rank, so that the weights drawn do not depend on the static bound.
    ranks = jnp.arange(max_sparsity, dtype=jnp.int32)

    def draw_rank(rank: jax.Array) -> jax.Array:
        return jax.random.exponential(jax.random.fold_in(key_weight, rank), (num_tokens,), dtype)

    active = (ranks < sparsity)[None, :]
    draw = jnp.where(active, jax.vmap(draw_rank)(ranks).T, 0.0)
    size = jnp.asarray(sparsity, dtype)
    centre = jnp.where(active, 1.0 / size, 0.0)
    skew = jnp.asarray(skew, dtype)
    weights = shrink_to_box(
        draw / jnp.sum(draw, axis=-1, keepdims=True), centre, centre / skew, centre * skew
    )
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    pattern = split(jnp.zeros(shape, dtype))
    return pattern.at[positions, jnp.arange(num_tokens)[:, None]].set(weights.astype(dtype))


def _random_positions(key: jax.Array, shape: tuple[int, int], count: int) -> jax.Array:
    """For each token, ``count`` of the positions in random order, [N, count].

    They are the rows of the largest entries of ``jax.random.uniform(key, (N, T)).T``. The scores of
    one token are drawn at a time: all of them at once would take four times the memory of Q.
    """
    context_length, num_tokens = shape
    seed = jax.random.key_data(key)  # a key of Threefry is its words
    counts = np.arange(num_tokens, dtype=np.uint64) * np.uint64(context_length)
    starts = tuple(jnp.asarray(w, jnp.uint32) for w in (counts >> 32, counts & 0xFFFFFFFF))

    def find(part: Part, seed: jax.Array) -> jax.Array:
        length = context_length // part.count
        first = part.index * length

        def of_token(start: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            high, low = start
            own = low + (first + jnp.arange(length, dtype=jnp.int32)).astype(jnp.uint32)
            counter = jnp.concatenate([high + (own < low).astype(jnp.uint32), own])
            drawn = threefry_2x32(seed, counter)
            bits = drawn[:length] ^ drawn[length:]
            # As many bits as float32 has, in which searches are fast.
            return jax.lax.top_k((bits >> 9).astype(jnp.float32), min(count, length))

        scores, rows = jax.lax.map(of_token, starts)
        return merge_largest(part, scores, rows + first, count)[1]

    positions: jax.Array = on_parts(find, (WHOLE,), WHOLE)(seed)
    return positions


def leads(weights: jax.Array, true: jax.Array) -> jax.Array:
    """Whether in every column the true rows of [R, N] are above all others; a boolean.

    Example:
        >>> true = jnp.array([[True], [False]])
        >>> [bool(leads(jnp.array(column), true)) for column in ([[0.6], [0.4]], [[0.5], [0.5]])]
        [True, False]
    """
    least = jnp.min(jnp.where(true, weights, jnp.inf), axis=0)
    most = jnp.max(jnp.where(true, -jnp.inf, weights), axis=0)
    return jnp.all(least > most)
