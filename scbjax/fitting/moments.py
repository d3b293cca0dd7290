r"""Fits by squared error, from counts of pairs of symbols alone: one pass over the data.

With centred symbols ``e~`` and ``G(s) = E[e~_t e~_{t-s}^T]``, ``G(-s) = G(s)^T``, what a model
``E[e~_t | past] = sum_g B_g e~_{t-g}`` leaves is least where (Yule & Walker)

    sum_g' B_g' G(g - g') = G(g)     for every lag g.

That is MTDg, with ``B_g = w_g (P_g - mu 1^T)``; where there are many lags it is solved by conjugate
gradients, in which the Toeplitz operator is a convolution. *Marginal* cross-moments, ``G(g)
diag(1/mu)``, are right only where the symbols of a context are independent; else they show lags
that are echoes of true ones.

MTD is the same with ``B_g = w_g P~``: its start is the leading singular pair of B as a matrix
(lag x entry) in the metric of mu; then weights, on the simplex, and P~ are solved for in turn.
Further heads are the next pairs, of what the heads before them leave. For SCB, the equations of a
query's weights have the same left-hand side if query and context are independent, and a right-hand
side that one more pass gives: ``E[P~[y, x_{-g}] | k]`` less that of the means.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scbjax.fitting.mixtures import Mixture
from scbjax.fitting.series import Chunk, Series, over_chunks
from scbjax.singly import one_by_one
from scbjax.task import solve

_RIDGE = 1e-3  # of G, in units of mu: its null vector is 1
_ITERATIONS = 60  # of conjugate gradients
_DENSE = 2048  # equations that are solved as they stand
_DESCENTS = 300  # steps on the weights
_ROUNDS = 4  # of weights and P in turn


_Descent: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]


class Moments(NamedTuple):
    """Counts of pairs, as frequencies.

    Attributes:
        pairs: of (symbol, symbol at a lag) for lags 0 to d, [d + 1, N, N]; sums of one.
        windows: that were counted.
    """

    pairs: jax.Array
    windows: jax.Array

    @property
    def mu(self) -> jax.Array:
        """How often symbols occur, [N]."""
        frequency: jax.Array = jnp.diagonal(self.pairs[0])
        return frequency

    @property
    def scale(self) -> jax.Array:
        """The same, at least that of one occurrence: what may be divided by, [N]."""
        return jnp.maximum(self.mu, 1.0 / self.windows)

    @property
    def covariance(self) -> jax.Array:
        """G of lags 0 to d, [d + 1, N, N]."""
        later, earlier = jnp.sum(self.pairs, axis=2), jnp.sum(self.pairs, axis=1)
        centred: jax.Array = self.pairs - later[:, :, None] * earlier[:, None, :]
        return centred


@partial(jax.jit, static_argnames=("size",))
def count_pairs(series: Series, size: int) -> Moments:
    """Counts pairs at all lags.

    Args:
        series: the windows.
        size: N.

    Example:
        >>> from scbjax.fitting.reading import as_symbols
        >>> from scbjax.fitting.series import series_of
        >>> count_pairs(series_of(as_symbols("ababa"), 1), 2).pairs[1].tolist()
        [[0.0, 0.5], [0.5, 0.0]]
    """

    def part(chunk: Chunk) -> tuple[jax.Array, None]:
        def at(_: None, lag: jax.Array) -> tuple[None, jax.Array]:
            cells = chunk.label * size + chunk.at(lag)
            return None, jax.ops.segment_sum(chunk.weights, cells, size * size)

        return jax.lax.scan(at, None, jnp.arange(series.longest + 1, dtype=jnp.int32))[1], None

    counts = over_chunks(series, part)[0].reshape(-1, size, size)
    total = jnp.sum(counts[0])
    return Moments(counts / total, total)


# ------------------------------------------------------------------------------- Yule and Walker


def whitened(moments: Moments, iterations: int = _ITERATIONS) -> jax.Array:
    """B of the equations of Yule and Walker, [d, N, N]: what each lag adds to all others.

    Args:
        moments: of pairs.
        iterations: of conjugate gradients, for a context whose equations are too many to be solved
            as they stand.
    """
    size, length = moments.pairs.shape[1], moments.pairs.shape[0] - 1
    if length * size > _DENSE:
        return _by_gradients(moments, iterations)
    lags = jnp.arange(1, length + 1, dtype=jnp.int32)
    inner = lagged_covariance(moments.covariance, lags, lags).reshape(length * size, -1)
    inner = inner + _RIDGE * jnp.kron(jnp.eye(length, dtype=inner.dtype), jnp.diag(moments.scale))
    told = jnp.swapaxes(moments.covariance[1:], 0, 1).reshape(size, -1)
    solved = solve(inner, told.T).T
    return jnp.swapaxes(solved.reshape(size, length, size), 0, 1)


def lagged_covariance(covariance: jax.Array, one: jax.Array, two: jax.Array) -> jax.Array:
    """``E[e~_{t-g} e~_{t-g'}^T]`` for all pairs of lags: [g, N, g', N].

    Args:
        covariance: G of lags 0 to d, [d + 1, N, N].
        one: lags g.
        two: lags g'.
    """
    gap = two[None, :] - one[:, None]
    found = covariance[jnp.abs(gap)]
    found = jnp.where((gap >= 0)[:, :, None, None], found, jnp.swapaxes(found, 2, 3))
    return jnp.swapaxes(found, 1, 2)


def _by_gradients(moments: Moments, iterations: int) -> jax.Array:
    covariance, mu = moments.covariance, moments.scale
    length = covariance.shape[0] - 1
    both = jnp.concatenate(
        [covariance[:length], jnp.swapaxes(covariance[length - 1 : 0 : -1], 1, 2)]
    )
    # K(s) for s = 0, .., d - 1 and, from behind, -1, .., -(d - 1): a circular convolution.
    kernel = jnp.fft.rfft(jnp.insert(both, length, 0.0, axis=0), axis=0)
    root = jnp.sqrt(mu)[None, None, :]

    def apply(scaled: jax.Array) -> jax.Array:
        """The operator on B diag(sqrt(mu)), which makes it well conditioned."""
        spread = jnp.fft.rfft(scaled / root, n=2 * length, axis=0)
        turned = jnp.fft.irfft(jnp.einsum("fab,fbc->fac", spread, kernel), n=2 * length, axis=0)
        return turned[:length] / root + _RIDGE * scaled

    solved = jax.scipy.sparse.linalg.cg(apply, covariance[1:] / root, maxiter=iterations)[0]
    found: jax.Array = solved / root
    return found


def conditional_tests(moments: Moments, lags: jax.Array, kept: jax.Array) -> jax.Array:
    """What each lag adds to those that are chosen: a chi-square statistic and a rank, [2, d].

    Of the residues R_g of ``e~_t`` and V_g of ``e~_{t-g}`` after a regression on the chosen lags,
    the first is ``n tr(diag(1/mu) R_g V_g^-1 R_g^T)``; where a lag adds nothing it has a chi-square
    law of (N - 1)^2 degrees. With nothing chosen it is the marginal test of independence, by which
    lags are screened. The second, by which they are ranked, leaves ``diag(1/mu)`` out: it is the
    squared error that the lag would take away, in which rare symbols don't drown the others.

    Args:
        moments: of pairs.
        lags: of those that are chosen, [G]; repeated where there are fewer.
        kept: which of them are meant, [G].
    """
    covariance, mu = moments.covariance, moments.scale
    size, length, count = mu.shape[0], covariance.shape[0] - 1, lags.shape[0]
    every = jnp.arange(1, length + 1, dtype=jnp.int32)
    ridge = _RIDGE * jnp.diag(mu)

    mask = jnp.repeat(kept, size).astype(covariance.dtype)
    inner = (
        lagged_covariance(covariance, lags, lags).reshape(count * size, -1)
        * mask[:, None]
        * mask[None, :]
    )
    inner = inner + jnp.diag(1.0 - mask) + jnp.kron(jnp.diag(kept.astype(mu.dtype)), ridge)
    cross = lagged_covariance(covariance, lags, every).reshape(count * size, -1) * mask[:, None]
    solved = solve(inner, cross)
    told = jnp.swapaxes(covariance[lags], 0, 1).reshape(size, -1) * mask[None, :]
    left = covariance[1:] - jnp.swapaxes((told @ solved).reshape(size, length, size), 0, 1)
    own = jnp.einsum(
        "sga,sgb->gab",
        cross.reshape(-1, length, size),
        solved.reshape(-1, length, size),
    )
    # Of a lag's own symbols: at the beginnings of records they may be others than elsewhere.
    often = jnp.sum(moments.pairs[1:], axis=1)
    spread = jax.vmap(jnp.diag)(often) - often[:, :, None] * often[:, None, :]
    rest = spread + ridge[None] - own
    turned = jnp.swapaxes(jax.vmap(solve)(rest, jnp.swapaxes(left, 1, 2)), 1, 2)
    scales = jnp.stack([1.0 / mu, jnp.ones_like(mu)])
    statistics: jax.Array = moments.windows * jnp.einsum("gyx,gyx,sy->sg", left, turned, scales)
    return statistics


def lag_strengths(effects: jax.Array, mu: jax.Array) -> jax.Array:
    """``|B_g|^2`` in the metric of mu, [d]: how much of the next symbol's variance a lag tells."""
    strengths: jax.Array = jnp.einsum("gyx,x->g", effects**2, mu)
    return strengths


def marginal(moments: Moments) -> jax.Array:
    """``G(g) diag(1/mu)``, [d, N, N]: what each lag tells by itself, echoes included."""
    return moments.covariance[1:] / moments.scale[None, None, :]


def smoothing_of(moments: Moments) -> float:
    """Pseudo-samples of a column by which pairs at one lag tell each other best, left out in turn.

    With counts c of pairs at the lag that tells most, the largest over s of the sum of
    ``c(y, x) log((c(y, x) - 1 + s mu_y) / (c(x) - 1 + s))``, on a grid from 0.1 to 10^4.
    """
    counts = np.round(np.asarray(moments.pairs, np.float64) * float(moments.windows))
    mu = np.asarray(moments.mu, np.float64)
    strongest = 1 + int(np.argmax(np.asarray(lag_strengths(marginal(moments), moments.mu))))
    pairs = counts[strongest]
    columns = pairs.sum(axis=0, keepdims=True)
    grid = np.geomspace(0.1, 1e4, 51)

    def left_out(s: float) -> float:
        told = np.maximum(pairs - 1 + s * mu[:, None], 1e-300) / np.maximum(columns - 1 + s, 1e-300)
        return float(np.sum(pairs * np.log(told)))

    return float(grid[int(np.argmax([left_out(s) for s in grid]))])


# ------------------------------------------------------------------------------------- the starts


@jax.jit
def start_mtdg(moments: Moments, lags: jax.Array) -> Mixture:
    """MTDg of the equations of Yule and Walker, columns projected onto the simplex."""
    mu = moments.mu
    effects = whitened(moments)[lags - 1]
    sizes = jnp.sqrt(lag_strengths(effects, mu))
    weights = sizes / jnp.sum(sizes)
    matrices = columns_on_simplex(effects / weights[:, None, None] + mu[None, :, None])
    return Mixture(weights[None, :, None], matrices, lags)


@partial(jax.jit, static_argnames="heads")
def start_mtd(moments: Moments, lags: jax.Array, heads: int = 1) -> Mixture:
    """MTD by squared error, one head after the other."""
    mu, covariance = moments.mu, moments.covariance
    effects = whitened(moments)[lags - 1]
    found: list[tuple[jax.Array, jax.Array]] = []
    for _ in range(heads):
        weights, matrix = _leading(effects, mu)
        if not found:  # later heads see what is left, for which the covariance is not enough
            weights, matrix = _alternate(covariance, moments.scale, lags, weights, matrix)
        effects = effects - weights[:, None, None] * matrix[None]
        found.append((weights, columns_on_simplex(matrix + mu[:, None])))
    weights, matrices = (jnp.stack(each) for each in zip(*found, strict=True))
    return Mixture(weights[:, :, None] / heads, matrices, lags)


def _leading(effects: jax.Array, mu: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights on the simplex and P~ of the leading singular pair."""
    flat = (effects * jnp.sqrt(mu)[None, None, :]).reshape(effects.shape[0], -1)
    weights = one_by_one(jnp.linalg.eigh)(flat @ flat.T)[1][:, -1]
    weights = jnp.where(jnp.sum(weights) < 0, -weights, weights)
    weights = jnp.maximum(weights, 0.0)
    weights = weights / jnp.maximum(jnp.sum(weights), 1e-12)
    matrix = jnp.einsum("g,gyx->yx", weights, effects) / jnp.maximum(jnp.sum(weights**2), 1e-12)
    return weights, matrix


def _alternate(
    covariance: jax.Array,
    scale: jax.Array,
    lags: jax.Array,
    weights: jax.Array,
    matrix: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Weights and P~ solved for in turn."""
    between = jnp.abs(lags[:, None] - lags[None, :])
    later = (lags[:, None] >= lags[None, :])[:, :, None, None]
    ridge = _RIDGE * jnp.diag(scale)
    for _ in range(_ROUNDS):
        told = jnp.einsum("yx,gyx->g", matrix, covariance[lags])
        curve = jnp.einsum("ya,sab,yb->s", matrix, covariance, matrix)[between]
        weights = descend(curve, told, weights)
        # sum_gg' w_g w_g' E[e~_g e~_g'^T], without an array [G, G, N, N] where there are many lags
        by_lag = jax.ops.segment_sum(
            jnp.where(later[:, :, 0, 0], weights[:, None] * weights[None, :], 0.0).ravel(),
            between.ravel(), covariance.shape[0],
        )  # fmt: skip
        half = jnp.einsum("s,sab->ab", by_lag, covariance)
        inner = half + half.T - by_lag[0] * covariance[0]
        outer = jnp.einsum("g,gyx->yx", weights, covariance[lags])
        matrix = solve(inner + ridge, outer.T).T
    return weights, matrix


def descend(
    curve: jax.Array, told: jax.Array, start: jax.Array, l1: jax.Array | float | None = None
) -> jax.Array:
    """Least ``1/2 w H w - b w`` on the simplex, or with l1 over all w >= 0; accelerated steps.

    Args:
        curve: H [G, G].
        told: b [G].
        start: w [G].
        l1: times ``sum(w)``; None for the simplex.
    """
    rate = 1.0 / jnp.maximum(jnp.max(jnp.sum(jnp.abs(curve), axis=1)), 1e-12)

    def proximal(moved: jax.Array) -> jax.Array:
        if l1 is None:
            return _on_simplex(moved)
        return jnp.maximum(moved - rate * l1, 0.0)

    def step(state: _Descent, _: None) -> tuple[_Descent, None]:
        weights, ahead, inertia = state
        new = proximal(ahead - rate * (curve @ ahead - told))
        larger = 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * inertia**2))
        return (new, new + (inertia - 1.0) / larger * (new - weights), larger), None

    first = (start, start, jnp.ones((), start.dtype))
    found: jax.Array = jax.lax.scan(step, first, None, length=_DESCENTS)[0][0]
    return found


def _on_simplex(vector: jax.Array) -> jax.Array:
    with jax.numpy_dtype_promotion("standard"):  # which optax counts on
        nearest: jax.Array = optax.projections.projection_simplex(vector)
    return nearest


def columns_on_simplex(matrices: jax.Array) -> jax.Array:
    """Columns projected onto the simplex, [..., N, N]."""
    columns = jnp.swapaxes(matrices, -1, -2)
    flat = columns.reshape(-1, columns.shape[-1])
    nearest = jax.vmap(_on_simplex)(flat)
    return jnp.swapaxes(nearest.reshape(columns.shape), -1, -2)


def start_of(
    model: str, series: Series, moments: Moments, lags: jax.Array, heads: int = 1
) -> Mixture:
    """A model by squared error.

    Args:
        model: ``mtd``, ``mtdg`` or ``scb``.
        series: the windows.
        moments: of their pairs.
        lags: of the model, [G] int32.
        heads: H; MTDg has one.
    """
    if model == "mtdg":
        mixture: Mixture = start_mtdg(moments, lags)
    elif model == "mtd":
        mixture = start_mtd(moments, lags, heads)
    else:
        mixture = start_scb(series, moments, lags, heads)
    return mixture


# -------------------------------------------------------------------------------- weights by query


@partial(jax.jit, static_argnames="heads")
def start_scb(series: Series, moments: Moments, lags: jax.Array, heads: int = 1) -> Mixture:
    """SCB by squared error: P of MTD, and the weights of every query."""
    base: Mixture = start_mtd(moments, lags, heads)
    size = base.matrices.shape[-1]
    if heads > 1:
        return base._replace(weights=jnp.repeat(base.weights, size, axis=2))
    told = _told_by_query(series, base, moments)
    centred = base.matrices[0] - moments.mu[:, None]
    between = jnp.abs(lags[:, None] - lags[None, :])
    curve = jnp.einsum("ya,sab,yb->s", centred, moments.covariance, centred)[between]
    first = lags == 1  # which is the query: constant, given the query
    curve = jnp.where(first[:, None] | first[None, :], 0.0, curve)
    weights = jax.vmap(lambda b: descend(curve, jnp.where(first, 0.0, b), base.weights[0, :, 0]))(
        told
    )
    # Where lag 1 is a lag, the simplex leaves to it what the others do not take.
    return base._replace(weights=weights.T[None])


def _told_by_query(series: Series, base: Mixture, moments: Moments) -> jax.Array:
    """``E[P~[y, x_{-g}] | k]`` less the same of the means given k, [K, G]."""
    size = base.matrices.shape[-1]
    matrix = base.matrices[0] - moments.mu[:, None]
    flat = matrix.ravel()

    def part(chunk: Chunk) -> tuple[jax.Array, None]:
        query = chunk.at(jnp.ones((), jnp.int32))

        def at(_: None, lag: jax.Array) -> tuple[None, jax.Array]:
            found = chunk.weights * flat[chunk.label * size + chunk.at(lag)]
            return None, jax.ops.segment_sum(found, query, size)

        sums = jax.lax.scan(at, None, base.lags)[1]
        return jnp.concatenate([sums, jax.ops.segment_sum(chunk.weights, query, size)[None]]), None

    sums = over_chunks(series, part)[0]
    means = sums[:-1] / jnp.maximum(sums[-1:], 1e-12)
    frequency = moments.scale[None, :]
    label = moments.pairs[1] / frequency  # E[e_y | k], [N, K]
    before = jnp.swapaxes(moments.pairs[base.lags - 1], 1, 2)
    seen = before / frequency[None]  # E[e_x | k], [G, N, K]
    return (means - jnp.einsum("yx,yk,gxk->gk", matrix, label, seen)).T
