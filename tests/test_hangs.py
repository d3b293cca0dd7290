"""What once waited for ever, each in a process of its own with a time limit."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scbjax.task import solve

SECONDS = 240  # for the whole process; some twenty are the compiler's
ALARM = "onstant folding"

# The refit of V solves a system for each trajectory, in the record of the initial state and in
# later ones. The initial state is known to the compiler; its record is not to be worked out by it.
TASKS = """
import jax
import scbjax

draw = lambda key: scbjax.random_task(key, num_tokens=300, context_length=5000, sparsity=2)
keys = jax.random.split(jax.random.key(0), 2)
record = ("rounded_value_distance", "nonzeros")
settings = scbjax.Settings(batch_size=64, steps=2, record_every=2, record=record)
shape_of = lambda found: found.records["rounded_value_distance"].shape
tasks = jax.jit(jax.vmap(draw))(keys)
"""
DEVICES = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
"""
TRAIN = """
run = jax.jit(jax.vmap(lambda key, task: scbjax.train(key, task, settings)))
print(shape_of(run(keys, tasks)) == (2, 2))
"""
OTHERS = {
    "a transfer": """
import dataclasses
settings = dataclasses.replace(settings, start="transfer", theta=0.2)
near = lambda key, task: scbjax.related_task(key, task, correlation=0.5)
related = jax.jit(jax.vmap(near))(jax.random.split(jax.random.key(1), 2), tasks)
run = jax.jit(jax.vmap(lambda key, task, source: scbjax.train(key, task, settings, source)))
print(shape_of(run(keys, tasks, related)) == (2, 2))
""",
    "a simulation": """
simulate = lambda key, task: scbjax.simulate(key, task, settings, context_length=10000)
run = jax.jit(jax.vmap(simulate))
print(shape_of(run(keys, tasks)) == (2, 2))
""",
    "contexts that are split": """
task = jax.tree.map(lambda leaf: leaf[0], tasks)
print(shape_of(scbjax.over_positions(scbjax.train)(keys[0], task, settings)) == (2,))
""",
    "a sweep": """
study = {
    "task": {"num_tokens": 300, "context_length": 5000, "sparsity": 2},
    "train": {"batch_size": 64, "steps": 2, "record_every": 2},
    "record": {"variables": record},
}
found = scbjax.sweep.run(study, axes={"seed": [0, 1]}, progress=False)
print(found.rounded_value_distance.shape == (2, 2))
""",
}


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
    done = output_of(TASKS + TRAIN)
    assert done.stdout.split() == ["True"], done.stderr
    assert ALARM not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("way", OTHERS)
def test_other_records_of_initial_states_end_without_alarms(way: str) -> None:
    done = output_of(DEVICES + TASKS + OTHERS[way])
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
