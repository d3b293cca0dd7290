"""A check that all implementations take the same step: that of eqs. 3 to 6 in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from _library import Size, settings_for, start
from _peers import HostBatch, HostTask, Pair, Peer, Rule, Values, host_tasks

from scbjax.composition import LearnerState
from scbjax.losses import loss
from scbjax.paper import step
from scbjax.sampling import sample_batch
from scbjax.task import Task

# Largest difference of gradients and steps, relative to the largest entry. Sums of thousands of
# float32 terms, one after the other as matrix products on a CPU may take them, are off by 1e-4.
TOLERANCE: Final = 1e-3
OWN_TOLERANCE: Final = 2e-5


def check_agreement(peers: dict[str, type[Peer]], size: Size) -> dict[str, float]:
    """Compares gradients and steps of all implementations with eqs. 3 to 6 in float64.

    Returns:
        For each implementation, its largest relative error.

    Raises:
        RuntimeError: one of them computes something else.
    """
    ((task, rule, params),) = host_tasks(size._replace(trajectories=1))
    jax_task = Task(*map(jnp.asarray, task))
    settings = settings_for(size)
    jax_batch = sample_batch(jax.random.key(3), jax_task, size.batch_size)
    batch = HostBatch(*(np.asarray(array).astype(np.int64) for array in jax_batch))
    gradient = reference_gradient(params, batch)
    exact = (*gradient, *reference_step(params, gradient, task, rule))

    state = start(jax_task, settings)
    after: LearnerState = step(state, jax_batch, jax_task, settings)[0]
    errors = {
        "scbjax": largest_error((*jax.grad(loss)(state.params, jax_batch), *after.params), exact)
    }
    for name, peer in peers.items():
        one = peer(task, rule, params, 0)
        given = one.take(batch)
        found = tuple(np.asarray(array).copy() for array in one.gradient(given))
        one.step(given)
        errors[name] = largest_error((*found, *one.params()), exact)
    for name, error in errors.items():
        if not error < (OWN_TOLERANCE if name == "scbjax" else TOLERANCE):
            raise RuntimeError(f"{name} is off by {error:.1g} at {size}: it takes another step")
    return errors


def largest_error(found: Sequence[Any], exact: Sequence[Values]) -> float:
    """The largest difference of each array relative to its largest entry, the largest of them."""
    return max(
        float(np.max(np.abs(np.asarray(array) - right)) / np.max(np.abs(right)))
        for array, right in zip(found, exact, strict=True)
    )


def reference_gradient(params: Pair, batch: HostBatch) -> tuple[Values, Values]:
    """The gradient of eq. 3 in float64, sample by sample, with the matrix X written out."""
    value, attention = (np.asarray(array, np.float64) for array in params)
    value_gradient, attention_gradient = np.zeros_like(value), np.zeros_like(attention)
    identity = np.eye(len(value))
    for tokens, query, label in zip(*batch, strict=True):
        one_hot = identity[:, tokens]
        attended = one_hot @ attention[:, query]
        error = value @ attended - identity[:, label]
        value_gradient += np.outer(error, attended) / len(batch.query)
        attention_gradient[:, query] += one_hot.T @ (value.T @ error) / len(batch.query)
    return value_gradient, attention_gradient


def reference_step(
    params: Pair, gradient: tuple[Values, Values], task: HostTask, rule: Rule
) -> tuple[Values, Values]:
    """Eqs. 4 to 6 in float64, with the projectors written out as matrices where they are small."""
    mu = task.stationary.astype(np.float64)
    count, length = len(mu), len(task.pattern)
    ones = np.ones((count, 1))
    left = np.eye(count) - ones @ ones.T / count
    # The projector on V mu = 0 that is orthogonal in the mu-inner product, the library's default.
    right = np.eye(count) - mu[:, None] @ ones.T
    value = params[0] - rule.rate_value * (left @ gradient[0] @ np.diag(1 / mu) @ right)
    tangent = gradient[1] - gradient[1].sum(axis=0, keepdims=True) / length
    moved = params[1] - rule.rate_attention * tangent @ np.diag(1 / mu)
    shrunk = np.where(np.abs(moved) > rule.l1, moved - rule.l1 * np.sign(moved), 0.0)
    return value, shrunk + (1 - shrunk.sum(axis=0, keepdims=True)) / length
