"""How many samples stage 1 takes by each method, in theory.

The equations are derived in :mod:`scbjax.experiments.cheaper`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import scbjax
from scbjax.lazily import Lazily

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    from jax.scipy import special

    from scbjax.parameters import Geometry
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")
    special = Lazily("jax.scipy.special")

SHORT_FIRST = "short_first"
_GRID = 48  # points of an integral
_MOST_GROWTH = 15.0  # e-foldings that are looked at
_LEAST_SHARE = 0.9  # of the runs that find a column's support, in Fano's inequality


class Tasks(NamedTuple):
    """What is learned, and the same P on short contexts.

    Attributes:
        task: the task.
        short: P and mu of the task, and a pattern of its own.
    """

    task: scbjax.Task
    short: scbjax.Task


def association(task: scbjax.Task) -> jax.Array:
    """phi^2 of the module's text: chi-squared of two neighbours in the chain, for one sample."""
    mu = task.stationary
    return jnp.sum((task.transition - mu[:, None]) ** 2 * mu[None, :] / mu[:, None])


def drift_level(
    task: scbjax.Task, samples: jax.Array, growth: jax.Array | float, projector: Geometry
) -> jax.Array:
    """The z of the module's text, deviations by which the sign of alpha_V is told.

    Args:
        task: the task.
        samples: n.
        growth: tau, the rate eta times the steps.
        projector: ``"mu"`` or ``"paper"``.
    """
    from scbjax.noise import initial_noise

    tau = jnp.clip(growth, 1e-2, _MOST_GROWTH)
    gained = jnp.sinh(tau) ** 2 / (0.5 * tau + 0.25 * jnp.sinh(2.0 * tau)) / tau
    return jnp.sqrt(samples * gained) / (task.context_length * initial_noise(task, projector))


def noise_energy(task: scbjax.Task, projector: Geometry) -> jax.Array:
    """The mean of |G_V|_mu^2 of one sample at the start, up to terms of 1 / T^2; a scalar."""
    mu = task.stationary
    size = jnp.sum(mu**2)
    constant = jnp.sum(mu**3) / size**2 - 1.0 if projector == "paper" else jnp.zeros_like(size)
    return (1.0 - size) * (constant + (task.num_tokens - 1) / task.context_length)


def lead_levels(
    task: scbjax.Task, samples: jax.Array, growth: jax.Array, projector: Geometry
) -> jax.Array:
    """Share of the samples that count for A, signed, where alpha_V is g deviations off its drift.

    V is made of ``a(t) = sinh(t) / T + g s(t)`` along P and of noise of size nu(t) across it, both
    in the units of P, and A of the sums over samples weighed by that:

        (int a)^2 / (tau int (a^2 + nu^2)),     s^2 = sigma^2 (eta / B) (t / 2 + sinh(2 t) / 4),
        nu^2 = (E |G_V|^2 / K_P - sigma^2) (eta / B) t.

    Returns:
        For each g, quantiles of the normal distribution, the square root with the sign of int a.
    """
    from scbjax.noise import initial_noise

    tau = jnp.clip(growth, 1e-2, _MOST_GROWTH)
    times = (jnp.arange(_GRID, dtype=tau.dtype) + 0.5) / _GRID * tau
    shares = (jnp.arange(_GRID, dtype=tau.dtype) + 0.5) / _GRID
    along = initial_noise(task, projector) ** 2
    across = noise_energy(task, projector) / scbjax.transition_signal(task) - along
    window = tau / samples  # eta / B
    spread = jnp.sqrt(along * window * (0.5 * times + 0.25 * jnp.sinh(2.0 * times)))
    mean = jnp.sinh(times) / task.context_length
    path = mean[None, :] + special.ndtri(shares)[:, None] * spread[None, :]
    apart = jnp.maximum(across, 0.0) * window * times
    whole = jnp.mean(path, axis=1)
    energy = jnp.mean(path**2 + apart[None, :], axis=1)
    return whole / jnp.sqrt(energy)


def matched_level(task: scbjax.Task, weights: jax.Array) -> jax.Array:
    """Deviations by which true weights [N, Q] stand out in A after one sample, where V is on P."""
    from scbjax.noise import entry_noise

    mu = task.stationary
    variance = entry_noise(task.transition, mu)
    return jnp.sqrt(mu)[:, None] * weights * scbjax.transition_signal(task) / jnp.sqrt(variance)


def left_cosine(task: scbjax.Task, samples: jax.Array) -> jax.Array:
    """Squared cosine of the leading left singular vector of the moments with that of P."""
    rows = float((task.num_tokens - 1) ** 2)
    columns = float(task.context_length * task.num_tokens)
    size = scbjax.mu_inner(task.pattern, task.pattern, task.stationary)
    signal = samples * association(task) * size / columns
    share = rows / columns
    cosine = 1.0 - share * (1.0 + signal) / jnp.maximum(signal * (signal + share), 1e-30)
    return jnp.where(signal**2 > share, cosine, 0.0)


def dense_samples(task: scbjax.Task) -> jax.Array:
    """Samples at which, with P known, the whole right vector has a squared cosine of one half."""
    size = scbjax.pattern_signal(task)
    return task.context_length * task.num_tokens / (association(task) * size)


def information_samples(task: scbjax.Task, sparsity: int) -> jax.Array:
    """Samples below which no method has all supports in nine of ten runs, by Fano's inequality.

    ``max_k (0.9 log binom(T, Q) - log 2) / (mu_k I_k)``, the weights of Q known beforehand.

    Args:
        task: the task, of whose columns each has Q nonzeros.
        sparsity: Q; N^Q contexts are gone through.
    """
    mu, tokens = task.stationary, task.num_tokens
    weights = _true_weights(task, sparsity)
    grids = jnp.meshgrid(*[jnp.arange(tokens)] * sparsity, indexing="ij")
    contexts = jnp.stack([grid.ravel() for grid in grids])  # [Q, N^Q]
    law = jnp.einsum("kq,oqc->kco", weights, task.transition[:, contexts], precision="highest")

    def entropy(shares: jax.Array) -> jax.Array:
        return -jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.maximum(shares, 1e-30)), 0), -1)

    chance = jnp.prod(mu[contexts], axis=0)
    told = entropy(mu) - jnp.sum(chance[None, :] * entropy(law), axis=1)
    length = float(task.context_length)
    choices = special.gammaln(length + 1.0) - special.gammaln(sparsity + 1.0)
    choices = choices - special.gammaln(length - sparsity + 1.0)
    return jnp.max((_LEAST_SHARE * choices - math.log(2.0)) / (mu * told))


def _true_weights(task: scbjax.Task, sparsity: int) -> jax.Array:
    """[N, Q], the largest first."""
    return jax.lax.top_k(task.pattern.T, sparsity)[0]


def _rival(task: scbjax.Task, sparsity: int) -> jax.Array:
    """The tail probability of the largest of a column's null entries, its median."""
    rivals = max(task.context_length - sparsity, 1)
    return -jnp.expm1(jnp.log(jnp.asarray(0.5, task.pattern.dtype)) / rivals)


def expected_estimate(
    name: str,
    sparsity: int,
    tasks: Tasks,
    samples: jax.Array,
    values: Mapping[str, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Of moments; roots of chi-squared variables count as normal."""
    from scbjax.chances import chi_squared_quantile

    task = tasks.task
    degrees = (task.num_tokens - 1) ** 2
    own = samples * task.stationary[:, None] * association(task)
    noncentral = own * _true_weights(task, sparsity) ** 2
    tail = _rival(task, sparsity)
    if name == "spectral":
        level = jnp.sqrt(noncentral * left_cosine(task, samples))
        found = jnp.prod(special.ndtr(level + special.ndtri(tail)))
        return found, found
    if name == "screening":
        tail = values["false_positives"] / (task.context_length * task.num_tokens)
    level = chi_squared_quantile(tail.astype(task.pattern.dtype), degrees)
    found = jnp.prod(special.ndtr(jnp.sqrt(noncentral + degrees - 1.0) - jnp.sqrt(level)))
    if name == "screening":
        found = found * jnp.exp(-values["false_positives"])
    return found, found


def expected_descent(
    static: Mapping[str, Any],
    tasks: Tasks,
    samples: jax.Array,
    values: Mapping[str, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Of A, by itself and together with the sign."""
    task, is_short = tasks.task, static["method"] == SHORT_FIRST
    growth = values["rate"] * samples / static["batch_size"]
    if is_short:
        samples, growth = 0.5 * samples, 0.0 * growth
    samples = jnp.maximum(samples, 1.0)
    weights = _true_weights(task, static["sparsity"])
    each = matched_level(task, weights) * jnp.sqrt(samples)
    rival = special.ndtri(_rival(task, static["sparsity"]))
    if is_short:
        sign = special.ndtr(drift_level(tasks.short, samples, growth, static["projector"]))
        found = jnp.prod(special.ndtr(each * jnp.sqrt(0.75) + rival))
        return found, found * sign
    shares = lead_levels(task, samples, growth, static["projector"])
    found = jnp.prod(special.ndtr(jnp.abs(shares)[:, None, None] * each[None] + rival), axis=(1, 2))
    return jnp.mean(found), jnp.mean(jnp.where(shares > 0, found, 0.0))
