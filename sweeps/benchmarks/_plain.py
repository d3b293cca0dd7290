"""Learners written as one writes them in plain JAX: one-hot tokens, einsum, autodiff.

Each is a loss of the same parameters and batches as the library's own, [B, T, N] and all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from scbjax.sampling import Batch

Weigh = Callable[[jax.Array], jax.Array]
Loss = Callable[[Any, Any], jax.Array]


def softmax(logits: jax.Array) -> jax.Array:
    """Columns that sum to one."""
    return jax.nn.softmax(logits, axis=0)


def sparsemax(logits: jax.Array) -> jax.Array:
    """The projection of columns onto the simplex, by sorting."""
    ordered = jnp.sort(logits, axis=0)[::-1]
    counts = jnp.arange(1, logits.shape[0] + 1, dtype=logits.dtype)[:, None]
    thresholds = (jnp.cumsum(ordered, axis=0) - 1.0) / counts
    kept = jnp.sum(ordered > thresholds, axis=0)
    threshold = jnp.take_along_axis(thresholds, kept[None, :] - 1, axis=0)
    return jnp.maximum(logits - threshold, 0.0)


def entmax15(logits: jax.Array) -> jax.Array:
    """Entmax with alpha = 1.5, by sorting and its closed form."""
    halves = (logits - jnp.max(logits, axis=0)) / 2.0
    ordered = jnp.sort(halves, axis=0)[::-1]
    counts = jnp.arange(1, logits.shape[0] + 1, dtype=logits.dtype)[:, None]
    mean = jnp.cumsum(ordered, axis=0) / counts
    spread = jnp.cumsum(ordered**2, axis=0) - counts * mean**2
    inside = (1.0 - spread) / counts
    # Safe where the root is not taken: its derivative is infinite at zero.
    root = jnp.where(inside > 0, jnp.sqrt(jnp.where(inside > 0, inside, 1.0)), 0.0)
    thresholds = mean - root
    kept = jnp.sum(thresholds <= ordered, axis=0)
    threshold = jnp.take_along_axis(thresholds, kept[None, :] - 1, axis=0)
    return jnp.maximum(halves - threshold, 0.0) ** 2


def relu(parameter: jax.Array) -> jax.Array:
    """Positive parts, divided by their sum."""
    positive = jax.nn.relu(parameter)
    return positive / jnp.sum(positive, axis=0)


def attended(weights: jax.Array, batch: Batch, num_tokens: int) -> jax.Array:
    """``X a`` of every sample, [B, N]."""
    hot = jax.nn.one_hot(batch.tokens, num_tokens, dtype=weights.dtype)
    return jnp.einsum("btn,bt->bn", hot, weights.T[batch.query])


def squared_error(output: jax.Array, label: jax.Array) -> jax.Array:
    """Eq. 3: half of the mean squared distance to the one-hot label."""
    target = jax.nn.one_hot(label, output.shape[1], dtype=output.dtype)
    return jnp.mean(jnp.sum((output - target) ** 2, axis=1)) / 2.0


def behind(weigh: Weigh) -> Loss:
    """The loss of V and A behind a map."""

    def loss(params: Any, batch: Batch) -> jax.Array:  # noqa: ANN401 - the learner's own
        value = params["value"]
        read = attended(weigh(params["attention"]), batch, value.shape[0])
        return squared_error(read @ value.T, batch.label)

    return loss


def mlp_behind(weigh: Weigh) -> Loss:
    """The loss of an MLP in the place of V, and A behind a map."""

    def loss(params: Any, batch: Batch) -> jax.Array:  # noqa: ANN401 - the learner's own
        value = params["value"]
        read = attended(weigh(params["attention"]), batch, value["mean"].shape[0])
        hidden = jax.nn.relu(read @ value["hidden"].T + value["bias"])
        return squared_error(value["mean"] + hidden @ value["output"].T, batch.label)

    return loss


def embedded(params: Any, batch: Batch) -> jax.Array:  # noqa: ANN401 - the learner's own
    """The loss of V [N, d] behind embeddings of all tokens of all contexts, [B, T, d]."""
    size = params["mean"].shape[0]
    hot = jax.nn.one_hot(batch.tokens, size, dtype=params["value"].dtype)
    vectors = jnp.einsum("dn,btn->btd", params["embedding"], hot)
    weights = params["attention"].T[batch.query]
    read = jnp.einsum("btd,bt->bd", vectors, weights)
    mean = jnp.sum(weights, axis=1, keepdims=True) * params["mean"]
    return squared_error(mean + read @ params["value"].T, batch.label)


def several_heads(params: Any, batch: Batch) -> jax.Array:  # noqa: ANN401 - the learner's own
    """The loss of V [H, N, N] and A [H, T, N]."""
    value, attention = params
    hot = jax.nn.one_hot(batch.tokens, value.shape[-1], dtype=value.dtype)
    weights = attention[:, :, batch.query]
    output = jnp.einsum("jnm,btm,jtb->bn", value, hot, weights)
    return squared_error(output, batch.label)


def two_levels(params: Any, batch: Batch) -> jax.Array:  # noqa: ANN401 - the learner's own
    """The loss of V, b [M, N] and w [T, N]."""
    within, blocks = params["within"], params["blocks"]
    attention = jnp.repeat(blocks, within.shape[0] // blocks.shape[0], axis=0) * within
    read = attended(attention, batch, params["value"].shape[0])
    return squared_error(read @ params["value"].T, batch.label)


def two_layers(params: Any, batch: Any) -> jax.Array:  # noqa: ANN401 - the learner's own
    """The loss of V and two layers of attention, of which the second reads what the first found."""
    value, first, second = params
    hot = jax.nn.one_hot(batch.tokens, value.shape[0], dtype=value.dtype)
    found = jnp.einsum("btn,bt->bn", hot, first.T[batch.query])
    weights = jnp.einsum("tn,bn->bt", second, found)
    return squared_error(jnp.einsum("btn,bt->bn", hot, weights) @ value.T, batch.label)
