"""Finite data: what is drawn, what theory expects of a fit, and where learners begin."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scbjax
from scbjax.base import StudyError
from scbjax.experiments import finite

STATIC: dict[str, Any] = {
    "num_tokens": 4, "context_length": 12, "sparsity": 3, "most_samples": 64,
    "value_path": "linear", "attention_map": "linear", "width": 32, "optimizer": "sgd",
}  # fmt: skip
VALUES = {"theta": jnp.float32(0.3), "correlation": jnp.float32(0.6), "alpha": jnp.float32(1.5)}


def drawn(seed: int = 0, samples: int = 40, **changes: int) -> finite.Data:
    values = {"samples": jnp.asarray(samples)}
    return finite.draw(jax.random.key(seed), values, {**STATIC, **changes})


@pytest.mark.slow
def test_fewer_samples_are_the_first_of_more() -> None:
    few, many = drawn(samples=8), drawn(samples=40, most_samples=64)
    np.testing.assert_array_equal(few.samples.tokens, many.samples.tokens)
    assert few.test.label.shape == (finite.TEST_SAMPLES,)
    # Other samples: contexts of 12 tokens are hardly ever the same.
    assert not np.array_equal(few.test.tokens[:8], few.samples.tokens[:8])
    keys = jax.random.split(jax.random.key(1), 200)
    batch = jax.vmap(lambda key: finite.sample(key, few, 16))(keys)
    own = {row.tobytes() for row in np.asarray(few.samples.tokens[:8])}
    assert {row.tobytes() for row in np.asarray(batch.tokens).reshape(-1, 12)} == own


def test_samples_are_those_of_the_task() -> None:
    """Labels of a query follow P X q, and contexts mu: chi-square over all cells."""
    data = drawn(most_samples=40000, samples=40000)
    task, batch = data.task, data.samples
    hot = np.eye(4)[np.asarray(batch.tokens)]
    weights = np.asarray(task.pattern).T[np.asarray(batch.query)]
    law = np.einsum("btn,bt->bn", hot, weights) @ np.asarray(task.transition).T
    difference = np.eye(4)[np.asarray(batch.label)] - law
    spread = np.sqrt((law * (1 - law)).mean(0) / len(law))
    assert (np.abs(difference.mean(0)) < 4.5 * spread).all()
    counts = hot.mean((0, 1))
    np.testing.assert_allclose(counts, task.stationary, atol=4.5 * 0.5 / np.sqrt(40000 * 12))


@pytest.mark.parametrize("path", ["linear", "mlp"])
@pytest.mark.parametrize("theta", [0.0, 0.3, 1.0])
def test_every_value_path_begins_at_the_same_values(path: str, theta: float) -> None:
    data = drawn()
    values = {**VALUES, "theta": jnp.float32(theta)}
    model = finite.model_of({**STATIC, "value_path": path})
    params = model.init(jax.random.key(2), data, values)
    hat = 0.6 * np.asarray(data.task.transition) + 0.4 * np.asarray(data.related)
    expected = theta * hat + (1 - theta) * np.asarray(data.task.stationary)[:, None]
    np.testing.assert_allclose(model.readout(params, values).value, expected, atol=2e-5)
    np.testing.assert_allclose(data.related @ data.task.stationary, data.task.stationary, atol=1e-5)


def by_law(rng: np.random.Generator, laws: np.ndarray) -> np.ndarray:
    """One draw for each column of probabilities [m, n]."""
    shares = np.cumsum(laws / laws.sum(axis=0), axis=0)
    return np.asarray((rng.random(laws.shape[1]) > shares).sum(axis=0))


def test_a_dense_fit_has_the_loss_that_theory_expects() -> None:
    """Least squares in float64, with V = P and columns that sum to one, over many data sets."""
    data = drawn(most_samples=1)
    task = jax.tree.map(lambda x: np.asarray(x, float), data.task)
    rng = np.random.default_rng(0)
    tokens, length = task.transition.shape[0], task.pattern.shape[0]
    n, found = 2000, []
    for _ in range(60):
        contexts = rng.choice(tokens, p=task.stationary / task.stationary.sum(), size=(n, length))
        query = by_law(rng, np.tile(task.stationary[:, None], n))
        place = by_law(rng, task.pattern[:, query])
        label = by_law(rng, task.transition[:, contexts[np.arange(n), place]])
        total = 0.0
        centred = task.transition - task.stationary[:, None]
        spread = np.trace((centred * task.stationary) @ centred.T)
        for k in range(tokens):
            chosen = query == k
            read = centred[:, contexts[chosen]].transpose(1, 0, 2)  # [n_k, N, T]
            target = np.eye(tokens)[label[chosen]] - task.stationary
            fit = np.einsum("bnt,bns->ts", read, read)
            # The sum of a column is fixed by a multiplier.
            ones = np.ones((length, 1))
            whole = np.block([[fit, ones], [ones.T, np.zeros((1, 1))]])
            right = np.append(np.einsum("bnt,bn->t", read, target), 1.0)
            column = np.linalg.solve(whole, right)[:length]
            away = column - task.pattern[:, k]
            total += task.stationary[k] * spread * (away @ away) / 2
        found.append(total)
    expected = (length - 1) * float(finite.dense_excess(data.task, n))
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - expected) < 4 * error + 0.05 * expected
    assert error < 0.1 * expected  # so that it can fail


def test_losses_are_those_of_all_samples() -> None:
    data = drawn(samples=32)
    model = finite.model_of(STATIC)
    params = model.init(jax.random.key(2), data, VALUES)
    read = model.readout(params, VALUES)
    view = scbjax.View(
        jax.random.key(0), read, data, loss=lambda batch: model.loss(params, batch, VALUES)
    )

    def excess(batch: scbjax.Batch) -> float:
        total = 0.0
        for tokens, query, label in zip(*map(np.asarray, batch), strict=True):
            hot = np.eye(4)[tokens].T
            for sign, value, attention in (
                (1, read.value, read.attention),
                (-1, data.task.transition, data.task.pattern),
            ):
                output = np.asarray(value, float) @ hot @ np.asarray(attention, float)[:, query]
                total += sign * ((output - np.eye(4)[label]) ** 2).sum() / 2
        return total / len(batch.label)

    first = scbjax.Batch(*(part[:32] for part in data.samples))
    record = {entry.name: entry for entry in finite.RECORD if isinstance(entry, scbjax.Observable)}
    assert float(record["train_excess"].compute(view)) == pytest.approx(excess(first), abs=2e-6)
    assert float(record["test_excess"].compute(view)) == pytest.approx(excess(data.test), abs=2e-6)


@pytest.mark.slow
def test_a_dense_learner_overfits_few_samples() -> None:
    study = {
        "experiment": "finite",
        "task": {"num_tokens": 3, "context_length": 40, "sparsity": 2},
        "data": {"most_samples": 4096},
        "train": {"steps": 400, "record_every": 40, "optimizer": "preconditioned", "rate": 0.05},
        "transfer": {"theta": 0.5, "correlation": 1.0},
        "record": {"variables": ["test_excess", "train_excess"]},
    }
    axes = {"seed": range(4), "samples": [64, 4096]}
    found = scbjax.sweep.run(study, axes=axes, progress=False).median("seed")
    few, many = (found.sel(samples=n) for n in (64, 4096))
    assert (
        float(few.train_excess[-1]) < 0 < float(many.test_excess[-1]) < float(few.test_excess[-1])
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.samples": 100}, "data.samples = 100 is more than data.most_samples = 64"),
        ({"model.value_path": "mlp", "model.width": 2}, "model.width = 2 with model.value_path"),
        ({"model.attention_map": "entmax"}, "model.attention_map must be one of 'linear'"),
        ({"transfer.theta": 1.5}, "transfer.theta must be a number from 0.0 to 1.0, got 1.5"),
    ],
)
def test_what_has_no_meaning_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    study = {
        "experiment": "finite",
        "task": {"num_tokens": 3, "context_length": 20, "sparsity": 2},
        "data": {"most_samples": 64, "samples": 64},
        "train": {"steps": 2, "record_every": 1},
    }
    with pytest.raises(StudyError, match=re.escape(message)):
        scbjax.sweep.run(study, set=changes, axes={"seed": range(2)}, progress=False)
