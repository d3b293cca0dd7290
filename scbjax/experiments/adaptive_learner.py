"""Proximal steps of several candidates at a time, each with thresholds of its own.

What the thresholds are is said in :mod:`scbjax.experiments.adaptive`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import scbjax
from scbjax.experiments.adaptive_noise import noise_unit
from scbjax.lazily import Lazily
from scbjax.parts import Model

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")


class Progress(NamedTuple):
    """What goes along with the candidates.

    Attributes:
        step: steps done, int32.
        batch_size: B, in the dtype of the parameters.
        support: which entries of A the last threshold left, booleans [M, T, N].
    """

    step: jax.Array
    batch_size: jax.Array
    support: jax.Array


class Candidates(NamedTuple):
    """What is trained: M learners side by side, which see the same batches.

    Attributes:
        value: V [M, N, N].
        attention: A [M, T, N].
        losses: running means of the loss of each query on batches before they were learned from,
            [M, N].
    """

    value: jax.Array
    attention: jax.Array
    losses: jax.Array


def best_candidates(params: Candidates) -> jax.Array:
    """The candidate with the least held-out loss, for each query; int32 [N]."""
    return jnp.argmin(params.losses, axis=0).astype(jnp.int32)


def chosen(array: jax.Array, best: jax.Array) -> jax.Array:
    """Column k of the candidate that query k takes: [..., N] from [M, ..., N] and best [N]."""
    index = best.reshape((1,) * (array.ndim - 1) + (-1,))
    return jnp.take_along_axis(array, index, axis=0)[0]


def model_of(static: Mapping[str, Any]) -> Model:
    """V and A of every candidate, from the paper's start."""
    count = static["candidates"]

    def init(_: jax.Array, task: scbjax.Task) -> Candidates:
        params = scbjax.init_params(task)
        value, attention = (jnp.broadcast_to(p[None], (count, *p.shape)) for p in params)
        losses = jnp.zeros((count, task.num_tokens), value.dtype)
        return Candidates(value, attention, losses)

    def readout(params: Candidates) -> scbjax.Params:
        # V has no column of a query's own: that of the candidate with the least loss in all.
        value = params.value[jnp.argmin(jnp.sum(params.losses, axis=1))]
        return scbjax.Params(value, chosen(params.attention, best_candidates(params)))

    def loss(params: Candidates, batch: Any) -> jax.Array:  # noqa: ANN401 - as Model has it
        from scbjax.losses import unchecked_loss

        value: jax.Array = unchecked_loss(readout(params), batch)
        return value

    return Model(init, loss, readout)


def levels_at(values: Mapping[str, Any], count: int, step: jax.Array) -> jax.Array:
    """Thresholds of the candidates [M] at a step, in units of the noise.

    ``level * path_ratio^(1 - step / path_steps)`` along the path, and ``level`` at its end; of
    several candidates each is ``candidate_ratio`` times smaller than the one before.
    """
    share = jnp.minimum(jnp.asarray(step, jnp.float32) / values["path_steps"], 1.0)
    on_path = values["level"] * jnp.asarray(values["path_ratio"], jnp.float32) ** (1.0 - share)
    places = jnp.arange(count, dtype=jnp.float32)
    levels: jax.Array = on_path * jnp.asarray(values["candidate_ratio"], jnp.float32) ** -places
    return levels


def thresholds(
    level: jax.Array | float,
    value: jax.Array,
    stationary: jax.Array,
    rate: jax.Array,
    batch_size: jax.Array | float,
    adapt: jax.Array | float,
) -> jax.Array:
    """``lambda_k`` [N]: level times the noise of a step, of query k or of one of frequency 1/N.

    ``level eta_A s(V) / sqrt(B mu_k^adapt N^(adapt - 1))``.

    Args:
        level: in units of the noise, a scalar.
        value: V [N, N].
        stationary: mu [N].
        rate: eta_A.
        batch_size: B.
        adapt: 1 for a threshold a query, 0 for one threshold; between, in between.
    """
    size = float(stationary.shape[0])
    frequency = jnp.exp(adapt * jnp.log(stationary) - (1.0 - adapt) * float(np.log(size)))
    unit = rate * noise_unit(value, stationary) / jnp.sqrt(batch_size)
    lambdas: jax.Array = level * unit / jnp.sqrt(frequency)
    return lambdas


def proximal_step(
    attention: jax.Array, gradient: jax.Array, stationary: jax.Array, rate: jax.Array,
    lambdas: jax.Array,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Eqs. 4 and 6 for A with a threshold a column.

    Args:
        attention: A [T, N].
        gradient: of a mini-batch [T, N].
        stationary: mu [N].
        rate: eta_A.
        lambdas: thresholds [N].

    Returns:
        The new A, and which entries are not zero before the sums are restored; [T, N].
    """
    from scbjax.optim import soft_threshold

    direction = gradient / stationary[None, :]
    direction = direction - jnp.mean(direction, axis=0, keepdims=True)
    kept = soft_threshold(attention - rate * direction, lambdas[None, :])
    missing = 1.0 - jnp.sum(kept, axis=0, keepdims=True)
    return kept + missing / kept.shape[0], kept != 0


def bounded(value: jax.Array, stationary: jax.Array, largest: jax.Array) -> jax.Array:
    """V [N, N], projected on ``K_V <= largest`` in the mu-norm, by shrinking ``V - mu 1^T``."""
    away = value - stationary[:, None]
    signal = jnp.maximum(jnp.sum(away**2 * stationary[None, :]), jnp.finfo(value.dtype).tiny)
    return stationary[:, None] + away * jnp.minimum(1.0, jnp.sqrt(largest / signal))


def background(attention: jax.Array, support: jax.Array) -> jax.Array:
    """What entries off the support share, [N]; 0 where there are none."""
    off = jnp.sum(~support, axis=0, dtype=attention.dtype)
    return jnp.sum(jnp.where(support, 0.0, attention), axis=0) / jnp.maximum(off, 1.0)


def relaxed(
    params: scbjax.Params, support: jax.Array, stationary: jax.Array, shrinkage: jax.Array
) -> scbjax.Params:
    """The parameters with what l1 takes of nonzero entries given back, and columns that sum to one.

    Args:
        params: V [N, N] and A [T, N].
        support: which entries are not zero, [T, N].
        stationary: mu [N].
        shrinkage: ``lambda_k / eta_A`` [N], the share of it that is given back.
    """
    from scbjax.task import mu_inner

    value, attention = params
    signal = mu_inner(value, value, stationary) - jnp.sum(stationary**2)
    signal = jnp.maximum(signal, jnp.finfo(signal.dtype).eps)
    above = attention - background(attention, support)[None, :]
    back = jnp.where(support, jnp.sign(above) * (shrinkage / signal)[None, :], 0.0)
    attention = attention + back
    missing = 1.0 - jnp.sum(attention, axis=0, keepdims=True)
    return scbjax.Params(value, attention + missing / attention.shape[0])


def losses_by_query(params: scbjax.Params, batch: scbjax.Batch) -> tuple[jax.Array, jax.Array]:
    """The mean loss (eq. 3) of the samples of each query, and their number; [N] and [N]."""
    from scbjax.model import attend
    from scbjax.task import product

    num_tokens = params.value.shape[0]
    output = product(attend(params.attention, batch.tokens, batch.query), params.value.T)
    tokens = jnp.arange(num_tokens, dtype=jnp.int32)[None, :]
    target = (batch.label.astype(jnp.int32)[:, None] == tokens).astype(output.dtype)
    by_query = (batch.query.astype(jnp.int32)[:, None] == tokens).astype(output.dtype)
    count = jnp.sum(by_query, axis=0)
    loss = 0.5 * jnp.sum((output - target) ** 2, axis=1)
    return product(loss, by_query) / jnp.maximum(count, 1.0), count


def step_candidates(
    params: Candidates,
    progress: Progress,
    batch: scbjax.Batch,
    task: scbjax.Task,
    values: Mapping[str, Any],
    *_: object,
) -> tuple[tuple[jax.Array, Any], Candidates, Progress]:
    """One step of every candidate on the same batch; each one's loss on it first.

    Args:
        params: the candidates.
        progress: steps before, and B.
        batch: tokens [B, T], query [B], label [B].
        task: of which mu, K_P and K_Q are used.
        values: the numbers of the study, by short name.

    Returns:
        The mean loss of the candidates and their gradients, the new candidates, and progress.
    """
    from scbjax.losses import unchecked_loss
    from scbjax.optim import value_descent
    from scbjax.task import transition_signal

    mu, (rate, attention_rate) = task.stationary, rates_of(task, values)
    descent = value_descent(mu, rate)
    number = params.value.shape[0]
    levels = levels_at(values, number, progress.step).astype(mu.dtype)

    def one(value: jax.Array, attention: jax.Array, support: jax.Array, level: jax.Array) -> Any:  # noqa: ANN401
        own = scbjax.Params(value, attention)
        loss, grads = jax.value_and_grad(unchecked_loss)(own, batch)
        lambdas = thresholds(level, value, mu, attention_rate, progress.batch_size, values["adapt"])
        held_out = jnp.zeros_like(mu), jnp.zeros_like(mu)
        if number > 1:  # a single candidate needs no choice
            shrinkage = values["relax"] * lambdas / attention_rate
            held_out = losses_by_query(relaxed(own, support, mu, shrinkage), batch)
        moved, kept = proximal_step(attention, grads.attention, mu, attention_rate, lambdas)
        update, _ = descent.update(grads.value, descent.init(value), value)
        value = bounded(value + update, mu, values["value_bound"] * transition_signal(task))
        return loss, grads, value, moved, kept, held_out

    found = jax.vmap(one)(params.value, params.attention, progress.support, levels)
    loss, grads, value, attention, support, (fresh, samples) = found
    weight = 1.0 / jnp.minimum(progress.step.astype(mu.dtype) + 1.0, values["memory"])
    losses = params.losses + jnp.where(samples > 0, (fresh - params.losses) * weight, 0.0)
    progress = progress._replace(step=progress.step + 1, support=support)
    return (jnp.mean(loss), grads), Candidates(value, attention, losses), progress


def rates_of(task: scbjax.Task, values: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """``eta_V = eta / K_Q`` and ``eta_A = eta / K_P``."""
    from scbjax.algorithm import per_signal

    rate = jnp.asarray(values["rate"], task.stationary.dtype)
    value = per_signal(rate, scbjax.pattern_signal(task))
    return value, per_signal(rate, scbjax.transition_signal(task))
