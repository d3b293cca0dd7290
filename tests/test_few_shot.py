"""Few-shot learning after many tasks: against NumPy, one-hot autodiff and Monte Carlo."""

import re
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import scbjax
from scbjax.base import StudyError
from scbjax.experiments import fewshot
from scbjax.losses import population_grad, population_loss
from scbjax.model import keep_largest
from scbjax.noise import value_noise
from scbjax.patterns import random_pattern

Array = np.ndarray
KINDS = ("transition", "pattern")


LENGTH = 300


@cache
def make_task() -> scbjax.Task:
    return scbjax.random_task(jax.random.key(3), num_tokens=4, context_length=LENGTH, sparsity=2)


def as_numpy(task: scbjax.Task) -> tuple[Array, Array, Array]:
    p, mu, q = (np.asarray(array, float) for array in task)
    return p, mu, q


def inner(a: Array, b: Array, mu: Array) -> float:
    return float(np.sum(a * b * mu[None, :]))


@cache
def started(kept: str, count: int = 3) -> dict[str, Any]:
    model = fewshot.model_of({"kept": kept, "sparsity": 2})
    values = {"correlation": 0.4, "num_tasks": count, "skew": 2.0}
    found: dict[str, Any] = model.init(
        jax.random.key(5), make_task(), {name: jnp.asarray(x) for name, x in values.items()}
    )
    return found


def test_the_mean_of_m_tasks_is_that_of_single_draws() -> None:
    task, key = make_task(), jax.random.key(5)
    p, mu, q = as_numpy(task)
    keys = [jax.random.fold_in(key, number) for number in range(3)]
    others = [scbjax.related_task(own, task, correlation=0.0).transition for own in keys]
    patterns = [random_pattern(own, (LENGTH, 4), 2, 2.0, 2, jnp.float32) for own in keys]
    for kept, own, drawn, of in (
        ("transition", p, others, "value"),
        ("pattern", q, patterns, "attention"),
    ):
        for count in (1, 3):
            start = started(kept, count)["start"]
            mean = np.mean([np.asarray(array, float) for array in drawn[:count]], axis=0)
            np.testing.assert_allclose(getattr(start, of), 0.4 * own + 0.6 * mean, atol=2e-6)
            if kept == "transition":
                np.testing.assert_allclose(start.value @ mu, mu, atol=1e-5)
                np.testing.assert_allclose(start.attention, 1 / LENGTH, rtol=1e-6)


def test_with_correlation_one_the_start_is_the_task_s_own() -> None:
    task, values = make_task(), {"correlation": jnp.asarray(1.0), "num_tasks": jnp.asarray(7)}
    for kept, of, own in (
        ("transition", "value", task.transition),
        ("pattern", "attention", task.pattern),
    ):
        model = fewshot.model_of({"kept": kept, "sparsity": 2})
        start = model.init(jax.random.key(0), task, values | {"skew": jnp.asarray(2.0)})["start"]
        np.testing.assert_array_equal(getattr(start, of), own)


@pytest.mark.slow  # compiled anew, for the vocabulary of the study
def test_related_matrices_overlap_by_one_over_n_minus_one() -> None:
    """Of independent matrices of one mu: mean near 0 and deviation near 1/(N - 1)."""
    task = scbjax.random_task(
        jax.random.key(3), num_tokens=6, context_length=9, sparsity=2, skew=1.3,
        transition_signal=0.4,
    )  # fmt: skip
    p, mu, _ = as_numpy(task)
    keys = jax.random.split(jax.random.key(1), 64)
    drawn = jax.vmap(lambda key: scbjax.related_task(key, task, correlation=0.0).transition)(keys)
    pi = p - mu[:, None]
    found = [inner(np.asarray(o, float) - mu[:, None], pi, mu) / inner(pi, pi, mu) for o in drawn]
    # Three standard errors of 64 draws: 0.2 * 3 / 8 for the mean, 27% for the deviation.
    assert abs(np.mean(found)) < 0.075
    assert np.std(found) == pytest.approx(0.2, rel=0.3)


@pytest.mark.parametrize("kept", KINDS)
def test_the_expected_step_is_lemma_b8(kept: str) -> None:
    task = make_task()
    p, mu, q = as_numpy(task)
    params = dict(started(kept))
    grads = population_grad(params["start"], task)
    params["mean"] = grads.attention if kept == "transition" else grads.value
    after = fewshot.moved(kept, params, task)
    v, a = (np.asarray(array, float) for array in params["start"])
    if kept == "transition":
        signal = inner(v - mu[:, None], p - mu[:, None], mu)
        np.testing.assert_allclose(
            after.attention, 1 / LENGTH + signal * (q - 1 / LENGTH), atol=2e-6
        )
        np.testing.assert_allclose(after.value, v, atol=1e-6)
    else:
        share = inner(a, q, mu) / inner(a, a, mu)
        expected = mu[:, None] + share * (p - mu[:, None])
        np.testing.assert_allclose(after.value, expected, atol=1e-5)
        np.testing.assert_allclose(after.attention, a, atol=1e-6)


def plain_loss(params: scbjax.Params, tokens: Array, query: Array, label: Array) -> jax.Array:
    hot = jax.nn.one_hot(tokens, params.value.shape[0])
    attended = jnp.einsum("btn,tb->bn", hot, params.attention[:, query])
    error = jax.nn.one_hot(label, params.value.shape[0]) - attended @ params.value.T
    return 0.5 * jnp.mean(jnp.sum(error**2, axis=-1))


@pytest.mark.parametrize("kept", KINDS)
def test_steps_average_plain_gradients_at_the_start(kept: str) -> None:
    task = make_task()
    params, move = started(kept), fewshot.averaging(kept)
    start, count = params["start"], move.init(params)
    total = 0.0
    for seed in range(3):
        batch = scbjax.sample_batch(jax.random.key(seed), task, 6)
        (loss, _), params, count = move.step(params, count, batch)
        parts = (np.asarray(batch.tokens), np.asarray(batch.query), np.asarray(batch.label))
        expected, grads = jax.value_and_grad(plain_loss)(start, *parts)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
        total = total + (grads.attention if kept == "transition" else grads.value)
    np.testing.assert_allclose(params["mean"], total / 3, atol=1e-6)
    np.testing.assert_array_equal(params["start"].value, start.value)


def test_keep_largest_keeps_and_normalises() -> None:
    rng = np.random.default_rng(0)
    attention = rng.normal(size=(30, 5)).astype(np.float32)
    attention[:, 4] = -np.abs(attention[:, 4])
    found = np.asarray(keep_largest(jnp.asarray(attention), 3))
    for column, kept in zip(attention.T, found.T, strict=True):
        order = np.argsort(-column)[:3]
        expected = np.zeros(30)
        expected[order] = np.maximum(column[order], 0)
        if expected.sum() > 0:
            expected /= expected.sum()
        else:
            expected[order[0]] = 1.0
        np.testing.assert_allclose(kept, expected, rtol=1e-5, atol=1e-7)


def per_sample(start: scbjax.Params, task: scbjax.Task, count: int) -> tuple[Array, ...]:
    """Tokens, queries, attended vectors and residuals V h - e_y of samples, in float64."""
    batch = scbjax.sample_batch(jax.random.key(9), task, count)
    tokens, query, label = (np.asarray(x).astype(int) for x in batch)
    v, a = (np.asarray(array, float) for array in start)
    attended = np.zeros((count, len(v)))
    for token in range(len(v)):
        attended[:, token] = np.sum((tokens == token) * a[:, query].T, axis=1)
    return tokens, query, attended, attended @ v.T - np.eye(len(v))[label]


@pytest.mark.parametrize("count", [1, 64])
def test_the_noise_of_a_step_on_a_is_that_of_samples(count: int) -> None:
    task = make_task()
    p, mu, q = as_numpy(task)
    start = started("transition", count)["start"]
    tokens, query, _, residual = per_sample(start, task, 20_000)
    v = np.asarray(start.value, float)
    signal = inner(v - mu[:, None], p - mu[:, None], mu)
    total = 0.0
    for k in range(4):
        rows, own = np.flatnonzero(q[:, k]), query == k
        pulled = -np.take_along_axis((residual @ v)[own], tokens[own][:, rows], axis=1)
        # What all positions of the context have in common is projected out.
        pulled = pulled + ((residual @ v)[own] @ mu)[:, None]
        scaled = pulled - q[rows, k] * pulled.sum(axis=1, keepdims=True)
        total += np.mean(scaled**2, axis=0).sum()
    noise = float(fewshot.attention_noise(start.value, task))
    # Two percent of Monte Carlo, and terms of order 1/T that the formula leaves out.
    assert noise == pytest.approx(total, rel=0.08)
    found = float(fewshot.noise_to_signal("transition", start, task))
    assert found == pytest.approx(np.sqrt(noise) / abs(signal), rel=1e-4)


def test_the_noise_of_a_step_on_v_is_that_of_samples() -> None:
    task = make_task()
    _, mu, q = as_numpy(task)
    start = started("pattern", 3)["start"]
    _, _, attended, residual = per_sample(start, task, 20_000)
    # |r|^2 |h / mu - 1|^2 in the mu-norm: the outer product of a sample, preconditioned.
    square = np.sum(residual**2, axis=1) * np.sum((attended / mu - 1) ** 2 * mu, axis=1)
    noise = float(value_noise(start.attention, task))
    # Three standard errors.
    error = 3 * square.std() / np.sqrt(len(square))
    assert noise == pytest.approx(square.mean(), abs=error)
    assert error < 0.03 * noise
    overlap = inner(np.asarray(start.attention, float), q, mu)
    found = float(fewshot.noise_to_signal("pattern", start, task))
    assert found == pytest.approx(np.sqrt(noise) / overlap, rel=1e-4)


def test_a_known_p_alone_gains_a_loss_of_order_one_over_t() -> None:
    task = make_task()
    p, mu, _ = as_numpy(task)
    start = scbjax.init_params(task)
    known = start._replace(value=task.transition)
    gain = population_loss(start, task) - population_loss(known, task)
    expected = (inner(p, p, mu) - np.sum(mu**2)) / (2 * LENGTH)
    assert float(gain) == pytest.approx(expected, rel=0.02)


STUDY: dict[str, Any] = {
    "experiment": "fewshot",
    "task": {"num_tokens": 4, "context_length": 60, "sparsity": 2, "skew": 1.3},
    "train": {"batch_size": 64, "steps": 60, "record_every": 20},
    "transfer": {"correlation": 0.6},
}


def swept(kept: str) -> xr.Dataset:
    values = {"transfer.kept": kept, "transfer.num_tasks": 64}
    return scbjax.sweep.run(STUDY, set=values, axes={"seed": range(3)}, progress=False)


@pytest.mark.slow
def test_a_small_sweep_learns_a_new_q() -> None:
    found = swept("transition")
    assert (found.columns_found.isel(step=0) < 1).all()
    assert (found.columns_found.isel(step=-1) == 1).all()
    assert (found.rounded_attention_distance.isel(step=-1) < 0.2).all()
    assert (found.rounded_value_distance.isel(step=-1) < 0.2).all()
    # The signal of what is kept stays.
    first = found.alpha_value.isel(step=[0] * 4)
    np.testing.assert_allclose(found.alpha_value, first, rtol=1e-5)
    assert ((found.alpha_value > 0.3) & (found.alpha_value < 1)).all()


@pytest.mark.slow  # compiled anew
def test_a_small_sweep_learns_a_new_p() -> None:
    found = swept("pattern")
    np.testing.assert_allclose(found.alpha_value.isel(step=0), 0.0, atol=1e-5)
    off = found.delta_value / found.alpha_value
    assert (off.isel(step=-1) < 0.2).all()
    # Of n samples the error is the predicted one over sqrt n, within what single runs scatter.
    expected = found.noise_to_signal / np.sqrt(found.samples)
    share = (off / expected).isel(step=[2, 3])
    assert ((share > 0.4) & (share < 2)).all()
    # Rounding the mean of 64 patterns gives the pattern's support.
    assert (found.columns_found == 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transfer.num_tasks": 65}, "transfer.num_tasks must be an integer from 1 to 64, got 65"),
        ({"transfer.correlation": 1.5}, "transfer.correlation must be a number from 0.0 to 1.0"),
        ({"transfer.kept": "mu"}, "transfer.kept must be one of 'transition', 'pattern', got 'mu'"),
        ({"task.sparsity": 70}, "task.sparsity = 70 is larger than task.context_length = 60"),
    ],
)
def test_what_has_no_meaning_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=re.escape(message)):
        scbjax.sweep.run(STUDY, set=changes, axes={"seed": range(2)}, progress=False)
