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
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scbjax.arguments import check_is, outline
from scbjax.blocks import BLOCK_ELEMENTS, fill, has_blocks, sum_by_class
from scbjax.sampling import POSITION_MAJOR_LIMIT, check_contexts, check_tokens
from scbjax.sharding import COLUMNS, ROWS, WHOLE, Part, on_parts, split
from scbjax.tables import Registry
from scbjax.task import Task, check_one_task, product

# From this length on a CPU attends sample by sample: a loop over samples costs less than the places
# of all their tokens, of a million bytes and more, cost to write and to read (measured).
_LONG_CONTEXT = 2048


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

    Attributes:
        weights: W to A; the positions are the last axis but one, whatever axes stand in front.
        start: T to the number that, in every entry of W, makes A uniform.
        step_scale: T to the factor by which, at uniform A, ``J J^T`` multiplies what keeps the
            column sums: a step on W is there a step on A with ``eta * step_scale(T)``.
        gain: A to the diagonal of ``J J^T``, relative to what it is at uniform A; the shape of A.
    """

    weights: Callable[[jax.Array], jax.Array]
    start: Callable[[int], float]
    step_scale: Callable[[int], float]
    gain: Callable[[jax.Array], jax.Array]


def softmax_gain(attention: jax.Array) -> jax.Array:
    """The diagonal of ``(diag(a) - a a^T)^2``, relative to uniform attention.

    ``a_t^2 (1 - 2 a_t + |a|^2)`` for each entry of A [..., T, N], over its value
    ``(1 - 1/T) / T^2`` at ``a_t = 1/T``.
    """
    context_length = attention.shape[-2]
    size = jnp.sum(attention**2, axis=-2, keepdims=True)
    uniform = (1.0 - 1.0 / context_length) / context_length**2
    return attention**2 * (1.0 - 2.0 * attention + size) / uniform


ATTENTION_MAPS: Registry[AttentionMap] = Registry(
    "attention map",
    {
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
    },
)
"""The maps by name: ``"linear"``, A is the parameter; ``"softmax"``, ``a^(k) = softmax(w^(k))``.

A name stands for one map for as long as the process lasts (:class:`scbjax.tables.Registry`)."""


def init_params(task: Task, attention_map: str = "linear") -> Params:
    """The paper's start, ``V = mu 1^T`` and ``A = 1_T 1_N^T / T``, in the dtype of the task.

    Args:
        task: the task.
        attention_map: a key of :data:`ATTENTION_MAPS`; for ``"softmax"`` the start is ``W = 0``.

    Returns:
        V [N, N], and the map's parameter [T, N].

    Example:
        >>> from scbjax.task import random_task
        >>> task = random_task(jax.random.key(0), num_tokens=3, context_length=4, sparsity=2)
        >>> init_params(task).attention[0].tolist()
        [0.25, 0.25, 0.25]
    """
    check_one_task("task", task)
    context_length, num_tokens = task.pattern.shape
    value = jnp.broadcast_to(task.stationary[:, None], (num_tokens, num_tokens))
    start = jnp.full_like(task.pattern, ATTENTION_MAPS[attention_map].start(context_length))
    # Hidden from the compiler, which would work out what is computed of a start that it knows.
    return Params(value, split(jax.lax.optimization_barrier(start)))


def map_attention(params: Params, attention_map: str) -> Params:
    """The learner that a parameter stands for: V, and A in the place of the map's parameter.

    What is differentiated through it, such as ``loss(map_attention(params, "softmax"), batch)``,
    has its hand-written gradient in A continued by the map's own.

    Args:
        params: V [..., N, N] and the map's parameter [..., T, N].
        attention_map: a key of :data:`ATTENTION_MAPS`.

    Returns:
        V and A, of the same shapes.

    Example:
        >>> logits = jnp.log(jnp.array([[3.0, 1.0], [1.0, 1.0]]))
        >>> map_attention(Params(jnp.eye(2), logits), "softmax").attention.round(4).tolist()
        [[0.75, 0.5], [0.25, 0.5]]
    """
    return params._replace(attention=ATTENTION_MAPS[attention_map].weights(params.attention))


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
    # One flat scatter: its index arithmetic is a third of that of a scatter into two axes.
    cells = _cells(tokens, num_tokens).ravel()
    sums = _sum_by_token(rows[query].ravel(), cells, batch_size * num_tokens)
    return sums.reshape(batch_size, num_tokens)


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
