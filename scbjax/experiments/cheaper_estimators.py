"""Supports from counts: how positions go with labels, each by itself or in a leading direction.

What each tells is said in :mod:`scbjax.experiments.cheaper`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import scbjax
from scbjax.lazily import Lazily

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
else:
    jax, jnp = Lazily("jax"), Lazily("jax.numpy")


def joint_counts(batch: scbjax.Batch, num_tokens: int, dtype: Any) -> jax.Array:  # noqa: ANN401
    """How often token, query and label meet at every position: [T, N, N, N] of a mini-batch.

    Args:
        batch: tokens [B, T], query [B], label [B].
        num_tokens: N.
        dtype: of the counts.
    """
    from scbjax.blocks import fill
    from scbjax.task import product

    size, length = num_tokens**2, batch.tokens.shape[1]
    kinds = (batch.query * num_tokens + batch.label)[:, None]
    hot = (kinds == jnp.arange(size, dtype=kinds.dtype)[None, :]).astype(dtype)
    tokens = batch.tokens.T
    classes = jnp.arange(num_tokens, dtype=tokens.dtype)[None, :, None]

    def count(first: jax.Array, rows: int) -> jax.Array:
        here = jax.lax.dynamic_slice_in_dim(tokens, first, rows)[:, None, :] == classes
        return product(here.reshape(rows * num_tokens, -1).astype(dtype), hot).reshape(
            rows, num_tokens, size
        )

    counts = fill(count, (length, num_tokens, size), dtype, num_tokens * hot.shape[0])
    return counts.reshape(length, num_tokens, num_tokens, num_tokens)


def standardised(counts: jax.Array, stationary: jax.Array) -> jax.Array:
    """Cross-moments in units of their noise: [T, x, k, o] from counts of the same axes.

    ``sum (1[o] - mu_o)(1[x] - mu_x) / sqrt(n_k mu_o mu_x)`` over the n_k samples of query k; zero
    for a query that has none.
    """
    of_token, of_label = stationary[None, :, None, None], stationary[None, None, None, :]
    without = counts - of_label * jnp.sum(counts, axis=3, keepdims=True)
    centred = without - of_token * jnp.sum(without, axis=1, keepdims=True)
    asked = jnp.sum(counts[0], axis=(0, 2))[None, None, :, None]
    return centred / jnp.sqrt(of_token * of_label * jnp.maximum(asked, 1.0))


def chi_squared(moments: jax.Array) -> jax.Array:
    """Pearson's statistic of position and label, [T, k] from [T, x, k, o]."""
    return jnp.sum(moments**2, axis=(1, 3))


def significant(statistic: jax.Array, false_positives: jax.Array | float) -> jax.Array:
    """Where T N null statistics [T, N] would have so few exceedances in the mean; booleans."""
    tail = jax.scipy.stats.chi2.sf(statistic, (statistic.shape[1] - 1) ** 2)
    return tail * statistic.size <= false_positives


def leading_scores(moments: jax.Array) -> jax.Array:
    """``u^T M``, u the leading left singular vector of the moments: [T, k] from [T, x, k, o].

    The sign is that of the sum of cubes.
    """
    from scbjax.singly import one_by_one

    rows = jnp.swapaxes(moments, 2, 3)  # [T, x, o, k]
    length, tokens = rows.shape[:2]
    flat = rows.reshape(length, tokens**2, tokens)
    gram = jnp.einsum("tak,tbk->ab", flat, flat, precision="highest")
    vector = one_by_one(jnp.linalg.eigh)(gram)[1][:, -1]
    scores = jnp.einsum("a,tak->tk", vector, flat, precision="highest")
    return scores * jnp.where(jnp.sum(scores**3) < 0, -1.0, 1.0)
