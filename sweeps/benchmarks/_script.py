"""README's first snippet as a script in plain JAX: the peer of the time to a first result.

A task drawn in NumPy, `choice` and `categorical`, the one-hot tensor [B, T, N], `jax.grad`, the
steps of eqs. 4 to 6, and a record of the distance to Q after every hundred of them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

N, T, Q, B, STEPS, EVERY = 3, 200, 2, 32, 800, 100
RATE_VALUE, RATE_ATTENTION, L1 = 0.05, 0.05, 1e-4


def draw_task() -> tuple[jax.Array, jax.Array, jax.Array]:
    """P [N, N], mu [N] and Q [T, N]."""
    rng = np.random.default_rng(0)
    transition = rng.dirichlet(np.ones(N), N).T
    pattern = np.zeros((T, N))
    for query in range(N):
        pattern[rng.choice(T, Q, replace=False), query] = rng.dirichlet(np.ones(Q))
    stationary = np.linalg.matrix_power(transition, 200)[:, 0]
    return jnp.asarray(transition), jnp.asarray(stationary), jnp.asarray(pattern)


transition, stationary, pattern = draw_task()


def sample(key: jax.Array) -> Any:  # noqa: ANN401 - a triple of arrays
    """Contexts, queries and labels."""
    keys = jax.random.split(key, 4)
    tokens = jax.random.choice(keys[0], N, (B, T), p=stationary)
    query = jax.random.choice(keys[1], N, (B,), p=stationary)
    position = jax.random.categorical(keys[2], jnp.log(pattern.T[query]))
    source = jnp.take_along_axis(tokens, position[:, None], axis=1)[:, 0]
    return tokens, query, jax.random.categorical(keys[3], jnp.log(transition.T[source]))


def loss(params: Any, batch: Any) -> jax.Array:  # noqa: ANN401 - tuples of arrays
    """Half of the mean squared error."""
    (value, attention), (tokens, query, label) = params, batch
    attended = jnp.einsum("btn,bt->bn", jax.nn.one_hot(tokens, N), attention.T[query])
    error = attended @ value.T - jax.nn.one_hot(label, N)
    return 0.5 * jnp.mean(jnp.sum(error**2, axis=1))


def step(params: Any, key: jax.Array) -> tuple[Any, None]:  # noqa: ANN401 - a pair of arrays
    """Eqs. 4 to 6."""
    value, attention = jax.grad(loss)(params, sample(key))
    value = value / stationary
    value = value - jnp.mean(value, axis=0)
    value = params[0] - RATE_VALUE * (value - (value @ stationary)[:, None])
    attention = attention / stationary
    moved = params[1] - RATE_ATTENTION * (attention - jnp.mean(attention, axis=0))
    moved = jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - L1, 0.0)
    return (value, moved + (1 - jnp.sum(moved, axis=0)) / T), None


@jax.jit
def train(key: jax.Array) -> Any:  # noqa: ANN401 - parameters and records
    """All steps, with a record after every hundred."""

    def record(params: Any, key: jax.Array) -> tuple[Any, jax.Array]:  # noqa: ANN401
        params, _ = jax.lax.scan(step, params, jax.random.split(key, EVERY))
        return params, jnp.linalg.norm(params[1] - pattern)

    start = jnp.tile(stationary[:, None], (1, N)), jnp.full((T, N), 1 / T)
    return jax.lax.scan(record, start, jax.random.split(key, STEPS // EVERY))


if __name__ == "__main__":
    (value, attention), distances = jax.block_until_ready(train(jax.random.key(1)))
    print(distances)
