"""A learner of one's own in a sweep: H softmax heads; heads.toml says how it is run."""

import jax
import jax.numpy as jnp
import optax

import scbjax
from scbjax.base import Parameter

HEADS = Parameter("model.heads", int, 2, "static", "inner", "Heads H")
RATE = Parameter("train.rate", float, 0.02, "traced", "inner", "Rate of Adam")


def readout(heads):  # V [H, N, N] and A [H, T, N]
    return scbjax.Params(heads["value"], jax.nn.softmax(heads["logits"], axis=1))


def loss(heads, batch):  # which JAX differentiates
    predict = jax.vmap(scbjax.predict, in_axes=(0, None, None))
    output = predict(readout(heads), batch.tokens, batch.query).sum(axis=0)
    return optax.l2_loss(output, jax.nn.one_hot(batch.label, output.shape[1])).sum(1).mean()


def entropy(view):  # of each head, a mean over queries
    return jax.scipy.special.entr(view.params.attention).sum(axis=1).mean(axis=1)


def make(source, static, **given):  # what static parameters change
    def init(key, task):
        value = jnp.zeros((static["heads"], *task.transition.shape))
        logits = jax.random.normal(key, (static["heads"], *task.pattern.shape))
        return {"value": value, "logits": 0.1 * logits}

    model = scbjax.Model(init, loss, readout)
    return scbjax.learner(source, model, lambda task, v, _: optax.adam(v["rate"]), **given)


source = scbjax.scb_source(num_tokens=3, context_length=20, sparsity=2)
record = ("batch_loss", scbjax.Observable(entropy, units="nat", dims=("head",), name="entropy"))
EXPERIMENT = scbjax.learning("heads", source, make, record=record, parameters=(HEADS, RATE))
