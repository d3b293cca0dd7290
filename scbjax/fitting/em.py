r"""Expectation-maximisation for mixtures over lags (Dempster, Laird & Rubin 1977).

With ``r = w P[y, x_{-g}] / P(y | past)``, the share of a term in what happened, a step makes each
weight the mean of its r over samples, of a query for SCB, and each matrix the sum of r over pairs
(y, x), columns to the sum of one. It never lowers the likelihood. With *smoothing* s it never
lowers the likelihood times Dirichlet priors: s samples by ``mu_y`` in every column, and s samples
for the weights, equally over those that are not zero. A weight of zero stays zero, so that terms
can be left out of a program.

Steps are over-relaxed (Salakhutdinov & Roweis 2003): along the line of logarithms from the old
values through the new ones. By a factor below two the fixed point still attracts; larger ones are
tried, and a step that lowers the objective is taken back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scbjax.fitting.mixtures import Mixture, chunk_probability, terms_at, weighted_log
from scbjax.fitting.moments import Moments
from scbjax.fitting.series import Chunk, Series, over_chunks

_GROWTH, _LONGEST = 1.2, 8.0  # of the factor of over-relaxation


class Data(NamedTuple):
    """What a model is fitted to.

    Attributes:
        series: the windows.
        moments: their pairs.
        smoothing: s.
    """

    series: Series
    moments: Moments
    smoothing: float


class ExpectedCounts(NamedTuple):
    """What a pass of EM counts, the shares r summed: shapes of weights and matrices."""

    weights: jax.Array
    matrices: jax.Array


def _count_chunk(mixture: Mixture, chunk: Chunk) -> tuple[ExpectedCounts, jax.Array]:
    probability = chunk_probability(mixture, chunk)
    possible = probability > 0
    scale = jnp.where(possible, chunk.weights / jnp.where(possible, probability, 1.0), 0.0)
    queries, size = mixture.weights.shape[-1], mixture.matrices.shape[-1]
    query = chunk.at(jnp.ones((), jnp.int32))

    def add(totals: list[jax.Array], index: jax.Array) -> tuple[list[jax.Array], Any]:
        terms, cells = terms_at(mixture, chunk, index)
        shares = [term * scale for term in terms]
        sums = [
            jnp.sum(share)[None] if queries == 1
            else jax.ops.segment_sum(share, query, queries)
            for share in shares
        ]  # fmt: skip
        tables = [jax.ops.segment_sum(share, cells, size * size) for share in shares]
        if mixture.is_by_lag:
            return totals, (jnp.stack(sums), tables[0])
        return [old + new for old, new in zip(totals, tables, strict=True)], (jnp.stack(sums), None)

    heads, lags = mixture.weights.shape[:2]
    zero = [jnp.zeros(size * size, chunk.weights.dtype)] * (0 if mixture.is_by_lag else heads)
    order = jnp.arange(lags, dtype=jnp.int32)
    totals, (weights, own) = jax.lax.scan(add, zero, order)
    tables = own if mixture.is_by_lag else jnp.stack(totals)
    shares = ExpectedCounts(jnp.moveaxis(weights, 0, 1), tables.reshape(mixture.matrices.shape))
    return shares, weighted_log(probability, chunk)


@jax.jit
def e_step(mixture: Mixture, series: Series) -> tuple[ExpectedCounts, jax.Array]:
    """The E-step: shares of every term, and the log-likelihood of each chunk in nats."""
    return over_chunks(series, partial(_count_chunk, mixture))


def m_step(
    shares: ExpectedCounts, mixture: Mixture, smoothing: jax.Array, mu: jax.Array
) -> Mixture:
    """The M-step: the mixture that shares are the counts of.

    Args:
        shares: of :func:`e_step`.
        mixture: that they were counted with; a column or a query without samples stays as it is.
        smoothing: s.
        mu: how often symbols occur, [N].
    """
    weights = shares.weights + _prior_counts(mixture, smoothing)
    matrices = shares.matrices + smoothing * mu[None, :, None]
    return mixture._replace(
        weights=_divided(weights, jnp.sum(weights, axis=(0, 1), keepdims=True), mixture.weights),
        matrices=_divided(matrices, jnp.sum(matrices, axis=1, keepdims=True), mixture.matrices),
    )


def overrelaxed(old: Mixture, new: Mixture, factor: jax.Array) -> Mixture:
    """``old (new / old)^factor``, with sums of one again; what is zero stays zero."""

    def along(one: jax.Array, two: jax.Array, axes: int | tuple[int, int]) -> jax.Array:
        there = (one > 0) & (two > 0)
        way = jnp.log(jnp.where(there, two, 1.0)) - jnp.log(jnp.where(there, one, 1.0))
        # What was next to nothing may grow a lot at once, and must not overflow.
        moved = jnp.where(there, one * jnp.exp(jnp.clip(factor * way, -20.0, 20.0)), 0.0)
        return _divided(moved, jnp.sum(moved, axis=axes, keepdims=True), two)

    return new._replace(
        weights=along(old.weights, new.weights, (0, 1)),
        matrices=along(old.matrices, new.matrices, 1),
    )


def relaxed_steps(
    mixture: Mixture,
    series: Series,
    smoothing: jax.Array,
    mu: jax.Array,
    *,
    factor: float,
    count: int,
) -> tuple[Mixture, jax.Array]:
    """So many steps, over-relaxed by one factor: EM where nothing may be looked at on the way.

    Args:
        mixture: the start.
        series: the windows.
        smoothing: s.
        mu: how often symbols occur, [N].
        factor: below two, so that the fixed point still attracts.
        count: steps.

    Returns:
        The mixture, and the log-likelihood before each of the steps, [count].
    """

    def step(at: Mixture, _: None) -> tuple[Mixture, jax.Array]:
        shares, told = e_step(at, series)
        target = m_step(shares, at, smoothing, mu)
        return overrelaxed(at, target, jnp.asarray(factor)), jnp.sum(told)

    found: tuple[Mixture, jax.Array] = jax.lax.scan(step, mixture, None, length=count)
    return found


def log_prior(mixture: Mixture, smoothing: jax.Array, mu: jax.Array) -> jax.Array:
    """What smoothing adds to the log-likelihood that EM raises; a scalar."""
    tiny = jnp.finfo(mixture.weights.dtype).tiny
    logs = jnp.log(jnp.maximum(mixture.weights, tiny))
    by_weight = jnp.sum(_prior_counts(mixture, smoothing) * logs)
    columns = mu[None, :, None] * jnp.log(jnp.maximum(mixture.matrices, tiny))
    return by_weight + smoothing * jnp.sum(columns)


def _prior_counts(mixture: Mixture, smoothing: jax.Array) -> jax.Array:
    """Of weights: s samples of every query, equally over the weights that are not zero."""
    there = mixture.weights > 0
    count = jnp.sum(there, axis=(0, 1), keepdims=True).astype(mixture.weights.dtype)
    return jnp.where(there, smoothing / jnp.maximum(count, 1.0), 0.0)


def _divided(counts: jax.Array, total: jax.Array, otherwise: jax.Array) -> jax.Array:
    return jnp.where(total > 0, counts / jnp.where(total > 0, total, 1.0), otherwise)


@jax.jit
def em_step(
    mixture: Mixture, series: Series, smoothing: jax.Array, mu: jax.Array
) -> tuple[Mixture, jax.Array]:
    """A step of EM; and the log-likelihood of each chunk before it, then the log of the prior.

    Example:
        >>> from scbjax.fitting.reading import as_symbols
        >>> from scbjax.fitting.series import series_of
        >>> start = Mixture(jnp.full((1, 2, 1), 0.5), jnp.full((1, 2, 2), 0.5), jnp.arange(1, 3))
        >>> series = series_of(as_symbols("abababab"), 2)
        >>> [f"{float(p):.2f}" for p in em_step(start, series, 0.0, jnp.ones(2))[0].weights.ravel()]
        ['0.50', '0.50']
    """
    shares, chunks = e_step(mixture, series)
    told = jnp.append(chunks, log_prior(mixture, smoothing, mu))
    return m_step(shares, mixture, smoothing, mu), told


_overrelaxed = jax.jit(overrelaxed)


def run_em(
    mixture: Mixture,
    data: Data,
    iterations: int,
    tolerance: float,
    tell: Callable[[int, float], None] = lambda *_: None,
) -> tuple[Mixture, float, int]:
    """Steps of EM until the log-likelihood of a symbol grows by less than a tolerance.

    Args:
        mixture: the start.
        data: what it is fitted to.
        iterations: at most.
        tolerance: nats a symbol.
        tell: is called with the number of steps and nats a symbol after each.

    Returns:
        The fit, its log-likelihood in nats, and the number of steps.
    """
    count, before, factor = float(data.moments.windows), -math.inf, 1.0
    best = mixture
    likelihood = -math.inf
    for done in range(1, iterations + 1):
        target, told = em_step(mixture, data.series, data.smoothing, data.moments.mu)
        terms = np.asarray(told, np.float64)
        now = float(terms.sum())
        if not now >= before:  # too long a step, NaN included: back to the plain one
            mixture, factor = best, 1.0
            continue
        gain, before, likelihood, best = now - before, now, float(terms[:-1].sum()), target
        tell(done, -likelihood / count)
        if gain < tolerance * count:
            return mixture, likelihood, done
        mixture = _overrelaxed(mixture, target, factor)
        factor = min(factor * _GROWTH, _LONGEST)
    return mixture, likelihood, iterations
