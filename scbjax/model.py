"""The learner: a one-layer, single-head linear transformer (Ren, Wang & Lee 2024, eq. 2).

    F(x, k; V, A) = V X a^(k)

V [N, N] is the value (output) matrix, column ``a^(k)`` of A [T, N] holds the attention weights when
the query is k, and X is the one-hot encoding of the context. ``V = P, A = Q`` is the ground truth.
The one-hot tensor of shape (B, T, N) is never formed: ``h = X a`` is a sum of attention weights per
token.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scbjax.task import Task, product

# Up to this vocabulary size sums and look-ups per token are compare-and-select passes (they
# vectorise and fuse); above it scatters and gathers, whose cost does not grow with N.
COMPARE_LIMIT = 32


class Params(NamedTuple):
    """Parameters of the learner.

    Attributes:
        value: V [N, N].
        attention: A [T, N]; column k for query k.
    """

    value: jax.Array
    attention: jax.Array


def init_params(task: Task) -> Params:
    """The paper's start, ``V = mu 1^T`` and ``A = 1_T 1_N^T / T``, in the dtype of the task.

    Example:
        >>> from scbjax.task import random_task
        >>> task = random_task(jax.random.key(0), num_tokens=3, context_length=4, sparsity=2)
        >>> init_params(task).attention[0].tolist()
        [0.25, 0.25, 0.25]
    """
    context_length, num_tokens = task.pattern.shape
    value = jnp.broadcast_to(task.stationary[:, None], (num_tokens, num_tokens))
    return Params(value, jnp.full_like(task.pattern, 1.0 / context_length))


def predict(params: Params, tokens: jax.Array, query: jax.Array) -> jax.Array:
    """The output ``V X a^(k)`` for each sample (eq. 2).

    Args:
        params: V [N, N] and A [T, N].
        tokens: contexts [B, T], unsigned or signed integers below N.
        query: query tokens [B].

    Returns:
        Predicted label distribution of each sample, [B, N], in the dtype of the parameters.

    Example:
        >>> params = Params(jnp.eye(2), jnp.array([[1.0, 0.5], [0.0, 0.5]]))
        >>> predict(params, jnp.array([[0, 1], [0, 1]]), jnp.array([0, 1])).tolist()
        [[1.0, 0.0], [0.5, 0.5]]
    """
    return product(attend(params.attention, tokens, query), params.value.T)


def attend(attention: jax.Array, tokens: jax.Array, query: jax.Array) -> jax.Array:
    """``h = X a^(k)``, the attention mass on every token: [B, N] from [T, N], [B, T] and [B]."""
    context_length, num_tokens = attention.shape
    chex.assert_shape(tokens, (None, context_length))
    weights = attention.T[query]
    if num_tokens <= COMPARE_LIMIT:
        sums = [
            jnp.sum(jnp.where(tokens == _as(tokens, n), weights, 0.0), axis=1)
            for n in range(num_tokens)
        ]
        return jnp.stack(sums, axis=1)
    rows = jnp.arange(tokens.shape[0])[:, None]
    return jnp.zeros((tokens.shape[0], num_tokens), attention.dtype).at[rows, tokens].add(weights)


def look_up(scores: jax.Array, tokens: jax.Array) -> jax.Array:
    """``scores[b, tokens[b, t]]`` [B, T] from [B, N], [B, T]: transpose of :func:`attend`."""
    num_tokens = scores.shape[1]
    if num_tokens > COMPARE_LIMIT:
        return jnp.take_along_axis(scores, tokens.astype(jnp.int32), axis=1)
    values = jnp.broadcast_to(scores[:, :1], tokens.shape)
    for n in range(1, num_tokens):
        values = jnp.where(tokens == _as(tokens, n), scores[:, n : n + 1], values)
    return values


def sum_by_query(values: jax.Array, query: jax.Array, num_tokens: int) -> jax.Array:
    """Adds up the rows [B, T] of samples that share a query, as columns: [T, N]."""
    if num_tokens <= COMPARE_LIMIT:
        belongs = (query[:, None] == jnp.arange(num_tokens)).astype(values.dtype)
        return product(belongs.T, values).T
    return jnp.zeros((num_tokens, values.shape[1]), values.dtype).at[query].add(values).T


def _as(tokens: jax.Array, n: int) -> jax.Array:
    return jnp.asarray(n, tokens.dtype)
