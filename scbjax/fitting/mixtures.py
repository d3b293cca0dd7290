r"""Mixtures over lags: probabilities, log-likelihood and the step of EM.

All models are sums over heads h and lags g of a weight times a column of a matrix (see the text of
the package). With ``r = w P[y, x_{-g}] / P(y | past)``, the share of a term in what happened, the
step of
expectation-maximisation (Dempster, Laird & Rubin 1977) makes each weight the mean of its r over
samples, of a query for SCB, and each matrix the sum of r over pairs (y, x), columns to the sum of
one. It never lowers the likelihood. With *smoothing* s it never lowers the likelihood times
Dirichlet priors: s samples by ``mu_y`` in every column, and s samples for the weights, equally over
those that are not zero. A weight of zero stays zero, so that terms can be left out of a program.

Steps are lengthened as in adaptive over-relaxation (Salakhutdinov & Roweis 2003): along the line
of logarithms from the old values through the new ones, by a factor below two the fixed point still
attracts, and a step that lowers the objective is taken back.

One pass looks two tables up and adds to them at every lag; nothing of size (n, G) is kept.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scbjax.fitting.series import Chunk, Series, over_chunks
from scbjax.model import sum_by_token
from scbjax.task import product

KINDS = ("mtd", "mtdg", "scb")
_SCORED = 1 << 10  # windows of which all N probabilities are kept at a time


class Mixture(NamedTuple):
    """A model of N symbols, G lags and H heads.

    Attributes:
        weights: [H, G, K], of which those of each k sum to one; K is N for SCB, 1 for others.
        matrices: [M, N, N], columns sum to one; M is H, and G for MTDg.
        lags: [G] int32, from 1.
    """

    weights: jax.Array
    matrices: jax.Array
    lags: jax.Array

    @property
    def kind(self) -> str:
        """One of `KINDS`; a single lag of MTDg is one of MTD."""
        heads, _, queries = self.weights.shape[-3:]
        if queries > 1:
            return "scb"
        return "mtdg" if heads == 1 and self.matrices.shape[-3] > 1 else "mtd"

    def __repr__(self) -> str:
        """Sizes, not the arrays."""
        heads, lags, _ = self.weights.shape[-3:]
        return (
            f"Mixture({self.kind}, {self.matrices.shape[-1]} symbols, {lags} lags, {heads} heads)"
        )


class Shares(NamedTuple):
    """What a pass of EM counts, the shares r summed: shapes of weights and matrices."""

    weights: jax.Array
    matrices: jax.Array


class Scores(NamedTuple):
    """Sums over windows, scalars.

    Attributes:
        log_loss: of ``-log P(y)``, in nats.
        brier: of ``sum_y' (P(y') - 1[y' = y])^2``.
        hits: how often the likeliest symbol came.
        windows: their number.
    """

    log_loss: jax.Array
    brier: jax.Array
    hits: jax.Array
    windows: jax.Array


def num_parameters(mixture: Mixture) -> int:
    """Free numbers of a model: those of its columns and of its weights.

    Example:
        >>> one = Mixture(jnp.ones((1, 3, 1)) / 3, jnp.ones((1, 2, 2)) / 2, jnp.arange(1, 4))
        >>> num_parameters(one)
        4
    """
    heads, lags, queries = mixture.weights.shape
    count, size, _ = mixture.matrices.shape
    return count * size * (size - 1) + queries * (heads * lags - 1)


def _by_lag(mixture: Mixture) -> bool:
    return mixture.kind == "mtdg"


def _terms(mixture: Mixture, chunk: Chunk, index: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    """``w P[y, x]`` [L] of every head at a lag by its index, and the cells (y, x)."""
    size = mixture.matrices.shape[-1]
    cells = chunk.label * size + chunk.at(mixture.lags[index])
    query = chunk.at(jnp.ones((), jnp.int32)) if mixture.kind == "scb" else None
    terms = []
    for head in range(mixture.weights.shape[0]):
        weight = mixture.weights[head, index]
        matrix = mixture.matrices[index if _by_lag(mixture) else head].ravel()
        terms.append((weight[0] if query is None else weight[query]) * matrix[cells])
    return terms, cells


def chunk_probability(mixture: Mixture, chunk: Chunk) -> jax.Array:
    """``P(y | past)`` of the windows of a chunk, [L]."""

    def add(total: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        return total + sum(_terms(mixture, chunk, index)[0]), None

    order = jnp.arange(mixture.lags.shape[0], dtype=jnp.int32)
    found: jax.Array = jax.lax.scan(add, jnp.zeros_like(chunk.weights), order)[0]
    return found


def _count_chunk(mixture: Mixture, chunk: Chunk) -> tuple[Shares, jax.Array]:
    probability = chunk_probability(mixture, chunk)
    possible = probability > 0
    scale = jnp.where(possible, chunk.weights / jnp.where(possible, probability, 1.0), 0.0)
    queries, size = mixture.weights.shape[-1], mixture.matrices.shape[-1]
    query = chunk.at(jnp.ones((), jnp.int32))

    def add(totals: list[jax.Array], index: jax.Array) -> tuple[list[jax.Array], Any]:
        terms, cells = _terms(mixture, chunk, index)
        shares = [term * scale for term in terms]
        sums = [
            jnp.sum(share)[None] if queries == 1
            else jax.ops.segment_sum(share, query, queries)
            for share in shares
        ]  # fmt: skip
        tables = [jax.ops.segment_sum(share, cells, size * size) for share in shares]
        if _by_lag(mixture):
            return totals, (jnp.stack(sums), tables[0])
        return [old + new for old, new in zip(totals, tables, strict=True)], (jnp.stack(sums), None)

    heads, lags = mixture.weights.shape[:2]
    zero = [jnp.zeros(size * size, chunk.weights.dtype)] * (0 if _by_lag(mixture) else heads)
    order = jnp.arange(lags, dtype=jnp.int32)
    totals, (weights, own) = jax.lax.scan(add, zero, order)
    tables = own if _by_lag(mixture) else jnp.stack(totals)
    shares = Shares(jnp.moveaxis(weights, 0, 1), tables.reshape(mixture.matrices.shape))
    tiny = jnp.finfo(chunk.weights.dtype).tiny
    return shares, jnp.sum(chunk.weights * jnp.log(jnp.maximum(probability, tiny)))


@jax.jit
def count_shares(mixture: Mixture, series: Series) -> tuple[Shares, jax.Array]:
    """A pass of EM: shares of every term, and the log-likelihood of each chunk in nats.

    (The latter are few, and are summed on the host in double precision.)
    """
    return over_chunks(series, partial(_count_chunk, mixture))


def maximised(shares: Shares, mixture: Mixture, smoothing: jax.Array, mu: jax.Array) -> Mixture:
    """The mixture that shares are the counts of.

    Args:
        shares: of :func:`count_shares`.
        mixture: that they were counted with; a column or a query without samples stays as it is.
        smoothing: s.
        mu: how often symbols occur, [N].
    """
    there = mixture.weights > 0
    count = jnp.sum(there, axis=(0, 1), keepdims=True).astype(mixture.weights.dtype)
    each = smoothing / jnp.maximum(count, 1.0)
    weights = shares.weights + jnp.where(there, each, 0.0)
    matrices = shares.matrices + smoothing * mu[None, :, None]
    return mixture._replace(
        weights=_divided(weights, jnp.sum(weights, axis=(0, 1), keepdims=True), mixture.weights),
        matrices=_divided(matrices, jnp.sum(matrices, axis=1, keepdims=True), mixture.matrices),
    )


def lengthened(old: Mixture, new: Mixture, factor: jax.Array) -> Mixture:
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


def log_prior(mixture: Mixture, smoothing: jax.Array, mu: jax.Array) -> jax.Array:
    """What smoothing adds to the log-likelihood that EM raises; a scalar."""
    there = mixture.weights > 0
    count = jnp.sum(there, axis=(0, 1), keepdims=True).astype(mixture.weights.dtype)
    each = smoothing / jnp.maximum(count, 1.0)
    tiny = jnp.finfo(mixture.weights.dtype).tiny
    by_weight = jnp.sum(each * jnp.where(there, jnp.log(jnp.maximum(mixture.weights, tiny)), 0.0))
    columns = mu[None, :, None] * jnp.log(jnp.maximum(mixture.matrices, tiny))
    return by_weight + smoothing * jnp.sum(columns)


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
    shares, chunks = count_shares(mixture, series)
    told = jnp.append(chunks, log_prior(mixture, smoothing, mu))
    return maximised(shares, mixture, smoothing, mu), told


def distribution(mixture: Mixture, contexts: jax.Array) -> jax.Array:
    """``P(. | past)`` of contexts, [B, N].

    Args:
        mixture: the model.
        contexts: [B, d], in the order of time: the last column is lag 1.
    """
    size, length = mixture.matrices.shape[-1], contexts.shape[1]
    found = contexts[:, length - mixture.lags].astype(jnp.int32)  # [B, G]
    if _by_lag(mixture):
        weights = mixture.weights[0, :, 0]

        def add(total: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
            return total + weights[index] * mixture.matrices[index].T[found[:, index]], None

        zero = jnp.zeros((contexts.shape[0], size), weights.dtype)
        order = jnp.arange(mixture.lags.shape[0], dtype=jnp.int32)
        total: jax.Array = jax.lax.scan(add, zero, order)[0]
        return total
    query = contexts[:, -1].astype(jnp.int32) if mixture.kind == "scb" else 0
    total = jnp.zeros((contexts.shape[0], size), mixture.weights.dtype)
    for weights, matrix in zip(mixture.weights, mixture.matrices, strict=True):
        attended = sum_by_token(jnp.broadcast_to(weights.T[query], found.shape), found, size)
        total = total + product(attended, matrix.T)
    return total


@jax.jit
def score(mixture: Mixture, series: Series) -> Scores:
    """Sums of log-loss, Brier score and hits over windows; [chunks] each.

    Example:
        >>> from scbjax.fitting.reading import as_symbols
        >>> from scbjax.fitting.series import series_of
        >>> coin = Mixture(jnp.ones((1, 1, 1)), jnp.full((1, 2, 2), 0.5), jnp.ones(1, jnp.int32))
        >>> found = score(coin, series_of(as_symbols("abbabaab"), 1))
        >>> round(float(found.log_loss.sum() / found.windows.sum() / jnp.log(2.0)), 6)
        1.0
    """

    def part(chunk: Chunk) -> tuple[tuple[()], Scores]:
        windows = jnp.arange(chunk.weights.shape[0], dtype=jnp.int32)[:, None]
        places = jnp.arange(series.longest, dtype=jnp.int32)[None, :]
        law = distribution(mixture, chunk.tokens[windows + places])
        return (), scores_of(law, chunk.label, chunk.weights)

    found: Scores = over_chunks(series, part, _SCORED)[1]
    return found


def scores_of(law: jax.Array, label: jax.Array, weights: jax.Array) -> Scores:
    """Scores of predictions.

    Args:
        law: probabilities [B, N].
        label: what came, [B].
        weights: of the samples, [B].
    """
    told = jnp.take_along_axis(law, label[:, None], axis=1)[:, 0]
    loss = -jnp.log(jnp.maximum(told, jnp.finfo(law.dtype).tiny))
    brier = jnp.sum(law**2, axis=1) - 2.0 * told + 1.0
    hit = (jnp.argmax(law, axis=1) == label).astype(law.dtype)
    return Scores(*(jnp.sum(weights * each) for each in (loss, brier, hit, jnp.ones_like(told))))


def sample(mixture: Mixture, key: jax.Array, start: jax.Array, length: int) -> jax.Array:
    """Goes on from a context, symbol by symbol, by the model itself.

    Args:
        mixture: the model.
        key: a PRNG key.
        start: a context [d], with d at least the longest lag.
        length: symbols to draw.

    Returns:
        [length] int32.
    """

    def step(context: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        law = distribution(mixture, context[None])[0]
        symbol = jax.random.categorical(key, jnp.log(law)).astype(context.dtype)
        return jnp.concatenate([context[1:], symbol[None]]), symbol

    drawn: jax.Array = jax.lax.scan(step, start.astype(jnp.int32), jax.random.split(key, length))[1]
    return drawn
