"""What noise does to entries of A under a threshold: its size, and how often an entry is zero.

The equations are derived in :mod:`scbjax.experiments.adaptive`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import scbjax
from scbjax.lazily import Lazily

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")

_BELOW, _ABOVE = 12, 28  # nodes of the chain's density, on either side of zero
_DEVIATIONS = 6.5  # up to where the density is followed; with a mean above that it is never zero
_ITERATIONS = 64  # of the chain; it forgets by 1 - rho a step
_LEAST_DECAY = 0.1


def _spread(value: jax.Array, other: jax.Array, stationary: jax.Array) -> jax.Array:
    """``(V - mu 1^T) diag(mu) (W - mu 1^T)^T`` [N, N]."""
    from scbjax.task import product

    return product((value - stationary[:, None]) * stationary[None, :], other.T - stationary[None])


def noise_unit(value: jax.Array, stationary: jax.Array) -> jax.Array:
    """``s(V)``, the deviation of a sample's gradient of an entry of A; a scalar.

    Args:
        value: V [N, N] with ``V mu = mu``.
        stationary: mu [N].
    """
    from scbjax.task import product

    spread = _spread(value, value, stationary)
    square = jnp.sum(jnp.diagonal(spread) * stationary) - stationary @ product(spread, stationary)
    return jnp.sqrt(jnp.maximum(square, 0.0))


def noise_of(params: scbjax.Params, task: scbjax.Task) -> jax.Array:
    """``s_k`` [N]: the deviation, for query k, of a sample's gradient of an entry off the support.

    Args:
        params: V [N, N] and A [T, N] with ``V mu = mu`` and ``1^T A = 1^T``.
        task: the task.
    """
    mu, (value, attention) = task.stationary, params
    spread = _spread(value, value, mu)
    crossed = _spread(task.transition, value, mu)
    size = jnp.sum(attention**2, axis=0)
    overlap = jnp.sum(task.pattern * attention, axis=0)
    square = (
        noise_unit(value, mu) ** 2
        + size * jnp.sum(spread * spread)
        - 2.0 * overlap * jnp.sum(spread * crossed)
    )
    return jnp.sqrt(jnp.maximum(square, 0.0))


def zero_share(level: jax.Array, drift: jax.Array, decay: jax.Array) -> jax.Array:
    """How often ``x' = S_level((1 - decay) x + drift + noise)`` is zero; noise of deviation one.

    The stationary density on both sides of zero, by Gauss-Legendre quadrature, and the mass at it.

    Args:
        level: kappa, the threshold of the soft threshold S; a scalar.
        drift: not negative; a scalar.
        decay: rho; those below 0.1 are taken for 0.1, those above one for one.

    Returns:
        The probability of zero, a scalar.

    Example:
        >>> round(float(1 - zero_share(jnp.array(3.0), jnp.array(0.0), jnp.array(1.0))), 5)
        0.0027
    """
    from scbjax.task import product

    dtype = jnp.result_type(level)
    decay = jnp.clip(decay, _LEAST_DECAY, 1.0)
    tail = _DEVIATIONS / jnp.sqrt(decay * (2.0 - decay))
    drift = jnp.minimum(drift, level + decay * tail)
    ends = (-tail, tail + jnp.maximum(drift - level, 0.0) / decay)
    (below, below_weight), (above, above_weight) = (
        (jnp.asarray((x + 1.0) / 2.0, dtype) * end, jnp.asarray(w / 2.0, dtype) * jnp.abs(end))
        for (x, w), end in zip(map(np.polynomial.legendre.leggauss, (_BELOW, _ABOVE)), ends,
                               strict=True)
    )  # fmt: skip
    nodes = jnp.concatenate([below, above])
    weights = jnp.concatenate([below_weight, above_weight])

    def density(start: jax.Array) -> jax.Array:
        far = nodes + jnp.sign(nodes) * level - drift - (1.0 - decay) * start
        return jnp.exp(-0.5 * far**2) / float(np.sqrt(2.0 * np.pi))

    kernel = jax.vmap(density, out_axes=1)(nodes) * weights[None, :]
    from_zero = density(jnp.zeros((), dtype))

    def step(_: int, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        dense, zero = now
        dense = product(kernel, dense) + zero * from_zero
        return dense, jnp.clip(1.0 - jnp.sum(weights * dense), 0.0, 1.0)

    start = (jnp.zeros_like(nodes), jnp.ones((), dtype))
    zero: jax.Array = jax.lax.fori_loop(0, _ITERATIONS, step, start)[1]
    return zero
