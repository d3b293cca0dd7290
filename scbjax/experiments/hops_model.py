"""Two look-ups: tasks, samples of them, and the loss of two layers with its gradient.

The model is described in :mod:`scbjax.experiments.hops`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import scbjax
from scbjax.lazily import Lazily
from scbjax.parameters import DEFAULTS

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")

_TOKENS, _QUERIES, _FIRST, _SECOND, _LABELS, _EASY, _EASY_LABELS = range(7)


class HopTask(NamedTuple):
    """A two-hop SCB.

    Attributes:
        transition: P [N, N], column-stochastic.
        stationary: mu [N].
        first: Q [T, N], where a query points to; on even positions.
        second: R [T, N], where the token that is found there points to; on odd positions.
    """

    transition: jax.Array
    stationary: jax.Array
    first: jax.Array
    second: jax.Array


class HopParams(NamedTuple):
    """Parameters of both learners; that of one layer has ``second`` alone as its attention.

    Attributes:
        value: V [N, N].
        first: A_1 [T, N].
        second: A_2 [T, N].
    """

    value: jax.Array
    first: jax.Array
    second: jax.Array


class HopBatch(NamedTuple):
    """A mini-batch of B samples.

    Attributes:
        tokens: contexts [B, T], unsigned integers.
        query: [B] int32.
        label: after two hops, [B] int32.
        easy_label: after one hop by R from the query itself, [B] int32.
    """

    tokens: jax.Array
    query: jax.Array
    label: jax.Array
    easy_label: jax.Array


def random_hops(
    key: jax.Array,
    *,
    num_tokens: int,
    context_length: int,
    sparsity: int,
    transition_signal: jax.Array | float | None = None,
) -> HopTask:
    """Draws a two-hop SCB: P, mu and both patterns as :func:`scbjax.random_task` does.

    Args:
        key: a PRNG key.
        num_tokens: N.
        context_length: T.
        sparsity: nonzeros in each column of Q and of R, at most half of T.
        transition_signal: K_P; None for ``1.1 |mu|^2``.

    Example:
        >>> task = random_hops(jax.random.key(0), num_tokens=4, context_length=9, sparsity=2)
        >>> [int(jnp.sum(task.first[start::2] > 0)) for start in (0, 1)]
        [8, 0]
    """
    from scbjax.patterns import random_pattern

    first_key, second_key = jax.random.split(key)
    odd = context_length // 2
    task = scbjax.random_task(
        first_key,
        num_tokens=num_tokens,
        context_length=context_length - odd,
        sparsity=sparsity,
        transition_signal=transition_signal,
    )
    skew, dtype = DEFAULTS["skew"], task.pattern.dtype
    pattern = random_pattern(second_key, (odd, num_tokens), sparsity, skew, sparsity, dtype)
    empty = jnp.zeros((context_length, num_tokens), dtype)
    return HopTask(
        task.transition,
        task.stationary,
        empty.at[::2].set(task.pattern),
        empty.at[1::2].set(pattern),
    )


def easy_task(task: HopTask) -> scbjax.Task:
    """The one-hop SCB that has the second look-up alone."""
    return scbjax.Task(task.transition, task.stationary, task.second)


def start_hops(task: HopTask) -> HopParams:
    """The start: ``V = mu 1^T`` and uniform attention in both layers."""
    value, attention = scbjax.init_params(easy_task(task))
    return HopParams(value, attention, attention)


def prepare(task: HopTask) -> Any:  # noqa: ANN401 - two samplers
    """The distribution functions of both patterns."""
    from scbjax.sampling import make_sampler

    return make_sampler(easy_task(task)._replace(pattern=task.first)), make_sampler(easy_task(task))


def sample_hops(seed: Any, prepared: Any, batch_size: int) -> HopBatch:  # noqa: ANN401
    """Draws a mini-batch; ``seed`` is that of the house (:func:`scbjax.sampling.make_seed`)."""
    from scbjax.inversion import draw_from_columns, entry_of
    from scbjax.sampling import draw_contexts, draw_positions, draw_tokens

    by_first, by_second = prepared
    table, (length, num_tokens) = by_first.token_table, by_first.pattern.shape
    tokens = draw_contexts(seed, _TOKENS, table, num_tokens, (batch_size, length))
    query = draw_tokens(seed, _QUERIES, table, num_tokens, (batch_size,)).astype(jnp.int32)
    rows = jnp.arange(batch_size, dtype=jnp.int32)

    def token_at(position: jax.Array) -> jax.Array:
        return entry_of(tokens, rows, position).astype(jnp.int32)

    pointer = token_at(draw_positions(seed, _FIRST, by_first, query))
    source = token_at(draw_positions(seed, _SECOND, by_second, pointer))
    easy = token_at(draw_positions(seed, _EASY, by_second, query))
    return HopBatch(
        tokens,
        query,
        draw_from_columns(seed, _LABELS, by_first.label_cdf, source),
        draw_from_columns(seed, _EASY_LABELS, by_first.label_cdf, easy),
    )


def hop_loss(params: HopParams, batch: HopBatch, direct: jax.Array | bool = False) -> jax.Array:
    """The mean over the batch of ``1/2 |e_label - V X A_2 h|^2``; a scalar.

    With ``r = (V g - e) / B``, ``g = X w``, ``w = A_2 h`` and ``h = X a_1``, the gradient, which is
    written out, is

        grad V = sum_b r g^T,   grad A_2 = sum_b (V^T r)[x] h^T,   grad a_1 = sum_b (A_2^T (V^T
        r)[x])[x]   over samples of a query,

    where ``u[x]`` [T] is ``u`` looked up at the tokens: one look-up for each layer.

    Args:
        params: V, A_1 and A_2.
        batch: tokens, query and label; its ``easy_label`` is not looked at.
        direct: whether h is the query itself, so that the second layer is a learner of one layer.

    Example:
        >>> task = random_hops(jax.random.key(0), num_tokens=4, context_length=8, sparsity=2)
        >>> batch = sample_hops(scbjax.sampling.make_seed(jax.random.key(1)), prepare(task), 16)
        >>> jax.grad(hop_loss)(start_hops(task), batch).first.shape
        (8, 4)
    """
    value: jax.Array = _differentiable()(params, batch, jnp.asarray(direct))
    return value


@cache
def _differentiable() -> Callable[..., jax.Array]:
    function = jax.custom_vjp(lambda *arguments: _forward(*arguments)[0])
    function.defvjp(_forward, _backward)
    return function


def _forward(params: HopParams, batch: HopBatch, direct: jax.Array) -> tuple[jax.Array, Any]:
    from scbjax.model import attend, sum_by_token
    from scbjax.task import product

    num_tokens, dtype = params.value.shape[0], params.value.dtype
    query = jax.nn.one_hot(batch.query, num_tokens, dtype=dtype)
    found = attend(params.first, batch.tokens, batch.query)
    found = jnp.where(direct, query, found)
    attended = sum_by_token(product(found, params.second.T), batch.tokens, num_tokens)
    target = jax.nn.one_hot(batch.label, num_tokens, dtype=dtype)
    error = product(attended, params.value.T) - target
    loss = 0.5 * jnp.sum(error**2) / batch.label.shape[0]
    return loss, (params, batch, direct, found, attended, error)


def _backward(kept: Any, cotangent: jax.Array) -> tuple[HopParams, None, None]:  # noqa: ANN401
    from scbjax.model import attend_transpose, look_up
    from scbjax.task import product

    params, batch, direct, found, attended, error = kept
    error = error * (cotangent / batch.label.shape[0])
    weights = look_up(product(error, params.value), batch.tokens)  # of w, [B, T]
    scores = jnp.where(direct, 0.0, product(weights, params.second))  # of h, [B, N]
    first = attend_transpose(scores, batch.tokens, batch.query)
    return HopParams(product(error.T, attended), first, product(weights.T, found)), None, None
