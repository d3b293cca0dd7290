"""Samples until what is learned by one step, the other half being kept, is recovered, in theory.

The equations are derived in :mod:`scbjax.experiments.modalities`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import scbjax
from scbjax.lazily import Lazily

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")

RECOVERED = 0.95  # the cosine to the truth from which on a half is
_SQUARED_TANGENT = 1.0 / RECOVERED**2 - 1.0


def value_samples(attention: jax.Array, task: scbjax.Task, shares: jax.Array) -> jax.Array:
    """Samples [n] with which shares [n] of the runs recover a new P, A [T, N] being kept."""
    from scbjax.noise import value_noise

    mu = task.stationary
    norm = jnp.sum(mu**2)
    freedom = (task.num_tokens - 1) * (1.0 - norm) ** 2
    freedom = freedom / (norm - 2.0 * jnp.sum(mu**3) + norm**2)
    signal = scbjax.mu_inner(attention, task.pattern, mu) ** 2 * scbjax.transition_signal(task)
    each = value_noise(attention, task) / (freedom * signal)
    return each / _SQUARED_TANGENT * chi_square(shares, jnp.maximum(freedom - 3.0, 0.5))


def chi_square(shares: jax.Array, freedom: jax.Array) -> jax.Array:
    """Quantiles of the chi-square law by Wilson and Hilferty (1931): its cube root is normal."""
    width = 2.0 / (9.0 * freedom)
    root = 1.0 - width + jax.scipy.special.ndtri(shares) * jnp.sqrt(width)
    return freedom * jnp.maximum(root, 0.0) ** 3


def pattern_samples(value: jax.Array, task: scbjax.Task, shares: jax.Array) -> jax.Array:
    """Samples [n] with which shares [n] of the runs recover a new Q, V [N, N] being kept."""
    from scbjax.noise import entry_noise

    mu, weights = task.stationary, task.pattern
    excess = value - mu[:, None]
    noise = entry_noise(value, mu)
    signal = scbjax.mu_inner(excess, task.transition - mu[:, None], mu)
    least = jnp.min(jnp.where(weights > 0, weights, jnp.inf), axis=0)
    # All noises of a column are below a level with the power T of one's probability.
    tails = -jnp.expm1(jnp.log(shares) / (task.num_tokens * task.context_length))
    level = -jax.scipy.special.ndtri(tails)
    hardest = jnp.max(noise / (mu * least**2))
    return level**2 * hardest / jnp.maximum(signal, 0.0) ** 2
