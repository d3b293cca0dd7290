"""Softmax with a temperature, a number that a sweep varies; temperature.toml says how it is run."""

import jax
import optax

import scbjax
from scbjax.base import Parameter

TEMPERATURE = Parameter(
    "model.temperature", float, 1.0, "traced", "inner", "Temperature", symbol=r"$\tau$"
)


def init(key, task):  # V = mu 1^T and logits of zero
    return scbjax.init_params(task, "softmax")


def readout(params, values):  # each part may take `values`, the traced parameters by short name
    weights = jax.nn.softmax(params.attention / values["temperature"], axis=-2)
    return scbjax.Params(params.value, weights)


def loss(params, batch, values):  # that of A, continued by the map's own derivative
    return scbjax.loss(readout(params, values), batch)


def entropy(view):  # a scalar, so that it can be drawn: over columns, weighted by mu
    columns = jax.scipy.special.entr(view.params.attention).sum(axis=0)
    return columns @ view.task.stationary


def make(source, static, **given):
    return scbjax.learner(source, scbjax.Model(init, loss, readout), optax.adam(0.02), **given)


source = scbjax.scb_source(num_tokens=3, context_length=50, sparsity=2)
ENTROPY = scbjax.Observable(entropy, "entropy of A", units="nat", name="entropy")
EXPERIMENT = scbjax.learning(
    "temperature", source, make, record=("attention_distance", ENTROPY), parameters=(TEMPERATURE,)
)
