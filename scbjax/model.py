"""The learner: a one-layer, single-head linear transformer (Ren, Wang & Lee 2024, eq. 2).

    F(x, k; V, A) = V X a^(k)

V [N, N] is the value (output) matrix, column ``a^(k)`` of A [T, N] holds the attention weights when
the query is k, and X is the one-hot encoding of the context. ``V = P, A = Q`` is the ground truth.
The one-hot tensor of shape (B, T, N) is never formed: ``h = X a`` is a sum of attention weights per
token.

What is trained need not be A itself: an :class:`AttentionMap` makes A of a parameter of the same
shape, such as ``A = softmax(W)`` over the positions. Everything but the training step is about A.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scbjax.arguments import check_is, outline
from scbjax.blocks import BLOCK_ELEMENTS, fill, has_blocks, sum_by_class
from scbjax.parameters import Attention
from scbjax.sampling import POSITION_MAJOR_LIMIT, check_contexts, check_tokens
from scbjax.sharding import COLUMNS, ROWS, WHOLE, Part, largest_rows, on_parts, split
from scbjax.tables import Registry, brief, nearest
from scbjax.task import Task, check_one_task, product

# From this length on a CPU attends sample by sample: a loop over samples costs less than the places
# of all their tokens, of a million bytes and more, cost to write and to read (measured).
_LONG_CONTEXT = 2048
_UNIFORM = 1e-3  # of 1 / T, how far A may be from it at a map's start


class Params(NamedTuple):
    """Parameters of the learner.

    Attributes:
        value: V [N, N].
        attention: A [T, N], column k for query k; or the parameter that an attention map makes A of
            (:func:`map_attention`).
    """

    value: jax.Array
    attention: jax.Array

    def __repr__(self) -> str:
        """Dtypes and shapes, not the arrays."""
        return outline(self)


class AttentionMap(NamedTuple):
    """A map from a parameter W [T, N] to the attention weights A [T, N], column by column.

    With ``J = da/dw``, a gradient step on W moves a column of A by ``-eta J J^T g`` (to first order
    in eta; g is the gradient in A): ``J J^T`` is the preconditioner that the map amounts to.

    It is known by its functions and not by its name: two maps are the same if these are the same
    objects.

    Attributes:
        weights: W to A; the positions are the last axis but one, whatever axes stand in front.
        start: T to the number that, in every entry of W, makes A uniform.
        step_scale: T to the factor by which, at uniform A, ``J J^T`` multiplies what keeps the
            column sums: a step on W is there a step on A with ``eta * step_scale(T)``. None for
            what the derivative of ``weights`` says (:func:`step_scale_of`).
        gain: A to the diagonal of ``J J^T``, relative to what it is at uniform A; the shape of A.
            Without it the observables that are made of it can't be recorded.
        name: what it is called in messages.

    Example:
        >>> square = AttentionMap(lambda w: w**2, lambda length: length**-0.5, name="square")
        >>> square
        AttentionMap('square')
        >>> square.weights(jnp.full((4, 1), square.start(4))).ravel().tolist()
        [0.25, 0.25, 0.25, 0.25]
    """

    weights: Callable[[jax.Array], jax.Array]
    start: Callable[[int], float]
    step_scale: Callable[[int], float] | None = None
    gain: Callable[[jax.Array], jax.Array] | None = None
    name: str = "own"

    def __repr__(self) -> str:
        """Its name."""
        return f"AttentionMap({self.name!r})"


def softmax_gain(attention: jax.Array) -> jax.Array:
    """The diagonal of ``(diag(a) - a a^T)^2``, relative to uniform attention.

    ``a_t^2 (1 - 2 a_t + |a|^2)`` for each entry of A [..., T, N], over its value
    ``(1 - 1/T) / T^2`` at ``a_t = 1/T``.
    """
    context_length = attention.shape[-2]
    size = jnp.sum(attention**2, axis=-2, keepdims=True)
    uniform = (1.0 - 1.0 / context_length) / context_length**2
    return attention**2 * (1.0 - 2.0 * attention + size) / uniform


_BUILT_IN: dict[Attention, AttentionMap] = {
    "linear": AttentionMap(
        weights=lambda attention: attention,
        start=lambda context_length: 1.0 / context_length,
        step_scale=lambda _: 1.0,
        gain=jnp.ones_like,
    ),
    "softmax": AttentionMap(
        weights=lambda logits: jax.nn.softmax(logits, axis=-2),
        start=lambda _: 0.0,
        step_scale=lambda context_length: 1.0 / context_length**2,
        gain=softmax_gain,
    ),
}

# By the names that are declared: one that no map has ends here, one that isn't declared in mypy.
ATTENTION_MAPS: Registry[AttentionMap] = Registry(
    "attention map",
    {name: _BUILT_IN[name]._replace(name=name) for name in get_args(Attention)},
)
"""The maps by name: ``"linear"``, A is the parameter; ``"softmax"``, ``a^(k) = softmax(w^(k))``.

A name stands for one map for as long as the process lasts (:class:`scbjax.tables.Registry`)."""

LINEAR = ATTENTION_MAPS["linear"]
_OURS = tuple(ATTENTION_MAPS.values())


def as_attention_map(attention_map: object) -> AttentionMap:
    """The map that a name stands for, or the map itself.

    Raises:
        ValueError: if it is neither.

    Example:
        >>> as_attention_map("linear") is as_attention_map(LINEAR)
        True
        >>> as_attention_map("softmx")
        Traceback (most recent call last):
        ...
        ValueError: attention_map is 'softmx'; it must be one of linear, softmax, or an Attention...
    """
    if isinstance(attention_map, AttentionMap):
        return attention_map
    if isinstance(attention_map, str) and attention_map in ATTENTION_MAPS:
        return ATTENTION_MAPS[attention_map]
    raise ValueError(
        f"attention_map is {brief(attention_map)}; it must be one of {', '.join(ATTENTION_MAPS)}, "
        f"or an AttentionMap{nearest(str(attention_map), ATTENTION_MAPS)}"
    )


@cache
def step_scale_of(attention_map: str | AttentionMap, context_length: int) -> float:
    """The map's ``step_scale(T)``, or what it is by the derivative of its ``weights``.

    At uniform A, ``J J^T`` multiplies every vector v that sums to zero by the same number, by
    symmetry: ``|J^T v|^2 / |v|^2``, here of ``v = (1, -1, 0, ..)``.

    Example:
        >>> square = AttentionMap(lambda roots: roots**2, lambda length: length**-0.5)
        >>> step_scale_of(square, 4)  # J = 2 diag(w), so J J^T = 4 / T
        1.0
    """
    attention_map = as_attention_map(attention_map)
    if attention_map.step_scale is not None:
        return float(attention_map.step_scale(context_length))
    if context_length == 1:
        return 1.0  # no vector sums to zero
    with jax.ensure_compile_time_eval():
        start = jnp.full((context_length, 1), attention_map.start(context_length), jnp.float32)
        vector = jnp.zeros_like(start).at[0].set(1.0).at[1].set(-1.0)
        (pulled,) = jax.vjp(attention_map.weights, start)[1](vector)
        return float(jnp.sum(pulled**2) / 2.0)


def init_params(task: Task, attention_map: str | AttentionMap = "linear") -> Params:
    """The paper's start, ``V = mu 1^T`` and ``A = 1_T 1_N^T / T``, in the dtype of the task.

    Args:
        task: the task.
        attention_map: a map, or a key of :data:`ATTENTION_MAPS`; for ``"softmax"`` the start is
            ``W = 0``.

    Returns:
        V [N, N], and the map's parameter [T, N].

    Example:
        >>> from scbjax.task import random_task
        >>> task = random_task(jax.random.key(0), num_tokens=3, context_length=4, sparsity=2)
        >>> init_params(task).attention[0].tolist()
        [0.25, 0.25, 0.25]
    """
    check_one_task("task", task)
    return start_params(task.stationary, task.context_length, attention_map)


@lru_cache(maxsize=64)
def start_of(attention_map: AttentionMap, context_length: int) -> float:
    """The map's ``start(T)``, once it is seen to make A uniform.

    Raises:
        TypeError: if a part of the map is no function.
        ValueError: if A is not uniform there, or has another shape.

    Example:
        >>> start_of(AttentionMap(lambda w: w**2, lambda length: 1.0, name="square"), 4)
        Traceback (most recent call last):
        ...
        ValueError: attention_map 'square' makes 1 of its start 1; it must make A uniform, 1 / ...
    """
    name = f"attention_map {attention_map.name!r}"
    for part in ("weights", "start"):
        if not callable(getattr(attention_map, part)):
            raise TypeError(f"{part} of {name} is no function; see scbjax.AttentionMap")
    level = float(attention_map.start(context_length))
    if attention_map in _OURS:  # which the tests look at, and which users need not wait for
        return level
    with jax.ensure_compile_time_eval():
        shape = (context_length, 2)  # of two queries
        attention = np.asarray(attention_map.weights(jnp.full(shape, level, jnp.float32)))
    if attention.shape != shape:
        raise ValueError(
            f"{name} makes {list(attention.shape)} of the shape {list(shape)}; A must have that of "
            "its parameter, [T, N]"
        )
    if not np.allclose(attention, 1.0 / context_length, rtol=_UNIFORM, atol=0.0):
        raise ValueError(
            f"{name} makes {attention.flat[0]:g} of its start {level:g}; it must make A uniform, "
            f"1 / T = {1.0 / context_length:g}"
        )
    return level


def start_params(
    stationary: jax.Array, context_length: int, attention_map: str | AttentionMap = "linear"
) -> Params:
    """:func:`init_params` of mu [N] and T alone."""
    num_tokens = stationary.shape[0]
    value = jnp.broadcast_to(stationary[:, None], (num_tokens, num_tokens))
    level = start_of(as_attention_map(attention_map), context_length)
    start = jnp.full((context_length, num_tokens), level, stationary.dtype)
    # Hidden from the compiler, which would work out what is computed of a start that it knows.
    return Params(value, split(jax.lax.optimization_barrier(start)))


def map_attention(params: Params, attention_map: str | AttentionMap) -> Params:
    """The learner that a parameter stands for: V, and A in the place of the map's parameter.

    What is differentiated through it, such as ``loss(map_attention(params, "softmax"), batch)``,
    has its hand-written gradient in A continued by the map's own.

    Args:
        params: V [..., N, N] and the map's parameter [..., T, N].
        attention_map: a map, or a key of :data:`ATTENTION_MAPS`.

    Returns:
        V and A, of the same shapes.

    Example:
        >>> logits = jnp.log(jnp.array([[3.0, 1.0], [1.0, 1.0]]))
        >>> map_attention(Params(jnp.eye(2), logits), "softmax").attention.round(4).tolist()
        [[0.75, 0.5], [0.25, 0.5]]
    """
    weights = as_attention_map(attention_map).weights
    return params._replace(attention=weights(params.attention))


def predict(params: Params, tokens: jax.Array, query: jax.Array) -> jax.Array:
    """The output ``V X a^(k)`` for each sample (eq. 2).

    Args:
        params: V [N, N] and A [T, N].
        tokens: contexts [B, T], unsigned or signed integers below N.
        query: query tokens [B].

    Returns:
        Predicted label distribution of each sample, [B, N], in the dtype of the parameters.

    Raises:
        ValueError: for concrete tokens outside of 0 .. N - 1 (:func:`scbjax.sampling.check_batch`),
            and for shapes that don't fit together.

    Example:
        >>> params = Params(jnp.eye(2), jnp.array([[1.0, 0.5], [0.0, 0.5]]))
        >>> predict(params, jnp.array([[0, 1], [0, 1]]), jnp.array([0, 1])).tolist()
        [[1.0, 0.0], [0.5, 0.5]]
    """
    num_tokens, context_length = check_params("params", params)
    check_contexts(tokens, num_tokens, context_length)
    check_tokens(query, num_tokens, np.shape(tokens)[:1])
    return product(attend(params.attention, tokens, query), params.value.T)


def keep_largest(attention: jax.Array, count: int) -> jax.Array:
    """Keeps the ``count`` largest entries of each column of A [T, N], and makes sums one again.

    Entries that are not positive are cut; a column that has no others is a one at its largest.

    Example:
        >>> keep_largest(jnp.array([[0.6], [0.2], [0.1]]), 2).ravel().tolist()
        [0.75, 0.25, 0.0]
    """
    values, rows = largest_rows(attention, count)
    values = jnp.maximum(values, 0.0)
    total = jnp.sum(values, axis=0, keepdims=True)
    first = (jnp.arange(values.shape[0], dtype=jnp.int32) == 0)[:, None].astype(values.dtype)
    shares = jnp.where(total > 0, values / jnp.where(total > 0, total, 1.0), first)
    columns = jnp.arange(attention.shape[1], dtype=jnp.int32)[None, :]
    kept: jax.Array = jnp.zeros_like(attention).at[rows, columns].set(shares)
    return kept


def check_params(name: str, params: Params) -> tuple[int, int]:
    """N and T of V [N, N] and A [T, N].

    Raises:
        TypeError: if they are no parameters.
        ValueError: if they have other shapes.

    Example:
        >>> check_params("params", Params(jnp.ones((3, 3)), jnp.ones((5, 3))))
        (3, 5)
    """
    check_is(name, params, Params, "such as init_params makes")
    value, attention = np.shape(params.value), np.shape(params.attention)
    if len(attention) == 2 and value == attention[1:] * 2:
        return attention[1], attention[0]
    several = ": jax.vmap maps a function over several" if len(attention) > 2 else ""
    raise ValueError(
        f"{name} has value {list(value)} and attention {list(attention)}; "
        f"it must have [N, N] and [T, N]{several}"
    )


def attend(attention: jax.Array, tokens: jax.Array, query: jax.Array) -> jax.Array:
    """``h = X a^(k)``, the attention mass on every token: [B, N] from [T, N], [B, T] and [B]."""
    chex.assert_shape(tokens, (tokens.shape[0], attention.shape[0]))

    def add_up(part: Part, attention: jax.Array, tokens: jax.Array, query: jax.Array) -> jax.Array:
        return part.total(attend_part(attention, tokens, query))

    attended: jax.Array = on_parts(add_up, (ROWS, COLUMNS, WHOLE), WHOLE)(attention, tokens, query)
    return attended


def attend_part(attention: jax.Array, tokens: jax.Array, query: jax.Array) -> jax.Array:
    """Like :func:`attend`, for positions that are all on this device."""
    batch_size, num_tokens = tokens.shape[0], attention.shape[1]
    if num_tokens <= POSITION_MAJOR_LIMIT:
        return _attend_by_position(attention, tokens.T, query)
    rows = attention.T
    if has_blocks() and tokens.shape[1] >= _LONG_CONTEXT:

        def attend_one(first: jax.Array, _: int) -> jax.Array:
            weights = jax.lax.dynamic_index_in_dim(rows, query[first], keepdims=False)
            own = jax.lax.dynamic_index_in_dim(tokens, first, keepdims=False)
            return _sum_by_token(weights, own.astype(jnp.int32), num_tokens)[None]

        return fill(attend_one, (batch_size, num_tokens), attention.dtype, BLOCK_ELEMENTS)
    return sum_by_token(rows[query], tokens, num_tokens)


def sum_by_token(weights: jax.Array, tokens: jax.Array, num_tokens: int) -> jax.Array:
    """``X w`` of weights that differ by sample: [B, N] from weights [B, T] and tokens [B, T].

    Example:
        >>> sum_by_token(jnp.array([[0.5, 0.25, 0.25]]), jnp.array([[1, 0, 1]]), 2).tolist()
        [[0.25, 0.75]]
    """
    if num_tokens <= POSITION_MAJOR_LIMIT:
        sums = [jnp.sum(jnp.where(tokens == n, weights, 0.0), axis=1) for n in range(num_tokens)]
        return jnp.stack(sums, axis=1)
    # One flat scatter: its index arithmetic is a third of that of a scatter into two axes.
    cells = _cells(tokens, num_tokens).ravel()
    flat = _sum_by_token(weights.ravel(), cells, tokens.shape[0] * num_tokens)
    return flat.reshape(-1, num_tokens)


def _sum_by_token(weights: jax.Array, tokens: jax.Array, num_tokens: int) -> jax.Array:
    empty = jnp.zeros((num_tokens,), weights.dtype)
    sums: jax.Array = empty.at[tokens].add(weights, mode="promise_in_bounds")
    return sums


def _cells(tokens: jax.Array, num_tokens: int) -> jax.Array:
    """Places [B, T] of tokens [B, T] in a matrix [B, N] that is read row by row."""
    first = jnp.arange(tokens.shape[0], dtype=jnp.int32) * num_tokens
    return first[:, None] + tokens.astype(jnp.int32)


def attend_transpose(scores: jax.Array, tokens: jax.Array, query: jax.Array) -> jax.Array:
    """``sum over samples of query k of scores[b, tokens[b, t]]``, the adjoint of :func:`attend`.

    [T, N] from scores [B, N], tokens [B, T] and query [B].
    """

    def spread(_: Part, scores: jax.Array, tokens: jax.Array, query: jax.Array) -> jax.Array:
        return _attend_transpose_part(scores, tokens, query)

    gradient: jax.Array = on_parts(spread, (WHOLE, COLUMNS, WHOLE), ROWS)(scores, tokens, query)
    return gradient


def _attend_transpose_part(scores: jax.Array, tokens: jax.Array, query: jax.Array) -> jax.Array:
    """Like :func:`attend_transpose`, for positions that are all on this device."""
    num_tokens = scores.shape[1]
    if num_tokens <= POSITION_MAJOR_LIMIT:
        return _transpose_by_position(scores, tokens.T, query)
    return sum_by_query(look_up(scores, tokens), query, num_tokens)


def sum_by_query(values: jax.Array, query: jax.Array, num_tokens: int) -> jax.Array:
    """The matrix [T, N] in whose column k is the sum of those values [B, T] with query [B] k."""
    empty = jnp.zeros((num_tokens, values.shape[1]), values.dtype)
    # Whole rows are added, in vector registers.
    rows: jax.Array = empty.at[query].add(values, mode="promise_in_bounds")
    return rows.T


def _attend_by_position(attention: jax.Array, tokens: jax.Array, query: jax.Array) -> jax.Array:
    """:func:`attend` for small vocabularies, from tokens [T, B].

    For every token n the weights at its places are added, over samples in vector registers.
    """
    num_tokens = attention.shape[1]
    by_query = _one_hot(query, num_tokens, attention.dtype).T
    sums = sum_by_class(lambda rows: product(rows, by_query), attention, tokens, num_tokens)
    # What the other tokens leave of the column's sum: one pass over the tokens less.
    first = jnp.sum(attention, axis=0)[query] - jnp.sum(sums, axis=0)
    return jnp.concatenate([first[None, :], sums]).T


def _transpose_by_position(scores: jax.Array, tokens: jax.Array, query: jax.Array) -> jax.Array:
    """:func:`attend_transpose` for small vocabularies, from tokens [T, B]."""
    num_tokens = scores.shape[1]
    by_query, by_token = _one_hot(query, num_tokens, scores.dtype), scores.T

    def choose(first: jax.Array, rows: int) -> jax.Array:
        own = jax.lax.dynamic_slice_in_dim(tokens, first, rows)
        values = [by_token[None, n] for n in range(num_tokens)]
        # A tournament: each bit of the token halves the number of values that are left.
        for bit in range((num_tokens - 1).bit_length()):
            odd = (own >> _as(own, bit)) & _as(own, 1) == 1
            pairs = zip(values[::2], values[1::2], strict=False)
            values = [jnp.where(odd, b, a) for a, b in pairs] + values[len(values) // 2 * 2 :]
        return product(values[0], by_query)

    return fill(choose, (tokens.shape[0], num_tokens), scores.dtype, tokens.shape[1])


def look_up(scores: jax.Array, tokens: jax.Array) -> jax.Array:
    """``scores[b, tokens[b, t]]``, [B, T] from scores [B, N] and tokens [B, T]."""
    # Stored: a look-up that is fused with what finds its place is compiled to scalar code.
    cells = jax.lax.optimization_barrier(_cells(tokens, scores.shape[1]))
    values: jax.Array = scores.ravel().at[cells].get(mode="promise_in_bounds")
    return values


def _one_hot(query: jax.Array, num_tokens: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    return (query[:, None] == jnp.arange(num_tokens, dtype=query.dtype)[None, :]).astype(dtype)


def _as(tokens: jax.Array, n: int) -> jax.Array:
    return jnp.asarray(n, tokens.dtype)
