"""How noisy a single sample is: the gradients of the two signals, and what they cost.

Descent on V and A moves the signals along ``-<G_V, P>_mu / K_P`` and ``-<G_A, Q>_mu / K_Q`` (Ren,
Wang & Lee 2024, Appendix C), G the preconditioned and projected gradient of eq. 4. For one sample
with ``h = X a^(k)`` and ``e = V h - e_{x_o}`` these are, for any V and A,

    mu geometry:      <G_V, P>_mu = e^T (P h - (1^T h) mu)
    paper's:          <G_V, P>_mu = e^T (P h - (1^T h) P (mu * mu) / |mu|^2)
    attention:        <G_A, Q>_mu = (V^T e)^T X (q^(k) - (1^T q^(k)) 1/T)

with ``mu * mu`` taken entry by entry. The left projector of eq. 4 changes nothing, because what it
meets sums to zero. The first two have the same expectation, but where mu is not uniform the second
holds ``e^T P (mu - mu * mu / |mu|^2)``, whose size does not fall with T. At the start this leaves

    mu geometry:      a deviation of order T^(-1/2)
    paper's:          a deviation that tends to that of c_y / K_P over y ~ mu,
                      c = P (mu - mu * mu / |mu|^2)

against an expectation of ``-1 / T``: drift stands out from noise after about T samples in one
geometry and after about T^2 in the other. :func:`initial_noise` is exact at every T (ours).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from scbjax.model import Params, attend, check_params
from scbjax.parameters import Geometry
from scbjax.sampling import (
    Batch,
    Sampler,
    check_batch,
    draw_batch,
    fold_in,
    make_sampler,
    make_seed,
)
from scbjax.task import (
    Task,
    check_one_task,
    mu_inner,
    pattern_signal,
    product,
    stationary_norm,
    transition_signal,
)
from scbjax.theory import ratio

# Context tokens that are drawn at a time: what is held in memory does not grow with T.
_PIECE_TOKENS = 2**18


class SignalGradients(NamedTuple):
    """The gradients of the signals, or one of their statistics.

    Attributes:
        value_mu: of alpha_V, with the projector that is orthogonal in the mu-inner product.
        value_paper: of alpha_V, with the projector that eq. 4 prints.
        attention: of alpha_A.
    """

    value_mu: jax.Array
    value_paper: jax.Array
    attention: jax.Array


class SignalNoise(NamedTuple):
    """What :func:`signal_noise` measures; the standard error of a mean is deviation / sqrt(n).

    Attributes:
        mean: mean over samples of each gradient; scalars.
        deviation: standard deviation over single samples; scalars.
    """

    mean: SignalGradients
    deviation: SignalGradients


def signal_gradients(params: Params, batch: Batch, task: Task) -> SignalGradients:
    """``<G_V, P>_mu / K_P`` and ``<G_A, Q>_mu / K_Q`` of every sample by itself (eq. 4).

    Args:
        params: V [N, N] and A [T, N].
        batch: tokens [B, T], query [B], label [B].
        task: the task.

    Returns:
        Three arrays [B] in the dtype of the parameters; 0 where a task has no signal.

    Example:
        >>> from scbjax.model import init_params
        >>> from scbjax.sampling import sample_batch
        >>> from scbjax.task import random_task
        >>> task = random_task(jax.random.key(0), num_tokens=3, context_length=50, sparsity=2)
        >>> batch = sample_batch(jax.random.key(1), task, 8)
        >>> signal_gradients(init_params(task), batch, task).value_mu.shape
        (8,)
    """
    check_one_task("task", task)
    check_params("params", params)
    check_batch(batch, task)
    return _signal_gradients(params, batch, task)


def _signal_gradients(params: Params, batch: Batch, task: Task) -> SignalGradients:
    mu, context = task.stationary, (batch.tokens, batch.query)
    attended = attend(params.attention, *context)
    mass = jnp.sum(attended, axis=1, keepdims=True)
    moved = product(attended, task.transition.T)
    labels = jnp.arange(task.num_tokens, dtype=batch.label.dtype)
    label = batch.label[:, None] == labels[None, :]
    error = product(attended, params.value.T) - label.astype(attended.dtype)
    printed = product(task.transition, mu**2) / stationary_norm(task)
    uniform = jnp.sum(task.pattern, axis=0, keepdims=True) / task.context_length
    wanted = attend(task.pattern - uniform, *context)
    k_p, k_q = transition_signal(task), pattern_signal(task)
    return SignalGradients(
        value_mu=ratio(jnp.sum(error * (moved - mass * mu[None, :]), axis=1), k_p),
        value_paper=ratio(jnp.sum(error * (moved - mass * printed[None, :]), axis=1), k_p),
        attention=ratio(jnp.sum(product(error, params.value) * wanted, axis=1), k_q),
    )


def signal_noise(
    key: jax.Array,
    params: Params,
    task: Task,
    num_samples: int,
    *,
    sampler: Sampler | None = None,
) -> SignalNoise:
    """Mean and standard deviation of :func:`signal_gradients` over fresh samples.

    Args:
        key: a PRNG key.
        params: V [N, N] and A [T, N].
        task: the task.
        num_samples: fresh samples, drawn a quarter of a million tokens at a time.
        sampler: that of the task, where it has been made already.

    Returns:
        The two statistics of the three gradients.
    """
    check_one_task("task", task)
    sampler = make_sampler(task) if sampler is None else sampler
    seed = make_seed(key)
    count = -(-num_samples * task.context_length // _PIECE_TOKENS)
    size = -(-num_samples // count)

    def measure(index: jax.Array) -> SignalGradients:
        return _signal_gradients(params, draw_batch(fold_in(seed, index), sampler, size), task)

    pieces = jax.lax.map(measure, jnp.arange(count, dtype=jnp.int32))
    samples = [piece.ravel()[:num_samples] for piece in pieces]
    return SignalNoise(
        SignalGradients(*(jnp.mean(sample) for sample in samples)),
        SignalGradients(*(jnp.std(sample) for sample in samples)),
    )


def initial_noise(task: Task, geometry: Geometry = "mu") -> jax.Array:
    """The standard deviation of the alpha_V-gradient of one sample at the start; exact.

    At ``V = mu 1^T``, ``A = 1 1^T / T`` a gradient times K_P is ``(mu - e_y)^T (c + (P h - mu))``,
    c as above, or 0 in the mu geometry. The label y comes from one of the T positions, whose token
    m it depends on; the others are independent of it. So, with ``f_m = c + (P_m - mu) / T`` and
    ``S = diag(mu) - mu mu^T``, the variance times K_P^2 is

        sum_m mu_m sum_n P[n, m] ((mu - e_n)^T f_m)^2 + (T - 1) / T^2 <P S P^T, S> - (K_P / T)^2.

    Args:
        task: the task.
        geometry: ``"mu"`` or ``"paper"``.

    Returns:
        The deviation, a scalar.

    Example:
        >>> from scbjax.task import random_task
        >>> task = random_task(jax.random.key(0), num_tokens=3, context_length=5000, sparsity=2)
        >>> bool(initial_noise(task, "mu") < 0.2 * initial_noise(task, "paper"))
        True
    """
    check_one_task("task", task)
    mu, length = task.stationary, float(task.context_length)
    constant = jnp.zeros_like(mu)
    if geometry == "paper":
        constant = mu - product(task.transition, mu**2) / stationary_norm(task)
    own = constant[:, None] + (task.transition - mu[:, None]) / length
    direct = jnp.sum(mu[:, None] * own, axis=0, keepdims=True) - own
    first = jnp.sum(mu * jnp.sum(task.transition * direct**2, axis=0))
    spread = jnp.diag(mu) - jnp.outer(mu, mu)
    moved = product(product(task.transition, spread), task.transition.T)
    others = jnp.sum(moved * spread) * ((length - 1.0) / length**2)
    signal = transition_signal(task)
    variance = first + others - (signal / length) ** 2
    return ratio(jnp.sqrt(jnp.maximum(variance, 0.0)), signal)


def label_scores(value: jax.Array, stationary: jax.Array) -> jax.Array:
    """``f(o, x) = V~[o, x] - mu^T V~_x``, V~ = V - mu 1^T: what label o says of token x, [N, N]."""
    apart = value - stationary[:, None]
    return apart - jnp.sum(stationary[:, None] * apart, axis=0, keepdims=True)


def entry_noise(value: jax.Array, stationary: jax.Array) -> jax.Array:
    """The variance of what a sample adds to a null entry of A while A is near uniform; a scalar.

    It is that of :func:`label_scores` over a label and a token that have nothing to do with each
    other, both of the law mu.

    Args:
        value: V [N, N].
        stationary: mu [N].

    Example:
        >>> mu = jnp.array([0.25, 0.75])
        >>> float(entry_noise(jnp.stack([mu, mu], axis=1), mu))
        0.0
    """
    scores = label_scores(value, stationary)
    return jnp.sum(stationary[None, :] * stationary[:, None] * scores**2)


def value_noise(attention: jax.Array, task: Task) -> jax.Array:
    """Squared mu-norm of a sample's part in the step on V, in expectation; a scalar.

    ``(1 - |mu|^2) (N - 1) |A|_mu^2``, and for a mu that is not uniform a small term more, since the
    label goes with the token that it comes from:
    ``2 (N |mu|^2 - sum_x mu . P_x) sum_k mu_k sum_t q_t a_t^2``.

    Args:
        attention: A [T, N], its columns with a sum of one.
        task: the task.
    """
    mu, norm = task.stationary, stationary_norm(task)
    size = mu_inner(attention, attention, mu)
    here = mu_inner(attention**2, task.pattern, mu)
    tilt = 2.0 * (task.num_tokens * norm - jnp.sum(mu[:, None] * task.transition))
    return (1.0 - norm) * (task.num_tokens - 1) * size + tilt * here
