"""What is expected of the lags that are found in sequences.

The equations are derived in :mod:`scbjax.experiments.sequences`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from scbjax.experiments.sequences_task import SequenceTask
from scbjax.lazily import Lazily

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")

_PERIODS = 256  # context lengths that the autocorrelation of theory is cut off after


class Expected(NamedTuple):
    """What theory says of moments; modes i and j, [d] or [d, d].

    Attributes:
        moment: ``rho_i(g)`` [T, d], or ``r_i q_g`` of i.i.d. contexts.
        noise: n times the variance of the moment (i, j), [T, d, d].
        effect: what a window adds to Wald's statistic, [T].
        pull: mean of the moments over lags, [d].
        pull_noise: n times its variance, [d, d].
        time: of frequencies, n times their variance over that of a token, [d].
        near: ``rho_i(g - 1)`` of a sequence, [T, d].
    """

    moment: jax.Array
    noise: jax.Array
    effect: jax.Array
    pull: jax.Array
    pull_noise: jax.Array
    time: jax.Array
    near: jax.Array


Drawn: TypeAlias = tuple[SequenceTask, Expected]
"""What a trajectory learns from."""


def spectra(task: SequenceTask) -> jax.Array:
    """The spectrum of every mode, with mean 1, at frequencies that are not negative: [d, F]."""
    context = task.pattern.shape[0]
    size = 1 << (_PERIODS * context - 1).bit_length()
    weights = jnp.pad(task.pattern @ task.stationary, (1, 0))
    filtered = 1.0 - jnp.fft.rfft(task.eigenvalues[:, None] * weights[None, :], size)
    power = 1.0 / jnp.abs(filtered) ** 2
    return power / _mean(power)[:, None]


def _mean(spectrum: jax.Array) -> jax.Array:
    """The mean over all frequencies, of those that are not negative (the last axis)."""
    inside = 2.0 * jnp.sum(spectrum[..., 1:-1], axis=-1)
    return (spectrum[..., 0] + spectrum[..., -1] + inside) / (2 * spectrum.shape[-1] - 2)


def expected(task: SequenceTask, data: str) -> Expected:
    """What the module's text says, of fixed lags; of others, by their mean over queries.

    Args:
        task: the chain.
        data: ``"sequence"`` or ``"independent"``.
    """
    context, values = task.pattern.shape[0], task.eigenvalues
    weights = task.pattern @ task.stationary
    same = jnp.eye(values.shape[0], dtype=values.dtype)
    if data == "independent":
        moment = weights[:, None] * values[None, :]
        noise = jnp.ones((context, *same.shape), values.dtype)
        pull = values / context
        effect = jnp.sum(moment**2, axis=1)
        time = jnp.full_like(values, 1.0 / context)  # all tokens of a context are counted
        near = jnp.zeros_like(moment)
        return Expected(moment, noise, effect, pull, noise[0] / context, time, near)
    spectrum = spectra(task)
    size = 2 * spectrum.shape[1] - 2
    rho = jnp.fft.irfft(spectrum, size)  # at lag zero one
    apart = jnp.fft.irfft(spectrum**2, size)[:, 2 : 2 * context + 2 : 2]  # sum rho(k+g) rho(k-g)
    moment = rho[:, 1 : context + 1].T
    pairs = spectrum[:, None, :] * spectrum[None, :, :]
    noise = _mean(pairs)[None] + apart.T[:, :, None] * same[None]
    window = jnp.full((context,), 1.0 / context, values.dtype)
    transform = jnp.fft.rfft(jnp.pad(window, (1, 0)), size)
    once = _mean(pairs * jnp.abs(transform)[None, None, :] ** 2)
    twice = _mean(spectrum**2 * jnp.real(transform**2)[None, :])
    ahead = 1.0 + jnp.cumsum(_edges(values, weights), axis=1)  # sigma_i^2 (R_i^{-1})_gg
    effect = jnp.sum((values[:, None] * weights[None, :]) ** 2 / ahead, axis=0)
    pull, once = jnp.mean(moment, axis=0), once + same * twice[:, None]
    return Expected(moment, noise, effect, pull, once, spectrum[:, 0], rho[:, :context].T)


def shift(own: Expected, task: SequenceTask) -> jax.Array:
    """By how much the law of a token differs from mu where lags depend on the query, [N].

    To first order in that dependence. A token at lag g and the query are ``C(g - 1)`` from being
    independent, and a step of P takes mode i to r_i times itself:
    ``sum_i m_i r_i / (1 - r_i) sum_g rho_i(g - 1) sum_k q_g^(k) m_i[k]``, m_i a column of `modes`.
    """
    drive = jnp.sum(own.near * (task.pattern @ task.modes), axis=0)
    gain = task.eigenvalues / jnp.maximum(1.0 - task.eigenvalues, 1e-6)
    return jnp.sum(task.modes * (gain * drive)[None, :], axis=1)


def _edges(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Steps of the diagonal of R^{-1} along a window, by the formula of Gohberg and Semencul."""
    squares = (values[:, None] * weights[None, :]) ** 2
    before = jnp.concatenate([jnp.zeros_like(squares[:, :1]), squares[:, :-1]], axis=1)
    return before - squares[:, ::-1]


def chance(mean: jax.Array, variance: jax.Array, level: jax.Array) -> jax.Array:
    """That a sum of squares of normal numbers exceeds a level.

    By a gamma law of the same moments, whose cube root is nearly normal (Wilson & Hilferty 1931).
    """
    ninth = variance / jnp.maximum(9.0 * mean**2, 1e-12)  # 2 / (9 k) of k degrees of freedom
    place = (jnp.cbrt(level / jnp.maximum(mean, 1e-12)) - 1.0 + ninth) / jnp.sqrt(ninth)
    return jax.scipy.special.erfc(place / math.sqrt(2.0)) / 2.0


def chance_marginal(own: Expected, count: jax.Array, level: jax.Array) -> jax.Array:
    """That a lag passes by :func:`marginal`, [T]."""
    size = own.moment.shape[1]
    signal = own.moment[:, :, None] * jnp.eye(size, dtype=own.moment.dtype)[None]
    mean = count * jnp.sum(signal**2, axis=(1, 2)) + jnp.sum(own.noise, axis=(1, 2))
    variance = 2.0 * own.noise**2 + 4.0 * count * own.noise * signal**2
    return chance(mean, jnp.sum(variance, axis=(1, 2)), level)


def chance_whitened(own: Expected, count: jax.Array, level: jax.Array) -> jax.Array:
    """That a lag passes by :func:`yule_walker`, [T]."""
    context, size = own.moment.shape
    signal = jnp.maximum(count - context * size, 0.0) * own.effect
    freedom = float(size * size)
    return chance(signal + freedom, 2.0 * freedom + 4.0 * signal, level)


def expected_cosine(own: Expected, task: SequenceTask, count: jax.Array) -> jax.Array:
    """Cosine in the mu-norm of V~ after a step from uniform attention to P~; a scalar."""
    sizes, values = task.sizes, task.eigenvalues
    noise = jnp.sum(sizes[:, None] * own.pull_noise) / jnp.maximum(count, 1.0)
    length = jnp.sum(sizes * values**2) * (jnp.sum(sizes * own.pull**2) + noise)
    return jnp.sum(sizes * values * own.pull) / jnp.maximum(jnp.sqrt(length), 1e-12)
