"""What once waited for ever, each in a process of its own with a time limit."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from scbjax.task import solve

SECONDS = 240  # for the whole process; some twenty are the compiler's
ALARM = "onstant folding"

# The refit of V solves a system for each trajectory, in the record of the initial state and in
# later ones. The initial state is known to the compiler; its record is not to be worked out by it.
TRAIN = """
import jax
import scbjax

draw = lambda key: scbjax.random_task(key, num_tokens=300, context_length=5000, sparsity=2)
keys = jax.random.split(jax.random.key(0), 2)
record = ("rounded_value_distance", "nonzeros")
settings = scbjax.Settings(batch_size=64, steps=2, record_every=2, record=record)
run = jax.jit(jax.vmap(lambda key, task: scbjax.train(key, task, settings)))
print(run(keys, jax.jit(jax.vmap(draw))(keys)).records["rounded_value_distance"].shape == (2, 2))
"""


def output_of(code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own."""
    environ = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env=environ,
    )


def test_many_trajectories_of_a_large_vocabulary_end_without_alarms() -> None:
    done = output_of(TRAIN)
    assert done.stdout.split() == ["True"], done.stderr
    assert ALARM not in done.stderr


def test_solve_is_that_of_numpy_under_vmap_and_has_its_derivatives() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(3, 2, 5, 5)).astype(np.float32) + 4 * np.eye(5, dtype=np.float32)
    right = rng.normal(size=(3, 2, 5, 2)).astype(np.float32)
    found = jax.jit(jax.vmap(jax.vmap(solve)))(jnp.asarray(matrix), jnp.asarray(right))
    np.testing.assert_allclose(
        found, np.linalg.solve(matrix.astype(float), right.astype(float)), rtol=2e-5, atol=2e-6
    )

    def total(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(solve(a, b) ** 2)

    def usual(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(jnp.linalg.solve(a, b) ** 2)

    own = jax.vmap(jax.grad(total, (0, 1)))(jnp.asarray(matrix[0]), jnp.asarray(right[0]))
    other = jax.vmap(jax.grad(usual, (0, 1)))(jnp.asarray(matrix[0]), jnp.asarray(right[0]))
    for a, b in zip(own, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
