"""The mean squared error of the learner: on a mini-batch, and in expectation.

Mini-batch loss (Ren, Wang & Lee 2024, eq. 3): the mean over samples of ``1/2 |e_{x_o} - V X
a^(k)|^2``. Its gradient is written out (custom VJP). With ``r = (V h - e_{x_o}) / B`` and ``h = X
a^(k)``,

    grad V = sum_b r_b h_b^T,      grad a_t^(k) = sum_{b: query k} (V^T r_b)[x_t^b],

so that the backward pass is one look-up per token.

Expected loss for any V and A. Let ``s_k = 1^T a^(k)`` and let mu-norms be those of ``task``; tokens
are i.i.d., so

    E[h h^T | k]     = |a^(k)|^2 diag(mu) + (s_k^2 - |a^(k)|^2) mu mu^T,
    E[e_{x_o} h^T | k] = <q^(k), a^(k)> P diag(mu) + (s_k - <q^(k), a^(k)>) mu mu^T,

and everything below follows by averaging over ``k ~ mu``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from scbjax.model import Params, attend, attend_transpose, check_params, look_up
from scbjax.sampling import AnyBatch, Batch, PackedBatch, check_batch
from scbjax.task import Task, check_one_task, mu_inner, product
from scbjax.tuples import attend_tuples, transpose_tuples


def loss(params: Params, batch: AnyBatch) -> jax.Array:
    """The mean over the batch of ``1/2 |e_{x_o} - V X a^(k)|^2`` (eq. 3); a scalar.

    ``jax.grad`` and ``jax.value_and_grad`` use a hand-written backward pass; it works under
    ``jit``, ``vmap``, ``scan`` and ``jax.checkpoint``, and has derivatives of its own, so that
    ``jax.hessian`` and ``jax.jvp`` of the gradient work. The forward mode of the loss itself
    (``jax.jvp``, ``jax.jacfwd``) is not defined.

    Args:
        params: V [N, N] and A [T, N].
        batch: tokens [B, T], or tuples of tokens; query [B], label [B].

    Returns:
        The loss, a scalar in the dtype of the parameters.

    Raises:
        TypeError: if the parameters are no :class:`Params`, or the batch is none.
        ValueError: for concrete tokens outside of 0 .. N - 1, and for shapes that don't fit; see
            :func:`scbjax.sampling.check_batch`, also for how to check inside ``jit``.

    Example:
        >>> from scbjax.model import init_params
        >>> from scbjax.sampling import sample_batch
        >>> from scbjax.task import random_task
        >>> task = random_task(jax.random.key(0), num_tokens=3, context_length=50, sparsity=2)
        >>> gradient = jax.grad(loss)(init_params(task), sample_batch(jax.random.key(1), task, 8))
        >>> gradient.value.shape, gradient.attention.shape
        ((3, 3), (50, 3))
    """
    check_batch(batch, *check_params("params", params))
    value: jax.Array = unchecked_loss(params, batch)
    return value


@jax.custom_vjp
def unchecked_loss(params: Params, batch: AnyBatch) -> jax.Array:
    """:func:`loss` of a batch that was just drawn."""
    return _forward(params, batch)[0]


class _Residuals(NamedTuple):
    params: Params
    batch: AnyBatch
    attended: jax.Array
    error: jax.Array


def _forward(params: Params, batch: AnyBatch) -> tuple[jax.Array, _Residuals]:
    if isinstance(batch, PackedBatch):
        attended = attend_tuples(params.attention, batch.tuples, batch.query)
    else:
        attended = attend(params.attention, batch.tokens, batch.query)
    num_tokens = params.value.shape[0]
    labels = jnp.arange(num_tokens, dtype=batch.label.dtype)
    target = (batch.label[:, None] == labels[None, :]).astype(attended.dtype)
    error = product(attended, params.value.T) - target
    value = 0.5 * jnp.sum(error**2) / batch.label.shape[0]
    return value, _Residuals(params, batch, attended, error)


def _backward(residuals: _Residuals, cotangent: jax.Array) -> tuple[Params, None]:
    params, batch, attended, error = residuals
    error = error * (cotangent / batch.label.shape[0])
    scores = product(error, params.value)
    if isinstance(batch, PackedBatch):
        length = params.attention.shape[0]
        attention = transpose_tuples(scores, batch.tuples, batch.query, length)
    else:
        attention = attend_transpose(scores, batch.tokens, batch.query)
    return Params(product(error.T, attended), attention), None


unchecked_loss.defvjp(_forward, _backward)


def sample_gradients(params: Params, batch: Batch) -> tuple[jax.Array, Params]:
    """The loss, and its gradient with what each sample adds to that of A kept apart.

    A sample touches one column of the gradient of A, that of its query. Here ``attention`` is
    [B, T] instead of [T, N]; :func:`scbjax.model.sum_by_query` makes the whole gradient of it.

    Args:
        params: V [N, N] and A [T, N].
        batch: tokens [B, T], query [B], label [B].

    Returns:
        The loss, a scalar, and the gradients of V [N, N] and, for each sample, of column
        ``batch.query`` of A [B, T].

    Raises:
        TypeError: as :func:`loss`.
        ValueError: as :func:`loss`.
    """
    check_batch(batch, *check_params("params", params))
    return unchecked_gradients(params, batch)


def unchecked_gradients(params: Params, batch: Batch) -> tuple[jax.Array, Params]:
    """:func:`sample_gradients` of a batch that was just drawn."""
    value, residuals = _forward(params, batch)
    error = residuals.error / batch.label.shape[0]
    attention = look_up(product(error, params.value), batch.tokens)
    return value, Params(product(error.T, residuals.attended), attention)


class _Moments(NamedTuple):
    """Averages over k ~ mu, and the quadratic forms of V, in which the expected loss is written."""

    overlap: jax.Array  # <A, Q>_mu
    mass: jax.Array  # E s_k
    size: jax.Array  # |A|_mu^2
    mass_squared: jax.Array  # E s_k^2
    value_overlap: jax.Array  # <V, P>_mu
    value_size: jax.Array  # |V|_mu^2
    value_mean: jax.Array  # V mu, [N]
    sums: jax.Array  # s_k, [N]


def _moments(params: Params, task: Task) -> _Moments:
    mu = task.stationary
    sums = jnp.sum(params.attention, axis=0)
    return _Moments(
        overlap=mu_inner(params.attention, task.pattern, mu),
        mass=jnp.sum(mu * sums),
        size=mu_inner(params.attention, params.attention, mu),
        mass_squared=jnp.sum(mu * sums**2),
        value_overlap=mu_inner(params.value, task.transition, mu),
        value_size=mu_inner(params.value, params.value, mu),
        value_mean=product(params.value, mu),
        sums=sums,
    )


def population_loss(params: Params, task: Task) -> jax.Array:
    """The expectation of :func:`loss` over the law of the task, for any V and A; a scalar.

    Example:
        >>> from scbjax.task import random_task
        >>> task = random_task(jax.random.key(0), num_tokens=3, context_length=50, sparsity=2)
        >>> truth = Params(task.transition, task.pattern)
        >>> float(excess_loss(truth, task))
        0.0
    """
    check_one_task("task", task)
    m = _moments(params, task)
    mean_product = jnp.sum(task.stationary * m.value_mean)
    cross = m.overlap * m.value_overlap + (m.mass - m.overlap) * mean_product
    square = m.size * m.value_size + (m.mass_squared - m.size) * jnp.sum(m.value_mean**2)
    return 0.5 - cross + 0.5 * square


def population_grad(params: Params, task: Task) -> Params:
    """The gradient of :func:`population_loss`, which is the expectation of the mini-batch gradient.

    Exact for any V and A, not only where ``1^T V = 1^T``, ``V mu = mu`` and ``1^T A = 1^T``; on
    that set the preconditioned gradient reduces to Lemma B.8.

    Args:
        params: V [N, N] and A [T, N].
        task: the task.

    Returns:
        Gradients with the shapes of the parameters.
    """
    check_one_task("task", task)
    mu, m = task.stationary, _moments(params, task)
    mean_norm = jnp.sum(m.value_mean**2)
    mean_product = jnp.sum(mu * m.value_mean)
    value = (m.size * params.value - m.overlap * task.transition) * mu[None, :]
    value = value + jnp.outer(
        (m.mass_squared - m.size) * m.value_mean - (m.mass - m.overlap) * mu, mu
    )
    attention = params.attention * (m.value_size - mean_norm) - task.pattern * (
        m.value_overlap - mean_product
    )
    attention = (attention + (m.sums * mean_norm - mean_product)[None, :]) * mu[None, :]
    return Params(value, attention)


def excess_loss(params: Params, task: Task, repeats: jax.Array | float = 1.0) -> jax.Array:
    """The expected loss above that of the truth, without cancellation near it; a scalar >= 0.

    It is ``1/2 E |V X a - P X q|^2``, computed from ``V X a - P X q = (V - P) X a + P X (a - q)``.

    Args:
        params: V [N, N] and A [T, N].
        task: the task.
        repeats: how many positions each entry of A stands for, where it is more than itself
            (:mod:`scbjax.simulation`).
    """
    check_one_task("task", task)
    mu = task.stationary
    value_error = params.value - task.transition
    attention_error = params.attention - task.pattern
    sums = jnp.sum(repeats * params.attention, axis=0)
    extra = jnp.sum(repeats * attention_error, axis=0)
    size = jnp.sum(repeats * params.attention**2, axis=0)
    error_size = jnp.sum(repeats * attention_error**2, axis=0)
    overlap = jnp.sum(repeats * params.attention * attention_error, axis=0)
    drift = product(value_error, mu)
    by_query = (
        size * mu_inner(value_error, value_error, mu)
        + (sums**2 - size) * jnp.sum(drift**2)
        + error_size * mu_inner(task.transition, task.transition, mu)
        + (extra**2 - error_size) * jnp.sum(mu**2)
        + 2.0 * overlap * mu_inner(value_error, task.transition, mu)
        + 2.0 * (sums * extra - overlap) * jnp.sum(drift * mu)
    )
    return 0.5 * jnp.sum(mu * by_query)
