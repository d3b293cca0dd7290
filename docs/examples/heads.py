"""A learner of your own in a sweep: H softmax heads that Adam trains on the bigram's batches.

Run it: scbjax run docs/examples/heads.toml --experiment docs/examples/heads.py
"""

import jax
import jax.numpy as jnp
import optax

import scbjax
from scbjax.base import RECORD_EVERY, STEPS, Experiment, Functions, Parameter, Variable, in_turn

N, T = 3, 20
PARAMETERS = (
    Parameter("model.heads", int, 2, "static", "inner", "Heads H"),
    Parameter("train.rate", float, 0.02, "traced", "inner", "Rate of Adam", symbol=r"$\eta$"),
    STEPS,
    RECORD_EVERY,
)


def build(fixed, varying):  # static values, and those of all points; gives pure functions
    heads, every = fixed["model.heads"], fixed["train.record_every"]

    def loss(params, batch):
        weights = attention(params)[..., batch.query]
        seen = jnp.einsum("htb,btn->hbn", weights, one_hot(batch.tokens))
        guess = jnp.einsum("hmn,hbn->bm", params["value"], seen)
        return jnp.mean(jnp.sum((one_hot(batch.label) - guess) ** 2, axis=1)) / 2

    def draw(keys, values):  # what is learned: shared by all learners of a seed
        return scbjax.random_task(keys.task, num_tokens=N, context_length=T, sparsity=2)

    def start(keys, values, task):
        logits = 0.1 * jax.random.normal(keys.start, (heads, T, N))
        params = {"value": jnp.full((heads, N, N), 1 / (heads * N)), "logits": logits}
        return params, optax.adam(values["train.rate"]).init(params)

    def advance(keys, values, task, state, step):  # to the next record
        def one(state, index):
            batch = scbjax.sample_batch(jax.random.fold_in(keys.data, index), task, 64)
            grads = jax.grad(loss)(state[0], batch)
            updates, memory = optax.adam(values["train.rate"]).update(grads, state[1])
            return (optax.apply_updates(state[0], updates), memory), None

        return jax.lax.scan(one, state, step + jnp.arange(every))[0]

    def observe(keys, values, task, state, step):
        found = attention(state[0])
        batch = scbjax.sample_batch(jax.random.fold_in(keys.more(3), step), task, 512)
        entropy = -jnp.sum(found * jnp.log(found), axis=1).mean(axis=1)
        return {"loss": loss(state[0], batch), "entropy": entropy}

    def is_finite(state):
        return jnp.isfinite(state[0]["value"]).all()

    return Functions(draw, start, in_turn(advance, observe, every), is_finite)


def one_hot(tokens):
    return jax.nn.one_hot(tokens, N)


def attention(params):
    return jax.nn.softmax(params["logits"], axis=1)  # [H, T, N]


EXPERIMENT = Experiment(
    name="heads",
    parameters=PARAMETERS,
    build=build,
    variables={
        "loss": Variable("loss on fresh samples", r"$\mathcal{L}$"),
        "entropy": Variable("entropy of a head, mean over queries", "$H$", "nat", dims=("head",)),
    },
    dims={"head": Variable("head", "$h$")},
    sizes=lambda values: {"head": values["model.heads"]},
    size_paths=("model.heads",),
)
