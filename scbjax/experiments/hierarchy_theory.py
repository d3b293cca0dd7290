"""When the truth leads its rivals, among positions and among blocks of them, in theory.

The equations are derived in :mod:`scbjax.experiments.hierarchy`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import scbjax
from scbjax.lazily import Lazily

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    from jax.scipy import special
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")
    special = Lazily("jax.scipy.special")

_GRID = 48  # points of an integral over the largest of the rivals
_HALVINGS = 40  # of the range of samples, in its logarithm
_MOST_SAMPLES = 1e12


def block_sums(weights: jax.Array, block_length: int) -> jax.Array:
    """Sums over blocks of neighbouring rows: [M, N] from [T, N]."""
    return jnp.sum(weights.reshape(-1, block_length, weights.shape[-1]), axis=1)


class Contest(NamedTuple):
    """True rows of A, or of sums of A over blocks, and their rivals, in the units of f.

    Attributes:
        weights: of the true rows [N, rows].
        rivals: of each column; may be none.
        length: positions that a row is the sum of.
        mean: K.
        variance: v.
        second: the mean of f^2 at the position that the label came from.
        stationary: mu [N].
    """

    weights: jax.Array
    rivals: int
    length: int
    mean: jax.Array
    variance: jax.Array
    second: jax.Array
    stationary: jax.Array


def contest(task: scbjax.Task, weights: jax.Array, rivals: int, length: int) -> Contest:
    """The contest of true rows with these weights [N, rows], while V is on the way to P."""
    from scbjax.noise import entry_noise, label_scores

    scores, mu = label_scores(task.transition, task.stationary), task.stationary
    joint = task.transition * mu[None, :]
    variance = entry_noise(task.transition, mu)
    mean, second = jnp.sum(joint * scores), jnp.sum(joint * scores**2)
    return Contest(weights, rivals, length, mean, variance, second, mu)


def lead_probability(own: Contest, samples: jax.Array) -> jax.Array:
    """The probability that the true rows lead in all columns after so many samples; a scalar.

    Rows are independent and Gaussian. The largest of m rivals is below x with probability
    Phi(x)^m; all true rows are above that with the product of ``1 - Phi((x - z) / r)``, r the
    deviation of a true row over that of a null one.
    """
    noise = own.length * own.variance
    z = jnp.sqrt(samples * own.stationary)[:, None] * own.weights * own.mean / jnp.sqrt(noise)
    more = own.weights * (own.second - own.variance) - (own.weights * own.mean) ** 2
    deviation = jnp.sqrt(1.0 + more / noise)
    if own.rivals == 0:
        return jnp.ones((), z.dtype)
    shares = (jnp.arange(_GRID, dtype=z.dtype) + 0.5) / _GRID
    rival = -special.ndtri(-jnp.expm1(jnp.log(shares) / own.rivals))
    above = special.log_ndtr((z[None] - rival[:, None, None]) / deviation[None])
    return jnp.prod(jnp.mean(jnp.exp(jnp.sum(above, axis=2)), axis=0))


def samples_until(probability: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The samples at which a growing probability is one half; a scalar."""

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        passed = probability(jnp.exp(middle)) >= 0.5
        return jnp.where(passed, low, middle), jnp.where(passed, middle, high)

    start = (jnp.zeros(()), jnp.log(jnp.asarray(_MOST_SAMPLES, jnp.float32)))
    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, start)
    return jnp.exp(0.5 * (low + high))


def predictions(
    task: scbjax.Task, *, block_length: int, active_blocks: int, block_sparsity: int
) -> dict[str, jax.Array]:
    """The samples at which the truth leads in half of the runs, in theory.

    Args:
        task: the task.
        block_length: L.
        active_blocks: H.
        block_sparsity: s.

    Returns:
        Of blocks among all blocks, of positions among all positions and, under
        ``predicted_within_samples``, of positions within the true blocks.
    """
    blocks = block_sums(task.pattern, block_length)
    count = active_blocks * block_sparsity
    largest = jax.lax.top_k(task.pattern.T, count)[0]
    largest_blocks = jax.lax.top_k(blocks.T, active_blocks)[0]
    inside = active_blocks * block_length - count
    contests = {
        "predicted_block_samples": (
            largest_blocks, blocks.shape[0] - active_blocks, block_length,
        ),
        "predicted_position_samples": (largest, task.context_length - count, 1),
        "predicted_within_samples": (largest, inside, 1),
    }  # fmt: skip
    return {
        name: samples_until(partial(lead_probability, contest(task, *own)))
        if own[1]
        else jnp.zeros(())
        for name, own in contests.items()
    }


def predicted_switch(
    task: scbjax.Task, level: jax.Array, block_length: int, active_blocks: int
) -> jax.Array:
    """The samples at which the true blocks stand out by the level in half of the runs."""
    blocks = block_sums(task.pattern, block_length)
    weights = jax.lax.top_k(blocks.T, active_blocks)[0] - 1.0 / blocks.shape[0]
    own = contest(task, weights, 0, block_length)
    noise = jnp.sqrt(block_length * own.variance)

    def probability(samples: jax.Array) -> jax.Array:
        z = jnp.sqrt(samples * own.stationary)[:, None] * weights * own.mean / noise
        return jnp.prod(special.ndtr(z - level))

    return samples_until(probability)
