"""Lags and P from cross-moments: one lag by itself, all of them together, and in two steps.

What each estimator does is said in :mod:`scbjax.experiments.sequences`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scbjax.experiments.sequences_task import symmetric, whitening
from scbjax.lazily import Lazily

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")

LEVEL = 0.05
"""Chance of a threshold to let any false lag pass, where nothing is correlated."""


class Moving(NamedTuple):
    """Cross-moments in whitened coordinates, d = N - 1 of them.

    Attributes:
        mean: frequencies of the tokens, [N].
        whole: ``W C(g) W^T``, [T, d, d].
        windows: n, a scalar.
    """

    mean: jax.Array
    whole: jax.Array
    windows: jax.Array


def moments(counts: jax.Array, seen: jax.Array) -> Moving:
    """Cross-moments of counts [T, N, N], whitened by the frequencies that were seen, [N].

    Of a sequence the first tokens have fewer lags, and every sum is divided by n: as those of a
    circle with T empty places, the autocovariances are those of a positive matrix R.
    """
    count = jnp.sum(seen)
    some = jnp.maximum(count, 1.0)
    uniform = jnp.full_like(seen, 1.0 / seen.shape[0])
    mean = jnp.where(count > 0, jnp.maximum(seen, 0.5) / some, uniform)  # none is zero
    mean = mean / jnp.sum(mean)
    white = whitening(mean)
    whole = jnp.einsum("cn,gnm,dm->gcd", white, counts / some, white)
    return Moving(mean, whole, count)


def threshold(context: int, freedom: int) -> jax.Array:
    """What a chi-squared number of so many degrees of freedom exceeds with chance LEVEL / T."""
    from scbjax.chances import chi_squared_quantile

    return chi_squared_quantile(LEVEL / context, freedom)


def marginal(found: Moving) -> jax.Array:
    """Pearson's statistic of label and token at every lag, [T]: n times the squared moments."""
    return found.windows * jnp.sum(found.whole**2, axis=(1, 2))


def _toeplitz(blocks: jax.Array) -> jax.Array:
    """R [T d, T d] of autocovariances [T, d, d], with itself at lag zero."""
    from scbjax.fitting.moments import lagged_covariance

    every = jnp.arange(blocks.shape[0], dtype=jnp.int32)
    size = blocks.shape[0] * blocks.shape[1]
    return lagged_covariance(blocks, every, every).reshape(size, size)


def yule_walker(found: Moving) -> jax.Array:
    """Wald's statistic of every lag of the autoregression, [T].

    ``tr(S^{-1} Phi_g (R^{-1})_gg^{-1} Phi_g^T)`` times the windows less those that the fit takes, S
    the covariance of what is not explained.
    """
    from scbjax.task import product, solve

    context, size, _ = found.whole.shape
    eye = jnp.eye(size, dtype=found.whole.dtype)
    own = jnp.concatenate([eye[None], found.whole[:-1]])
    right = found.whole.transpose(0, 2, 1).reshape(context * size, size)
    whole = jnp.eye(context * size, dtype=own.dtype)
    both = solve(_toeplitz(own), jnp.concatenate([whole, right], axis=1))
    weights = both[:, context * size :]  # Phi^T
    left = _inverse(symmetric(eye - product(weights.T, right)))
    each = jnp.arange(context)
    blocks = both[:, : context * size].reshape(context, size, context, size)[each, :, each, :]
    split = weights.reshape(context, size, size)
    spread = jax.vmap(_inverse)(blocks)
    total = jnp.einsum("gde,gdf,gfh,eh->g", split, spread, split, left)
    return jnp.maximum(found.windows - context * size, 0.0) * total


def _inverse(matrix: jax.Array) -> jax.Array:
    """The inverse of a small positive matrix, by elimination without pivots.

    A batch of calls of LAPACK would be a loop (:func:`scbjax.task.solve`); this is a few products.
    """
    size = matrix.shape[0]
    both = jnp.concatenate([matrix, jnp.eye(size, dtype=matrix.dtype)], axis=1)
    for row in range(size):
        own = both[row] / both[row, row]
        both = both - jnp.outer(both[:, row], own)
        both = both.at[row].set(own)
    return both[:, size:]


def two_steps(found: Moving) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Two steps of gradient descent from uniform attention, on V and then on A.

    The first makes ``V~`` of the mean over lags; A's gradient there, for a small step, is minus the
    first array of what comes out. The second array is its Newton step, the gradient divided by the
    curvature ``R_V[g, h] = tr(V~ C(g - h) V~^T)``.

    Returns:
        ``V~ diag(mu)^(1/2)`` in the basis of whitened tokens, [N, d], whose inner products are
        those of the mu-norm; and [T] twice.
    """
    from scbjax.task import solve

    labels = (whitening(found.mean) * found.mean[None, :]).T  # a label is this times whitened ones
    value = labels @ jnp.mean(found.whole, axis=0)
    plain = jnp.einsum("gcd,cd->g", found.whole, labels.T @ value)
    near = jnp.einsum("de,ged->g", value.T @ value, found.whole)[:-1]
    size = jnp.maximum(jnp.sum(value**2), jnp.finfo(near.dtype).tiny)
    row = jnp.concatenate([jnp.ones_like(near[:1]), near / size])
    return value, plain, solve(_toeplitz(row[:, None, None]), plain[:, None])[:, 0]
