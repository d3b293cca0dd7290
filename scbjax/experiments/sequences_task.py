"""Sequences that a model goes on with: tasks whose P is slow, their symbols, and counts of pairs.

The data are described in :mod:`scbjax.experiments.sequences`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import scbjax
from scbjax.lazily import Lazily

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")


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
    largest = _eigh(symmetric(product(white, product(squared * stationary[None, :], white.T))))[0]
    top = jnp.clip(largest[-1], 0.0, 1.0 - 1e-6)
    stay = jnp.clip((slow - top) / (1.0 - top), 0.0, 1.0)
    kept = jnp.where(top > slow, slow / jnp.maximum(top, 1e-6), 1.0)
    identity = jnp.eye(size, dtype=transition.dtype)
    mixed = stay * identity + (1.0 - stay) * squared
    return kept * mixed + (1.0 - kept) * stationary[:, None]


def symmetric(matrix: jax.Array) -> jax.Array:
    """The symmetric part of a matrix, of which rounding has made it a little less."""
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
    values, vectors = _eigh(symmetric(inner))
    modes = product((white * mu[None, :]).T, vectors)  # W^T = diag(mu)^(-1/2) basis
    first = jnp.broadcast_to(task.pattern[:, :1], task.pattern.shape)
    pattern = first if lags == "fixed" else task.pattern
    return SequenceTask(transition, mu, pattern, values, jnp.sum(modes**2, axis=0), modes)


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
