"""Quantiles of laws that JAX has the tails of alone."""

import jax
import jax.numpy as jnp

_HALVINGS = 60  # of a bracket


def chi_squared_quantile(tail: jax.Array | float, degrees: float) -> jax.Array:
    """What a chi-squared variable exceeds with a probability, by bisection.

    Args:
        tail: the probability, above 1e-30; may be traced.
        degrees: of freedom.

    Returns:
        The level, of the shape of ``tail``.

    Example:
        >>> round(float(chi_squared_quantile(0.05, 4)), 3)
        9.488
    """
    tail = jnp.asarray(tail)
    shape = jnp.asarray(0.5 * degrees, tail.dtype)

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        above = jax.scipy.special.gammaincc(shape, 0.5 * middle) > tail
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    ends = jnp.zeros_like(tail), jnp.full_like(tail, 2.0 * degrees + 400.0)
    level: jax.Array = jax.lax.fori_loop(0, _HALVINGS, halve, ends)[0]
    return level
