"""An optimiser of optax, chained with parts of the paper's, for several learning rates at once."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

import scbjax

task = scbjax.random_task(jax.random.key(0), num_tokens=3, context_length=100, sparsity=2)
settings = scbjax.Settings(
    batch_size=32, steps=400, record_every=100, record=("attention_distance",)
)


def preconditioned_adam(
    task: scbjax.Task, settings: scbjax.Settings
) -> optax.GradientTransformationExtraArgs:
    """Adam behind the diagonal part of eq. 4, with the invariants made good again."""
    return optax.chain(
        scbjax.scale_by_stationary(task.stationary),
        optax.scale_by_adam(),
        optax.scale_by_learning_rate(settings.learning_rate_1),  # a number that may be traced
        scbjax.keep_invariants(task.stationary),
    )


@jax.jit
@jax.vmap
def distances(rate: jax.Array) -> jax.Array:
    """|A - Q| at every record. All rates see the same mini-batches, which are drawn once."""
    own = dataclasses.replace(settings, learning_rate_1=rate)
    trajectory = scbjax.train(jax.random.key(1), task, own, optimizer=preconditioned_adam)
    return trajectory.records["attention_distance"]


rates = jnp.array([1e-3, 3e-3, 1e-2])
for rate, row in zip(rates, distances(rates), strict=True):
    print(f"rate {rate:.0e}: {row.round(3)}")
