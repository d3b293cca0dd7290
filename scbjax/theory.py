"""The population process of the learner: what the mini-batch trajectories are compared with.

Ren, Wang & Lee (2024), Appendices B and C. Starting from ``V = mu 1^T``, ``A = 1 1^T / T``,
noiseless preconditioned descent stays on the path

    V = alpha_V P + (1 - alpha_V) mu 1^T,      A = alpha_A Q + (1 - alpha_A) 1 1^T / T,

and is described by two numbers. Any (V, A) splits into its projection on the path, with ``alpha_V =
K_VP / K_P`` and ``alpha_A = K_AQ / K_Q``, and remainders ``Delta_V``, ``Delta_A``; Lemmas C.5 and
C.6 say exactly how one step with gradient noise ``h_V``, ``h_A`` moves the four quantities.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from scbjax.model import Params
from scbjax.task import (
    Task,
    check_one_task,
    mu_inner,
    pattern_signal,
    stationary_norm,
    transition_signal,
)


class PathProjection(NamedTuple):
    """(V, A) split along the population path (Appendix C).

    Attributes:
        alpha_value: alpha_V, a scalar.
        alpha_attention: alpha_A, a scalar.
        delta_value: Delta_V [N, N], orthogonal to the path in the mu-inner product.
        delta_attention: Delta_A [T, N], likewise.
    """

    alpha_value: jax.Array
    alpha_attention: jax.Array
    delta_value: jax.Array
    delta_attention: jax.Array


class Rates(NamedTuple):
    """Step sizes of one step.

    Attributes:
        value: eta_V.
        attention: eta_A.
    """

    value: jax.Array
    attention: jax.Array


class StepPrediction(NamedTuple):
    """What Lemmas C.5 and C.6 give for the state after one step; scalars.

    Attributes:
        alpha_value: alpha_V'.
        alpha_attention: alpha_A'.
        delta_value: ``|Delta_V'|_mu^2``.
        delta_attention: ``|Delta_A'|_mu^2``.
    """

    alpha_value: jax.Array
    alpha_attention: jax.Array
    delta_value: jax.Array
    delta_attention: jax.Array


class PopulationPath(NamedTuple):
    """A noiseless trajectory, from step 0 on.

    Attributes:
        alpha_value: alpha_V, [steps + 1].
        alpha_attention: alpha_A, [steps + 1].
    """

    alpha_value: jax.Array
    alpha_attention: jax.Array


def ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """``numerator / denominator``, and 0 where a task has no signal (K not above rounding)."""
    floor = 4.0 * jnp.finfo(denominator.dtype).eps
    return jnp.where(denominator > floor, numerator / jnp.maximum(denominator, floor), 0.0)


def signals(params: Params, task: Task) -> tuple[jax.Array, jax.Array]:
    """``alpha_V = K_VP / K_P`` and ``alpha_A = K_AQ / K_Q``: the share of the truth; scalars."""
    value = mu_inner(params.value, task.transition, task.stationary) - stationary_norm(task)
    attention = (
        mu_inner(params.attention, task.pattern, task.stationary) - 1.0 / task.context_length
    )
    return ratio(value, transition_signal(task)), ratio(attention, pattern_signal(task))


def path_point(
    alpha_value: jax.Array,
    alpha_attention: jax.Array,
    task: Task,
    context_length: int | None = None,
) -> Params:
    """The point of the population path with the given signals; T is that of the task by default."""
    check_one_task("task", task)
    length = context_length or task.context_length
    value = alpha_value * task.transition + (1.0 - alpha_value) * task.stationary[:, None]
    attention = alpha_attention * task.pattern + (1.0 - alpha_attention) / length
    return Params(value, attention)


def project_on_path(params: Params, task: Task) -> PathProjection:
    """Splits (V, A) into signals and remainders (Appendix C).

    Example:
        >>> from scbjax.task import random_task
        >>> task = random_task(jax.random.key(0), num_tokens=3, context_length=50, sparsity=2)
        >>> projection = project_on_path(Params(task.transition, task.pattern), task)
        >>> round(float(projection.alpha_value), 4)
        1.0
    """
    check_one_task("task", task)
    alpha_value, alpha_attention = signals(params, task)
    point = path_point(alpha_value, alpha_attention, task)
    return PathProjection(
        alpha_value, alpha_attention, params.value - point.value, params.attention - point.attention
    )


def expected_direction(params: Params, task: Task) -> Params:
    """The expected preconditioned gradients (Lemma B.8), where the three invariants hold.

    E grad_V      = |A|_mu^2 (V - mu 1^T) - <Q, A>_mu (P - mu 1^T)
    E grad_a^(k)  = K_V (a^(k) - 1/T) - K_VP (q^(k) - 1/T)
    """
    mu = task.stationary
    size = mu_inner(params.attention, params.attention, mu)
    overlap = mu_inner(task.pattern, params.attention, mu)
    value_signal = mu_inner(params.value, params.value, mu) - stationary_norm(task)
    cross_signal = mu_inner(params.value, task.transition, mu) - stationary_norm(task)
    value = size * (params.value - mu[:, None]) - overlap * (task.transition - mu[:, None])
    uniform = 1.0 / task.context_length
    attention = value_signal * (params.attention - uniform) - cross_signal * (
        task.pattern - uniform
    )
    return Params(value, attention)


def population_step(
    alpha_value: jax.Array,
    alpha_attention: jax.Array,
    rates: Rates,
    *,
    transition_signal: jax.Array | float,
    pattern_signal: jax.Array | float,
    context_length: int,
) -> tuple[jax.Array, jax.Array]:
    """One step of the population recursion (section 4 of the paper).

    alpha_V += eta_V K_Q (1 - alpha_A alpha_V) alpha_A + eta_V (1 - alpha_V) / T
    alpha_A += eta_A K_P (1 - alpha_V alpha_A) alpha_V
    """
    missing = 1.0 - alpha_value * alpha_attention
    push = pattern_signal * missing * alpha_attention + (1.0 - alpha_value) / context_length
    return (
        alpha_value + rates.value * push,
        alpha_attention + rates.attention * transition_signal * missing * alpha_value,
    )


def population_path(
    rates: Rates, *, transition_signal: float, pattern_signal: float, context_length: int
) -> PopulationPath:
    """The population recursion from ``alpha_V = alpha_A = 0``.

    Args:
        rates: eta_V and eta_A at every step, arrays [steps].
        transition_signal: K_P.
        pattern_signal: K_Q.
        context_length: T.

    Returns:
        The signals at steps 0 .. steps, in the dtype of the rates.

    Example:
        >>> rates = Rates(jnp.full(1500, 0.02), jnp.full(1500, 0.02))
        >>> path = population_path(
        ...     rates, transition_signal=1.0, pattern_signal=1.0, context_length=1000
        ... )
        >>> round(float(path.alpha_value[0]), 3), round(float(path.alpha_value[-1]), 3)
        (0.0, 1.0)
    """

    def body(
        carry: tuple[jax.Array, jax.Array], rate: Rates
    ) -> tuple[tuple[jax.Array, jax.Array], PopulationPath]:
        after = population_step(
            *carry,
            rate,
            transition_signal=transition_signal,
            pattern_signal=pattern_signal,
            context_length=context_length,
        )
        return after, PopulationPath(*after)

    zero = jnp.zeros((), rates.value.dtype)
    _, path = jax.lax.scan(body, (zero, zero), rates)
    return PopulationPath(*(jnp.concatenate([zero[None], alphas]) for alphas in path))


def sharpness(
    rates: Rates,
    *,
    transition_signal: jax.Array | float,
    pattern_signal: jax.Array | float,
    context_length: jax.Array | int,
) -> jax.Array:
    """The largest eigenvalue of ``I - J``, J the Jacobian at (P, Q) of a noiseless step (ours).

    Of a preconditioned, projected step (eqs. 4 to 6 in expectation, without l1). By Lemma B.8, a
    small deviation (D_V, D_A) from the truth that keeps the invariants changes the expected
    direction by

        (K_Q + 1/T) D_V + <Q, D_A>_mu (P - mu 1^T),      K_P D_A + <P, D_V>_mu (Q - 1 1^T / T).

    Across the population path V and A are apart, with curvatures ``K_Q + 1/T`` and ``K_P``. Along
    it, for ``D_V = v (P - mu 1^T)`` and ``D_A = a (Q - 1 1^T / T)``, a step multiplies (v, a) by

        I - [[eta_V (K_Q + 1/T), eta_V K_Q], [eta_A K_P, eta_A K_P]],

    whose larger eigenvalue is that of all, since its other entries are not negative. All
    eigenvalues are real and positive, so that a step contracts if and only if this one is below 2.
    Above that they go around the truth without settling, or settle at other products of V and A
    for as long as the weak pull of 1/T lets them; with ``eta_V = eta / K_Q``, ``eta_A = eta / K_P``
    and rates twice as large they leave every bound (along ``alpha_V = alpha_A`` and with ``T ->
    infinity`` a step is ``x + eta (1 - x^2) x``: it settles for ``eta < 1`` and is bounded for
    ``eta <= 2``). With noise steps are less stable: the bound is necessary, and not sufficient.

    Args:
        rates: eta_V and eta_A.
        transition_signal: K_P.
        pattern_signal: K_Q.
        context_length: T.

    Returns:
        The eigenvalue, of the shape that the arguments broadcast to.
    """
    value = rates.value * (pattern_signal + 1.0 / context_length)
    attention = rates.attention * transition_signal
    crossed = rates.value * pattern_signal * attention
    return 0.5 * (value + attention + jnp.sqrt((value - attention) ** 2 + 4.0 * crossed))


def stable_rate(
    *,
    transition_signal: jax.Array | float,
    pattern_signal: jax.Array | float,
    context_length: jax.Array | int,
    attention_rate_ratio: jax.Array | float = 1.0,
    scale_rates: bool = True,
) -> jax.Array:
    """The eta below which noiseless steps settle at (P, Q): ``2 / sharpness`` at eta = 1 (ours).

    Args:
        transition_signal: K_P.
        pattern_signal: K_Q.
        context_length: T.
        attention_rate_ratio: what eta is multiplied by for A; 0 for V alone, as in stage 3.
        scale_rates: whether ``eta_V = eta / K_Q`` and ``eta_A = eta / K_P``, or both are eta.

    Returns:
        The bound on eta, of the shape that the arguments broadcast to.

    Example:
        >>> bound = stable_rate(transition_signal=0.3, pattern_signal=0.5, context_length=5000)
        >>> round(float(bound), 3)
        1.0
    """
    one = jnp.ones_like(jnp.asarray(pattern_signal, float))
    rates = Rates(one, one * attention_rate_ratio)
    if scale_rates:
        rates = Rates(rates.value / pattern_signal, rates.attention / transition_signal)
    return 2.0 / sharpness(
        rates,
        transition_signal=transition_signal,
        pattern_signal=pattern_signal,
        context_length=context_length,
    )


def predict_step(params: Params, task: Task, noise: Params, rates: Rates) -> StepPrediction:
    """Lemmas C.5 and C.6: signals and remainders after a step without l1, from its noise.

    ``noise`` is (h_V, h_A), the mini-batch minus the expected preconditioned gradient. With
    ``c_V = eta_V (alpha_A^2 K_Q + 1/T + |Delta_A|_mu^2)`` and ``c_A = eta_A (K_P alpha_V^2 +
    |Delta_V|_mu^2)``,

        alpha_V' = alpha_V + eta_V K_Q (1 - alpha_A alpha_V) alpha_A + eta_V (1 - alpha_V) / T
                   - eta_V alpha_V |Delta_A|^2 - (eta_V / K_P) <h_V, P>
        alpha_A' = alpha_A + eta_A K_P (1 - alpha_V alpha_A) alpha_V - eta_A alpha_A |Delta_V|^2
                   - (eta_A / K_Q) <h_A, Q>
        |Delta'|^2 = (1 - c)^2 |Delta|^2 - 2 eta (1 - c) <Delta, h> - (eta^2 / K) <h, truth>^2 +
        eta^2 |h|^2

    the last line for V (with K_P and P) and for A (with K_Q and Q), in the mu-inner product. The
    cross term of the Delta_V line, missing in print, follows by expanding the square.

    Args:
        params: V and A on the invariant set.
        task: the task.
        noise: h_V [N, N] and h_A [T, N].
        rates: eta_V and eta_A.

    Returns:
        The predicted quantities; identities up to rounding.
    """
    check_one_task("task", task)
    mu, at = task.stationary, project_on_path(params, task)
    k_p, k_q = transition_signal(task), pattern_signal(task)
    size_value = mu_inner(at.delta_value, at.delta_value, mu)
    size_attention = mu_inner(at.delta_attention, at.delta_attention, mu)
    mean_value, mean_attention = population_step(
        at.alpha_value,
        at.alpha_attention,
        rates,
        transition_signal=k_p,
        pattern_signal=k_q,
        context_length=task.context_length,
    )
    along_value = mu_inner(noise.value, task.transition, mu)
    along_attention = mu_inner(noise.attention, task.pattern, mu)
    shrink_value = rates.value * (
        at.alpha_attention**2 * k_q + 1.0 / task.context_length + size_attention
    )
    shrink_attention = rates.attention * (k_p * at.alpha_value**2 + size_value)
    return StepPrediction(
        mean_value - rates.value * (at.alpha_value * size_attention + along_value / k_p),
        mean_attention
        - rates.attention * (at.alpha_attention * size_value + along_attention / k_q),
        _remainder(
            at.delta_value, noise.value, mu, rates.value, shrink_value, along_value**2 / k_p
        ),
        _remainder(
            at.delta_attention,
            noise.attention,
            mu,
            rates.attention,
            shrink_attention,
            along_attention**2 / k_q,
        ),
    )


def _remainder(
    delta: jax.Array,
    noise: jax.Array,
    mu: jax.Array,
    rate: jax.Array,
    shrink: jax.Array,
    along: jax.Array,
) -> jax.Array:
    """``(1-c)^2 |Delta|^2 - 2 eta (1-c) <Delta, h> + eta^2 (|h|^2 - <h, truth>^2 / K)``."""
    kept = (1.0 - shrink) ** 2 * mu_inner(delta, delta, mu)
    crossed = 2.0 * rate * (1.0 - shrink) * mu_inner(delta, noise, mu)
    return kept - crossed + rate**2 * (mu_inner(noise, noise, mu) - along)
