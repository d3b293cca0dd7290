r"""Sequences that a model goes on with from its own output: tokens depend on one another.

The context of a position is the T tokens before it; row g - 1 of Q is the weight of lag g. With one
column q for all queries the next token is one step of P from the token at a lag drawn from q (a
mixture transition distribution, Raftery 1985), and mu stays what it is: every ``x_{n-g}`` has the
law mu, hence so has a step of P from it. With lags that depend on the last token, the token at a
lag is not independent of the query that chose the lag, and mu is kept no longer (:func:`shift`).
Learners use the frequencies that they have seen.

**Autocorrelation.** Let l be a left eigenvector of P with the eigenvalue r, and ``s_n = l[x_n]``
centred. Then ``E[s_{n+1} | past] = r sum_g q_g s_{n+1-g}``, an autoregression of order T:

    rho(g) = r sum_h q_h rho(g - h),   spectrum f(w) ~ 1 / |1 - r sum_h q_h exp(-i w h)|^2.

P here is reversible, ``P = b (a 1 + (1 - a) P' P'*) + (1 - b) mu 1^T`` for a random P' and its
reversal P'*. So all eigenvalues are real and none is negative; a and b are such that the largest is
the one asked for. Modes do not mix: in their basis, whitened so that tokens have covariance 1,
cross-moments are diagonal, ``rho_i(g)`` for each of the d = N - 1 modes.

**False lags.** The gradient in A at V is ``-tr(V~^T C(g))``: q convolved with the autocorrelation.
``rho(g)`` is not zero where two true lags differ by g, or add up to g, and so on. There it is at
most r times its largest at a true lag, so that nothing is false for r = 0, and for r > 0 all of it
passes any threshold with enough samples. The noise of a moment has the variance ``sum_k rho_i(k)
rho_j(k) / n`` (Bartlett 1946, who has a second term where i = j). Whitening, ``Phi = (C(1) .. C(T))
R^{-1}`` with the autocovariance R of a window (Yule-Walker), gives ``Phi(g) = q_g P~`` and nothing
else. R^{-1} of an autoregression is known, so the signal of a lag over its noise is

    n sum_i r_i^2 q_g^2 / (1 + r_i^2 |q|^2)   against   n sum_i r_i^2 q_g^2   of i.i.d. contexts:

a whitened window is worth at least half of an i.i.d. one, however slow P is, once there are many
more than the T d that the fit takes, and it costs one token instead of T + 1.

**Stage 1.** From uniform attention V is pulled by the mean over lags: ``sum_{g <= T} rho(g) / T``
instead of ``r / T``, for all lags tell of P, the false ones too. Its noise is ``mean_w f^2 |A(w)|^2
/ n`` (A the transform of a window) instead of ``1 / (n T)``. Both grow with r: more windows are
needed than i.i.d. ones, but not as many times more as there are tokens in the autocorrelation time
``sum_k rho(k)``. So it is of the order of T windows either way, which are T tokens or T^2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import scbjax
from scbjax.base import (
    RECORD_EVERY,
    STEPS,
    Choice,
    Experiment,
    Functions,
    Interval,
    Keys,
    Parameter,
    Values,
    Variable,
    in_turn,
)
from scbjax.experiments.parts_common import DECLARED, SPARSITY
from scbjax.experiments.scb_common import SPARSITY_FITS
from scbjax.lazily import Lazily

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")

BLOCK = 128
"""Windows that are looked at in one go; records come at whole numbers of blocks."""
LEVEL = 0.05
"""Chance of a threshold to let any false lag pass, where nothing is correlated."""
_MOST_STEPS = 34  # beyond, counts are no longer exact in float32
_BURN_IN = 50  # context lengths, before the first window
_PERIODS = 256  # context lengths that the autocorrelation of theory is cut off after
_SLOWEST = 0.95  # of which nothing is left by then: r^256 < 1e-5


class SequenceTask(NamedTuple):
    """A chain, and what theory knows of it.

    Attributes:
        transition: P [N, N], reversible.
        stationary: mu [N].
        pattern: Q [T, N], of lags: row g - 1 is lag g.
        eigenvalues: of P but for the one, [N - 1], rising.
        sizes: ``u_i^T diag(mu) u_i``, what a whitened mode counts in the norm of labels, [N - 1].
        modes: ``diag(mu)^(1/2) u_i``, the modes as deviations of mu, [N, N - 1].
    """

    transition: jax.Array
    stationary: jax.Array
    pattern: jax.Array
    eigenvalues: jax.Array
    sizes: jax.Array
    modes: jax.Array


class Moments(NamedTuple):
    """What a learner keeps of the windows that it has seen.

    Attributes:
        last: the T newest tokens, [T] int32; of i.i.d. contexts none are kept, and it stays.
        counts: windows with label n and token m at lag g, [T, N, N].
        seen: how often each token was seen, over what makes its sum n, [N].
    """

    last: jax.Array
    counts: jax.Array
    seen: jax.Array


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


# ---------------------------------------------------------------------------------------- the task


def whitening(stationary: jax.Array) -> jax.Array:
    """W [d, N] with ``W mu = 0`` and ``W diag(mu) W^T = 1``.

    Example:
        >>> mu = jnp.array([0.2, 0.3, 0.5])
        >>> own = whitening(mu)
        >>> bool(jnp.allclose(own * mu[None, :] @ own.T, jnp.eye(2), atol=1e-6))
        True
    """
    root = jnp.sqrt(stationary)
    # The reflection that takes the root to the last axis: its other rows are orthogonal to it.
    axis = root.at[-1].add(-1.0)
    mirror = jnp.eye(root.shape[0], dtype=root.dtype) - jnp.outer(axis, axis) * (
        2.0 / jnp.sum(axis**2)
    )
    return mirror[:-1] / root[None, :]


def _eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues and vectors of a symmetric matrix, one of a batch after the other.

    See :func:`scbjax.task.solve` for why.
    """
    from scbjax.singly import one_by_one

    values, vectors = one_by_one(jnp.linalg.eigh)(matrix)
    return values, vectors


def slow_transition(
    transition: jax.Array, stationary: jax.Array, slow: jax.Array | float
) -> jax.Array:
    """A reversible P [N, N] that keeps mu and whose largest eigenvalue but one is ``slow``.

    Args:
        transition: P' [N, N], any that keeps mu.
        stationary: mu [N].
        slow: r in [0, 1]; may be traced.

    Example:
        >>> task = scbjax.random_task(jax.random.key(0), num_tokens=3, context_length=9, sparsity=2)
        >>> own = slow_transition(task.transition, task.stationary, 0.7)
        >>> [round(float(v), 4) for v in jnp.sort(jnp.linalg.eigvals(own).real)[1:]]
        [0.7, 1.0]
    """
    from scbjax.task import product

    size, slow = stationary.shape[0], jnp.asarray(slow, transition.dtype)
    reversal = transition.T * stationary[:, None] / stationary[None, :]
    squared = product(transition, reversal)
    white = whitening(stationary)
    largest = _eigh(_symmetric(product(white, product(squared * stationary[None, :], white.T))))[0]
    top = jnp.clip(largest[-1], 0.0, 1.0 - 1e-6)
    stay = jnp.clip((slow - top) / (1.0 - top), 0.0, 1.0)
    kept = jnp.where(top > slow, slow / jnp.maximum(top, 1e-6), 1.0)
    identity = jnp.eye(size, dtype=transition.dtype)
    mixed = stay * identity + (1.0 - stay) * squared
    return kept * mixed + (1.0 - kept) * stationary[:, None]


def _symmetric(matrix: jax.Array) -> jax.Array:
    return (matrix + matrix.T) / 2.0


def chain_task(task: scbjax.Task, slow: jax.Array | float, lags: str) -> SequenceTask:
    """The chain of a task: its mu, its Q or the first column of it, and a P of a slow eigenvalue.

    Args:
        task: as :func:`scbjax.random_task` draws it.
        slow: the eigenvalue.
        lags: ``"fixed"``, the first column of Q whatever the query is, or ``"query"``.
    """
    from scbjax.task import product

    mu = task.stationary
    transition = slow_transition(task.transition, mu, slow)
    white = whitening(mu)
    inner = product(white, product(transition * mu[None, :], white.T))
    values, vectors = _eigh(_symmetric(inner))
    modes = product((white * mu[None, :]).T, vectors)  # W^T = diag(mu)^(-1/2) basis
    first = jnp.broadcast_to(task.pattern[:, :1], task.pattern.shape)
    pattern = first if lags == "fixed" else task.pattern
    return SequenceTask(transition, mu, pattern, values, jnp.sum(modes**2, axis=0), modes)


# ---------------------------------------------------------------------------------------- the data


def grow(
    key: jax.Array, task: SequenceTask, last: jax.Array, length: int, sparsity: int
) -> jax.Array:
    """Goes on with a sequence: the T tokens before and the new ones, [T + length] int32.

    Args:
        key: a PRNG key.
        task: the chain.
        last: the T tokens before, oldest first, int32.
        length: number of new tokens.
        sparsity: the largest number of nonzeros in a column of Q.

    Example:
        >>> task = scbjax.random_task(jax.random.key(0), num_tokens=3, context_length=4, sparsity=2)
        >>> chain = chain_task(task, 0.5, "fixed")
        >>> grow(jax.random.key(1), chain, jnp.zeros(4, jnp.int32), 6, 2).shape
        (10,)
    """
    context, num_tokens = task.pattern.shape
    weights, rows = jax.lax.top_k(task.pattern.T, sparsity)  # of every query
    upto = jnp.cumsum(weights, axis=1)
    labels = jnp.cumsum(task.transition, axis=0).T  # of every token, [N, N]
    uniform = jax.random.uniform(key, (2, length), task.transition.dtype)
    # Rounding may leave a sum below one: the last place takes what is left.
    place = jnp.sum(uniform[0][:, None, None] > upto[None, :, :-1], axis=2, dtype=jnp.int32)
    lags = 1 + jnp.take_along_axis(rows[None], place[:, :, None], axis=2)[:, :, 0]  # [length, N]
    sequence = jnp.concatenate([last, jnp.zeros((length,), jnp.int32)])

    def add(sequence: jax.Array, step: Any) -> tuple[jax.Array, None]:  # noqa: ANN401 - of scan
        index, own, level = step
        source = sequence[index - own[sequence[index - 1]]]
        token = jnp.sum(level > labels[source, : num_tokens - 1], dtype=jnp.int32)
        return sequence.at[index].set(token), None

    places = jnp.arange(context, context + length, dtype=jnp.int32)
    return jax.lax.scan(add, sequence, (places, lags.astype(jnp.int32), uniform[1]))[0]


def lag_counts(
    sequence: jax.Array,
    context: int,
    num_tokens: int,
    dtype: Any,  # noqa: ANN401 - of arrays
    unseen: jax.Array | int = 0,
) -> jax.Array:
    """How often label n has token m at lag g before it, [T, N, N], by Fourier transforms.

    Args:
        sequence: T tokens and those that are labels, [T + length].
        context: T.
        num_tokens: N.
        dtype: of the counts, which are whole numbers.
        unseen: how many of the oldest tokens are not counted.

    Example:
        >>> lag_counts(jnp.array([0, 1, 1, 0]), 1, 2, jnp.float32)[0].tolist()
        [[0.0, 1.0], [1.0, 1.0]]
    """
    total = sequence.shape[0]
    size = 1 << (total - 1).bit_length()  # no lag wraps around
    sequence = jnp.where(jnp.arange(total) < unseen, -1, sequence)  # which is one-hot nowhere
    hot = jax.nn.one_hot(sequence, num_tokens, axis=0, dtype=dtype)
    every = jnp.fft.rfft(hot, size)
    label = jnp.fft.rfft(hot[:, context:], size)
    both = jnp.fft.irfft(jnp.conj(label)[:, None, :] * every[None, :, :], size)
    # A label at place i and the token at place i + s of the whole are T - s apart.
    counts: jax.Array = jnp.round(jnp.moveaxis(both[:, :, :context], 2, 0)[::-1])
    return counts.astype(dtype)


def context_counts(batch: scbjax.Batch, num_tokens: int, dtype: Any) -> jax.Array:  # noqa: ANN401
    """The same of a batch of contexts of their own, [T, N, N]; row t of a context is lag t + 1."""
    from scbjax.task import product

    label = jax.nn.one_hot(batch.label, num_tokens, axis=0, dtype=dtype)
    by_token = [product(label, (batch.tokens == n).astype(dtype)) for n in range(num_tokens)]
    return jnp.moveaxis(jnp.stack(by_token), 2, 0).swapaxes(1, 2)


# ------------------------------------------------------------------------------------ the learners


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
    left = _inverse(_symmetric(eye - product(weights.T, right)))
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


# --------------------------------------------------------------------------------- what is expected


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


# -------------------------------------------------------------------------------- what is recorded


def _lags_found(passed: jax.Array, true: jax.Array) -> tuple[jax.Array, jax.Array]:
    """False lags and missed ones, int32 scalars."""
    return (
        jnp.sum(passed & ~true, dtype=jnp.int32),
        jnp.sum(~passed & true, dtype=jnp.int32),
    )


def _exact(chances: jax.Array, true: jax.Array) -> jax.Array:
    """The chance that the true lags pass and no others, if lags are independent."""
    return jnp.exp(jnp.sum(jnp.log(jnp.maximum(jnp.where(true, chances, 1.0 - chances), 1e-30))))


def _hits(score: jax.Array, true: jax.Array, sparsity: int) -> jax.Array:
    """Share of the largest scores that are at true lags."""
    _, chosen = jax.lax.top_k(score, sparsity)
    return jnp.mean(true[chosen], dtype=score.dtype)


def observe(
    task: SequenceTask, own: Expected, state: Moments, data: str, sparsity: int
) -> dict[str, jax.Array]:
    """All that is recorded, given what is expected."""
    found = moments(state.counts, state.seen)
    context, size = own.moment.shape
    level, true = threshold(context, size * size), jnp.max(task.pattern, axis=1) > 0
    value, plain, newton = two_steps(found)
    # The autocovariance of i.i.d. contexts is that of their tokens: nothing is left to whiten.
    whitened = yule_walker(found) if data == "sequence" else marginal(found)
    by_marginal = chance_marginal(own, found.windows, level)
    by_whitened = chance_whitened(own, found.windows, level) if data == "sequence" else by_marginal
    falsely, missed = _lags_found(marginal(found) > level, true)
    falsely_whitened, missed_whitened = _lags_found(whitened > level, true)
    truth = (task.transition - task.stationary[:, None]) * jnp.sqrt(task.stationary)[None, :]
    seen = whitening(found.mean) * jnp.sqrt(found.mean)[None, :]
    aligned = jnp.sum((value @ seen) * truth)
    lengths = jnp.sqrt(jnp.sum(value**2) * jnp.sum(truth**2))
    limit = jnp.sum((task.sizes * own.pull)[None, :] * own.moment, axis=1)
    spread = jnp.sqrt(jnp.sum(task.modes**2 * own.time[None, :], axis=1))
    return {
        "samples": jnp.round(found.windows).astype(jnp.int32),
        "marginal_false": falsely,
        "marginal_missed": missed,
        "marginal_false_expected": jnp.sum(jnp.where(true, 0.0, by_marginal)),
        "marginal_exact_expected": _exact(by_marginal, true),
        "whitened_false": falsely_whitened,
        "whitened_missed": missed_whitened,
        "whitened_exact_expected": _exact(by_whitened, true),
        "gradient_hits": _hits(plain, true, sparsity),
        "newton_hits": _hits(newton if data == "sequence" else plain, true, sparsity),
        "gradient_hits_limit": _hits(limit, true, sparsity),
        "value_cosine": aligned / jnp.maximum(lengths, 1e-12),
        "value_cosine_expected": expected_cosine(own, task, found.windows),
        "correlation_time": own.time[-1],
        "total_variation": jnp.sum(jnp.abs(found.mean - task.stationary)) / 2.0,
        "total_variation_shift": jnp.sum(jnp.abs(shift(own, task))) / 2.0,
        "total_variation_noise": jnp.sum(spread)
        / jnp.sqrt(2.0 * jnp.pi * jnp.maximum(found.windows, 1.0)),
    }


VARIABLES: Mapping[str, Variable] = {
    "samples": Variable("windows seen", "$n$", dtype="int32"),
    "marginal_false": Variable("false lags that pass by their cross-moments", dtype="int32"),
    "marginal_missed": Variable("true lags that do not pass by their cross-moments", dtype="int32"),
    "marginal_false_expected": Variable("expected number of false lags by cross-moments"),
    "marginal_exact_expected": Variable("expected chance of the true lags alone, cross-moments"),
    "whitened_false": Variable("false lags that pass once whitened", dtype="int32"),
    "whitened_missed": Variable("true lags that do not pass once whitened", dtype="int32"),
    "whitened_exact_expected": Variable("expected chance of the true lags alone, whitened"),
    "gradient_hits": Variable("share of true lags among the largest of the gradient in A"),
    "newton_hits": Variable("share of true lags among the largest of the Newton step on A"),
    "gradient_hits_limit": Variable("share of true lags in the gradient of endless data"),
    "value_cosine": Variable("cosine of V after a step from uniform attention to P"),
    "value_cosine_expected": Variable("expected cosine of V to P"),
    "correlation_time": Variable("integrated autocorrelation time of the slowest mode, in tokens"),
    "total_variation": Variable("total variation between the frequencies of tokens and mu"),
    "total_variation_shift": Variable("the same that lags by query make, to first order"),
    "total_variation_noise": Variable("the same that noise alone makes, expected"),
}

PARAMETERS = (
    DECLARED["task.num_tokens"],
    DECLARED["task.context_length"],
    SPARSITY,
    Parameter(
        "task.slow", float, 0.5, "traced", "outer",
        "The largest eigenvalue of P but one", Interval(0.0, _SLOWEST), symbol="$r$",
    ),
    Parameter(
        "task.lags", str, "fixed", "static", "outer",
        "Whether lags are the same for all queries or depend on the last token (query)",
        Choice(("fixed", "query")),
    ),
    Parameter(
        "task.data", str, "sequence", "static", "outer",
        "Windows of one sequence that the model goes on with, or independent contexts",
        Choice(("sequence", "independent")),
    ),
    replace(
        STEPS, check=Interval(1, _MOST_STEPS),
        help="Steps: step i comes to 2^(i / 2) blocks of 128 windows",
    ),
    RECORD_EVERY,
)  # fmt: skip


def _build(fixed: Values, _: Mapping[str, tuple[Any, ...]]) -> Functions:
    """The functions of a program."""
    num_tokens, context = fixed["task.num_tokens"], fixed["task.context_length"]
    sparsity, every = fixed["task.sparsity"], fixed["train.record_every"]
    data, lags = fixed["task.data"], fixed["task.lags"]
    ends = [0, *(round(2 ** (i / 2)) for i in range(1, fixed["train.steps"] + 1))]
    sizes = {"num_tokens": num_tokens, "context_length": context, "sparsity": sparsity}

    def draw(keys: Keys, values: Values) -> Drawn:
        task = chain_task(scbjax.random_task(keys.task, **sizes), values["task.slow"], lags)
        return task, expected(task, data)

    def block(key: jax.Array, task: SequenceTask, state: Moments, index: jax.Array) -> Moments:
        dtype = task.transition.dtype
        if data == "independent":
            counts = context_counts(_contexts(key, task, index), num_tokens, dtype)
            seen = jnp.sum(counts, axis=(0, 1)) / context
            return Moments(state.last, state.counts + counts, state.seen + seen)
        grown = grow(jax.random.fold_in(key, index), task, state.last, BLOCK, sparsity)
        counts = lag_counts(grown, context, num_tokens, dtype, context - BLOCK * index)
        seen = jnp.sum(jax.nn.one_hot(grown[context:], num_tokens, dtype=dtype), axis=0)
        return Moments(grown[-context:], state.counts + counts, state.seen + seen)

    def start(keys: Keys, _: Values, drawn: Drawn) -> Moments:
        task = drawn[0]
        first, then = jax.random.split(keys.start)
        logits = jnp.log(task.stationary)
        last = jax.random.categorical(first, logits, shape=(context,)).astype(jnp.int32)
        empty = jnp.zeros((context, num_tokens, num_tokens), task.transition.dtype)
        if data == "sequence":
            last = grow(then, task, last, _BURN_IN * context, sparsity)[-context:]
        return Moments(last, empty, empty[0, 0])

    def advance(keys: Keys, _: Values, drawn: Drawn, state: Moments, step: jax.Array) -> Moments:
        reached = jnp.asarray(ends, jnp.int32)
        add = partial(block, keys.data, drawn[0])
        moved: Moments = jax.lax.fori_loop(
            reached[step], reached[step + every], lambda i, own: add(own, i), state
        )
        return moved

    def record(
        _: Keys, __: Values, drawn: Drawn, state: Moments, ___: jax.Array
    ) -> dict[str, jax.Array]:
        return observe(*drawn, state, data, sparsity)

    def is_finite(state: Moments) -> jax.Array:
        return jnp.all(jnp.isfinite(state.counts))

    return Functions(draw, start, in_turn(advance, record, every), is_finite)


def _contexts(key: jax.Array, task: SequenceTask, index: jax.Array) -> scbjax.Batch:
    """A block of i.i.d. contexts, the label by the lags of the chain."""
    from scbjax.sampling import draw_batch, fold_in, make_sampler, make_seed

    own = scbjax.Task(task.transition, task.stationary, task.pattern)
    return draw_batch(fold_in(make_seed(key), index), make_sampler(own), BLOCK)


EXPERIMENT = Experiment(
    name="sequences",
    parameters=PARAMETERS,
    build=_build,
    variables=VARIABLES,
    live="samples",
    relations=(SPARSITY_FITS,),
)
"""Which lags tell the next token of a sequence, by cross-moments, whitened, and by two steps."""
