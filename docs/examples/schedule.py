"""Schedules of optax: rates that rise in a warm-up and then fall along a cosine."""

from functools import partial

import jax
import jax.numpy as jnp
import optax

import scbjax

eta = optax.warmup_cosine_decay_schedule(0.0, 0.02, warmup_steps=50, decay_steps=600)
task = scbjax.random_task(jax.random.key(0), num_tokens=3, context_length=100, sparsity=2)
settings = scbjax.Settings(batch_size=32, steps=600, record_every=200)


def scaled(signal: jax.Array, step: jax.Array) -> jax.Array:
    """The rate at a step, in the units of a signal."""
    return jnp.asarray(eta(step)) / signal


def optimizer(task: scbjax.Task, settings: scbjax.Settings) -> optax.GradientTransformation:
    """The paper's step with eta / K_Q for V and eta / K_P for A, eta as scheduled."""
    eta_value = partial(scaled, scbjax.pattern_signal(task))
    eta_attention = partial(scaled, scbjax.transition_signal(task))
    return scbjax.scb_proximal(task.stationary, eta_value, eta_attention, settings.l1)


record = ("value_distance", "attention_distance")
train = partial(scbjax.train, optimizer=optimizer, record=record)
print(jax.jit(train)(jax.random.key(1), task, settings).records)

# Among the rates of a stage a schedule stands for its value at the step, here with a mapped peak.
source = scbjax.scb_source(num_tokens=3, context_length=100, sparsity=2)
cosine = scbjax.Stage("cosine", lambda task, peak: optax.cosine_decay_schedule(peak, 100))
model, own = scbjax.linear_transformer(), lambda task, peak, rate: optax.sgd(rate)
learner = scbjax.learner(source, model, own, stages=[cosine], batch_size=32, record_every=100)
print(learner.train(jax.random.key(1), task, 0.5, steps=100).records["batch_loss"])
