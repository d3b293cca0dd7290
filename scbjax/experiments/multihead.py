r"""Several heads: a mixture of H sparse contextual bigrams, and learners with H' heads.

A label follows ``sum_h w_h P_h X q_h^(k)``: a head h is drawn with probability w_h ~ h^-beta, then
a position from its pattern, then a step of its own transition matrix. All P_h keep mu, and the
supports of the heads are disjoint, query by query. The learner is ``F = sum_j V_j X a_j^(k)``.

**The identity.** Tokens are i.i.d., so with ``P~ = P - mu 1^T``, ``U_j = V_j - (V_j mu) 1^T``, and
where ``sum_j (1^T a_j) V_j mu = mu``, which preconditioned steps keep,

    excess loss = 1/2 |C - sum_j U_j (x) a_j|^2,        C = sum_h w_h P~_h (x) q_h,

in mu-norms: learning is a factorisation of the cross-moment C [N x N, T x N], and heads are its
rank. What an optimum of H' heads leaves is half the sum of the squares of the singular values of C
behind the H'-th. If all P_h are equal, C has rank one and one head suffices. If both the P~_h and
the q_h are orthogonal, the singular values are ``sigma_h = w_h |P~_h| |q_h|``.

**Linear attention identifies a span.** For any R [H, H] with an inverse and ``R 1 = 1``, which
keeps column sums, ``a_j = sum_h R_jh q_h`` with ``U = R^-T (w P~)`` gives the same output. From a
small start, heads that are trained together grow along the singular vectors of C, each by a share
that the start has drawn: R is as good as a random rotation. Heads trained *one after the other*
fit a residual of rank one less each time (deflation; Eckart & Young 1936): they come to the
singular vectors themselves, which are the q_h where the q_h are orthogonal and the products of the
``w_h P~_h`` small against the differences of their squares. So deflation identifies heads of
different weights, and of equal weights as little as a start at random.

**What l1 adds.** With disjoint supports and column sums of one, ``|a_j|_1 = sum_h |R_jh| >= 1``,
and it is 1 for every R without negative entries: l1 makes R nonnegative, and no permutation. A map
onto the simplex does the same by itself, and ``U = R^-T (w P~)`` has no such constraint. So neither
the loss nor the map identifies the heads: *how* a map moves does. A plain gradient step on the
logits of a softmax moves a weight at a speed of its square (:mod:`scbjax.experiments.maps`), so
that what a head attends to already wins: heads become pure. Of different weights several may take
the strongest, and a weak one be left over, for as long as nobody comes to it. The preconditioned
step in the metric of the map takes that away, and leaves mixtures.

**Heads that begin equal stay equal**: their gradients are equal, and they do what one head does.

**The scaling law.** Where both factors of a mode have grown from a small start, its strength s
follows ``ds/dt = 2 g s (1 - s / sigma)``, ``g = sigma sqrt(eta_V eta_A)``, so

    s(t) = sigma / (1 + (sigma / s_0 - 1) exp(-2 g t)):

a step at ``t = log(sigma / s_0) / (2 g) ~ 1 / w_h``. Modes are learned one after the other, and the
excess loss is half the sum of the squares of those that are not yet: a staircase. For
``w_h ~ h^-beta`` and infinitely many heads, ``h ~ t^(1/beta)`` are learned at time t, and what is
left, ``sum over h > t^(1/beta) of h^(-2 beta)``, falls as ``t^(-(2 beta - 1) / beta)``; with few
heads it falls faster, since the tail ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import scbjax
from scbjax.base import (
    INT32_MAX,
    Choice,
    Functions,
    Interval,
    Parameter,
    Relation,
    Values,
    Variable,
)
from scbjax.experiments.maps import map_weights, preconditioned
from scbjax.experiments.of_parts import learning
from scbjax.experiments.parts_common import (
    DATA,
    DECLARED,
    NO_L1,
    RATE_OF_VALUE,
    RATES,
    SAMPLES_ARE_DRAWN,
    SPARSITY,
    drawn_as,
    of_static,
    without,
)
from scbjax.lazily import Lazily
from scbjax.parts import Model, Observable, Source

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    import optax
else:
    jax, jnp, optax = Lazily("jax"), Lazily("jax.numpy"), Lazily("optax")

MAPS = ("linear", "softmax", "sparsemax")
_TOKENS, _QUERIES, _PLACES, _STEPS = range(4)  # counter streams of a batch

# ----------------------------------------------------------------------------------------- the task


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


# ----------------------------------------------------------------------------------------- the loss


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


# ------------------------------------------------------------------------------ the learner's parts


def signals(task: HeadsTask) -> tuple[jax.Array, jax.Array]:
    """``K_P = |P_h|^2 - |mu|^2`` and ``K_Q = |Q_h|^2 - 1/T``, each a mean over the true heads."""
    mu = task.stationary
    both = (jnp.sum(x**2 * mu[None, None, :], axis=(1, 2)) for x in (task.transition, task.pattern))
    transition, pattern = (jnp.mean(x) for x in both)
    return transition - jnp.sum(mu**2), pattern - 1.0 / task.context_length


def is_trained(heads: jax.Array, head_steps: jax.Array, count: jax.Array, size: int) -> jax.Array:
    """Which of ``size`` heads a step moves, as booleans [size].

    Args:
        heads: H', those that there are.
        head_steps: steps that each of them is trained alone, one after the other; from then on, or
            from the beginning if it is 0, all H' are.
        count: steps that were done before.
        size: of the arrays.

    Example:
        >>> is_trained(2, 10, 15, 4).tolist(), is_trained(2, 10, 20, 4).tolist()
        ([False, True, False, False], [True, True, False, False])
    """
    index = jnp.arange(size, dtype=jnp.int32)
    alone = jnp.asarray(count) // jnp.maximum(head_steps, 1)
    one_by_one = (jnp.asarray(head_steps) > 0) & (alone < heads)
    return (index < heads) & (~one_by_one | (index == alone))


def model_of(static: Mapping[str, Any]) -> Model:
    """H' heads, V_j and W_j behind a map, in arrays of ``max_heads``; those above H' stay flat."""
    size, name = static["max_heads"], static["attention_map"]

    def init(key: jax.Array, task: HeadsTask, values: Mapping[str, Any]) -> dict[str, jax.Array]:
        mu, length = task.stationary, task.context_length
        of_value, of_attention = jax.random.split(key)
        noise = jax.random.normal(of_value, (size, *task.transition.shape[1:]), mu.dtype)
        noise = centred(noise - jnp.mean(noise, axis=1, keepdims=True), mu)
        spread = jax.random.normal(of_attention, (size, *task.pattern.shape[1:]), mu.dtype)
        spread = spread - jnp.mean(spread, axis=1, keepdims=True)
        there = (jnp.arange(size, dtype=jnp.int32) < values["heads"]).astype(mu.dtype)
        there = there[:, None, None]
        # Where all are trained together they begin at random, in the units of the truth.
        scale = jnp.where(values["head_steps"] > 0, 0.0, values["start_scale"]) * there
        k_p, k_q = signals(task)
        noise, spread = (
            x
            * (
                scale
                * jnp.sqrt(k)
                * jax.lax.rsqrt(jnp.sum(x**2 * mu[None, None, :], axis=(1, 2), keepdims=True))
            )
            for x, k in ((noise, k_p), (spread, k_q))
        )
        even = there * mu[None, :, None] / jnp.asarray(values["heads"], mu.dtype)
        uniform = 1.0 / length if name == "linear" else 0.0
        # By how much the map multiplies a small change of W that sums to zero, at uniform A.
        slope = 1.0 / length if name == "softmax" else 1.0
        return {"value": even + noise, "attention": uniform + spread / slope}

    def readout(params: Mapping[str, jax.Array]) -> scbjax.Params:
        return scbjax.Params(params["value"], map_weights(name, params["attention"], 1.0))

    def loss(params: Mapping[str, jax.Array], batch: Any) -> jax.Array:  # noqa: ANN401
        both = readout(params)
        if isinstance(batch, HeadsTask):
            return heads_population_loss(both, batch)
        return heads_loss(both, batch)

    return Model(init, loss, readout)


def optimizer_of(static: Mapping[str, Any]) -> Callable[[Any, Any, Any], Any]:
    """The optimiser that the static values name, for the heads that a step trains."""
    from scbjax.algorithm import per_signal

    def make(task: HeadsTask, values: Mapping[str, jax.Array], _: object) -> Any:  # noqa: ANN401
        rate, ratio = values["rate"], values["attention_rate_ratio"]
        if static["optimizer"] == "preconditioned":
            k_p, k_q = signals(task)
            name, both = static["attention_map"], (per_signal(rate, k_q), per_signal(rate, k_p))
            own = preconditioned(
                name,
                cast("Any", task),  # of which mu is used
                both[0],
                both[1] * ratio,
                1.0,
                values["l1"],
            )
            return _some_heads(_over_heads(own), values)
        kind = optax.sgd if static["optimizer"] == "sgd" else optax.adam
        parts = {"value": kind(rate), "attention": kind(rate * ratio)}
        return _some_heads(
            optax.partition(parts, {"value": "value", "attention": "attention"}), values
        )

    return make


def _over_heads(own: Any) -> optax.GradientTransformationExtraArgs:  # noqa: ANN401
    """A transformation of matrices as one of all heads' [H', ...], whose state they share."""

    def of_one(grads: Any, state: Any, params: Any) -> Any:  # noqa: ANN401
        return own.update(grads, state, params)

    each = jax.vmap(of_one, in_axes=(0, None, 0), out_axes=(0, None))

    def init(params: Any) -> Any:  # noqa: ANN401
        return own.init(jax.tree.map(lambda leaf: leaf[0], params))

    def update(grads: Any, state: Any, params: Any, **_: object) -> Any:  # noqa: ANN401
        return each(grads, state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def _some_heads(
    own: Any,  # noqa: ANN401 - a transformation
    values: Mapping[str, jax.Array],
) -> optax.GradientTransformationExtraArgs:
    """A transformation that moves the heads of :func:`is_trained` alone; it counts its steps."""

    def init(params: Any) -> Any:  # noqa: ANN401
        return own.init(params), jnp.zeros((), jnp.int32)

    def update(grads: Any, state: Any, params: Any, **_: object) -> Any:  # noqa: ANN401
        inner, count = state
        updates, inner = own.update(grads, inner, params)
        size = grads["value"].shape[0]
        moves = is_trained(values["heads"], values["head_steps"], count, size)[:, None, None]
        updates = jax.tree.map(lambda u: jnp.where(moves, u, jnp.zeros_like(u)), updates)
        return updates, (inner, count + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def _source(static: Mapping[str, Any]) -> Source:
    return drawn_as(heads_source(**of_static(static, "true_heads")), static["data"])


def _learner(source: Source, static: Mapping[str, Any], **given: Any) -> scbjax.Learner:  # noqa: ANN401
    return scbjax.learner(source, model_of(static), optimizer_of(static), **given)


# -------------------------------------------------------------------------------- what is recorded


def _centred_attention(attention: jax.Array) -> jax.Array:
    return attention - jnp.mean(attention, axis=1, keepdims=True)


def _attention_products(view: scbjax.View) -> jax.Array:
    own = _centred_attention(view.params.attention)
    return inner_products(own, own, view.task.stationary)


def _attention_overlap(view: scbjax.View) -> jax.Array:
    own, true = (_centred_attention(x) for x in (view.params.attention, view.task.pattern))
    return inner_products(own, true, view.task.stationary)


def _value_products(view: scbjax.View) -> jax.Array:
    own = centred(view.params.value, view.task.stationary)
    return inner_products(own, own, view.task.stationary)


def _value_overlap(view: scbjax.View) -> jax.Array:
    mu = view.task.stationary
    return inner_products(centred(view.params.value, mu), centred(view.task.transition, mu), mu)


def _truth(task: HeadsTask) -> dict[str, jax.Array]:
    mu = task.stationary
    transition, pattern = centred(task.transition, mu), _centred_attention(task.pattern)
    return {
        "head_weights": task.weights,
        "transition_products": inner_products(transition, transition, mu),
        "pattern_products": inner_products(pattern, pattern, mu),
    }


RECORD = (
    Observable(
        lambda view: heads_excess_loss(view.params, view.task),
        "loss in expectation, above that of the truth", r"$L - L^*$", name="heads_excess_loss",
    ),
    Observable(
        _attention_products, "inner products of the heads' attention, less its mean",
        dims=("own_head", "other_own_head"), name="attention_products",
    ),
    Observable(
        _attention_overlap, "inner products of the heads' attention with the patterns",
        dims=("own_head", "head"), name="attention_overlap",
    ),
    Observable(
        _value_products, "inner products of the heads' values",
        dims=("own_head", "other_own_head"), name="value_products",
    ),
    Observable(
        _value_overlap, "inner products of the heads' values with the transition matrices",
        dims=("own_head", "head"), name="value_overlap",
    ),
    "batch_loss",
    "samples",
)  # fmt: skip

_COUNT = Interval(1, INT32_MAX)
PARAMETERS = (
    DECLARED["task.num_tokens"],
    DECLARED["task.context_length"],
    replace(SPARSITY, help="Nonzero weights in each column of each Q_h"),
    Parameter("task.true_heads", int, 4, "static", "outer", "Heads H of the task", _COUNT),
    Parameter(
        "task.decay", float, 0.0, "traced", "outer",
        "Power of the weights of the heads, h to the minus it; 0 for equal weights",
        Interval(0.0, 100.0), symbol=r"$\beta$",
    ),
    Parameter(
        "task.correlation", float, 0.0, "traced", "outer",
        "Share of the first P_h in the others; 1 makes them equal",
        Interval(0.0, 1.0), symbol=r"$\rho$",
    ),
    DATA,
    Parameter(
        "model.heads", int, 4, "traced", "inner", "Heads H' of the learner", _COUNT, symbol="$H'$"
    ),
    Parameter(
        "model.max_heads", int, 8, "static", "inner", "Heads that there is room for", _COUNT
    ),
    Parameter(
        "model.attention_map", str, "softmax", "static", "inner", "What makes A of W", Choice(MAPS)
    ),
    Parameter(
        "train.optimizer", str, "sgd", "static", "inner",
        "sgd, adam, or the paper's preconditioned step in the metric of the map",
        Choice(("sgd", "adam", "preconditioned")),
    ),
    RATE_OF_VALUE,
    DECLARED["train.attention_rate_ratio"],
    NO_L1,
    Parameter(
        "train.start_scale", float, 0.1, "traced", "inner",
        "Size of V_j and A_j at a random start, in that of the truth; 0 for heads that are equal",
        RATES,
    ),
    Parameter(
        "train.head_steps", int, 0, "traced", "inner",
        "Steps that each head is trained alone, one after the other; 0 for all together",
        Interval(0, INT32_MAX),
    ),
)  # fmt: skip

_RELATIONS = (
    Relation(
        ("model.heads", "model.max_heads"),
        lambda heads, size: heads <= size,
        "model.heads = {} is larger than model.max_heads = {}",
    ),
    Relation(
        ("task.true_heads", "task.sparsity", "task.context_length"),
        lambda heads, sparsity, length: heads * sparsity <= length,
        "task.true_heads = {} times task.sparsity = {} is larger than task.context_length = {}, "
        "and supports are disjoint",
    ),
    Relation(
        ("train.l1", "model.attention_map", "train.optimizer"),
        lambda l1, name, optimizer: l1 == 0 or (name, optimizer) == ("linear", "preconditioned"),
        "train.l1 = {} has no meaning with model.attention_map = '{}' and train.optimizer = '{}'",
    ),
    SAMPLES_ARE_DRAWN,
)

_SIZE_PATHS = ("task.true_heads", "model.max_heads")
_DRAWS = frozenset(p.path for p in PARAMETERS if p.table == "task")
_LEARNING = learning("multihead", _source, _learner, record=RECORD, parameters=PARAMETERS)


def _build(fixed: Values, varying: Mapping[str, tuple[Any, ...]]) -> Functions:
    return _LEARNING.build(fixed, varying)._replace(truth=_truth)


def _sizes(values: Values) -> dict[str, int]:
    true, own = (int(str(values[path])) for path in _SIZE_PATHS)
    return {"head": true, "other_head": true, "own_head": own, "other_own_head": own}


EXPERIMENT = replace(
    _LEARNING,
    build=_build,
    relations=_RELATIONS,
    default_record=without(_LEARNING.variables, "samples"),
    dims={**_LEARNING.dims, "other_head": Variable("another head of the task")},
    sizes=_sizes,
    size_paths=_SIZE_PATHS,
    truth={
        "head_weights": Variable("weights of the heads", "$w$", dims=("head",), depends_on=_DRAWS),
        "transition_products": Variable(
            "inner products of the transition matrices, less their mean",
            dims=("head", "other_head"), depends_on=_DRAWS,
        ),
        "pattern_products": Variable(
            "inner products of the patterns, less their mean",
            dims=("head", "other_head"), depends_on=_DRAWS,
        ),
    },
)  # fmt: skip
"""A mixture of sparse contextual bigrams, learned by several heads."""
