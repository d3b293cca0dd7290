"""Observables of one's own, beside those of the library: a scalar, and one for each query."""

import jax
import jax.numpy as jnp

import scbjax


def largest_weight(view: scbjax.View) -> jax.Array:
    """The largest entry of A."""
    return jnp.max(view.params.attention)


def mass_on_pattern(view: scbjax.View) -> jax.Array:
    """Of each column of A, the sum where Q has weight: an array [N]."""
    return jnp.sum(jnp.where(view.task.pattern > 0, view.params.attention, 0.0), axis=0)


by_query = scbjax.Observable(
    mass_on_pattern, "attention on the support of Q", dims=("query",), name="mass_on_pattern"
)

task = scbjax.random_task(jax.random.key(0), num_tokens=3, context_length=100, sparsity=2)
settings = scbjax.Settings(batch_size=32, steps=400, record_every=200)
record = ("attention_distance", largest_weight, by_query)


@jax.jit
def records(key: jax.Array) -> dict[str, jax.Array]:
    """What is recorded is given to `train` inside of what is compiled: functions are no arrays."""
    return scbjax.train(key, task, settings, record=record).records


for name, values in records(jax.random.key(1)).items():
    print(name, values.shape, values[-1])

# The same of parameters by themselves, by names of one's own.
print(scbjax.observe(scbjax.init_params(task), task, {"largest": largest_weight, "mass": by_query}))
