"""Stages of one's own: first V alone, then A alone at a rate that is mapped, then both."""

from typing import Any

import jax
import jax.numpy as jnp

import scbjax
from scbjax import Stage

first = Stage(
    "V alone",
    rates={"value": 0.3, "attention": 0.0},
    is_over=lambda view: view.batch_loss < 0.32,  # asked before each record
    frozen=("attention",),
)
second = Stage(
    "A alone",
    rates=lambda task, rate: {"value": 0.0, "attention": rate},
    is_over=lambda view: view.state.step >= 800,
    frozen=("value",),
)
third = Stage("both", rates={"value": 0.1, "attention": 0.1})


def optimizer(task: scbjax.Task, rate: jax.Array, rates: dict[str, jax.Array]) -> Any:
    """One form for all stages, made with the rates of the stage that a trajectory is in."""
    return scbjax.raw_sgd(rates["value"], rates["attention"])


source = scbjax.scb_source(num_tokens=3, context_length=30, sparsity=1)
parts, stages = (source, scbjax.linear_transformer(), optimizer), [first, second, third]
record = ("stage", "attention_distance")
own = scbjax.learner(*parts, stages=stages, batch_size=128, record_every=100, record=record)
task = source.draw(jax.random.key(0))
train = jax.vmap(lambda rate: own.train(jax.random.key(1), task, rate, steps=1200).records)
for name, rows in jax.jit(train)(jnp.array([0.1, 1.0])).items():
    print(name, rows, sep="\n")  # each learner goes through the stages at its own pace
