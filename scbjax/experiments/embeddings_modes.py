"""Embeddings, their modes under the stationary distribution, and what the modes hold of a matrix.

What they mean for training is derived in :mod:`scbjax.experiments.embeddings`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import scbjax
from scbjax.lazily import Lazily

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")


def random_embedding(
    key: jax.Array,
    kind: str,
    shape: tuple[int, int],
    correlation: jax.Array | float = 0.0,
    dtype: Any = None,  # noqa: ANN401 - of JAX
) -> jax.Array:
    """Embeddings of tokens, [d, N], whose columns have squared length one, on average.

    Args:
        key: a PRNG key.
        kind: ``"orthogonal"``: for d >= N columns that are orthogonal, for d < N rows that are and
            are of one length, in uniformly random directions. ``"random"`` and ``"learned"``:
            Gaussian, the rows independent.
        shape: d and N.
        correlation: rho of Gaussian ones: columns m and n correlate by ``rho^|m - n|``; may be
            traced.
        dtype: floating dtype; None for JAX's own.

    Example:
        >>> columns = random_embedding(jax.random.key(0), "orthogonal", (8, 3))
        >>> jnp.abs(jnp.round(columns.T @ columns, 5)).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    from scbjax.task import product

    dim, num_tokens = shape
    draw = jax.random.normal(key, shape, dtype)
    if kind == "orthogonal":
        left, _, right = _svd(draw)
        turned: jax.Array = product(left, right) * max(1.0, num_tokens / dim) ** 0.5
        return turned
    # A chain from token to token: e_n = rho e_(n-1) + sqrt(1 - rho^2) g_n, as a triangular matrix.
    place = jnp.arange(num_tokens)
    behind = place[None, :] - place[:, None]
    rho = jnp.asarray(correlation, draw.dtype)
    chain = jnp.where(behind >= 0, rho ** jnp.maximum(behind, 0).astype(draw.dtype), 0.0)
    fresh = jnp.where(place > 0, jnp.sqrt(1.0 - rho**2), 1.0)
    correlated: jax.Array = product(draw, fresh[:, None] * chain) / dim**0.5
    return correlated


def _svd(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The thin singular value decomposition; a batch of them is not the same to the last bit."""
    from scbjax.singly import one_by_one

    left, sizes, right = one_by_one(partial(jnp.linalg.svd, full_matrices=False))(matrix)
    return left, sizes, right


def centre(embedding: jax.Array, stationary: jax.Array) -> jax.Array:
    """Embeddings less their mean, ``E - E mu 1^T``."""
    return embedding - jnp.sum(embedding * stationary[None, :], axis=1, keepdims=True)


class Modes(NamedTuple):
    """Centred embeddings as ``E diag(mu)^(1/2) = sum_i s_i u_i v_i^T``, r = min(d, N - 1) terms.

    Attributes:
        directions: u [d, r], of the embedding space.
        sizes: s [r], falling; zero for modes that are not there.
        tokens: v [r, N].
    """

    directions: jax.Array
    sizes: jax.Array
    tokens: jax.Array


def modes_of(embedding: jax.Array, stationary: jax.Array, cutoff: float | None = None) -> Modes:
    """The modes of embeddings E [d, N] that are centred.

    Args:
        embedding: E, with ``E mu = 0``.
        stationary: mu [N].
        cutoff: of s, relative to the largest, below which a mode is not there; None for ``max(d,
            N)`` rounding errors. The N-th singular value, which centring makes zero, is left out
            whatever it is.

    Example:
        >>> mu = jnp.array([0.5, 0.25, 0.25])
        >>> modes_of(centre(jnp.eye(3), mu), mu).tokens.shape
        (2, 3)
    """
    dim, num_tokens = embedding.shape
    rank = min(dim, num_tokens - 1)
    if cutoff is None:
        cutoff = max(dim, num_tokens) * float(jnp.finfo(embedding.dtype).eps)
    directions, sizes, tokens = _svd(embedding * jnp.sqrt(stationary)[None, :])
    there = sizes[:rank] > cutoff * sizes[0]
    return Modes(directions[:, :rank], jnp.where(there, sizes[:rank], 0.0), tokens[:rank])


def inverse_power(modes: Modes, power: jax.Array | float) -> jax.Array:
    """Eigenvalues [r] of the power of the pseudo-inverse that a step on V is multiplied by.

    ``(s_i / s_1)^(-2 power) / s_1^2``: ``1 / s_1^2`` for plain steps, ``1 / s_i^2`` for
    preconditioned ones, and zero for modes that are not there.
    """
    largest = modes.sizes[0]
    there = modes.sizes > 0
    share = jnp.where(there, modes.sizes / largest, 1.0)
    return jnp.where(there, share ** (-2.0 * power), 0.0) / largest**2


def parts_of(matrix: jax.Array, modes: Modes, stationary: jax.Array) -> jax.Array:
    """The parts [N, r] of the rows of a matrix [N, N] in the modes, ``M diag(mu)^(1/2) v_i``."""
    from scbjax.task import product

    weighted = (matrix * jnp.sqrt(stationary)[None, :]).astype(modes.tokens.dtype)
    return jnp.where((modes.sizes > 0)[None, :], product(weighted, modes.tokens.T), 0.0)


def mode_signals(task: scbjax.Task, modes: Modes) -> jax.Array:
    """``|p_i|^2`` [r]; their sum is the part of K_P that the embeddings can reach."""
    mu = task.stationary
    return jnp.sum(parts_of(task.transition - mu[:, None], modes, mu) ** 2, axis=0)


def rank_floor(task: scbjax.Task, dim: int) -> jax.Array:
    """Share of K_P that no embedding of d numbers reaches (Eckart & Young 1936)."""
    mu = task.stationary
    centred = (task.transition - mu[:, None]) * jnp.sqrt(mu)[None, :]
    squares = _svd(centred)[1] ** 2
    return jnp.sum(squares[dim:]) / jnp.sum(squares)
