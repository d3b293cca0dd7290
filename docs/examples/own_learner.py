"""A learner of one's own: two heads, each with its own V and softmax attention, added up."""

import jax
import jax.numpy as jnp
import optax

import scbjax


def init(key: jax.Array, task: scbjax.Task) -> dict[str, jax.Array]:
    """V [2, N, N], halves of the paper's start, and logits [2, T, N] that tell heads apart."""
    value = jnp.stack([task.stationary[:, None] * jnp.ones_like(task.transition) / 2] * 2)
    return {"value": value, "logits": 0.1 * jax.random.normal(key, (2, *task.pattern.shape))}


def readout(heads: dict[str, jax.Array]) -> scbjax.Params:
    """V and A of every head, with an axis for the heads in front."""
    return scbjax.Params(heads["value"], jax.nn.softmax(heads["logits"], axis=1))


def loss(heads: dict[str, jax.Array], batch: scbjax.Batch) -> jax.Array:
    """The mean of 1/2 |e - sum over heads of V X a|^2, which JAX differentiates."""
    predict = jax.vmap(scbjax.predict, in_axes=(0, None, None))
    output = predict(readout(heads), batch.tokens, batch.query).sum(axis=0)
    squares = (output - jax.nn.one_hot(batch.label, output.shape[1])) ** 2
    return jnp.mean(jnp.sum(squares, axis=1)) / 2


def share(view: scbjax.View) -> jax.Array:
    """What share of its attention each head pays to the support of Q."""
    return jnp.where(view.task.pattern > 0, view.params.attention, 0.0).sum(axis=1).mean(axis=1)


source = scbjax.scb_source(num_tokens=3, context_length=30, sparsity=2)
parts = source, scbjax.Model(init, loss, readout), optax.adamw(0.03)
record = {"share": scbjax.Observable(share, dims=("head",))}
own = scbjax.learner(*parts, batch_size=64, record_every=300, record=record)
task = source.draw(jax.random.key(0))
print(jax.jit(own.train, static_argnames="steps")(jax.random.key(1), task, steps=600).records)
