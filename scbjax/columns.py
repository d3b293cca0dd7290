"""A step of a large vocabulary, which goes by columns of A: those that samples ask for."""

import chex
import jax
import jax.numpy as jnp

from scbjax.optim import soft_threshold


def step_rows(
    rows: chex.Array,
    gradient: chex.Array,
    index: chex.Array,
    *,
    stationary: chex.Array,
    learning_rate: chex.Numeric,
    l1: chex.Numeric | None = None,
    frozen: chex.Numeric = False,
) -> jax.Array:
    """The transpose of A after a step of eqs. 4 and 6, from a gradient given sample by sample.

    What :func:`scbjax.scb_proximal` (:func:`scbjax.scb_sgd` without l1) does to A with the whole
    gradient, up to rounding. No array of the size of A is formed beside the result: columns of A
    that no sample asks for are read twice and written once, or left alone without l1.

    Args:
        rows: the transpose of A, [N, T], which has its columns in one piece.
        gradient: rows [B, T] whose sums are the columns of the gradient of A, of any floating
            dtype.
        index: the column of A that each of them belongs to, integers [B].
        stationary: mu [N].
        learning_rate: eta_A.
        l1: lambda, the threshold itself; None leaves out eq. 6, ii and iii.
        frozen: where it is true, A stays exactly what it is.

    Returns:
        The transpose [N, T] of the new A, in its dtype.

    Example:
        >>> rows, mu = jnp.full((2, 2), 0.5), jnp.array([0.5, 0.5])
        >>> gradient, index = jnp.array([[1.0, 0.0], [0.5, 0.0]]), jnp.array([1, 1])
        >>> step_rows(rows, gradient, index, stationary=mu, learning_rate=0.125).tolist()
        [[0.5, 0.5], [0.3125, 0.6875]]
    """
    direction = gradient.astype(rows.dtype) / stationary.astype(rows.dtype)[index][:, None]
    direction = direction - jnp.mean(direction, axis=1, keepdims=True)
    move = jnp.asarray(-learning_rate, rows.dtype) * direction
    moved: jax.Array = rows.at[index].add(jnp.where(frozen, 0.0, move), mode="promise_in_bounds")
    if l1 is None:
        return moved
    kept = soft_threshold(moved, jnp.where(frozen, 0.0, l1))
    missing = jnp.where(frozen, 0.0, 1.0 - jnp.sum(kept, axis=1, keepdims=True))
    restored: jax.Array = kept + missing / rows.shape[1]
    return restored
