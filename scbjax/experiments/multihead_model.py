"""Several heads: tasks, samples of them, and losses of a batch and in expectation.

The model is described in :mod:`scbjax.experiments.multihead`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import scbjax
from scbjax.lazily import Lazily
from scbjax.parts import Source

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")

_TOKENS, _QUERIES, _PLACES, _STEPS = range(4)  # counter streams of a batch


class HeadsTask(NamedTuple):
    """A mixture of sparse contextual bigrams with one stationary distribution.

    Attributes:
        transition: the P_h [H, N, N], column-stochastic.
        stationary: mu [N], with ``P_h mu = mu`` for every h.
        pattern: the Q_h [H, T, N].
        weights: w [H], with sum one.
    """

    transition: jax.Array
    stationary: jax.Array
    pattern: jax.Array
    weights: jax.Array

    @property
    def num_tokens(self) -> int:
        """N."""
        return int(self.pattern.shape[-1])

    @property
    def context_length(self) -> int:
        """T."""
        return int(self.pattern.shape[-2])


def random_heads(
    key: jax.Array,
    *,
    true_heads: int,
    num_tokens: int,
    context_length: int,
    sparsity: int,
    decay: jax.Array | float = 0.0,
    correlation: jax.Array | float = 0.0,
) -> HeadsTask:
    """Draws H bigrams with one mu, as :func:`scbjax.random_task` does, and disjoint supports.

    Args:
        key: a PRNG key.
        true_heads: H.
        num_tokens: N.
        context_length: T, at least H times the sparsity.
        sparsity: nonzeros of each column of each pattern.
        decay: beta of ``w_h ~ h^-beta``; 0 for equal weights.
        correlation: rho of ``P_h = rho P_1 + (1 - rho) P'_h``; 1 makes all P_h equal.

    Returns:
        The task, in float32.

    Example:
        >>> task = random_heads(jax.random.key(0), true_heads=2, num_tokens=3, context_length=9,
        ...     sparsity=2, decay=1.0)
        >>> task.pattern.shape, (3 * task.weights).round(3).tolist()
        ((2, 9, 3), [2.0, 1.0])
    """
    of_first, of_others, of_supports, of_weights = jax.random.split(key, 4)

    def draw(key: jax.Array) -> scbjax.Task:  # of as many positions as its support has
        return scbjax.random_task(
            key, num_tokens=num_tokens, context_length=sparsity, sparsity=sparsity
        )

    first = draw(of_first)

    def other(key: jax.Array) -> jax.Array:
        return scbjax.related_task(key, first, correlation=correlation).transition

    others = (
        [jax.vmap(other)(jax.random.split(of_others, true_heads - 1))] if true_heads > 1 else []
    )
    transition = jnp.concatenate([first.transition[None], *others])

    dense = jax.vmap(lambda key: draw(key).pattern)(jax.random.split(of_weights, true_heads))
    scores = jax.random.uniform(of_supports, (context_length, num_tokens))
    order = jnp.argsort(scores, axis=0)[: true_heads * sparsity].reshape(true_heads, sparsity, -1)
    heads = jnp.arange(true_heads, dtype=jnp.int32)[:, None, None]
    columns = jnp.arange(num_tokens, dtype=jnp.int32)[None, None, :]
    empty = jnp.zeros((true_heads, context_length, num_tokens), dense.dtype)
    ranks = jnp.arange(1, true_heads + 1, dtype=dense.dtype) ** -jnp.asarray(decay, dense.dtype)
    return HeadsTask(
        transition,
        first.stationary,
        empty.at[heads, order, columns].set(dense),
        ranks / ranks.sum(),
    )


class HeadsSampler(NamedTuple):
    """What batches are drawn with, made once of a task.

    Attributes:
        token_table: as that of :class:`scbjax.sampling.Sampler`.
        positions: the support of all heads, one after the other [H Q, N], int32.
        places_cdf: the distribution functions of these [H Q, N].
        label_cdf: those of the labels [N, H N], for each head and token.
        like: an array [T, 0], which says T.
    """

    token_table: jax.Array
    positions: jax.Array
    places_cdf: jax.Array
    label_cdf: jax.Array
    like: jax.Array


def heads_source(**sizes: int) -> Source:
    """Draws tasks of :func:`random_heads` and mini-batches (:class:`scbjax.Batch`) of them.

    The words are those of the library's own sampler: a batch spends one draw of a token for each
    position and for the query, one for head and position together, and one for the label.

    Args:
        **sizes: the static arguments of :func:`random_heads`.
    """

    def draw(key: jax.Array, values: Mapping[str, Any]) -> HeadsTask:
        chosen = {name: values[name] for name in ("decay", "correlation")}
        return random_heads(key, **sizes, **chosen)

    def prepare(task: HeadsTask) -> HeadsSampler:
        from scbjax.inversion import distribution_functions
        from scbjax.sampling import make_token_table

        heads, length, num_tokens = task.pattern.shape
        share, place = jax.lax.top_k(jnp.swapaxes(task.pattern, 1, 2), sizes["sparsity"])
        share = share * task.weights[:, None, None]
        by_rank = (jnp.swapaxes(x, 1, 2).reshape(-1, num_tokens) for x in (place, share))
        positions, shares = by_rank
        labels = jnp.swapaxes(task.transition, 0, 1).reshape(num_tokens, heads * num_tokens)
        return HeadsSampler(
            make_token_table(task.stationary),
            positions.astype(jnp.int32),
            distribution_functions(shares),
            distribution_functions(labels),
            jnp.zeros((length, 0)),
        )

    def sample(seed: Any, sampler: HeadsSampler, batch_size: int) -> scbjax.Batch:  # noqa: ANN401
        from scbjax.inversion import draw_from_columns, entry_of
        from scbjax.sampling import draw_contexts, draw_tokens

        num_tokens, length = sampler.positions.shape[1], sampler.like.shape[0]
        shape = (batch_size, length)
        tokens = draw_contexts(seed, _TOKENS, sampler.token_table, num_tokens, shape)
        query = draw_tokens(seed, _QUERIES, sampler.token_table, num_tokens, (batch_size,))
        query = query.astype(jnp.int32)
        place = draw_from_columns(seed, _PLACES, sampler.places_cdf, query)
        position = entry_of(sampler.positions, place, query)
        own = jnp.arange(batch_size, dtype=jnp.int32)
        token = entry_of(tokens, own, position).astype(jnp.int32)
        column = place // sizes["sparsity"] * num_tokens + token
        return scbjax.Batch(
            tokens, query, draw_from_columns(seed, _STEPS, sampler.label_cdf, column)
        )

    from scbjax.sources import step_seeds

    return Source(draw, sample, prepare, step_seeds)


def heads_loss(params: scbjax.Params, batch: scbjax.Batch) -> jax.Array:
    """The mean over the batch of ``1/2 |e_{x_o} - sum_j V_j X a_j^(k)|^2``.

    Its gradient is written out: with ``r_b`` the error over B and ``h_bj = X a_j``, that of V_j is
    ``sum_b r_b h_bj^T``, and that of A_j one look-up of ``V_j^T r_b`` for each token. Nothing of
    shape [B, T, N] is formed.

    Args:
        params: V [H', N, N] and A [H', T, N].
        batch: tokens [B, T], query [B], label [B].

    Returns:
        A scalar.
    """
    value: jax.Array = _heads_loss()(params, batch)
    return value


@cache
def _heads_loss() -> Callable[[Any, Any], jax.Array]:
    from scbjax.model import attend, attend_transpose
    from scbjax.task import product

    def forward(params: scbjax.Params, batch: scbjax.Batch) -> tuple[jax.Array, Any]:
        over_heads = jax.vmap(attend, in_axes=(0, None, None))
        attended = over_heads(params.attention, batch.tokens, batch.query)  # [H', B, N]
        output = jnp.sum(jax.vmap(lambda v, h: product(h, v.T))(params.value, attended), axis=0)
        target = jax.nn.one_hot(batch.label, output.shape[1], dtype=output.dtype)
        error = (output - target) / output.shape[0]
        return 0.5 * output.shape[0] * jnp.sum(error**2), (params, batch, attended, error)

    def backward(kept: Any, cotangent: jax.Array) -> tuple[scbjax.Params, None]:  # noqa: ANN401
        params, batch, attended, error = kept
        error = error * cotangent
        value = jax.vmap(lambda h: product(error.T, h))(attended)
        scores = jax.vmap(lambda v: product(error, v))(params.value)
        spread = jax.vmap(attend_transpose, in_axes=(0, None, None))
        return scbjax.Params(value, spread(scores, batch.tokens, batch.query)), None

    function = jax.custom_vjp(lambda params, batch: forward(params, batch)[0])
    function.defvjp(forward, backward)
    return function


def centred(matrices: jax.Array, stationary: jax.Array) -> jax.Array:
    """``V - (V mu) 1^T`` of each of [m, N, N]."""
    return matrices - jnp.sum(matrices * stationary[None, None, :], axis=-1, keepdims=True)


def inner_products(left: jax.Array, right: jax.Array, stationary: jax.Array) -> jax.Array:
    """``<L_i, R_j>_mu`` [m, n] of matrices [m, d, N] and [n, d, N]."""
    from scbjax.task import product

    rows = (left * stationary[None, None, :]).reshape(left.shape[0], -1)
    return product(rows, right.reshape(right.shape[0], -1).T)


def heads_population_loss(params: scbjax.Params, task: HeadsTask) -> jax.Array:
    """The expectation of :func:`heads_loss` for any V_j and A_j, from inner products of factors.

    With ``M`` the part of the output that does not depend on the context (its mean given k), and
    the centred U_j and P~_h of the module's text,

        1/2 - <M, mu> + 1/2 |M|^2 - sum_jh w_h <U_j, P~_h> <A_j, Q_h> + 1/2 sum_ij <U_i, U_j>
        <A_i, A_j>,

    in mu-norms. JAX's derivative of it has the same size: no moment [N x N, T x N] is formed.

    Args:
        params: V [H', N, N] and A [H', T, N].
        task: what is learned.

    Returns:
        A scalar.
    """
    mu = task.stationary
    value, truth = centred(params.value, mu), centred(task.transition, mu)
    mean = _mean_output(params, mu)
    flat = jnp.sum(mu * (0.5 * jnp.sum(mean**2, axis=0) - jnp.sum(mean * mu[:, None], axis=0)))
    cross = inner_products(value, truth, mu) * inner_products(params.attention, task.pattern, mu)
    square = inner_products(value, value, mu) * inner_products(
        params.attention, params.attention, mu
    )
    return 0.5 + flat - jnp.sum(cross * task.weights[None, :]) + 0.5 * jnp.sum(square)


def _mean_output(params: scbjax.Params, stationary: jax.Array) -> jax.Array:
    """``sum_j (1^T a_j^(k)) V_j mu``, [N, N] with a column for each query."""
    from scbjax.task import product

    means = jnp.sum(params.value * stationary[None, None, :], axis=-1)
    return product(means.T, jnp.sum(params.attention, axis=1))


def heads_excess_loss(params: scbjax.Params, task: HeadsTask) -> jax.Array:
    """The expected loss above that of the truth, a sum of squares: exact near zero, and never less.

    ``1/2 E |sum_j V_j X a_j - sum_h w_h P_h X q_h|^2``, query by query: what it forms of a query is
    [T, N x N].

    Args:
        params: V [H', N, N] and A [H', T, N].
        task: what is learned.

    Returns:
        A scalar.
    """
    from scbjax.task import product

    mu = task.stationary
    truth = centred(task.transition, mu) * task.weights[:, None, None]
    factors = jnp.concatenate([centred(params.value, mu), -truth]) * jnp.sqrt(mu)[None, None, :]
    factors = factors.reshape(factors.shape[0], -1)
    weights = jnp.concatenate([params.attention, task.pattern])

    def of_query(own: jax.Array) -> jax.Array:  # [H' + H, T]
        return jnp.sum(product(own.T, factors) ** 2)

    by_query = jax.lax.map(of_query, jnp.moveaxis(weights, -1, 0))
    mean = _mean_output(params, mu) - mu[:, None]
    return 0.5 * jnp.sum(mu * (by_query + jnp.sum(mean**2, axis=0)))
