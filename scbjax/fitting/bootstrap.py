"""How sure the weights of lags are: the whole fit again on blocks drawn with replacement.

Windows of neighbours are dependent, so that whole blocks of them are drawn (Kunsch 1989): each
block as often as a multinomial says, which weighs its windows. A window keeps the context that it
had, and nothing is glued together. EM goes on from the fit of the whole, several resamples at a
time under vmap. Intervals are *basic* ones (Davison & Hinkley 1997, 5.2), ``2 w - quantiles``, cut
to [0, 1].

Of a long sequence a part is resampled, evenly spaced blocks of a million windows, and the spread is
scaled by the root of its share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from scbjax.fitting.em import e_step, m_step, overrelaxed
from scbjax.fitting.mixtures import Mixture
from scbjax.fitting.series import CHUNK, Series

AT_ONCE = 4
"""Resamples under one vmap: what they count fits the cache."""
_FACTOR = 1.9  # of overrelaxed steps, without a look at the likelihood
_MOST = 1 << 20  # windows that are resampled


class Spread(NamedTuple):
    """What bootstrap tells.

    Attributes:
        low: lower ends of the intervals, [G].
        high: upper ends, [G].
        resamples: their number.
        block: windows of a block.
    """

    low: NDArray[Any]
    high: NDArray[Any]
    resamples: int
    block: int


def lag_weights(mixture: Mixture, mu: jax.Array) -> jax.Array:
    """The weight of each lag, over all heads and in the mean over queries, [G]."""
    total = jnp.sum(mixture.weights, axis=0)
    weights: jax.Array = total[:, 0] if total.shape[1] == 1 else total @ (mu / jnp.sum(mu))
    return weights


def block_length(count: int, longest: int) -> int:
    """Windows of a block: the longest lag or the cube root of their number, the larger."""
    return max(longest, int(round(count ** (1 / 3), 0)), 1)


def block_bootstrap(
    mixture: Mixture,
    series: Series,
    mu: jax.Array,
    *,
    smoothing: float,
    resamples: int,
    level: float = 0.95,
    seed: int = 0,
    iterations: int = 30,
    tell: Callable[[int], None] = lambda _: None,
) -> Spread:
    """Intervals for the weights of lags.

    Args:
        mixture: the fit.
        series: what it was fitted to.
        mu: how often symbols occur, [N].
        smoothing: of EM.
        resamples: their number.
        level: of the intervals.
        seed: of what is drawn.
        iterations: steps of EM on each resample.
        tell: is called with the number of resamples that are done.
    """
    part, share = _part_of(series)
    count = int(np.count_nonzero(np.asarray(part.weights)))
    block = block_length(count, int(mixture.lags[-1]))
    blocks = -(-part.weights.shape[0] // block)
    # Blocks without windows, behind the last, are not drawn.
    held = np.add.reduceat(np.asarray(part.weights), np.arange(0, part.weights.shape[0], block)) > 0
    random = np.random.default_rng(seed)
    steps = partial(_refit, block=block, iterations=iterations)
    own = steps(mixture, part, mu, smoothing, jnp.ones((1, blocks)))[0] if share < 1 else None
    found: list[NDArray[Any]] = []
    for done in range(0, resamples, AT_ONCE):
        drawn = random.multinomial(held.sum(), held / held.sum(), size=AT_ONCE)
        fitted = steps(mixture, part, mu, smoothing, jnp.asarray(drawn, jnp.float32))
        found.extend(np.asarray(fitted))
        tell(min(done + AT_ONCE, resamples))
    centre = np.asarray(lag_weights(mixture, mu))
    middle = centre if own is None else np.asarray(own)
    spread = (np.stack(found[:resamples]) - middle) * math.sqrt(share)
    tails = np.quantile(spread, [(1 + level) / 2, (1 - level) / 2], axis=0)
    low, high = np.clip(centre - tails, 0.0, 1.0)
    return Spread(low, high, resamples, block)


def _part_of(series: Series) -> tuple[Series, float]:
    """Evenly spaced chunks of a long series, and the share of it that they are."""
    size = series.weights.shape[0]
    if size <= _MOST:
        return series, 1.0
    chunks, kept = size // CHUNK, _MOST // CHUNK
    starts = np.round(np.linspace(0, chunks - 1, kept)).astype(int) * CHUNK
    # Each with the symbols before it; the windows that begin in those are no windows.
    length = CHUNK + series.longest
    tokens = [np.asarray(series.tokens[start : start + length]) for start in starts]
    weights = [
        np.concatenate(
            [np.asarray(series.weights[start : start + CHUNK]), np.zeros(series.longest)]
        )
        for start in starts
    ]
    flat = np.concatenate(weights).astype(series.weights.dtype)
    padded = -(-flat.size // CHUNK) * CHUNK
    joined = np.zeros(padded + series.longest, tokens[0].dtype)
    joined[: flat.size] = np.concatenate(tokens)
    own = np.zeros(padded, flat.dtype)
    own[: flat.size] = flat
    return Series(jnp.asarray(joined), jnp.asarray(own)), float(flat.sum() / series.weights.sum())


@partial(jax.jit, static_argnames=("block", "iterations"))
def _refit(
    mixture: Mixture,
    series: Series,
    mu: jax.Array,
    smoothing: jax.Array,
    multiplicity: jax.Array,
    *,
    block: int,
    iterations: int,
) -> jax.Array:
    """Weights of lags [R, G] after EM on each resample; multiplicities of blocks [R, blocks].

    The mean over queries is by how often each is one in the resample.
    """
    size = series.weights.shape[0]
    place = jnp.arange(size, dtype=jnp.int32) // block
    query = series.tokens[series.longest - 1 : series.longest - 1 + size]
    asked = jax.ops.segment_sum(series.weights, query, mu.shape[0])

    def one(times: jax.Array) -> jax.Array:
        own = series._replace(weights=series.weights * times[place])
        again = jax.ops.segment_sum(own.weights, query, mu.shape[0])
        own_mu = jnp.where(asked > 0, mu * again / jnp.where(asked > 0, asked, 1.0), 0.0)

        def step(at: Mixture, _: None) -> tuple[Mixture, None]:
            target = m_step(e_step(at, own)[0], at, smoothing, mu)
            return overrelaxed(at, target, jnp.asarray(_FACTOR)), None

        return lag_weights(jax.lax.scan(step, mixture, None, length=iterations)[0], own_mu)

    found: jax.Array = jax.vmap(one)(multiplicity)
    return found
