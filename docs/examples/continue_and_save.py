"""A trajectory that is saved, and continued from where it stopped: bit for bit as if it had not."""

import tempfile
from functools import partial
from pathlib import Path

import jax
import numpy as np

import scbjax

task = scbjax.random_task(jax.random.key(0), num_tokens=3, context_length=100, sparsity=2)
settings = scbjax.Settings(
    batch_size=32, steps=400, record_every=100, optimizer="adam", record=("attention_distance",)
)
key = jax.random.key(1)  # the same one throughout: what step t draws depends on it and on t alone
train = jax.jit(scbjax.train, static_argnames="steps")
first = train(key, task, settings)

with tempfile.TemporaryDirectory() as folder:
    scbjax.save(Path(folder) / "params.npz", first.params)
    scbjax.save(Path(folder) / "state.npz", first.state)
    params = scbjax.load(Path(folder) / "params.npz")
    # The state of an optimiser is of optax: it is read into one like it.
    start = jax.eval_shape(partial(scbjax.train, steps=100), key, task, settings)
    state = scbjax.load(Path(folder) / "state.npz", like=start.state)

second = train(key, task, settings, state=state, steps=200)
print(second.steps, second.records["attention_distance"])

whole = train(key, task, settings, steps=600)
np.testing.assert_array_equal(second.params.attention, whole.params.attention)
np.testing.assert_array_equal(
    second.records["attention_distance"], whole.records["attention_distance"][4:]
)
