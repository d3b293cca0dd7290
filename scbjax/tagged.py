"""A context of which tagged positions alone are known: what the others add, and what is seen.

Each row of such an A stands for a number of positions (:func:`repeats`); see
:mod:`scbjax.simulation`.
"""

from functools import cached_property
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from scbjax.keys import as_threefry
from scbjax.losses import excess_loss
from scbjax.model import Params
from scbjax.observables import (
    View,
    stands_out,
)
from scbjax.stages import estimated_signals
from scbjax.task import Task, mu_inner, pattern_signal
from scbjax.theory import PathProjection, ratio


class Others(NamedTuple):
    """Standard draws for the positions that are not tagged.

    Attributes:
        sums: [B, N], normal with mean 0 and covariance ``diag(mu) - mu mu^T``.
        counts: [B], standard normal: the part of the counts that the sums don't explain.
    """

    sums: jax.Array
    counts: jax.Array


def draw_others(key: jax.Array, stationary: jax.Array, batch_size: int) -> Others:
    """Draws what stands for the positions that are not tagged, for a batch of samples."""
    key_sums, key_counts = jax.random.split(as_threefry(key))
    root = jnp.sqrt(stationary)[None, :]

    def draw(key: jax.Array, *shape: int) -> jax.Array:
        # In float32, so that the draws are the same whatever dtype the task is held in.
        return jax.random.normal(key, shape, jnp.float32).astype(stationary.dtype)

    normal = draw(key_sums, batch_size, stationary.shape[0])
    # The covariance is diag(mu) - mu mu^T because |root| = 1.
    sums = root * (normal - root * jnp.sum(root * normal, axis=1, keepdims=True))
    return Others(sums, draw(key_counts, batch_size))


class Simulated(Protocol):
    """What a view asks of a simulation."""

    @property
    def context_length(self) -> int:
        """T."""
        ...

    def project(self, params: Params, task: Task) -> PathProjection:
        """The split of (V, A) along the population path."""
        ...

    def round(self, attention: jax.Array, task: Task, share: jax.Array | float) -> jax.Array:
        """A after rounding."""
        ...


def repeats(pattern: jax.Array, context_length: int) -> jax.Array:
    """How many positions each row of A stands for: 1 on the support of Q, the same m off it.

    Args:
        pattern: the tagged rows of Q, [R, N].
        context_length: T >= R.

    Returns:
        [R, N], with columns that sum to T.

    Example:
        >>> repeats(jnp.array([[1.0, 0.5], [0.0, 0.5], [0.0, 0.0]]), 7).T.tolist()
        [[1.0, 3.0, 3.0], [1.0, 1.0, 5.0]]
    """
    outside = pattern == 0
    count = jnp.sum(outside, axis=0)
    each = 1.0 + (context_length - pattern.shape[0]) / jnp.maximum(count, 1)
    return jnp.where(outside, each, 1.0).astype(pattern.dtype)


class SimulatedView(View):
    """A state of a simulated learner.

    Rows of ``params.attention`` and of everything made of it are multiplied by the root of the
    number of positions they stand for, so that mu-norms and inner products are those of all T.
    """

    def __init__(
        self,
        simulation: Simulated,
        params: Params,
        key: jax.Array,
        task: Task,
        **state: Any,  # noqa: ANN401 - as the view of a real state
    ) -> None:
        """Stores the state; nothing is computed before an observable asks for it."""
        self.simulation = simulation
        self.rows = params
        self.each = repeats(task.pattern, simulation.context_length)
        scaled = params._replace(attention=jnp.sqrt(self.each) * params.attention)
        super().__init__(key, scaled, task, **state)

    @cached_property
    def projection(self) -> PathProjection:
        """The split of (V, A) along the population path."""
        return self.simulation.project(self.rows, self.task)

    @cached_property
    def true_signals(self) -> tuple[jax.Array, jax.Array]:
        """``|alpha_V|`` and ``|alpha_A|``, read off the truth."""
        return jnp.abs(self.projection.alpha_value), jnp.abs(self.projection.alpha_attention)

    @cached_property
    def estimated_signals(self) -> tuple[jax.Array, jax.Array]:
        """The strengths of both signals as told without P and Q."""
        attention, length = self.rows.attention, self.simulation.context_length
        excess = mu_inner(self.each * attention, attention, self.task.stationary)
        excess = jnp.maximum(excess - 1.0 / length, 0.0)
        signal = pattern_signal(self.task, length)
        return estimated_signals(self.rows, self.task)[0], jnp.sqrt(ratio(excess, signal))

    @cached_property
    def rounded_attention(self) -> jax.Array:
        """A [R, N] after rounding (stage 3), scaled."""
        rounded = self.simulation.round(self.rows.attention, self.task, self.rounding_share)
        return jnp.sqrt(self.each) * rounded

    @cached_property
    def excess_loss(self) -> jax.Array:
        """The expected loss above that of the truth."""
        return excess_loss(self.rows, self.task, self.each)

    @cached_property
    def nonzeros(self) -> jax.Array:
        """The entries of A that stand out from the background of their column."""
        length = self.simulation.context_length
        return jnp.sum(jnp.where(stands_out(self.rows.attention, length), self.each, 0.0))
