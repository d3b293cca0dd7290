"""Mixtures over lags: their probabilities, likelihood and scores, and sequences that they make.

All models are sums over heads h and lags g of a weight times a column of a matrix (see the text of
the package). Tables are looked up lag by lag; nothing of size (n, G) is kept.
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

    @property
    def is_by_lag(self) -> bool:
        """Whether each lag has a matrix of its own."""
        return self.kind == "mtdg"

    def __repr__(self) -> str:
        """Sizes, not the arrays."""
        heads, lags, _ = self.weights.shape[-3:]
        return (
            f"Mixture({self.kind}, {self.matrices.shape[-1]} symbols, {lags} lags, {heads} heads)"
        )


class Told(NamedTuple):
    """What a model says of windows, [L] each.

    Attributes:
        probability: of what came.
        likeliest: the likeliest symbol, int32.
        highest: its probability.
    """

    probability: jax.Array
    likeliest: jax.Array
    highest: jax.Array


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


def free_numbers(model: str, size: int, lags: Any, heads: int = 1) -> Any:  # noqa: ANN401
    """Free numbers of a model: those of its columns and of its weights.

    Args:
        model: one of `KINDS`.
        size: N.
        lags: G, an integer or an array of them.
        heads: H.

    Example:
        >>> [free_numbers(model, 2, 3) for model in KINDS]
        [4, 8, 6]
    """
    matrices = lags if model == "mtdg" else heads
    queries = size if model == "scb" else 1
    return matrices * size * (size - 1) + queries * (heads * lags - 1)


def terms_at(mixture: Mixture, chunk: Chunk, index: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    """``w P[y, x]`` [L] of every head at a lag by its index, and the cells (y, x)."""
    size = mixture.matrices.shape[-1]
    cells = chunk.label * size + chunk.at(mixture.lags[index])
    query = chunk.at(jnp.ones((), jnp.int32)) if mixture.kind == "scb" else None
    terms = []
    for head in range(mixture.weights.shape[0]):
        weight = mixture.weights[head, index]
        matrix = mixture.matrices[index if mixture.is_by_lag else head].ravel()
        terms.append((weight[0] if query is None else weight[query]) * matrix[cells])
    return terms, cells


def chunk_probability(mixture: Mixture, chunk: Chunk) -> jax.Array:
    """``P(y | past)`` of the windows of a chunk, [L]."""

    def add(total: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        return total + sum(terms_at(mixture, chunk, index)[0]), None

    order = jnp.arange(mixture.lags.shape[0], dtype=jnp.int32)
    found: jax.Array = jax.lax.scan(add, jnp.zeros_like(chunk.weights), order)[0]
    return found


@jax.jit
def distribution(mixture: Mixture, contexts: jax.Array) -> jax.Array:
    """``P(. | past)`` of contexts, [B, N].

    Args:
        mixture: the model.
        contexts: [B, d], in the order of time: the last column is lag 1.
    """
    size, length = mixture.matrices.shape[-1], contexts.shape[1]
    found = contexts[:, length - mixture.lags].astype(jnp.int32)  # [B, G]
    if mixture.is_by_lag:
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
def log_likelihood(mixture: Mixture, series: Series) -> jax.Array:
    """The log-likelihood of each chunk in nats; few, and summed on the host in double precision."""

    def part(chunk: Chunk) -> tuple[tuple[()], jax.Array]:
        return (), weighted_log(chunk_probability(mixture, chunk), chunk)

    told: jax.Array = over_chunks(series, part)[1]
    return told


def weighted_log(probability: jax.Array, chunk: Chunk) -> jax.Array:
    """The sum of ``log P(y)`` over the windows of a chunk."""
    tiny = jnp.finfo(chunk.weights.dtype).tiny
    return jnp.sum(chunk.weights * jnp.log(jnp.maximum(probability, tiny)))


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
        law = distribution(mixture, _contexts(chunk, series.longest))
        return (), scores_of(law, chunk.label, chunk.weights)

    found: Scores = over_chunks(series, part, _SCORED)[1]
    return found


@jax.jit
def tell(mixture: Mixture, series: Series) -> Told:
    """What a model says of each position of a series, [m]; of windows that do not fit, nonsense."""

    def part(chunk: Chunk) -> tuple[tuple[()], Told]:
        law = distribution(mixture, _contexts(chunk, series.longest))
        came = jnp.take_along_axis(law, chunk.label[:, None], axis=1)[:, 0]
        return (), Told(came, jnp.argmax(law, axis=1).astype(jnp.int32), jnp.max(law, axis=1))

    found: Told = over_chunks(series, part, _SCORED)[1]
    return Told(*map(jnp.ravel, found))


def _contexts(chunk: Chunk, longest: int) -> jax.Array:
    """What stands before the labels of a chunk, [L, longest], in the order of time."""
    windows = jnp.arange(chunk.weights.shape[0], dtype=jnp.int32)[:, None]
    return chunk.tokens[windows + jnp.arange(longest, dtype=jnp.int32)[None, :]]


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


def moved_inside(mixture: Mixture, mu: jax.Array, kept: float) -> Mixture:
    """A mixture without zeros: columns mixed with mu, weights with equal ones.

    Args:
        mixture: the model.
        mu: how often symbols occur, [N].
        kept: the share of the mixture's own.
    """
    heads, lags, _ = mixture.weights.shape
    return mixture._replace(
        weights=kept * mixture.weights + (1.0 - kept) / (heads * lags),
        matrices=kept * mixture.matrices + (1.0 - kept) * mu[None, :, None],
    )


@partial(jax.jit, static_argnames="length")
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
