r"""Few-shot learning after pretraining on M related tasks: of a new Q with P kept, and of a new P.

Pretraining has found the transition matrices of M tasks, ``P_m = rho P + (1 - rho) P'_m`` with
independent P'_m of the same mu and K_P, or their patterns, ``Q_m = rho Q + (1 - rho) Q'_m``; it
left their mean. A downstream task is learned by the one step of Theorem 4.1 on the half that is
new, whose gradient is a mean over all samples so far, taken at the start; then it is rounded. No
rate, threshold or stage is there to be chosen: V is scaled freely below, and the rounded A keeps
the Q largest entries of a column.

**New Q, P kept** (``kept = "transition"``). Let ``Pi = P - mu 1^T``, of squared norm K_P, and let
``D = V - mu 1^T`` be what the mean has beyond mu. At uniform A the step has the expectation
``<D, Pi>_mu (q_t - 1/T)`` (Lemma B.8). A sample's share in it is ``d_x . (e_y - mu)`` with x the
token at t and y the label, times ``1 / mu_k`` for its query k. It has the second moment G(D) where
the label has nothing to do with x, and S(D) where it comes from x,

    G(D) = sum_x mu_x sum_y mu_y (D - mu^T D)_yx^2,
    S(D) = sum_x mu_x sum_y P_yx (D - mu^T D)_yx^2,

and ``v = q S + (1 - q) G`` at a position of weight q. So n samples leave, in columns scaled to a
sum of one,

    E |A - Q|_mu^2 = sum_k sum_t [(1 - q_t)^2 v_t + q_t^2 sum_{u != t} v_u] / (n <D, Pi>_mu^2).

All of it is quadratic in D as the signal's square is: the scale of V (theta of Theorem 4.1)
cancels. The mean is ``D = c Pi + (s / sqrt M) R`` with ``s = 1 - rho`` and R of norm K_P across Pi.
Hence, with n_1 what P itself (rho = 1) needs,

    n / n_1 = 1 + gamma s^2 / (c^2 M),      gamma = (S + G)(R) / (S + G)(Pi):

a straight line in 1/M. That is for the weights, once supports are found: n_1 does not depend on T
and gamma is below one (about a half at N = 6, K_P = 0.4), because S, the noise of true positions,
is larger for P itself than for what has nothing to do with it. Supports are found when the largest
of N T noises G / (n mu_k) is below the least weight: ``n_1 ~ 2 log(N T) G / (mu_k K_P^2 q^2)``,
and ``gamma = G(R) / G(Pi)`` is nearly one. Samples to recovery are the larger of the two, with a
slope between them: that of the weights at small T, that of the supports at large T.

Where the line ends: ``c = rho (1 + xi sqrt(x) / (N - 1))`` with ``x = s^2 / (rho^2 M)`` and xi of
mean 0 and variance near 1, since P' has (N - 1)^2 directions of which Pi is one. The median task,
xi = 0, is on the line down to M = 1. A share of the tasks has ``xi < -z`` and never learns once
``x >= ((N - 1) / z)^2``, where the mean of the M matrices points the wrong way: 90% of the runs
(z = 1.28) have a line up to ``x = 0.6 (N - 1)^2``.

With n = 0 nothing of Q is known: zero-shot is impossible. P with uniform A has only
``K_P / (2 T)`` less loss than the start has (the expected loss at ``A = 1 1^T / T``).

**New P, Q kept** (``kept = "pattern"``). At ``V = mu 1^T`` a step on V has the expectation
``<A, Q>_mu Pi``, and the noise of a sample has the squared norm ``(1 - |mu|^2) (N - 1) |A|_mu^2``
for a uniform mu, most of it across Pi. V is off its path by d times its signal after

    n_2 = (1 - |mu|^2) (N - 1) |A|_mu^2 / (<A, Q>_mu^2 d^2)

samples, with ``|A|^2 / <A, Q>^2 = (1 + x) / |Q|^2``: the same line with gamma = 1, flat in T. Here
no run is lost, since weights are not negative: a mean of patterns never points the wrong way. More
than that: once ``M > (1 - rho) max q' / (rho min q)`` rounding the mean gives Q with no sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import scbjax
from scbjax.base import Parameter
from scbjax.experiments.of_parts import learning
from scbjax.experiments.parts_common import (
    DECLARED,
    SPARSITY,
    of_static,
)
from scbjax.experiments.scb_common import SPARSITY_FITS
from scbjax.lazily import Lazily
from scbjax.parameters import DEFAULTS
from scbjax.parts import Model, Observable, Source
from scbjax.values import Choice, Interval

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp

    from scbjax.moves import Move
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")

MOST_TASKS = 64
"""The largest M; that many related tasks are drawn, and the first M of them are used."""

# --------------------------------------------------------------------------------- what is known


def _weights(num_tasks: jax.Array | float, dtype: Any) -> jax.Array:  # noqa: ANN401 - of arrays
    """1/M for the first M of the tasks that are drawn, 0 for the others."""
    count = jnp.asarray(num_tasks).astype(dtype)
    return jnp.where(jnp.arange(MOST_TASKS, dtype=dtype) < count, 1.0 / count, 0.0)


def mean_transition(
    key: jax.Array,
    task: scbjax.Task,
    correlation: jax.Array | float,
    num_tasks: jax.Array | float,
) -> jax.Array:
    """The mean of ``rho P + (1 - rho) P'_m`` over M related tasks, [N, N].

    Every P'_m is a draw of :func:`scbjax.related_task` with the mu and the K_P of the task.

    Args:
        key: a PRNG key; task m has the key folded with m, whatever M is.
        task: what is learned downstream.
        correlation: rho; may be traced.
        num_tasks: M, at most :data:`MOST_TASKS`; may be traced.

    Example:
        >>> task = scbjax.random_task(jax.random.key(0), num_tokens=3, context_length=9, sparsity=2)
        >>> mean = mean_transition(jax.random.key(1), task, 0.4, 8)
        >>> bool(jnp.allclose(mean @ task.stationary, task.stationary, atol=1e-5))
        True
    """
    # One position is enough for a task whose pattern nobody looks at.
    bare = task._replace(pattern=jnp.ones((1, task.num_tokens), task.pattern.dtype))

    def draw(number: jax.Array) -> jax.Array:
        own = jax.random.fold_in(key, number)
        return scbjax.related_task(own, bare, correlation=0.0).transition

    drawn = jax.vmap(draw)(jnp.arange(MOST_TASKS, dtype=jnp.int32))
    weights = _weights(num_tasks, drawn.dtype)
    rho = jnp.asarray(correlation, drawn.dtype)
    mean = jnp.sum(weights[:, None, None] * drawn, axis=0)
    return rho * task.transition + (1.0 - rho) * mean


def mean_pattern(
    key: jax.Array,
    task: scbjax.Task,
    correlation: jax.Array | float,
    num_tasks: jax.Array | float,
    sparsity: int,
    skew: jax.Array | float = DEFAULTS["skew"],
) -> jax.Array:
    """The mean of ``rho Q + (1 - rho) Q'_m`` over M related tasks, [T, N].

    Patterns are added up one by one: no array is larger than Q.

    Args:
        key: a PRNG key; task m has the key folded with m, whatever M is.
        task: what is learned downstream.
        correlation: rho; may be traced.
        num_tasks: M, at most :data:`MOST_TASKS`; may be traced.
        sparsity: nonzeros in each column of every Q'_m.
        skew: C for the weights of every Q'_m.
    """
    from scbjax.patterns import random_pattern

    shape, dtype = (task.context_length, task.num_tokens), task.pattern.dtype
    weights = _weights(num_tasks, dtype)
    rho = jnp.asarray(correlation, dtype)

    def add(total: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        own = jax.random.fold_in(key, number)
        drawn = random_pattern(own, shape, sparsity, skew, sparsity, dtype)
        return total + weights[number] * drawn, None

    numbers = jnp.arange(MOST_TASKS, dtype=jnp.int32)
    # Of the weights' kind, so that the loop's carry is what it will be under a map over M.
    zero = jnp.zeros_like(task.pattern) * weights[0]
    mean, _ = jax.lax.scan(add, zero, numbers)
    return rho * task.pattern + (1.0 - rho) * mean


# -------------------------------------------------------------------------------------- the step


def moved(kept: str, params: Mapping[str, Any], task: scbjax.Task) -> scbjax.Params:
    """V and A after the step, with A as it is before rounding.

    The new half is ``start - rate * (preconditioned gradient)``, eq. 4 in the mu geometry, with a
    rate that is known downstream: 1 for A, which rounding makes free of scale, and
    ``1 / |A|_mu^2`` for V, with which V would come to P if A were Q.

    Args:
        kept: ``"transition"`` or ``"pattern"``.
        params: ``start``, V and A before the step, and ``mean``, the gradient [T, N] or [N, N].
        task: the task; only mu is used.
    """
    from scbjax.optim import scb_sgd
    from scbjax.task import mu_inner

    start: scbjax.Params = params["start"]
    gradient = jax.tree.map(jnp.zeros_like, start)
    mean, mu = params["mean"], task.stationary
    if kept == "transition":
        gradient = gradient._replace(attention=mean)
        step = scb_sgd(mu, 0.0, 1.0)
    else:
        size = mu_inner(start.attention, start.attention, mu)
        gradient = gradient._replace(value=mean)
        step = scb_sgd(mu, 1.0 / size, 0.0)
    updates, _ = step.update(gradient, step.init(start), start)
    after: scbjax.Params = jax.tree.map(jnp.add, start, updates)
    return after


def attention_noise(value: jax.Array, task: scbjax.Task) -> jax.Array:
    """``n E |A - Q|_mu^2 <D, Pi>_mu^2`` of the step on A, its columns scaled to a sum of one.

    Of n samples, to first order, if every position of the pattern is found; a scalar.

    Args:
        value: V [N, N], with ``V mu = mu``.
        task: the task.
    """
    mu, weights = task.stationary, task.pattern
    excess = value - mu[:, None]
    square = (excess - jnp.sum(mu[:, None] * excess, axis=0, keepdims=True)) ** 2
    elsewhere = jnp.sum(mu * jnp.sum(mu[:, None] * square, axis=0))
    here = jnp.sum(mu * jnp.sum(task.transition * square, axis=0))
    moment = jnp.where(weights > 0, weights * here + (1.0 - weights) * elsewhere, 0.0)
    others = jnp.sum(moment, axis=0, keepdims=True) - moment
    return jnp.sum((1.0 - weights) ** 2 * moment + weights**2 * others)


# ----------------------------------------------------------------------------- the learner's parts


def model_of(static: Mapping[str, Any]) -> Model:
    """The start that M tasks make, and the mean gradient of the half that is new."""
    kept = static["kept"]

    def init(key: jax.Array, task: scbjax.Task, values: Mapping[str, Any]) -> dict[str, Any]:
        start = scbjax.init_params(task)
        rho, count = values["correlation"], values["num_tasks"]
        if kept == "transition":
            known = mean_transition(key, task, rho, count)
            start = start._replace(value=known)
            return {"start": start, "mean": jnp.zeros_like(start.attention)}
        known = mean_pattern(key, task, rho, count, static["sparsity"], values["skew"])
        start = start._replace(attention=known)
        return {"start": start, "mean": jnp.zeros_like(start.value)}

    def loss(params: Mapping[str, Any], batch: Any) -> jax.Array:  # noqa: ANN401
        from scbjax.losses import unchecked_loss

        value: jax.Array = unchecked_loss(params["start"], batch)
        return value

    return Model(init, loss)


def averaging(kept: str) -> Move:
    """A step that adds a batch to the mean gradient and moves nothing else."""
    from scbjax.losses import unchecked_loss
    from scbjax.moves import Move

    def init(*_: object) -> jax.Array:
        return jnp.zeros((), jnp.float32)

    def step(
        params: dict[str, Any],
        count: jax.Array,
        batch: Any,  # noqa: ANN401 - as it is drawn
        *_: object,
    ) -> tuple[tuple[jax.Array, Any], dict[str, Any], jax.Array]:
        loss, grads = jax.value_and_grad(unchecked_loss)(params["start"], batch)
        own = grads.attention if kept == "transition" else grads.value
        count, mean = count + 1.0, params["mean"]
        mean = mean + (own - mean) / count
        return (loss, own), {**params, "mean": mean}, count

    return Move(init, step)


def _source(static: Mapping[str, Any]) -> Source:
    sizes = of_static(static)

    def draw(key: jax.Array, values: Mapping[str, Any]) -> scbjax.Task:
        signal = values.get("transition_signal")
        return scbjax.random_task(key, skew=values["skew"], transition_signal=signal, **sizes)

    return scbjax.scb_source(packed=True, **sizes)._replace(draw=draw)


def _view(
    static: Mapping[str, Any],
    batch_size: int,
    key: jax.Array,
    state: Any,  # noqa: ANN401 - of a learner
    task: scbjax.Task,
    values: Any,  # noqa: ANN401 - of a learner
    prepared: Any,  # noqa: ANN401 - of the source
) -> scbjax.View:
    """The state after the step and rounding, as observables see it."""
    from scbjax.model import keep_largest

    params = moved(static["kept"], state.params, task)
    rounded = keep_largest(params.attention, static["sparsity"])
    return scbjax.View(
        key,
        params._replace(attention=rounded),
        task,
        rounding_share=0.0,
        refit_support=static["sparsity"],
        sampler=prepared,
        batch_loss=state.batch_loss,
        samples=state.step * batch_size,
        state=state,
        values=values,
    )


def _learner(source: Source, static: Mapping[str, Any], **given: Any) -> scbjax.Learner:  # noqa: ANN401
    view = partial(_view, static, given["batch_size"])
    return scbjax.learner(source, model_of(static), averaging(static["kept"]), view=view, **given)


# -------------------------------------------------------------------------------- what is recorded


def noise_to_signal(kept: str, start: scbjax.Params, task: scbjax.Task) -> jax.Array:
    """Root mean square error that one sample leaves, n of them leave it over sqrt n; a scalar.

    Of the distance of A to Q, or of V off its path in units of its signal.
    """
    from scbjax.noise import value_noise
    from scbjax.task import mu_inner

    mu = task.stationary
    if kept == "transition":
        excess = start.value - mu[:, None]
        signal = mu_inner(excess, task.transition, mu)
        noise = attention_noise(start.value, task)
    else:
        signal = mu_inner(start.attention, task.pattern, mu)
        noise = value_noise(start.attention, task)
    return jnp.sqrt(noise) / jnp.abs(signal)


def _noise_to_signal(view: scbjax.View) -> jax.Array:
    params = view.state.params
    # What is averaged has the shape of what is new.
    is_attention = params["mean"].shape == params["start"].attention.shape
    return noise_to_signal("transition" if is_attention else "pattern", params["start"], view.task)


def _columns_found(view: scbjax.View) -> jax.Array:
    """Share of the columns whose rounded attention is where the pattern is."""
    right = jnp.all((view.params.attention > 0) == (view.task.pattern > 0), axis=0)
    return jnp.mean(right, dtype=jnp.float32)


RECORD = (
    "rounded_attention_distance",
    "rounded_value_distance",
    "alpha_value",
    "delta_value",
    Observable(_columns_found, "share of columns whose support is found", name="columns_found"),
    Observable(_noise_to_signal, "error that one sample leaves, predicted", name="noise_to_signal"),
    "batch_loss",
    "samples",
)

PARAMETERS = (
    DECLARED["task.num_tokens"],
    DECLARED["task.context_length"],
    SPARSITY,
    DECLARED["task.skew"],
    DECLARED["task.transition_signal"],
    Parameter(
        "transfer.kept", str, "transition", "static", "inner",
        "What pretraining has found of M related tasks, the other half being new: transition "
        "matrices or patterns",
        Choice(("transition", "pattern")),
    ),
    Parameter(
        "transfer.num_tasks", int, 1, "traced", "inner", "Related tasks M of pretraining",
        Interval(1, MOST_TASKS), symbol="$M$",
    ),
    replace(
        DECLARED["transfer.correlation"],
        help="Share rho of the task in each of the related tasks",
    ),
)  # fmt: skip

_LEARNING = learning("fewshot", _source, _learner, record=RECORD, parameters=PARAMETERS)
EXPERIMENT = replace(_LEARNING, relations=(SPARSITY_FITS,))
"""Few-shot learning after pretraining on many tasks."""
