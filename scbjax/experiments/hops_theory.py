"""Two look-ups in expectation: losses in closed form, and the path of the population.

Both are derived in :mod:`scbjax.experiments.hops`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import scbjax
from scbjax.experiments.hops_model import HopParams, HopTask, easy_task
from scbjax.lazily import Lazily

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")


class HopConstants(NamedTuple):
    """What the loss on the path depends on, scalars: see the module's text.

    Attributes:
        transition: K_P.
        second: K_R.
        mean: ``|r|^2``.
        first: ``|Q|_mu^2``.
    """

    transition: jax.Array
    second: jax.Array
    mean: jax.Array
    first: jax.Array


class _Centred(NamedTuple):
    """A two-layer learner that keeps the invariants, taken apart as in the module's text."""

    value: jax.Array  # V~ [N, N]
    first: jax.Array  # A_1 [T, N]
    mean: jax.Array  # a [T]
    second: jax.Array  # A~ [T, N]
    repeated: jax.Array  # u_s = E[A~_{s,x} V~_x], what a position adds to itself, [T, N]


def _centred(params: HopParams, mu: jax.Array) -> _Centred:
    mean = params.second @ mu
    value, second = params.value - mu[:, None], params.second - mean[:, None]
    return _Centred(value, params.first, mean, second, (second * mu[None, :]) @ value.T)


def _inner(one: _Centred, two: _Centred, mu: jax.Array) -> jax.Array:
    """``E <F - mu, G - mu>`` of the outputs of two learners, exactly.

    The parts of F that depend on no token, on one and on two are uncorrelated:

        sum_s a_1s u_s,
        V~_x a_s + a_1s (A~_{s,x} V~_x - u_s)               at every position s,
        a_1t A~_{s,x_t} V~_{x_s} + a_1s A~_{t,x_s} V~_{x_t}   at every pair t < s.
    """
    weighted = mu[None, :]
    products = jnp.sum(one.value * two.value, axis=0) * mu  # mu_x V~_x . W~_x, [N]
    size = jnp.sum(products)
    apart = jnp.sum(one.second * two.second * weighted, axis=1)  # E A~_s B~_s, [T]
    within = (one.second * two.second) @ products
    one_two = (one.second * weighted) @ two.value.T  # E A~_s W~, [T, N]
    two_one = (two.second * weighted) @ one.value.T
    own = jnp.sum(one.repeated * two.repeated, axis=1) + jnp.sum(one_two * two_one, axis=1)
    both = one.first * two.first  # [T, N]
    constant = (one.first.T @ one.repeated) * (two.first.T @ two.repeated)
    swapped = (two.first.T @ one_two) * (one.first.T @ two_one)
    by_query = (
        jnp.sum(constant + swapped, axis=1)
        + size * jnp.sum(one.mean * two.mean)
        + two.first.T @ (one.mean * (two.second @ products))
        + one.first.T @ (two.mean * (one.second @ products))
        + both.T @ (within - own - size * apart)
        + size * jnp.sum(apart) * jnp.sum(both, axis=0)
    )
    return jnp.sum(mu * by_query)


def excess_loss(params: HopParams, task: HopTask) -> jax.Array:
    """The expected two-hop loss of two layers above that of the truth; a scalar.

    Exact where ``1^T V = 1^T``, ``V mu = mu`` and columns of A_1 and A_2 sum to one, which the
    learner's steps keep.

    Example:
        >>> from scbjax.experiments.hops_model import random_hops
        >>> task = random_hops(jax.random.key(0), num_tokens=4, context_length=8, sparsity=2)
        >>> round(float(excess_loss(HopParams(task.transition, task.first, task.second), task)), 6)
        0.0
    """
    mu = task.stationary
    own = _centred(params, mu)
    truth = _centred(HopParams(task.transition, task.first, task.second), mu)
    inner = partial(_inner, mu=mu)
    return 0.5 * (inner(own, own) - 2.0 * inner(own, truth) + inner(truth, truth))


def one_layer_excess(params: HopParams, task: HopTask) -> jax.Array:
    """The same of one layer, ``V X a^(k)`` with the columns of ``second`` as its attention.

    Of the truth it meets the part of one token, ``P~_x r_s`` at position s.
    """
    mu = task.stationary
    value, transition = params.value - mu[:, None], task.transition - mu[:, None]
    truth = _centred(HopParams(task.transition, task.first, task.second), mu)
    size = scbjax.mu_inner(value, value, mu) * scbjax.mu_inner(params.second, params.second, mu)
    # With Q and R on positions of their own, truth.repeated meets no weight of Q.
    overlap = scbjax.mu_inner(value, transition, mu) * jnp.sum((params.second @ mu) * truth.mean)
    return 0.5 * (size - 2.0 * overlap + _inner(truth, truth, mu))


def constants(task: HopTask) -> HopConstants:
    """K_P, K_R, ``|r|^2`` and ``|Q|_mu^2`` of a task."""
    mu = task.stationary
    mean = jnp.sum((task.second @ mu) ** 2)
    return HopConstants(
        scbjax.transition_signal(easy_task(task)),
        scbjax.mu_inner(task.second, task.second, mu) - mean,
        mean,
        scbjax.mu_inner(task.first, task.first, mu),
    )


def one_layer_floor(task: HopTask) -> jax.Array:
    """The least excess loss of one layer, ``1/2 K_P K_R |Q|_mu^2``; a scalar."""
    own = constants(task)
    return 0.5 * own.transition * own.second * own.first


class HopPath(NamedTuple):
    """A point of the population path, scalars: see the module's text."""

    value: jax.Array  # v
    mean: jax.Array  # b
    second: jax.Array  # s
    first: jax.Array  # f


def _overlaps(at: HopPath, own: HopConstants, length: int) -> tuple[jax.Array, ...]:
    """``<a, r>``, ``|a|^2``, ``<A_1, Q>`` and ``|A_1|^2``."""
    mean, first = own.mean - 1.0 / length, own.first - 1.0 / length
    return (
        1.0 / length + at.mean * mean,
        1.0 / length + at.mean**2 * mean,
        1.0 / length + at.first * first,
        1.0 / length + at.first**2 * first,
    )


def path_step(
    at: HopPath, rates: Mapping[str, Any], own: HopConstants, length: int, easy: jax.Array | bool
) -> HopPath:
    """A step of expected preconditioned gradient descent on the path.

    With ``c = <A_1, Q>_mu`` and ``n = |A_1|_mu^2`` for two hops, and both 1 for one hop,

        v -= eta_V ((|a|^2 + s^2 K_R n) v - <a, r> - s K_R c)
        b -= eta_2 K_P (v^2 b - v)
        s -= eta_2 K_P (v^2 s n - v c)
        f -= eta_1 K_P K_R (v^2 s^2 f - v s)        for two hops alone.

    Args:
        at: the point.
        rates: ``value``, ``first`` and ``second``.
        own: the constants of the task.
        length: T.
        easy: whether the step is on one hop.
    """
    meets, size, overlap, square = _overlaps(at, own, length)
    overlap, square = jnp.where(easy, 1.0, overlap), jnp.where(easy, 1.0, square)
    v, b, s, f = at
    second = rates["second"] * own.transition
    first = jnp.where(easy, 0.0, rates["first"] * own.transition * own.second)
    pull = (size + s**2 * own.second * square) * v - meets - s * own.second * overlap
    return HopPath(
        v - rates["value"] * pull,
        b - second * (v**2 * b - v),
        s - second * (v**2 * s * square - v * overlap),
        f - first * (v**2 * s**2 * f - v * s),
    )


def path_excess(at: HopPath, own: HopConstants, length: int) -> jax.Array:
    """The excess loss at a point of the path, without the term of order 1/T; a scalar."""
    meets, size, overlap, square = _overlaps(at, own, length)
    v, _, s, _ = at
    of_one = v**2 * size - 2.0 * v * meets + own.mean
    of_two = v**2 * s**2 * square - 2.0 * v * s * overlap + own.first
    return 0.5 * own.transition * (of_one + own.second * of_two)
